"""The dtypes that nplm knows, the default one, and torch's rule for mixing them.

A dtype is named by NumPy's object on every backend: `nplm.float32 == np.dtype("float32")`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

float32, float64 = np.dtype("float32"), np.dtype("float64")
int8, int16, int32, int64 = (np.dtype(f"int{bits}") for bits in (8, 16, 32, 64))
uint8 = np.dtype("uint8")
bool_ = np.dtype("bool")


class _BFloat16:
    """float32 without its last 16 bits, on torch devices only: NumPy has none.  Twin: torch's."""

    name, itemsize, kind = "bfloat16", 2, "f"

    def __repr__(self) -> str:
        return self.name


bfloat16: Any = _BFloat16()

FLOATING = (float32, float64)
SUPPORTED = (float32, float64, int8, int16, int32, int64, uint8, bool_)

_default = float32


def get_default_dtype() -> np.dtype[Any]:
    """The dtype of new floating tensors and parameters.  Twin: torch.get_default_dtype."""
    return _default


def set_default_dtype(dtype: Any) -> None:
    """Set the dtype of new floating tensors and parameters.  Twin: torch.set_default_dtype."""
    global _default
    if np.dtype(dtype) not in FLOATING:
        raise TypeError(f"set_default_dtype: expected float32 or float64, got {dtype}")
    _default = np.dtype(dtype)


def supported(dtype: Any) -> np.dtype[Any]:
    """`dtype` as NumPy's object, or a TypeError that lists what there is."""
    if dtype is bfloat16:
        raise TypeError("bfloat16: expected a torch device, NumPy has none; use .to('torch:cpu')")
    dtype = np.dtype(dtype)
    if dtype not in SUPPORTED:
        names = ", ".join(str(known) for known in SUPPORTED)
        raise TypeError(f"dtype {dtype} is not supported: expected one of {names}; cast it first")
    return dtype


def _merge(a: np.dtype[Any] | None, b: np.dtype[Any] | None) -> np.dtype[Any] | None:
    """The smallest dtype that holds both, but a float beats every integer (int64 + float32 is
    float32, where NumPy alone would say float64)."""
    if a is None or b is None:
        return a or b
    if (a in FLOATING) != (b in FLOATING):
        return a if a in FLOATING else b
    return np.promote_types(a, b)


def _combine(strong: np.dtype[Any] | None, weak: np.dtype[Any] | None) -> np.dtype[Any] | None:
    """`strong` decides, unless `weak` is of a higher kind (bool < integer < float)."""
    if strong is None or strong in FLOATING:
        return strong or weak
    if weak is None or not (strong == bool_ or weak in FLOATING):
        return strong
    return _merge(strong, weak)


def result_dtype(*operands: tuple[np.dtype[Any] | type, int]) -> np.dtype[Any]:
    """The dtype of a result from (dtype or Python type, ndim) pairs.  Twin: torch.result_type.

    Tensors with dimensions decide before 0-d tensors, and those before Python numbers.
    """
    levels: list[np.dtype[Any] | None] = [None, None, None]
    for kind, ndim in operands:
        if isinstance(kind, np.dtype):
            level, dtype = (0 if ndim else 1), kind
        else:
            level, dtype = 2, {bool: bool_, int: int64}.get(kind, _default)
        levels[level] = _merge(levels[level], dtype)
    result = _combine(levels[0], _combine(levels[1], levels[2]))
    assert result is not None
    return result
