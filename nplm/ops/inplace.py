"""Methods that change a tensor in place: `p.add_(...)`, `x.zero_()`, `x[i] = v`.

They are not recorded, so a tensor that requires a gradient takes them only under `no_grad()`. Nor
is it noticed when a value that a backward still needs is changed: torch counts versions, nplm not.
"""

from __future__ import annotations

from typing import Any

from nplm.autograd.tensor import Tensor, in_place_target
from nplm.ops.api import raw_key


def _operand(value: Any) -> Any:
    return value.array if isinstance(value, Tensor) else value


def add_(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """self += alpha * other"""
    array = in_place_target(self, "add_")
    other = _operand(other)
    array += other if alpha == 1 else alpha * other
    return self


def sub_(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """self -= alpha * other"""
    array = in_place_target(self, "sub_")
    other = _operand(other)
    array -= other if alpha == 1 else alpha * other
    return self


def mul_(self: Tensor, other: Any) -> Tensor:
    """self *= other"""
    array = in_place_target(self, "mul_")
    array *= _operand(other)
    return self


def div_(self: Tensor, other: Any) -> Tensor:
    """self /= other"""
    array = in_place_target(self, "div_")
    array /= _operand(other)
    return self


def fill_(self: Tensor, value: float) -> Tensor:
    """Every element becomes `value`."""
    in_place_target(self, "fill_")[...] = _operand(value)
    return self


def zero_(self: Tensor) -> Tensor:
    """Every element becomes 0."""
    return fill_(self, 0)


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
    in_place_target(self, "setitem")[raw_key(key)] = _operand(value)
