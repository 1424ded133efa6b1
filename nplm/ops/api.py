"""Functions and methods with torch's signatures where they differ from an op's.

Most names need nothing here: `nplm.exp` is the op. What takes a list, a free number of sizes, or
means several ops by one name (`max`, `where`, `to`) is put together from ops below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nplm.autograd.factory import tensor
from nplm.autograd.op import op
from nplm.autograd.tensor import Tensor
from nplm.backend import namespace_for
from nplm.backend.dtypes import bfloat16, bool_, float32, float64, int32, int64
from nplm.ops import elementwise, reduce, shape
from nplm.ops.creation import order_of, size_of
from nplm.ops.reduce import axes_of


class ValuesIndices(NamedTuple):
    """What `max(dim)`, `sort` and `topk` return.  Twin: torch.return_types.max"""

    values: Tensor
    indices: Tensor


# ---- shape ---------------------------------------------------------------------------------------
def reshape(input: Tensor, *shape_: Any) -> Tensor:
    """The same elements in another shape: `x.reshape(2, -1)` or `x.reshape((2, -1))`."""
    return shape.reshape(input, size_of(shape_))


def permute(input: Tensor, *dims: Any) -> Tensor:
    """Axes in a new order: `x.permute(0, 2, 1)` or `x.permute((0, 2, 1))`."""
    return shape.permute(input, size_of(dims))


def expand(input: Tensor, *sizes: Any) -> Tensor:
    """A read-only view, broadcast to the given sizes; -1 keeps one."""
    return shape.expand(input, size_of(sizes))


def flip(input: Tensor, *dims: Any) -> Tensor:
    """The order along the given axes reversed."""
    return shape.flip(input, size_of(dims))


def t(input: Tensor) -> Tensor:
    """A matrix transposed; a vector is left as it is."""
    if input.ndim > 2:
        raise RuntimeError(f"t: expected at most 2 axes, got {input.shape}; use transpose")
    return input if input.ndim < 2 else shape.transpose(input, 0, 1)


def squeeze(input: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Without the axes of size 1 (or without those of `dim` that have size 1)."""
    axes = axes_of("squeeze", dim, input.ndim)
    return shape.reshape(
        input, tuple(n for i, n in enumerate(input.shape) if not (n == 1 and i in axes))
    )


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new axis of size 1 at `dim`."""
    if not -input.ndim - 1 <= dim <= input.ndim:
        raise IndexError(
            f"unsqueeze: dimension out of range (expected to be in "
            f"[{-input.ndim - 1}, {input.ndim}], got {dim})"
        )
    dim %= input.ndim + 1
    return shape.reshape(input, (*input.shape[:dim], 1, *input.shape[dim:]))


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from start_dim to end_dim as one."""
    if input.ndim == 0:
        return shape.reshape(input, (1,))
    start, end = (axes_of("flatten", d, input.ndim)[0] for d in (start_dim, end_dim))
    sizes = input.shape
    merged = int(np.prod(sizes[start : end + 1], dtype=np.int64))
    return shape.reshape(input, (*sizes[:start], merged, *sizes[end + 1 :]))


# ---- joining and splitting -----------------------------------------------------------------------
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors one behind the other along dim."""
    if not tensors:
        raise ValueError("cat: expected a non-empty list of tensors, got an empty one")
    return shape.concat(*tensors, dim=dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    if len({t.shape for t in tensors}) != 1:
        raise RuntimeError(
            f"stack: expected tensors of equal size, got {[t.shape for t in tensors]}"
        )
    return shape.concat(*[unsqueeze(t, dim) for t in tensors], dim=dim)


def split(input: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> Any:
    """A tuple of pieces along dim: of one size (the last may be smaller) or of the given sizes."""
    n = input.shape[dim]
    sizes = split_size_or_sections
    if isinstance(sizes, int):
        if sizes <= 0:
            raise RuntimeError(f"split: expected a positive size, got {sizes}")
        sizes = [min(sizes, n - start) for start in range(0, n, sizes)] or [0]
    return shape.split(input, list(sizes), dim)


def chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:
    """At most `chunks` pieces of equal size along dim, the last one smaller."""
    if input.shape[dim] == 0:
        return shape.split(input, [0] * chunks, dim)
    return split(input, -(-input.shape[dim] // chunks), dim)


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """A tuple of the slices along dim."""
    if input.shape[dim] == 0:
        return ()
    return tuple(squeeze(part, dim) for part in split(input, 1, dim))


# ---- choosing ------------------------------------------------------------------------------------
def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """`input` where the condition holds, else `other`; tensors or numbers, all broadcast."""
    if not isinstance(input, Tensor) and not isinstance(other, Tensor):
        input = tensor(input, device=condition.device)
    return elementwise.where(condition, input, other)


def masked_fill(input: Tensor, mask: Tensor, value: float) -> Tensor:
    """`value` where the mask holds, else `input`, in the dtype of `input`."""
    return elementwise.where(mask, tensor(value, input.dtype, input.device), input)


def getitem(input: Tensor, key: Any) -> Tensor:
    """`input[key]`, with tensors in the key as their arrays."""
    return shape.getitem(input, raw_key(key))


def raw_key(key: Any) -> Any:
    """An index in which every tensor is replaced by its array."""
    if isinstance(key, tuple):
        return tuple(raw_key(k) for k in key)
    return key.array if isinstance(key, Tensor) else key


def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """y[i][j] = input[index[i][j]][j] for dim 0."""
    return shape.gather(input, dim, index.array)


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices along dim that a 1-D index names."""
    axis = axes_of("index_select", dim, input.ndim)[0]
    return getitem(input, (slice(None),) * axis + (index,))


def bitwise(name: str, input: Tensor, *others: Any) -> Tensor:
    """`&`, `|` and `~` of booleans; torch's bitwise ones of integers are not here."""
    for x in (input, *others):
        if (x.dtype if isinstance(x, Tensor) else type(x)) not in (bool_, bool):
            raise TypeError(f"{name}: expected booleans; compare first, or use nplm.logical_{name}")
    return getattr(elementwise, f"logical_{name}")(input, *others)


# ---- reductions ----------------------------------------------------------------------------------
def _extreme(name: str, input: Tensor, dim: Any, keepdim: bool) -> Any:
    if isinstance(dim, Tensor):
        return getattr(elementwise, f"{name}imum")(input, dim)
    if dim is None:
        return getattr(reduce, f"a{name}")(input)
    return ValuesIndices(*getattr(reduce, f"{name}_along")(input, dim, keepdim))


def max_of(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element; with `dim` (values, indices) along it; with a tensor, elementwise."""
    return _extreme("max", input, dim, keepdim)


def min_of(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; with `dim` (values, indices) along it; with a tensor, elementwise."""
    return _extreme("min", input, dim, keepdim)


def std(input: Tensor, dim: Any = None, *, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The square root of `var`; the gradient is 0 where all elements are equal, as in torch."""
    n = reduce.count(input, axes_of("std", dim, input.ndim)) - correction
    centred = input - reduce.mean(input, dim, True)
    return reduce.norm(centred, dim, keepdim) / tensor(n, input.dtype, input.device).clamp(0).sqrt()


def norm(input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The Euclidean norm, p = 2 or "fro"."""
    if p not in (2, "fro"):
        raise NotImplementedError(f"norm: p={p!r} is not supported; expected 2")
    return reduce.norm(input, dim, keepdim)


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether |input - other| <= atol + rtol |other| everywhere."""
    a, b = np.asarray(input.detach()), np.asarray(other.detach())
    return bool(np.allclose(a, b, rtol, atol, equal_nan))


# ---- dtype and device ----------------------------------------------------------------------------
@op
def transfer(xp, x, device: str):
    """x on another device; the gradient goes back to that of x.   Twin: torch.Tensor.to"""
    there, home = namespace_for(device), xp.device_of(x)
    y = there.asarray(xp.to_numpy(x) if there is not xp else x, None, device)
    return there.copy(y), lambda dy: (xp.asarray(there.to_numpy(dy), None, home),)


def destination(args: tuple[Any, ...], device: str | None, dtype: Any) -> tuple[str | None, Any]:
    """(device, dtype) from the arguments of `to`; None: as it is."""
    for arg in args:
        if isinstance(arg, Tensor):
            device, dtype = arg.device, arg.dtype
        elif isinstance(arg, str) and arg not in np.sctypeDict:
            device = arg
        else:
            dtype = arg
    return device, dtype


def to(input: Tensor, *args: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """`x.to(dtype)`, `x.to(device)`, `x.to(device, dtype)`, `x.to(other)`: recorded copies."""
    device, dtype = destination(args, device, dtype)
    if device is not None and device != input.device and dtype is bfloat16:
        input = transfer(input, device)  # first: NumPy has none
    if dtype is not None and (dtype if dtype is bfloat16 else np.dtype(dtype)) != input.dtype:
        input = elementwise.cast(input, dtype)
    if device is not None and device != input.device:
        input = transfer(input, device)
    return input


def type_as(input: Tensor, other: Tensor) -> Tensor:
    """In the dtype of `other`."""
    return to(input, dtype=other.dtype)


def cpu(input: Tensor) -> Tensor:
    """On the NumPy backend."""
    return to(input, device="cpu")


def to_float32(input: Tensor) -> Tensor:
    """As float32."""
    return to(input, dtype=float32)


def to_float64(input: Tensor) -> Tensor:
    """As float64."""
    return to(input, dtype=float64)


def to_int32(input: Tensor) -> Tensor:
    """As int32; the fraction is cut off."""
    return to(input, dtype=int32)


def to_int64(input: Tensor) -> Tensor:
    """As int64; the fraction is cut off."""
    return to(input, dtype=int64)


def to_bool(input: Tensor) -> Tensor:
    """False where it is zero."""
    return elementwise.ne(input, 0)


def contiguous(input: Tensor) -> Tensor:
    """The tensor itself, or a copy whose axes stand in memory in their order, as in torch.

    No op asks for it, but random numbers are drawn in the order of memory.
    """
    order, _ = order_of(input)
    return input if list(order) == sorted(order) else copy_of(input)


def clone(input: Tensor) -> Tensor:
    """A recorded copy in memory of its own."""
    return copy_of(input)


@op
def copy_of(xp, x):
    """The same values in memory of their own.   Twin: torch.clone"""
    return xp.copy(x), lambda dy: (dy,)
