"""Sinks: memory that waits for a leaf's gradient, so that a kernel writes it there itself.

While `flags.sinks` names one for a leaf, an op with `needs` finds it in place of True.  Reference
ops do not look and return the gradient as ever; a kernel that has written returns None for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nplm.autograd.graph import Array, Edge, Node, flags
from nplm.backend.numpy import add_rows
from nplm.backend.scratch import scratch
from nplm.backend.threads import products_in_parts

LEAST = 64  # rows of a product below which a second thread does not pay
LARGE_ONEHOT = 1 << 22  # elements of a one-hot matrix; above, rows wait in any case
LARGE_TABLE = 1 << 12  # rows; a table with more of them gets its rows' gradients later, by `settle`


class Sink:
    """One leaf's gradient in memory that somebody else owns (a part of a flat buffer).

    array       the sum so far; holds nothing until `filled`
    waiting     (ids, values) whose rows are to be added, in this order
    """

    __slots__ = ("array", "filled", "waiting")

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.filled = array, False
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, gradient: np.ndarray) -> None:
        """Add an array of this shape."""
        if self.filled:
            self.array += gradient
        else:
            self.array[...] = gradient
        self.filled = True

    def add_product(self, a: np.ndarray, b: np.ndarray, start: int = 0) -> None:
        """Add a @ b to the rows from `start` on; whoever writes part by part sets `filled` last.

        a (O, N), b (N, I); without a temporary for what arrives first.
        """

        def rows(low: int, high: int) -> None:
            place = self.array[start + low : start + high]
            if self.filled:
                place += np.matmul(a[low:high], b, out=scratch("sink", place.shape, place.dtype))
            else:
                np.matmul(a[low:high], b, out=place)

        products_in_parts(len(a), rows, LEAST)

    def add_rows(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Add values[i] (N, C) to row ids[i]: at once for a small table, when settled for a large.

        A large table is mostly untouched: zeros and a sum over it would cost more than the rows.
        """
        V = self.array.shape[0]
        if V > LARGE_TABLE or V * len(ids) > LARGE_ONEHOT:
            self.waiting.append((ids, values))
            return
        hits = np.zeros((V, len(ids)), values.dtype)  # onehot^T: the sum is one product
        hits[ids, np.arange(len(ids))] = 1.0
        self.add_product(hits, values)
        self.filled = True

    def settle(self, others: list[Sink]) -> None:
        """Add the rows that wait here, then those of the `others`, in order."""
        waiting = [rows for sink in (self, *others) for rows in sink.waiting]
        for sink in (self, *others):
            sink.waiting = []
        if waiting and not self.filled:
            self.array[...] = 0.0
            self.filled = True
        for ids, values in waiting:
            add_rows(self.array, values, ids)


def sinks_of(edges: tuple[Edge | None, ...], needs: tuple[bool, ...]) -> tuple[Any, ...]:
    """`needs` with the sink of every edge that ends in a leaf which has one."""
    sinks: Mapping[Node, Sink] | None = flags.sinks
    if not sinks:
        return needs
    return tuple([
        need if edge is None else sinks.get(edge[0], need) for edge, need in zip(edges, needs)
    ])  # fmt: skip


class SinkStore(dict[Any, Array]):
    """Sinks by leaf, as `backward(into=...)` wants them; other leaves land in the dict itself."""

    def __init__(self, sinks: Mapping[Any, Sink]) -> None:
        super().__init__()
        self.sinks = sinks

    def __contains__(self, leaf: object) -> bool:
        sink = self.sinks.get(leaf)
        return super().__contains__(leaf) if sink is None else sink.filled

    def __getitem__(self, leaf: Any) -> Array:
        sink = self.sinks.get(leaf)
        return super().__getitem__(leaf) if sink is None else sink.array

    def __setitem__(self, leaf: Any, gradient: Array) -> None:
        sink = self.sinks.get(leaf)
        if sink is None:
            super().__setitem__(leaf, gradient)
        elif gradient is not sink.array:  # `+=` gives the array itself back
            sink.add(gradient)
