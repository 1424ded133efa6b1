"""Ops that move elements, without moving them, on NumPy.  Read ops/shape.py first."""

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
    pieces, _ = OPS["split"].raw(xp, x, sizes, dim)
    shape, axis = x.shape, dim % x.ndim

    def backward(dys):
        whole = _one_array(dys, shape, axis)
        if whole is None:  # in the order of their memory, which is that of the layer above
            order = np.argsort([-abs(step) for step in dys[0].strides], kind="stable")
            whole = np.empty([shape[i] for i in order], dys[0].dtype).transpose(np.argsort(order))
            np.concatenate(dys, axis, out=whole)
        return (whole,)

    return pieces, backward


def _one_array(dys, shape, axis):
    """The part of one array that `dys` are consecutive views of, as a view of `shape`, or None."""
    dys = [dy for dy in dys if dy.shape[axis]]
    first = dys[0] if dys else None
    base = None if first is None else first.base
    if not isinstance(base, np.ndarray) or not base.flags.c_contiguous:
        return None
    if not all([dy.base is base for dy in dys]):
        return None
    places = [dy.__array_interface__["data"][0] for dy in dys]
    strides, dtype = list(first.strides), first.dtype
    if first.shape[axis] == 1:  # an axis of one element has no stride of its own
        strides[axis] = places[1] - places[0] if len(dys) > 1 else strides[axis]
    usual, end = tuple(strides), places[0]
    for dy, place in zip(dys, places):
        if place != end or dy.dtype != dtype:
            return None
        if dy.strides != usual and any(
            [n > 1 and a != b for n, a, b in zip(dy.shape, dy.strides, strides)]
        ):
            return None
        end = place + dy.shape[axis] * strides[axis]
    start = places[0] - base.__array_interface__["data"][0]
    return np.ndarray(shape, dtype, base, start, strides)
