"""Optimizers' arithmetic and clipping on torch, by its fused kernels: nothing waits for the device.

Read optim/adam.py, optim/sgd.py and nn/utils.py before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nplm.autograd.op import override

Tensors = Sequence[torch.Tensor]
_FUSED = (torch.float32, torch.float64)


def _alike(params: Tensors, *lists: Any, **options: Any) -> bool:
    """Whether a fused kernel takes these: one layout and dtype each, on one device, none twice."""
    first = params[0]
    arrays = [x for x in lists if x and isinstance(x[0], torch.Tensor) and len(x) == len(params)]
    return (
        first.dtype in _FUSED
        and len(set(map(id, params))) == len(params)
        and all(
            x.dtype == first.dtype and x.device == first.device and x.is_contiguous()
            for each in (params, *arrays)
            for x in each
        )
    )


def written(params: Tensors) -> None:
    """Count the write, which fused kernels do not: copies in bfloat16 go by the count."""
    torch.autograd.graph.increment_version(params)  # a counter of the tensor; no graph is involved


def _moments_alike(params, grads, m, v, v_max, steps, **options):
    return _alike(params, grads, m, v, v_max)


@override("adam_update", backend="torch", when=_moments_alike)
def adam_update(
    xp, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, *, lr, beta1, beta2, eps,
    weight_decay, decoupled_weight_decay, amsgrad, maximize,
):  # fmt: skip
    """optim.adam.adam_update by torch._fused_adam_; lr and steps may be 0-d tensors (capture)."""
    device = params[0].device
    known = {t for t in steps if not isinstance(t, torch.Tensor)}
    counts = {t: torch.full((), t, dtype=torch.float32, device=device) for t in known}
    fused = torch._fused_adamw_ if decoupled_weight_decay else torch._fused_adam_
    fused(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs if amsgrad else [],
        [t if isinstance(t, torch.Tensor) else counts[t] for t in steps],
        lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps, amsgrad=amsgrad,
        maximize=maximize,
    )  # fmt: skip
    written(params)


def _buffers_alike(params, grads, buffers, fresh, **options):
    return _alike(params, grads, buffers)


@override("sgd_update", backend="torch", when=_buffers_alike)
def sgd_update(
    xp, params, grads, momentum_buffers, fresh, *, lr, momentum, dampening, weight_decay, nesterov,
    maximize,
):  # fmt: skip
    """optim.sgd.sgd_update by torch._fused_sgd_: those with a fresh buffer apart from the rest."""
    fresh = fresh or [False] * len(params)
    for new in set(fresh):
        here = [i for i, is_new in enumerate(fresh) if is_new == new]
        lists = [[x[i] for i in here] if x else [] for x in (params, grads, momentum_buffers)]
        torch._fused_sgd_(
            *lists, weight_decay=weight_decay, momentum=momentum, lr=lr, dampening=dampening,
            nesterov=nesterov, maximize=maximize, is_first_step=new,
        )  # fmt: skip
    written(params)


# ---- clipping ------------------------------------------------------------------------------------
@override(
    "total_norm_", backend="torch",
    when=lambda totals, tensors, order: order == 2 and all(
        x.is_floating_point() and x.dtype != torch.bfloat16 for x in tensors
    ),
)  # fmt: skip
def total_norm_(xp, totals, tensors, *, order):
    """nn.utils.total_norm_ of order 2 by torch._foreach_norm."""
    (total,) = totals
    norms = torch.stack([x.to(total.dtype) for x in torch._foreach_norm(tensors, 2)])
    torch.linalg.vector_norm(norms, out=total)


@override(
    "scale_", backend="torch",
    when=lambda tensors, factors: len(set(map(id, tensors))) == len(tensors),
)  # fmt: skip
def scale_(xp, tensors, factors):
    """nn.utils.scale_ by torch._foreach_mul_."""
    torch._foreach_mul_(tensors, factors[0])
