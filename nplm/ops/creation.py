"""New tensors: zeros, ones, arange, and their `_like` forms; draws.py has the random ones.

Twins: torch's.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from nplm import random
from nplm.autograd.factory import as_tensor, tensor
from nplm.autograd.tensor import Tensor
from nplm.backend import namespace_for
from nplm.backend.dtypes import FLOATING, float64, get_default_dtype, int64
from nplm.errors import BackendError


def size_of(size: tuple[Any, ...]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` mean the same shape."""
    if len(size) == 1 and isinstance(size[0], tuple | list):
        size = tuple(size[0])
    return tuple(map(int, size))


def device(type: str, index: int | None = None) -> str:
    """The name of a device, checked: devices are plain strings in nplm, not objects as in torch.

    "cpu" (NumPy), "torch:cpu", "cuda" or "cuda:1", which `device("cuda", 1)` gives too.
    """
    name = type if index is None else f"{type}:{index}"
    known = re.fullmatch(r"cpu|torch:cpu|(?:torch:)?(cuda(?::\d+)?)", name)
    if known is None:
        raise BackendError(f"unknown device {name!r}: expected 'cpu', 'torch:cpu' or 'cuda'")
    return known[1] or name


def place(values: np.ndarray, device: str, requires_grad: bool = False) -> Tensor:
    """An array of the host as a tensor on a device."""
    return Tensor(namespace_for(device).asarray(values, None, device), requires_grad)


def order_of(input: Tensor) -> tuple[tuple[int, ...], bool]:
    """(axes from the slowest in memory to the fastest, whether that is contiguous)"""
    array = input.array
    on_host = isinstance(array, np.ndarray)
    strides, step = (array.strides, array.itemsize) if on_host else (array.stride(), 1)
    contiguous = random.is_contiguous(input.shape, strides, step)
    return random.memory_order(input.shape, strides), contiguous


def in_order(values: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Axes that came in `order` go back to their places; memory stays as it is."""
    return values.transpose(sorted(range(len(order)), key=order.__getitem__))


def full(
    size: Any, fill_value: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor of one value; its dtype follows the value."""
    if dtype is None:
        kind = {bool: np.bool_, int: np.int64}.get(type(fill_value), get_default_dtype())
        dtype = np.dtype(kind)
    return place(np.full(size_of((size,)), fill_value, dtype), device, requires_grad)


def zeros(
    *size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros, by default in the default dtype."""
    return full(size_of(size), 0, dtype or get_default_dtype(), device, requires_grad)


def ones(*size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of ones, by default in the default dtype."""
    return full(size_of(size), 1, dtype or get_default_dtype(), device, requires_grad)


def empty(
    *size: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor to be filled.  It holds zeros: an uninitialised read must be repeatable here."""
    return zeros(*size, dtype=dtype, device=device, requires_grad=requires_grad)


def empty_like(input: Tensor, dtype: Any = None) -> Tensor:
    """To be filled; zeros, as `empty` gives, of the shape, dtype and device of `input`."""
    return full_like(input, 0, dtype)


def zeros_like(input: Tensor, dtype: Any = None) -> Tensor:
    """Zeros of the shape, dtype and device of `input`."""
    return full_like(input, 0, dtype)


def ones_like(input: Tensor, dtype: Any = None) -> Tensor:
    """Ones of the shape, dtype and device of `input`."""
    return full_like(input, 1, dtype)


def full_like(input: Tensor, fill_value: Any, dtype: Any = None) -> Tensor:
    """One value in the shape, dtype and device of `input`, its axes in the same order in memory."""
    order, _ = order_of(input)
    shape = [input.shape[axis] for axis in order]
    values = np.full(shape, fill_value, np.dtype(dtype or input.dtype))
    return place(in_order(values, order), input.device)


def arange(
    start: float, end: float | None = None, step: float = 1, dtype: Any = None, device: str = "cpu"
) -> Tensor:
    """start, start + step, ... below end.  Integers give int64, floats the default dtype."""
    start, end = (0, start) if end is None else (start, end)
    if dtype is None and any(isinstance(v, float) for v in (start, end, step)):
        dtype = get_default_dtype()
    if device.startswith("cuda"):  # made there: a copy from the host could not be recorded
        xp = namespace_for(device)
        return Tensor(xp.arange(start, end, step, dtype or int64, device))
    return tensor(np.arange(start, end, step), dtype or None, device)


def linspace(
    start: Any,
    end: Any,
    steps: int,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """`steps` numbers from start to end, both included, evenly spaced   (steps,)

    Each half is counted from its own end and rounded once, as in torch: both ends are exact.
    """
    if steps < 0:
        raise RuntimeError(f"linspace: expected steps >= 0, got {steps}")
    kind = np.dtype(dtype or get_default_dtype())
    wide = kind if kind in FLOATING else float64
    ends = [v.item() if isinstance(v, Tensor) else v for v in (start, end)]
    low, high = (wide.type(kind.type(v)) for v in ends)
    step, places = (high - low) / wide.type(max(steps - 1, 1)), np.arange(steps, dtype=wide)
    from_low, from_high = (
        random.fused_multiply_add(places, step, low),
        random.fused_multiply_add(places[::-1], -step, high),
    )
    values = np.where(places < max(steps // 2, 1), from_low, from_high)
    return place(values.astype(kind), device, requires_grad)


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A tensor on "cpu" that shares the memory of an array."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(ndarray).__name__}")
    return as_tensor(ndarray)


def eye(n: int, dtype: Any = None, device: str = "cpu") -> Tensor:
    """The (n, n) identity."""
    return place(np.eye(n, dtype=dtype or get_default_dtype()), device, False)


# ---- methods: in the dtype and on the device of `input`, unless others are given -----------------
def new_tensor(
    input: Tensor, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A copy of `data`."""
    return tensor(data, dtype or input.dtype, device or input.device, requires_grad)


def new_full(
    input: Tensor,
    size: Any,
    fill_value: Any,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of one value."""
    return full(size, fill_value, dtype or input.dtype, device or input.device, requires_grad)


def new_zeros(
    input: Tensor, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros: `x.new_zeros(2, 3)` or `x.new_zeros((2, 3))`."""
    return new_full(input, size_of(size), 0, dtype, device, requires_grad)


def new_ones(
    input: Tensor, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ones: `x.new_ones(2, 3)` or `x.new_ones((2, 3))`."""
    return new_full(input, size_of(size), 1, dtype, device, requires_grad)
