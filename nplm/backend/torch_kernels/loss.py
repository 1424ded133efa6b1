"""Losses on torch: log-probabilities in float32, and the gradient written over them.

Read ops/loss.py first.  At a vocabulary of 50,257 these arrays are the memory and much of the time
of a step; head.py builds on what is here.
"""

from __future__ import annotations

import torch

from nplm.autograd.op import override
from nplm.backend.capture import is_tracing
from nplm.backend.torch_kernels.precision import wide

aten = torch.ops.aten
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # as aten numbers them
_CHUNK = 1 << 18  # elements that a pass over the CPU's arrays works on: they stay in the cache


def classes_fit(x, targets, reduction):
    """Whether x is (N, V) with elements, and targets (N,) integers."""
    return (
        reduction in REDUCTIONS
        and x.ndim == 2
        and x.numel() > 0
        and x.is_floating_point()
        and targets.dtype in (torch.int64, torch.int32)
        and targets.shape == x.shape[:1]
    )


def log_probabilities(logits, *, owned):
    """log_softmax of (N, V) in float32 or more; in place of `logits` if they are ours."""
    own = logits.to(wide(logits.dtype), memory_format=torch.contiguous_format)  # .out needs it
    if owned or own is not logits:
        return aten._log_softmax.out(own, 1, False, out=own)
    return aten._log_softmax(logits, 1, False)


def by_rows(x, body):
    """body(start, n) on chunks of the rows of x (N, V): on a card all at once, it has no cache."""
    N, V = x.shape
    step = max(1, _CHUNK // V) if x.device.type == "cpu" else N
    for i in range(0, N, step):
        body(i, min(step, N - i))


def row_scales(dy, targets, ignore_index, norm):
    """What the gradient of every row's loss is multiplied by (N, 1): 0 where it is ignored."""
    d = dy if norm is None else dy / norm
    return torch.where(targets != ignore_index, d, torch.zeros_like(d)).unsqueeze(1)


def gradient_in_place(logp, targets, scale, dtype):
    """(p - onehot) scale, in place of logp (N, V); a new array in another `dtype`, or traced.

    targets (N,) int64, in [0, V) or ignored, with scale (N, 1) 0 for those.
    """
    places = targets.clamp(0, logp.shape[1] - 1).unsqueeze(1)
    if is_tracing():
        hits = torch.arange(logp.shape[1], device=logp.device) == places
        return ((logp.exp() - hits.to(logp.dtype)) * scale).to(dtype)
    out = logp if logp.dtype == dtype else torch.empty_like(logp, dtype=dtype)
    minus = torch.full_like(scale, -1.0)

    def rows(*of):
        p = logp.narrow(0, *of).exp_()
        p.scatter_add_(1, places.narrow(0, *of), minus.narrow(0, *of))
        torch.mul(p, scale.narrow(0, *of), out=out.narrow(0, *of))

    by_rows(logp, rows)
    return out


# ---- the ops -------------------------------------------------------------------------------------
def _fits(logits, targets, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return weight is None and not label_smoothing and classes_fit(logits, targets, reduction)


@override("cross_entropy", backend="torch", when=_fits)
def cross_entropy(
    xp, logits, targets, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """ops.loss.cross_entropy without weights and smoothing: one array (N, V), which becomes the
    gradient. The loss is float32 at least."""
    dtype, targets = logits.dtype, targets.long()
    logp = log_probabilities(logits, owned=False)
    loss, norm = aten.nll_loss_forward(logp, targets, None, REDUCTIONS[reduction], ignore_index)

    def backward(dy):
        scale = row_scales(dy, targets, ignore_index, norm if reduction == "mean" else None)
        return gradient_in_place(logp, targets, scale, dtype), None, None

    return loss, backward


@override(
    "nll_loss", backend="torch",
    when=lambda logp, targets, weight=None, ignore_index=-100, reduction="mean": (
        classes_fit(logp, targets, reduction)
        and logp.dtype != torch.bfloat16
        and (weight is None or (weight.dtype == logp.dtype and weight.shape == logp.shape[1:]))
    ),
)  # fmt: skip
def nll_loss(xp, logp, targets, weight=None, ignore_index=-100, reduction="mean"):
    """ops.loss.nll_loss by aten::nll_loss_forward and _backward."""
    targets, how = targets.long(), REDUCTIONS[reduction]
    loss, norm = aten.nll_loss_forward(logp, targets, weight, how, ignore_index)

    def backward(dy):
        return aten.nll_loss_backward(
            dy, logp, targets, weight, how, ignore_index, norm
        ), None, None  # fmt: skip

    return loss, backward
