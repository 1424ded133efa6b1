"""Ops that move elements and change none: reshaping, indexing, joining, splitting, triangles."""

import math
from collections.abc import Sequence
from typing import Any

from nplm.autograd.op import op
from nplm.ops.elementwise import unbroadcast
from nplm.ops.reduce import as_row, axes_of, axis_of


@op
def reshape(xp, x, shape: tuple[int, ...]):
    """The same elements in another shape; one size may be -1.   Twin: torch.reshape"""
    try:
        if min(shape, default=0) < -1:
            raise ValueError  # NumPy takes any negative size for -1
        y = x.reshape(shape)
    except (ValueError, RuntimeError):
        raise RuntimeError(
            f"reshape: shape {tuple(shape)} is invalid for input of size {math.prod(x.shape)}"
        ) from None
    before = x.shape
    return y, lambda dy: (dy.reshape(before),)


@op
def permute(xp, x, dims: tuple[int, ...]):
    """Axes in a new order.   Twin: torch.permute"""
    axes = tuple(axes_of("permute", d, x.ndim)[0] for d in dims)
    if sorted(axes) != list(range(x.ndim)):
        raise RuntimeError(f"permute: expected each of {x.ndim} axes once, got {tuple(dims)}")
    back = tuple(axes.index(i) for i in range(x.ndim))
    return xp.transpose(x, axes), lambda dy: (xp.transpose(dy, back),)


@op
def transpose(xp, x, dim0: int, dim1: int):
    """Two axes swapped.   Twin: torch.transpose"""
    (a, *_), (b, *_) = axes_of("transpose", dim0, x.ndim), axes_of("transpose", dim1, x.ndim)
    return xp.swapaxes(x, a, b), lambda dy: (xp.swapaxes(dy, a, b),)


@op
def expand(xp, x, shape: tuple[int, ...]):
    """x broadcast to a shape, as a read-only view; -1 keeps a size.   Twin: torch.Tensor.expand"""
    extra = len(shape) - x.ndim
    sizes = tuple(x.shape[i - extra] if n == -1 and i >= extra else n for i, n in enumerate(shape))
    return xp.broadcast_to(x, sizes), lambda dy: (unbroadcast(xp, dy, x),)


@op
def flip(xp, x, dims: tuple[int, ...]):
    """The order along the axes reversed.   Twin: torch.flip"""
    axes = axes_of("flip", dims, x.ndim) if dims else ()
    return xp.flip(x, axes), lambda dy: (xp.flip(dy, axes),)


def _check_matrix(name, x):
    if x.ndim < 2:
        raise RuntimeError(f"{name}: expected at least 2 axes, got {tuple(x.shape)}")


@op
def tril(xp, x, diagonal: int = 0):
    """The lower triangle of the last two axes, 0 above.   Twin: torch.tril"""
    _check_matrix("tril", x)
    return xp.tril(x, diagonal), lambda dy: (xp.tril(dy, diagonal),)


@op
def triu(xp, x, diagonal: int = 0):
    """The upper triangle of the last two axes, 0 below.   Twin: torch.triu"""
    _check_matrix("triu", x)
    return xp.triu(x, diagonal), lambda dy: (xp.triu(dy, diagonal),)


# ---- indexing ------------------------------------------------------------------------------------
@op
def getitem(xp, x, key: object):
    """x[key]: slices, integers, None, Ellipsis, boolean and integer arrays, mixed as in torch."""
    return xp.getitem(x, key), lambda dy: (xp.add_at(x.shape, key, dy),)


@op
def gather(xp, x, dim: int, index: Any):
    """y[i][j] = x[index[i][j]][j] for dim 0; index (array) may be smaller.   Twin: torch.gather"""
    axis, row = axis_of("gather", dim, x.ndim), as_row(x)
    places = as_row(index)

    def backward(dy):
        return (xp.scatter_add(row.shape, places, as_row(dy), axis).reshape(x.shape),)

    return xp.gather(row, places, axis).reshape(index.shape), backward


# ---- joining and splitting -----------------------------------------------------------------------
@op
def concat(xp, *xs, dim: int = 0):
    """Arrays one behind the other along dim.   Twin: torch.cat"""
    axis = axes_of("cat", dim, xs[0].ndim)[0]
    ends = [0]
    for x in xs:
        ends.append(ends[-1] + x.shape[axis])

    def backward(dy):
        parts = (_slice(dy, axis, a, b) for a, b in zip(ends, ends[1:]))
        return tuple(unbroadcast(xp, part, x) for part, x in zip(parts, xs))

    return xp.concat(xp.promote(*xs), axis), backward


@op
def split(xp, x, sizes: Sequence[int], dim: int = 0):
    """x cut along dim into pieces of the given sizes (views).   Twin: torch.split"""
    axis = axes_of("split", dim, x.ndim)[0]
    if sum(sizes) != x.shape[axis]:
        raise RuntimeError(
            f"split: expected sizes that add up to {x.shape[axis]} (axis {dim}), got {list(sizes)}"
        )
    ends = [0]
    for n in sizes:
        ends.append(ends[-1] + n)

    def backward(dys):
        return (xp.concat(dys, axis),)

    return tuple(_slice(x, axis, a, b) for a, b in zip(ends, ends[1:])), backward


def _slice(x, axis, start, stop):
    return x[(slice(None),) * axis + (slice(start, stop),)]
