"""New tensors: zeros, ones, arange, the random ones, and their `_like` forms.  Twins: torch's."""

from __future__ import annotations

from typing import Any

import numpy as np

from nplm import random
from nplm.autograd.factory import tensor
from nplm.autograd.tensor import Tensor
from nplm.backend import namespace_for
from nplm.backend.dtypes import get_default_dtype


def size_of(size: tuple[Any, ...]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` mean the same shape."""
    if len(size) == 1 and isinstance(size[0], tuple | list):
        size = tuple(size[0])
    return tuple(int(n) for n in size)


def _place(values: np.ndarray, device: str, requires_grad: bool) -> Tensor:
    return Tensor(namespace_for(device).asarray(values, None, device), requires_grad)


def full(
    size: Any, fill_value: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor of one value; its dtype follows the value."""
    if dtype is None:
        kind = {bool: np.bool_, int: np.int64}.get(type(fill_value), get_default_dtype())
        dtype = np.dtype(kind)
    return _place(np.full(size_of((size,)), fill_value, dtype), device, requires_grad)


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


def zeros_like(input: Tensor, dtype: Any = None) -> Tensor:
    """Zeros of the shape, dtype and device of `input`."""
    return zeros(input.shape, dtype=dtype or input.dtype, device=input.device)


def ones_like(input: Tensor, dtype: Any = None) -> Tensor:
    """Ones of the shape, dtype and device of `input`."""
    return ones(input.shape, dtype=dtype or input.dtype, device=input.device)


def full_like(input: Tensor, fill_value: Any, dtype: Any = None) -> Tensor:
    """One value in the shape, dtype and device of `input`."""
    return full(input.shape, fill_value, dtype or input.dtype, input.device)


def arange(
    start: float, end: float | None = None, step: float = 1, dtype: Any = None, device: str = "cpu"
) -> Tensor:
    """start, start + step, ... below end.  Integers give int64, floats the default dtype."""
    start, end = (0, start) if end is None else (start, end)
    if dtype is None and any(isinstance(v, float) for v in (start, end, step)):
        dtype = get_default_dtype()
    return tensor(np.arange(start, end, step), dtype or None, device)


def eye(n: int, dtype: Any = None, device: str = "cpu") -> Tensor:
    """The (n, n) identity."""
    return _place(np.eye(n, dtype=dtype or get_default_dtype()), device, False)


# ---- random: torch's CPU stream, whatever the device ---------------------------------------------
def rand(
    *size: Any,
    generator: random.Generator | None = None,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Uniform in [0, 1)."""
    g, dtype = generator or random.default_generator, dtype or get_default_dtype()
    return _place(g.uniform(size_of(size), 0.0, 1.0, dtype), device, requires_grad)


def randn(
    *size: Any,
    generator: random.Generator | None = None,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Normal with mean 0 and standard deviation 1."""
    g, dtype = generator or random.default_generator, dtype or get_default_dtype()
    return _place(g.normal(size_of(size), 0.0, 1.0, dtype), device, requires_grad)


def randint(
    low: int,
    high: int | None = None,
    size: Any = None,
    generator: random.Generator | None = None,
    device: str = "cpu",
) -> Tensor:
    """Integers in [low, high): `randint(high, size)` or `randint(low, high, size)`, as in torch."""
    if size is None:
        low, high, size = 0, low, high
    assert high is not None
    g = generator or random.default_generator
    return _place(g.randint(low, high, size_of((size,))), device, False)


def randperm(n: int, generator: random.Generator | None = None, device: str = "cpu") -> Tensor:
    """The integers 0 .. n-1 in random order."""
    return _place((generator or random.default_generator).randperm(n), device, False)
