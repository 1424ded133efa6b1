"""layer_norm and rms_norm on torch, statistics in float32.  Read ops/norm.py first."""

from __future__ import annotations

import math

import torch

from nplm.autograd.op import override
from nplm.backend.torch_kernels.precision import lowered, wide

aten = torch.ops.aten


def _fits(x, weight=None, bias=None, n_axes=1, eps=0.0):
    """Rows with elements; parameters of a row's shape, in x's dtype or the one of its sums."""
    if not (x.is_floating_point() and 0 < n_axes <= x.ndim and x.numel() > 0):
        return False
    row, dtypes = x.shape[x.ndim - n_axes :], (x.dtype, wide(x.dtype))
    given = [v for v in (weight, bias) if v is not None]
    return all(v.shape == row and v.dtype in dtypes for v in given) and (
        len({v.dtype for v in given}) < 2 and (weight is not None or bias is None)
    )


def _parameter(v, x):
    """A parameter as a CUDA kernel reads it: in the dtype of x.  The CPU's take float32 too."""
    return lowered(v) if v is not None and x.is_cuda and x.dtype == torch.bfloat16 else v


@override(
    "layer_norm", backend="torch",
    when=lambda x, weight=None, *others, **options: (
        _fits(x, weight, *others, **options) and (x.dtype != torch.bfloat16 or weight is not None)
    ),
)  # fmt: skip
def layer_norm(xp, x, weight=None, bias=None, n_axes=1, eps=1e-5):
    """ops.norm.layer_norm by aten::native_layer_norm and its backward; x and two numbers a row are
    kept. bfloat16 without a weight is left to the reference: the CPU would round its statistics."""
    row = list(x.shape[x.ndim - n_axes :])
    dtypes = [None if v is None else v.dtype for v in (weight, bias)]
    weight, bias = _parameter(weight, x), _parameter(bias, x)
    y, mean, inv = aten.native_layer_norm(x, row, weight, bias, eps)

    def backward(dy):
        given = [weight is not None, bias is not None]
        by_hand = x.dtype == torch.bfloat16 and not x.is_cuda
        wanted = [True, False, False] if by_hand else [True, *given]
        dx, *others = aten.native_layer_norm_backward(
            dy, x, row, mean, inv, weight, bias, wanted
        )  # fmt: skip
        if by_hand:
            others = _sums_over_rows(dy, x, mean, inv, n_axes, given)
        return dx, *(None if t is None else g.to(t) for g, t in zip(others, dtypes))

    return y, backward


def _sums_over_rows(dy, x, mean, inv, n_axes, given):
    """The gradients of weight and bias, added up in float32.

    On CPUs aten adds bfloat16 rows to bfloat16 sums: 3 % off after a thousand rows.
    """
    row = x.shape[x.ndim - n_axes :]
    dy, x = dy.reshape(-1, *row).float(), x.reshape(-1, *row)
    per_row = (-1, *[1] * n_axes)
    n = (x - mean.reshape(per_row)).mul_(inv.reshape(per_row))  # float32, as the statistics are
    return [n.mul_(dy).sum(0) if given[0] else None, dy.sum(0) if given[1] else None]


@override("rms_norm", backend="torch", when=lambda x, weight=None, **o: _fits(x, weight, None, **o))
def rms_norm(xp, x, weight=None, n_axes=1, eps=1e-6):
    """ops.norm.rms_norm: by aten::_fused_rms_norm on CUDA, whose backward CPUs lack, else in few
    passes; x and one number a row are kept."""
    fused = x.is_cuda and hasattr(aten, "_fused_rms_norm_backward")
    return (_fused_rms_norm if fused else _rms_norm)(x, weight, n_axes, eps)


def _fused_rms_norm(x, weight, n_axes, eps):
    row, dtype = list(x.shape[x.ndim - n_axes :]), None if weight is None else weight.dtype
    weight = _parameter(weight, x)
    y, inv = aten._fused_rms_norm(x, row, weight, eps)

    def backward(dy):
        wanted = [True, weight is not None]
        dx, dweight = aten._fused_rms_norm_backward(dy, x, row, inv, weight, wanted)
        return dx, None if weight is None else dweight.to(dtype)

    return y, backward


def _rms_norm(x, weight, n_axes, eps):
    """y = x inv weight; dx = inv (dn - n mean(dn n)) with n = x inv, dn = dy weight."""
    shape, dtype, working = x.shape, x.dtype, wide(x.dtype)
    C = math.prod(shape[x.ndim - n_axes :])
    rows = x.reshape(-1, C)  # (N, C)
    weights = None if weight is None else weight.reshape(C).to(working)
    size = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=working)
    inv = (size * size).div_(C).add_(eps).rsqrt_()  # (N, 1)
    y = rows * inv
    y = y if weight is None else y.mul_(weights)

    def backward(dy):
        dn, n = dy.reshape(-1, C), rows * inv
        dweight = None
        if weight is not None:
            dweight = torch.mul(dn, n).sum(0).view(weight.shape).to(weight.dtype)
            dn = dn * weights
        dn = dn.to(working)
        share = (dn * n).mean(1, keepdim=True)
        dx = torch.addcmul(dn, n, share, value=-1).mul_(inv)
        return dx.to(dtype).view(shape), dweight

    return y.to(dtype).view(shape), backward
