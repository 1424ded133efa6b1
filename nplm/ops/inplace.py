"""Methods that change a tensor in place: `p.add_(...)`, `x.zero_()`, `x[i] = v`.

They are not recorded, so a tensor that requires a gradient takes them only under `no_grad()`. Nor
is it noticed when a value that a backward still needs is changed: torch counts versions, nplm not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nplm.autograd.graph import Array, flags
from nplm.autograd.op import common_namespace
from nplm.autograd.tensor import Tensor
from nplm.errors import GraphError
from nplm.ops.api import raw_key


def in_place_target(target: Tensor, what: str) -> Array:
    """The array of `target` if it may be written now, else a GraphError.  For in-place methods."""
    if flags.recording and target.requires_grad:
        raise GraphError(
            f"{what}: an in-place change of a tensor that requires a gradient is not recorded: "
            "use `with nplm.no_grad():`, or the op that returns a new tensor"
        )
    return target.array


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


def add_(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """self += alpha * other"""
    array = in_place_target(self, "add_")
    other = _operand(self, other, "add_")
    array += other if alpha == 1 else alpha * other
    return self


def sub_(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """self -= alpha * other"""
    array = in_place_target(self, "sub_")
    other = _operand(self, other, "sub_")
    array -= other if alpha == 1 else alpha * other
    return self


def mul_(self: Tensor, other: Any) -> Tensor:
    """self *= other"""
    array = in_place_target(self, "mul_")
    array *= _operand(self, other, "mul_")
    return self


def div_(self: Tensor, other: Any) -> Tensor:
    """self /= other"""
    array = in_place_target(self, "div_")
    array /= _operand(self, other, "div_")
    return self


def fill_(self: Tensor, value: float) -> Tensor:
    """Every element becomes `value`."""
    in_place_target(self, "fill_")[...] = _operand(self, value, "fill_")
    return self


def zero_(self: Tensor) -> Tensor:
    """Every element becomes 0."""
    in_place_target(self, "zero_")[...] = 0
    return self


def copy_(self: Tensor, source: Tensor) -> Tensor:
    """Take the values of `source` (it broadcasts; any backend, any dtype)."""
    array = in_place_target(self, "copy_")
    if not isinstance(source, Tensor) or source.xp is not self.xp:
        values = source.detach().cpu() if isinstance(source, Tensor) else source
        source = Tensor(self.xp.asarray(values, None, self.device))
    array[...] = self.xp.astype(source.array, array.dtype)
    return self


def clamp_(self: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """Hold every element in [min, max]."""
    array = in_place_target(self, "clamp_")
    array[...] = self.detach().clamp(min, max).array
    return self


def setitem(self: Tensor, key: Any, value: Any) -> None:
    """self[key] = value"""
    array = in_place_target(self, "setitem")
    self.xp.assign(array, raw_key(key), _operand(self, value, "setitem"))
