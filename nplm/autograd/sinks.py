"""Sinks: memory that waits for a leaf's gradient, so that a kernel writes it there itself.

While `flags.sinks` names one for a leaf, an op with `needs` finds it in place of True.  Reference
ops do not look and return the gradient as ever; a kernel that has written returns None for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nplm.autograd.graph import Array, Edge, Node, flags
from nplm.backend.numpy import add_rows
from nplm.backend.scratch import ones, scratch
from nplm.backend.threads import number_of_parts, products_in_parts

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
        self.complete()

    def add_product(self, a: np.ndarray, b: np.ndarray, start: int = 0) -> None:
        """Add a @ b to the rows from `start` on; `complete()` follows once all parts are in.

        a (O, N), b (N, I); without a temporary for what arrives first.
        """

        def rows(low: int, high: int) -> None:
            place = self.array[start + low : start + high]
            if self.filled:
                place += np.matmul(a[low:high], b, out=scratch("sink", place.shape, place.dtype))
            else:
                np.matmul(a[low:high], b, out=place)

        if number_of_parts(len(a), LEAST, products=True) <= 1:
            rows(0, len(a))
        else:
            products_in_parts(len(a), rows, LEAST)

    def add_sum(self, rows: np.ndarray) -> None:
        """Add the sum of rows (N, O), as a product: 3 times as fast as a sum."""
        every = ones(len(rows), rows.dtype)
        if self.filled:
            self.array += np.matmul(every, rows)
        else:
            np.matmul(every, rows, out=self.array)
        self.complete()

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
        self.complete()

    def complete(self) -> None:
        """All of a contribution is in; what comes next is added to it."""
        self.filled = True

    def settle(self, shards: Sequence[ShardSink] = ()) -> None:
        """Add the rows that wait; of a SharedSink also what waits in its `shards`."""
        if self.waiting and not self.filled:
            self.array[...] = 0.0
            self.filled = True
        for ids, values in self.waiting:
            add_rows(self.array, values, ids)
        self.waiting = []

    def empty(self, shards: Sequence[ShardSink] = ()) -> None:
        """Forget what is in it; of a SharedSink also what its `shards` have left."""
        self.filled, self.waiting = False, []


class SharedSink(Sink):
    """A sink that `n` shards fill at once, each through a ShardSink, in an order that is fixed.

    Shard i's k-th contribution has the place k n + i. Whoever has the place that is due writes to
    `array`, and nobody else does; who comes early leaves memory of its own. So nobody ever waits,
    and bits do not depend on who was fast.

    due         the first place whose contribution is not complete
    early       complete contributions of later places
    """

    __slots__ = ("due", "early", "lock", "n")

    def __init__(self, array: np.ndarray, n: int) -> None:
        super().__init__(array)
        self.n, self.due, self.lock = n, 0, threading.Lock()
        self.early: dict[int, np.ndarray] = {}

    def leave(self, place: int, gradient: np.ndarray) -> None:
        """Take a contribution that began before its turn, which may have come meanwhile."""
        with self.lock:
            if place != self.due:
                self.early[place] = gradient
                return
        self.add(gradient)
        self.advance()

    def advance(self) -> None:
        """What was due is in: add what follows and came early. The next place is due then."""
        self.filled = True
        while True:
            with self.lock:  # not while adding: until the next place is due nobody else writes
                self.due += 1
                gradient = self.early.pop(self.due, None)
            if gradient is None:
                return
            self.add(gradient)

    def settle(self, shards: Sequence[ShardSink] = ()) -> None:
        """Add what came early, passing over places that stayed empty; then rows, by shard."""
        for place in sorted(self.early):
            self.add(self.early.pop(place))
        self.due = 0
        for i, shard in enumerate(shards):
            shard.place = i
            if shard.waiting:
                self.waiting += shard.waiting
                shard.waiting = []
        if self.waiting:
            super().settle()

    def empty(self, shards: Sequence[ShardSink] = ()) -> None:
        """Forget everything, also what is half written."""
        super().empty()
        self.due, self.early = 0, {}
        for i, shard in enumerate(shards):
            shard.start(i)


class ShardSink(Sink):
    """One shard's side of a SharedSink: what it adds is the shard's next contribution.

    array       where that is written, the shared array or memory of its own, chosen when it begins
    filled      whether `array` holds something that it is added to
    place       of the contribution that comes next, or has `begun`
    """

    __slots__ = ("begun", "place", "shared")

    def __init__(self, shared: SharedSink, i: int) -> None:
        super().__init__(shared.array)
        self.shared = shared
        self.start(i)

    def start(self, place: int) -> None:
        """Have nothing written and nothing waiting; the next contribution has this place."""
        self.array, self.filled, self.begun = self.shared.array, False, False
        self.place, self.waiting = place, []

    def add(self, gradient: np.ndarray) -> None:
        """Add an array of this shape."""
        self._begin()
        super().add(gradient)

    def add_product(self, a: np.ndarray, b: np.ndarray, start: int = 0) -> None:
        """Add a @ b to the rows from `start` on.  Threads may write parts at once."""
        self._begin()
        super().add_product(a, b, start)

    def add_sum(self, rows: np.ndarray) -> None:
        """Add the sum of rows (N, O)."""
        self._begin()
        super().add_sum(rows)

    def _begin(self) -> None:
        """Choose where the contribution is written, if this is its first part."""
        shared = self.shared
        with shared.lock:
            if self.begun:
                return
            if self.place == shared.due:
                self.filled = shared.filled
            else:
                self.array = np.empty_like(shared.array)
            self.begun = True

    def complete(self) -> None:
        """All of the contribution is in: it gets its place in the sum."""
        shared, own, place = self.shared, self.array, self.place
        self.array, self.filled, self.begun = shared.array, False, False
        self.place += shared.n
        if own is shared.array:
            shared.advance()
        else:
            shared.leave(place, own)


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
