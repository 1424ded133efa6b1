"""Methods that change a tensor in place: `p.add_(...)`, `x.zero_()`, `x[i] = v`.

They are not recorded, so a tensor that requires a gradient takes them only under `no_grad()`. Nor
is it noticed when a value that a backward still needs is changed: torch counts versions, nplm not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from nplm.autograd.graph import flags
from nplm.autograd.op import common_namespace
from nplm.autograd.tensor import Tensor
from nplm.errors import GraphError
from nplm.ops.api import raw_key


def in_place_target(target: Tensor, what: str) -> None:
    """A GraphError unless `target` may be written now."""
    if flags.recording and target.requires_grad:
        raise GraphError(
            f"{what}: an in-place change of a tensor that requires a gradient is not recorded: "
            "use `with nplm.no_grad():`, or the op that returns a new tensor"
        )


def _operand(target: Tensor, value: Any, what: str) -> Any:
    """A number, or the array of a tensor that lies on the same device."""
    if isinstance(value, Tensor):
        common_namespace(what, [target, value])
        return value.array
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, bool | int | float):
        raise TypeError(
            f"{what}: expected a Tensor or a number, got {type(value).__name__}: "
            "wrap it with nplm.tensor(...)"
        )
    return value


def augmented(op: Any, change: Callable[..., Any]) -> Callable[..., Any]:
    """`x += y`: in place where nothing is recorded, else the op's result under the same name.

    torch writes into the tensor in both cases; a leaf that requires a gradient refuses in both.
    """

    def method(self: Tensor, other: Any) -> Any:
        recorded = flags.recording and isinstance(other, Tensor) and other.requires_grad
        if self.is_leaf and not (recorded and not self.requires_grad):
            return change(self, other)  # refuses a leaf that requires a gradient
        return op(self, other) if flags.recording else change(self, other)

    return method


def in_place(change: Callable[..., None]) -> Callable[..., Any]:
    """A method that may write `self`, says nothing about infinities, and returns `self`."""

    @functools.wraps(change)
    def method(self: Tensor, *args: Any, **options: Any) -> Tensor:
        in_place_target(self, change.__name__)
        with self.xp.quiet():
            change(self, *args, **options)
        return self

    return method


@in_place
def add_(self: Tensor, other: Any, *, alpha: float = 1) -> None:
    """self += alpha * other"""
    other = _operand(self, other, "add_")
    self.array += other if alpha == 1 else alpha * other


@in_place
def sub_(self: Tensor, other: Any, *, alpha: float = 1) -> None:
    """self -= alpha * other"""
    other = _operand(self, other, "sub_")
    self.array -= other if alpha == 1 else alpha * other


@in_place
def mul_(self: Tensor, other: Any) -> None:
    """self *= other"""
    self.array *= _operand(self, other, "mul_")


@in_place
def div_(self: Tensor, other: Any) -> None:
    """self /= other"""
    self.array /= _operand(self, other, "div_")


@in_place
def fill_(self: Tensor, value: float) -> None:
    """Every element becomes `value`."""
    self.array[...] = _operand(self, value, "fill_")


@in_place
def zero_(self: Tensor) -> None:
    """Every element becomes 0."""
    self.array[...] = 0


@in_place
def copy_(self: Tensor, source: Tensor) -> None:
    """Take the values of `source` (it broadcasts; any backend, any dtype)."""
    if not isinstance(source, Tensor) or source.xp is not self.xp:
        values = source.detach().cpu() if isinstance(source, Tensor) else source
        source = Tensor(self.xp.asarray(values, None, self.device))
    self.array[...] = self.xp.astype(source.array, self.array.dtype)


@in_place
def clamp_(self: Tensor, min: float | None = None, max: float | None = None) -> None:
    """Hold every element in [min, max]."""
    self.array[...] = self.detach().clamp(min, max).array


@in_place
def setitem(self: Tensor, key: Any, value: Any) -> None:
    """self[key] = value"""
    self.xp.assign(self.array, raw_key(key), _operand(self, value, "setitem"))
