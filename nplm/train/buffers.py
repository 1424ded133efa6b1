"""Flat gradient buffers: where the shards of a window write, and how that becomes every `.grad`.

A large model's shards write into one, in an order that autograd/sinks.py keeps.  A small model's
have one each, added up at the end: nobody asks for a lock, and a shard may be a process.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from nplm.autograd.sinks import ShardSink, SharedSink, Sink
from nplm.autograd.tensor import Tensor
from nplm.nn.module import Module

Array = npt.NDArray[Any]

APART = 1 << 22  # parameters up to which every shard has a buffer of its own: 16 MB in float32


def _memory(p: Any) -> Any:
    """The array that a parameter's array is a part of, or itself."""
    return p.array if p.array.base is None else p.array.base


class Buffer:
    """A flat gradient buffer and in it a Sink for every parameter, to which one shard writes.

    The order is that of the parameters' memory, so that flat parameters have flat gradients.
    """

    def __init__(self, parameters: list[Any], n: int = 1) -> None:
        first: dict[int, int] = {}  # of each flat buffer: a parameter that lies in it
        for i, p in enumerate(parameters):
            first.setdefault(id(_memory(p)), i)
        place = lambda p: (first[id(_memory(p))], p.array.__array_interface__["data"][0])  # noqa: E731
        self.parameters = sorted(parameters, key=place)
        self.arrays = [p.array for p in self.parameters]  # another array there: another buffer
        self.n, self.dtype = n, self.arrays[0].dtype
        self.size = sum(x.size for x in self.arrays)
        # Not zeroed, so what nobody writes (a frozen parameter's gradient) never becomes memory.
        views = self.views(np.empty(self.size, self.dtype))
        self.sinks: Sequence[Sink] = [Sink(view) for view in views]
        self.sides: list[Sequence[Sink]] = [self.sinks]  # of each shard, by parameter
        self.gradients = [Tensor(view) for view in views]

    def views(self, flat: Array) -> list[Array]:
        """The parts of an array (size,) that belong to the parameters, in their shapes."""
        ends = np.cumsum([0] + [x.size for x in self.arrays]).tolist()
        return [flat[a:b].reshape(x.shape) for x, a, b in zip(self.arrays, ends, ends[1:])]

    def fits(self, parameters: list[Any], n: int) -> bool:
        """Whether it was made for these arrays and so many shards."""
        alike = set(map(id, parameters)) == set(map(id, self.parameters))
        now = [p.array for p in self.parameters]
        return self.n == n and alike and all(a is b for a, b in zip(now, self.arrays))

    def empty(self) -> None:
        """Forget what is in any side."""
        for side in self.sides:
            for sink in side:
                sink.empty()

    def settle(self) -> None:
        """Add what still waits in any shard; no shard is at work."""
        for sink in self.sinks:
            sink.settle()

    def hand_over(self) -> None:
        """Every parameter that got a gradient has it in `.grad`: a view of the buffer."""
        for p, sink, gradient in zip(self.parameters, self.sinks, self.gradients):
            if sink.filled:
                p._grad = gradient  # not `p.grad`, which checks what it is given


class SharedBuffer(Buffer):
    """One buffer for `n` shards, which write to it in turns: for models whose size counts."""

    def __init__(self, parameters: list[Any], n: int) -> None:
        super().__init__(parameters, n)
        self.sinks = shared = [SharedSink(sink.array, n) for sink in self.sinks]
        self.sides = [[ShardSink(sink, i) for sink in shared] for i in range(n)]

    def empty(self) -> None:
        """Forget what is in any side."""
        for sink, *sides in zip(self.sinks, *self.sides):
            sink.empty(sides)

    def settle(self) -> None:
        """Add what came early or still waits, in the order of the shards."""
        for sink, *sides in zip(self.sinks, *self.sides):
            sink.settle(sides)


class ApartBuffer(Buffer):
    """A buffer for each of `n` shards; the first one's becomes the sum of all, in their order.

    What the others write is in memory that stays shared when this process forks.
    """

    def __init__(self, parameters: list[Any], n: int) -> None:
        super().__init__(parameters, n)
        others = [self.views(shared_memory(self.size, self.dtype)) for _ in range(1, n)]
        self.sides += [[Sink(view) for view in views] for views in others]

    def settle(self) -> None:
        """Add every other side to the first; their sinks are empty then."""
        super().settle()
        for side in self.sides[1:]:
            for total, sink in zip(self.sinks, side):
                sink.settle()
                if sink.filled:
                    total.add(sink.array)
                    sink.empty()


def shared_memory(n: int, dtype: Any) -> Array:
    """An array (n,) of zeros that this process and its forks see and write to alike."""
    return np.frombuffer(mmap.mmap(-1, max(1, n) * np.dtype(dtype).itemsize), dtype, n)


_buffers: WeakKeyDictionary[Module, Buffer] = WeakKeyDictionary()


def buffer_of(model: Module, parameters: list[Any], n: int) -> Buffer:
    """The model's buffer for `n` shards: made once, and again when its arrays change."""
    small = sum([p.array.size for p in parameters]) <= APART
    kind = Buffer if n == 1 else ApartBuffer if small else SharedBuffer
    buffer = _buffers.get(model)
    if type(buffer) is not kind or not buffer.fits(parameters, n):
        buffer = _buffers[model] = kind(parameters, n)
    buffer.empty()
    return buffer


def forget_buffers() -> None:
    """Every model gets a new one: in a fork these would be its parent's."""
    _buffers.clear()
