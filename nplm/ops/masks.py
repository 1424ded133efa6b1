"""Dropout's masks: drawn once for all rows and shared out over threads; or handed in.

The random stream does not know about threads: the k-th mask of a step is the k-th that the whole
batch would have drawn, so masks (and torch's) are the same for any number of shards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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


# ---- handed in -----------------------------------------------------------------------------------
class Asked(NamedTuple):
    """A mask that a function asks for: shape, dropout's p, the generator (None: the default)."""

    shape: tuple[int, ...]
    p: float
    generator: Any

    def keeping_all(self, like: Any) -> Any:
        """An array in its place, on the device of `like`, for which nothing is drawn."""
        return like.xp.asarray(np.ones(self.shape, np.bool_), None, like.device)


class HandedIn:
    """The masks of a function that is compiled, where what it draws would be a constant.

    Without masks it notes what is asked for; with masks, arrays, it hands them out in that order.
    """

    def __init__(self, masks: Iterable[Any] | None = None) -> None:
        self.asked: list[Asked] = []
        self.left = None if masks is None else iter(masks)

    def take(self, asked: Asked, like: Any) -> Any:
        """The next mask as an array on the device of `like`; while it notes, one that keeps all."""
        if self.left is not None:
            return next(self.left)
        self.asked.append(asked)
        return asked.keeping_all(like)


class _Here(threading.local):
    shard: ShardOfMasks | None = None
    handed_in: HandedIn | None = None


_here = _Here()


def use(shard: ShardOfMasks | None) -> None:
    """Let this thread's dropout take its masks from `shard`; None: from the stream itself."""
    _here.shard = shard


@contextmanager
def hand_in(masks: HandedIn) -> Iterator[None]:
    """This thread's dropout takes its masks from `masks`, for a while."""
    before, _here.handed_in = _here.handed_in, masks
    try:
        yield
    finally:
        _here.handed_in = before


def handed_in() -> HandedIn | None:
    """Where this thread's masks come from while a function is compiled."""
    return _here.handed_in


def in_use() -> ShardOfMasks | None:
    """Where this thread's masks come from, if not from the stream itself."""
    return _here.shard


def shared_out(shape: tuple[int, ...], draw: Draw) -> Any:
    """A mask of `shape`: `draw(shape)`, or this thread's rows of the whole batch's."""
    return draw(shape) if _here.shard is None else _here.shard.mask(shape, draw)
