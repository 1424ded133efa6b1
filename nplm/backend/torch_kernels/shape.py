"""`split` on torch: the gradient of the whole in the memory order of its maker.  Read ops/shape.py.

Attention's q, k and v are parts (B, H, T, D) of one layer's output, which lies in memory as
(B, T, 3 H, D): joined in that order, what the layer gets back needs no further copy.
"""

from __future__ import annotations

import torch

from nplm.autograd.op import OPS, override


@override("split", backend="torch")
def split(xp, x, sizes, dim=0):
    """ops.shape.split; parts of one array (`swiglu` makes them) are that array, uncopied."""
    pieces, _ = OPS["split"].raw(xp, x, sizes, dim)
    shape, axis = x.shape, dim % max(x.ndim, 1)

    def backward(dys):
        whole = _one_array(dys, axis)
        if whole is not None:
            return (whole,)
        order = sorted(range(len(shape)), key=lambda i: -dys[0].stride(i))  # a stable sort
        back = sorted(range(len(shape)), key=order.__getitem__)
        joined = torch.cat([dy.permute(order) for dy in dys], order.index(axis))
        return (joined.permute(back),)

    return pieces, backward


def _one_array(dys, axis):
    """The array that `dys` are the two halves of, in this order, along the last axis; or None."""
    if len(dys) != 2 or axis != dys[0].ndim - 1:
        return None
    whole, other = (getattr(dy, "part_of", None) for dy in dys)
    in_order = dys[0].storage_offset() < dys[1].storage_offset()
    return whole if whole is other and in_order else None
