"""How a module's tensors change device or dtype in place.  `Module.to` is the one that calls it."""

from __future__ import annotations

from typing import Any

import numpy as np

from nplm.autograd.tensor import Tensor
from nplm.backend import namespace_for
from nplm.backend.dtypes import FLOATING, bfloat16
from nplm.ops.api import destination


def floating_destination(
    args: tuple[Any, ...], device: str | None, dtype: Any
) -> tuple[str | None, Any]:
    """(device, dtype) from the arguments of `Module.to`; a dtype must be a floating one."""
    device, dtype = destination(args, device, dtype)
    if dtype is bfloat16:
        raise TypeError(
            "Module.to: expected float32 or float64, got bfloat16: parameters stay float32; run "
            "the model under nplm.autocast(device), which computes in bfloat16"
        )
    if dtype is not None and np.dtype(dtype) not in FLOATING:
        raise TypeError(f"Module.to: expected a floating dtype, got {dtype}")
    return device, dtype


def move(tensor: Tensor, device: str | None, dtype: Any) -> None:
    """Give a tensor and its gradient arrays of another device or dtype; it stays the same object.

    Integer tensors keep their dtype.
    """
    device, before = device or tensor.device, tensor.xp
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    xp = namespace_for(device)
    values = tensor.array if xp is before else before.to_numpy(tensor.array)
    array = xp.asarray(values, dtype, device)
    tensor.array, tensor.xp = (xp.copy(array) if xp is not before else array), xp
    tensor.forget_buffer()
    if tensor.grad is not None:
        move(tensor.grad, device, dtype)
