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
    if first is None or not isinstance(first.base, np.ndarray) or not first.base.flags.c_contiguous:
        return None
    places = [dy.__array_interface__["data"][0] for dy in dys]
    strides = list(first.strides)
    if first.shape[axis] == 1:  # an axis of one element has no stride of its own
        strides[axis] = places[1] - places[0] if len(dys) > 1 else strides[axis]
    for dy, place, end in zip(dys, places, [*places[1:], None]):
        steps = zip(dy.shape, dy.strides, strides)
        if (
            dy.base is not first.base
            or dy.dtype != first.dtype
            or any(n > 1 and a != b for n, a, b in steps)
            or (end is not None and place + dy.shape[axis] * strides[axis] != end)
        ):
            return None
    start = places[0] - first.base.__array_interface__["data"][0]
    return np.ndarray(shape, first.dtype, first.base, start, strides)
