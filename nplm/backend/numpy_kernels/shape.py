"""Ops that move elements, without moving them, on NumPy.  Read ops/shape.py first."""

import math

import numpy as np

from nplm.autograd.op import OPS, override


@override("split", backend="numpy")
def split(xp, x, sizes, dim=0):
    """ops.shape.split: gradients that lie side by side in one array are that array, uncopied.

    Attention's dq, dk and dv do: its kernel has just made one array for the three. Handing the
    array itself on is as safe as a view of it, which is what `reshape` and `transpose` hand on:
    a gradient is never written again once its maker has returned it. The walk adds a second
    gradient out of place, a leaf copies what arrives, and no op may write to its dy.
    """
    pieces, join = OPS["split"].raw(xp, x, sizes, dim)
    shape, axis = x.shape, dim % x.ndim

    def backward(dys):
        whole = _one_array(dys, shape, axis)
        return join(dys) if whole is None else (whole,)

    return pieces, backward


def _one_array(dys, shape, axis):
    """The array of `shape` that all of `dys` are consecutive views of, or None."""
    base = dys[0].base
    if (
        not isinstance(base, np.ndarray)
        or base.size != math.prod(shape)
        or not base.flags.c_contiguous
    ):
        return None
    whole, start = base.reshape(shape), 0
    for dy in dys:
        stop = start + dy.shape[axis]
        if not _same_memory(dy, whole[(slice(None),) * axis + (slice(start, stop),)]):
            return None
        start = stop
    return whole


def _same_memory(x, y):
    """Whether two views are the same elements in the same places (an axis of 1 has no stride)."""
    return (
        x.shape == y.shape
        and x.dtype == y.dtype
        and x.__array_interface__["data"][0] == y.__array_interface__["data"][0]
        and all(n < 2 or s == t for n, s, t in zip(x.shape, x.strides, y.strides))
    )
