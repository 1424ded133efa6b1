"""`nplm.tensor` and `nplm.as_tensor`: from numbers and arrays to Tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from nplm.autograd.tensor import Tensor
from nplm.backend import namespace_for, namespace_of
from nplm.backend.dtypes import get_default_dtype


def tensor(
    data: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A new tensor with a copy of `data` (numbers, nested lists, an array).  Twin: torch.tensor.

    Python floats become the default dtype; arrays keep theirs. Raises ValueError for integers that
    int64 cannot hold, unless floats beside them or `dtype` make them floats.
    """
    if isinstance(data, Tensor):
        data = data.detach().array
    has_dtype = hasattr(data, "dtype")
    array = data if has_dtype else _from_python(data, dtype)
    if array.dtype == object:
        raise TypeError(f"tensor: expected numbers in a regular shape, got {type(data).__name__}")
    if dtype is None and not has_dtype and array.dtype == np.float64:
        dtype = get_default_dtype()
    xp = namespace_for(device)
    if xp.name == "numpy" and not isinstance(array, np.ndarray | np.generic):
        array = namespace_of(array).to_numpy(array)  # a torch tensor comes to NumPy
    return Tensor(xp.copy(xp.asarray(array, dtype, device)), requires_grad)


def _from_python(data: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Numbers as an array: NumPy alone makes integers beyond int64 floats, uint64 or objects."""
    array = np.asarray(data)
    large = array.dtype == np.float64 and bool((np.abs(array) >= 2.0**63).any())
    if not (large or array.dtype == object or array.dtype == np.uint64):
        return array
    numbers = np.asarray(data, object).reshape(-1).tolist()
    if not all(isinstance(number, int | float | np.number) for number in numbers):
        return array
    floating = any(isinstance(number, float | np.floating) for number in numbers)
    if floating if dtype is None else np.dtype(dtype).kind == "f":
        return np.asarray(data, np.float64)
    for number in numbers:
        if isinstance(number, int | np.integer) and not -(2**63) <= number < 2**63:
            raise ValueError(
                "tensor: expected integers in int64's range, [-2**63, 2**63), got one of "
                f"{int(number).bit_length()} bits; give dtype=nplm.float64 to have floats"
            )
    return array


def as_tensor(data: Any, dtype: Any = None, device: str = "cpu") -> Tensor:
    """`data` as a tensor; memory is shared when it can be.  Twin: torch.as_tensor."""
    if isinstance(data, Tensor) and data.device == device and dtype in (None, data.dtype):
        return data
    if isinstance(data, np.ndarray):
        xp = namespace_for(device)
        return Tensor(xp.asarray(data, dtype, device))
    return tensor(data, dtype, device)
