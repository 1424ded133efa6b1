"""Dropout's masks when a batch is divided over threads: drawn once for all rows, then shared out.

The random stream does not know about threads: the k-th mask of a step is the k-th that the whole
batch would have drawn, so masks (and torch's) are the same for any number of shards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Draw = Callable[[tuple[int, ...]], np.ndarray]


class SharedMasks:
    """The masks of one window of micro-batches, for `n` shards that all ask in the same order."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.lock = threading.Lock()
        self.drawn: dict[int, np.ndarray] = {}
        self.taken: dict[int, int] = {}

    def get(self, k: int, shape: tuple[int, ...], draw: Draw) -> np.ndarray:
        """The k-th mask, drawn by whoever asks first: after all masks before k, who asked those."""
        with self.lock:
            if k not in self.drawn:
                self.drawn[k], self.taken[k] = draw(shape), 0
            mask = self.drawn[k]
            self.taken[k] += 1
            if self.taken[k] == self.n:
                del self.drawn[k], self.taken[k]
        return mask


class ShardOfMasks:
    """One shard's view: rows [start, stop) of the B rows of the present micro-batch."""

    def __init__(self, shared: SharedMasks) -> None:
        self.shared, self.asked = shared, 0
        self.start, self.stop, self.B = 0, 0, 0

    def rows(self, start: int, stop: int, B: int) -> None:
        """The rows that this shard has of the next micro-batch."""
        self.start, self.stop, self.B = start, stop, B

    def mask(self, shape: tuple[int, ...], draw: Draw) -> np.ndarray:
        """The part of the whole batch's mask that belongs to an array of `shape` in this shard.

        The first axis counts rows, or rows times something.
        """
        n = self.stop - self.start
        if not shape or shape[0] % n:
            raise RuntimeError(
                f"dropout: expected a first axis that divides into the shard's {n} rows, got shape "
                f"{shape}; set model.row_independent = False to train it on one thread"
            )
        each = shape[0] // n  # positions of a row
        whole = self.shared.get(self.asked, (self.B * each, *shape[1:]), draw)
        self.asked += 1
        return whole[self.start * each : self.stop * each]


class _Here(threading.local):
    shard: ShardOfMasks | None = None


_here = _Here()


def use(shard: ShardOfMasks | None) -> None:
    """Let this thread's dropout take its masks from `shard`; None: from the stream itself."""
    _here.shard = shard


def in_use() -> ShardOfMasks | None:
    """Where this thread's masks come from, if not from the stream itself."""
    return _here.shard


def shared_out(shape: tuple[int, ...], draw: Draw) -> Any:
    """A mask of `shape`: `draw(shape)`, or this thread's rows of the whole batch's."""
    return draw(shape) if _here.shard is None else _here.shard.mask(shape, draw)
