"""Dropout on torch with the mask kept as bytes.  Read ops/dropout.py first."""

from __future__ import annotations

import torch

from nplm.autograd.op import override


def _fits(x, keep, p):
    return x.is_floating_point() and keep.dtype == torch.bool and keep.shape == x.shape and p < 1


@override(
    "dropout", backend="torch",
    when=lambda x, keep, p: _fits(x, keep, p) and (x.is_cuda or x.dtype == torch.bfloat16),
)  # fmt: skip
def dropout(xp, x, keep, p):
    """ops.dropout.dropout in one pass, for cards and for bfloat16, where 1 / (1 - p) would round.

    In float32 and float64 on the CPU the reference runs: its order of operations is torch's.
    """

    def dropped(x):
        return torch.ops.aten.native_dropout_backward(x, keep, 1 / (1 - p))

    return dropped(x), lambda dy: (dropped(dy), None)


dropout.bfloat16_only = True
