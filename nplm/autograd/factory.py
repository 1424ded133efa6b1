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

    Python floats become the default dtype; arrays keep theirs.
    """
    if isinstance(data, Tensor):
        data = data.detach().array
    has_dtype = hasattr(data, "dtype")
    array = data if has_dtype else np.asarray(data)
    if array.dtype == object:
        raise TypeError(f"tensor: expected numbers in a regular shape, got {type(data).__name__}")
    if dtype is None and not has_dtype and array.dtype == np.float64:
        dtype = get_default_dtype()
    xp = namespace_for(device)
    if xp.name == "numpy" and not isinstance(array, np.ndarray | np.generic):
        array = namespace_of(array).to_numpy(array)  # a torch tensor comes to NumPy
    return Tensor(xp.copy(xp.asarray(array, dtype, device)), requires_grad)


def as_tensor(data: Any, dtype: Any = None, device: str = "cpu") -> Tensor:
    """`data` as a tensor; memory is shared when it can be.  Twin: torch.as_tensor."""
    if isinstance(data, Tensor) and data.device == device and dtype in (None, data.dtype):
        return data
    if isinstance(data, np.ndarray):
        xp = namespace_for(device)
        return Tensor(xp.asarray(data, dtype, device))
    return tensor(data, dtype, device)
