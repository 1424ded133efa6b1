"""The torch namespace: the functions of `contract.py` on `torch.Tensor`, on the CPU or on CUDA.

torch's kernels do the arithmetic; its autograd is never used: every tensor here is detached.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import reduce
from typing import Any

import numpy as np
import torch

from nplm.backend.dtypes import (
    FLOATING,
    SUPPORTED,
    bfloat16,
    get_default_dtype,
    result_dtype,
    supported,
)
from nplm.errors import BackendError

Array = torch.Tensor
name = "torch"

_TORCH: dict[Any, torch.dtype] = {dtype: getattr(torch, dtype.name) for dtype in SUPPORTED}
_TORCH[bfloat16] = torch.bfloat16
_NUMPY = {theirs: ours for ours, theirs in _TORCH.items()}


def _native(dtype):
    if isinstance(dtype, torch.dtype):
        return dtype
    return torch.bfloat16 if dtype is bfloat16 else _TORCH[supported(dtype)]


def _place(device: str) -> str:
    if device == "torch:cpu":
        return "cpu"
    found = re.fullmatch("cuda(?::(0|[1-9][0-9]*))?", device)
    if not found:
        raise BackendError(
            f"device '{device}' is not torch's: expected 'torch:cpu', 'cuda' or 'cuda:N'"
        )
    if not torch.cuda.is_available():
        raise BackendError(f"device '{device}': this torch sees no CUDA device; use 'torch:cpu'")
    if int(found[1] or 0) >= (count := torch.cuda.device_count()):
        raise BackendError(f"device '{device}': expected at most 'cuda:{count - 1}', the last one")
    return device


def devices() -> dict[str, str]:
    """Every device of torch that there is now, and what it is: {"cuda:0": "NVIDIA H100", ...}."""
    found = {"torch:cpu": f"PyTorch {torch.__version__}"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    return found


# ---- arrays in and out: for Tensor and for updates, not for ops ----------------------------------
def asarray(value: Any, dtype: Any = None, device: str = "torch:cpu") -> Array:
    """`value` as a detached torch tensor on `device`; shares memory when it can."""
    if not isinstance(value, torch.Tensor):
        value = np.asarray(value)
        value = torch.from_numpy(value if value.flags.writeable else value.copy())
    native, place = _native(dtype or dtype_of(value)), _place(device)
    if place != "cpu" and value.device.type == "cpu":  # a copy that nobody has to wait for
        return value.detach().to(native).pin_memory().to(place, non_blocking=True)
    return value.detach().to(place, native)


def to_numpy(x: Array) -> np.ndarray:
    """A NumPy array; shares memory on the CPU.  NumPy has no bfloat16: that becomes float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def copy(x: Array) -> Array:
    """A contiguous copy."""
    return x.detach().clone(memory_format=torch.contiguous_format)


def dtype_of(x: Array) -> np.dtype[Any]:
    """The dtype, as NumPy names it on every backend."""
    if x.dtype not in _NUMPY:
        return supported(str(x.dtype).removeprefix("torch."))  # raises, and lists what there is
    return _NUMPY[x.dtype]


def arange(start: float, end: float, step: float, dtype: Any, device: str) -> Array:
    """start, start + step, ... below end, made on the device."""
    return torch.arange(start, end, step, dtype=_native(dtype), device=_place(device))


def dropout_mask(shape: tuple[int, ...], p: float, seed: int, like: Array) -> Array:
    """True with probability 1 - p, from a stream of its own on the device of `like`."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.rand(shape, device=like.device, generator=generator) >= p


def device_of(x: Array) -> str:
    """`"torch:cpu"` or `"cuda"`, `"cuda:1"`: the string that `to` takes."""
    return "torch:cpu" if x.device.type == "cpu" else str(x.device)


def quiet() -> Any:
    """torch gives no warnings for infinities and NaN."""
    return nullcontext()


# ---- making arrays -------------------------------------------------------------------------------
def zeros(shape, like, dtype=None):
    return torch.zeros(shape, dtype=_native(dtype or like.dtype), device=like.device)


def ones(shape, like, dtype=None):
    return torch.ones(shape, dtype=_native(dtype or like.dtype), device=like.device)


def full(shape, value, like, dtype=None):
    return torch.full(shape, value, dtype=_native(dtype or like.dtype), device=like.device)


# ---- dtypes --------------------------------------------------------------------------------------
def astype(x, dtype):
    return x.to(_native(dtype))


def is_floating(x):
    return x.is_floating_point()


def promote(*operands):
    arrays = [x for x in operands if isinstance(x, torch.Tensor)]
    if len(arrays) == len(operands) and len({x.dtype for x in arrays}) == 1:
        return operands
    if torch.bfloat16 in [x.dtype for x in arrays]:
        deciding = [x.dtype for x in arrays if x.ndim] or [x.dtype for x in arrays]
        dtype = reduce(torch.promote_types, deciding)
        return tuple(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in operands)
    dtype = _TORCH[
        result_dtype(
            *(
                (dtype_of(x), x.ndim) if isinstance(x, torch.Tensor) else (type(x), 0)
                for x in operands
            )
        )
    ]
    return tuple(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in operands)


def to_float(x):
    return x if x.is_floating_point() or dtype_of(x) in FLOATING else astype(x, get_default_dtype())


# ---- elementwise ---------------------------------------------------------------------------------
exp, log, sqrt, tanh, sin, cos, erf = (
    torch.exp, torch.log, torch.sqrt, torch.tanh, torch.sin, torch.cos, torch.erf,
)  # fmt: skip
abs, sign, sigmoid, isnan = torch.abs, torch.sign, torch.sigmoid, torch.isnan


def _as_operands(x, y):
    """`torch.maximum` takes tensors only, where NumPy takes numbers too."""
    like = x if isinstance(x, torch.Tensor) else y
    return (v if isinstance(v, torch.Tensor) else full((), v, like) for v in (x, y))


def maximum(x, y):
    return torch.maximum(*_as_operands(x, y))


def minimum(x, y):
    return torch.minimum(*_as_operands(x, y))


where = torch.where


# ---- reductions ----------------------------------------------------------------------------------
def _over(reduce):
    """`reduce` with NumPy's axis: None is every axis, an empty tuple none (torch: every axis)."""

    def reduced(x, axis=None, keepdims=False):
        axes = tuple(range(x.ndim)) if axis is None else axis
        if axes == ():  # one element each, which is not `x` itself: the memory is not shared
            return reduce(x.unsqueeze(0), dim=0)
        return reduce(x, dim=axes, keepdim=keepdims)

    return reduced


sum, mean, amax, amin = _over(torch.sum), _over(torch.mean), _over(torch.amax), _over(torch.amin)
any, all = _over(torch.any), _over(torch.all)


def argmax(x, axis=None, keepdims=False):
    return torch.argmax(x, dim=axis, keepdim=keepdims)


def argmin(x, axis=None, keepdims=False):
    return torch.argmin(x, dim=axis, keepdim=keepdims)


cumsum = torch.cumsum


# ---- products and shape --------------------------------------------------------------------------
matmul = torch.matmul
transpose, swapaxes, broadcast_to, concat = (
    torch.permute, torch.swapaxes, torch.broadcast_to, torch.cat,
)  # fmt: skip
tril, triu = torch.tril, torch.triu


def flip(x, axis):
    return torch.flip(x, (axis,) if isinstance(axis, int) else axis)


# ---- indexing ------------------------------------------------------------------------------------
def _key(x, key):
    """The index with arrays of other kinds (lists, NumPy's) as tensors on the device of `x`."""
    if isinstance(key, tuple):
        return tuple(_key(x, k) for k in key)
    return torch.as_tensor(key, device=x.device) if isinstance(key, list | np.ndarray) else key


def getitem(x, key):
    return x[_key(x, key)]


def assign(x, key, values):
    """x[key] = values, for `Tensor.__setitem__`: not an op's business."""
    x[_key(x, key)] = values


def add_at(shape, key, values):
    out = torch.zeros(shape, dtype=values.dtype, device=values.device)
    key = _key(out, key)
    parts = key if isinstance(key, tuple) else (key,)
    if not [k for k in parts if isinstance(k, torch.Tensor)]:
        out[key] = values
        return out
    # The number of every place of `out`, indexed the same way, says where each value belongs.
    places = torch.arange(out.numel(), device=out.device).reshape(shape)[key]
    return out.reshape(-1).index_add_(0, places.reshape(-1), values.reshape(-1)).reshape(shape)


def gather(x, index, axis):
    return torch.gather(x, axis, index)


def scatter_add(shape, index, values, axis):
    out = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return out.scatter_add_(axis, index, values)


def take_rows(table, ids):
    return table[ids]


def sum_rows(values, ids, n):
    out = torch.zeros((n, values.shape[1]), dtype=values.dtype, device=values.device)
    return out.index_add_(0, ids, values)
