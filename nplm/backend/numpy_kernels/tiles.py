"""Rows worked on a tile at a time, so that temporaries stay small; rows shared out over threads.

Read backend/threads.py before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nplm.backend.threads import in_parts, number_of_parts

# Elements of a tile: a call then lasts long beside what starting it costs, and beside the wait for
# the interpreter's lock, which changes hands at every call when shards run side by side.
TILE = 200_000
LEAST = 1 << 16  # elements of a part that make another thread worth waking


def in_tiles(n: int, width: int, body: Callable[[int, int], Any]) -> None:
    """Call `body(start, stop)` on tiles of n rows of `width` elements, and parts of them at once.

    Tiles are of equal size, up to one row. Each call writes to its own rows.
    """
    least = -(-LEAST // width)
    if n * width <= TILE and number_of_parts(n, least) <= 1:
        if n > 0:
            body(0, n)
        return

    def part(start: int, stop: int) -> None:
        if (stop - start) * width <= TILE:
            body(start, stop)
            return
        tiles = min(stop - start, -(-(stop - start) * width // TILE))
        ends = [start + (stop - start) * k // tiles for k in range(tiles + 1)]
        for i, j in zip(ends, ends[1:]):
            body(i, j)

    in_parts(n, part, least)
