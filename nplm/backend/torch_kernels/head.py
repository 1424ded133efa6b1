"""`linear_cross_entropy` on torch: one array of logits, or chunks of rows where it would be large.

Read ops/head.py and loss.py before.
"""

from __future__ import annotations

import torch

from nplm.autograd.graph import flags
from nplm.autograd.op import override
from nplm.backend.torch_kernels.linear import (
    delivered,
    product,
    weight_gradient,
)
from nplm.backend.torch_kernels.loss import (
    REDUCTIONS,
    classes_fit,
    gradient_in_place,
    log_probabilities,
    row_scales,
)
from nplm.backend.torch_kernels.precision import in_bfloat16, lowered, lowers, wide

aten = torch.ops.aten
# Bytes of logits in float32 above which rows are worked off in chunks. One array is faster (the
# CPU: a fifth, at 1,024 rows of 50,257), so it is kept up to what a GPT-2 of that size needs for
# those rows; a card needs larger products to be busy, and has the memory.
BUDGET = {"cpu": 1 << 28, "cuda": 1 << 31}


def _fits(x, weight, targets, ignore_index=-100, reduction="mean"):
    return (
        x.ndim == weight.ndim == 2
        and x.shape[1] == weight.shape[1]
        and weight.shape[0] > 0
        and classes_fit(x, targets, reduction)
        and (x.dtype == weight.dtype or lowers(x, weight))
    )


@override("linear_cross_entropy", backend="torch", when=_fits)
def linear_cross_entropy(xp, x, weight, targets, ignore_index=-100, reduction="mean"):
    """ops.head.linear_cross_entropy: the logits become log-probabilities, and those the gradient,
    in place; under autocast products are bfloat16, the loss and dweight float32."""
    N, V = x.shape[0], weight.shape[0]
    dtypes, targets = (x.dtype, weight.dtype), targets.long()
    if lowers(x, weight):
        x, weight = in_bfloat16(x), lowered(weight)
    step = max(1, BUDGET.get(x.device.type, 1 << 28) // (4 * V))  # rows of a chunk
    if step < N and reduction == "none" and not flags.recording:
        return _losses_in_chunks(x, weight, targets, ignore_index, step), None
    if step < N and reduction != "none":
        return _in_chunks(x, weight, targets, ignore_index, reduction, dtypes, step)
    logp = log_probabilities(torch.mm(x, weight.t()), owned=True)  # (N, V)
    loss, norm = aten.nll_loss_forward(logp, targets, None, REDUCTIONS[reduction], ignore_index)

    def backward(dy, needs):
        scale = row_scales(dy, targets, ignore_index, norm if reduction == "mean" else None)
        dlogits = gradient_in_place(logp, targets, scale, x.dtype)
        dx = torch.mm(dlogits, weight).to(dtypes[0]) if needs[0] else None
        return dx, weight_gradient(needs[1], dlogits.t(), x, dtypes[1]), None

    return loss, backward


def _losses_in_chunks(x, weight, targets, ignore_index, step):
    """Every token's loss, without a gradient: validation of a large batch."""
    losses = []
    for i in range(0, len(x), step):
        n = min(step, len(x) - i)
        logp = log_probabilities(torch.mm(x.narrow(0, i, n), weight.t()), owned=True)
        here = targets.narrow(0, i, n)
        losses.append(aten.nll_loss_forward(logp, here, None, REDUCTIONS["none"], ignore_index)[0])
    return torch.cat(losses)


def _in_chunks(x, weight, targets, ignore_index, reduction, dtypes, step):
    """The op in chunks of `step` rows, gradients made at once: no chunk is computed twice.

    The sum's gradients are kept, one of the size of x and one of the weight's, and multiplied by
    dy at the end, which is one number. Without recording there are none.
    """
    total = counted = torch.zeros((), dtype=wide(x.dtype), device=x.device)
    parts, dweight = [], None
    for i in range(0, len(x), step):
        n = min(step, len(x) - i)
        rows, here = x.narrow(0, i, n), targets.narrow(0, i, n)
        logp = log_probabilities(torch.mm(rows, weight.t()), owned=True)
        loss, _ = aten.nll_loss_forward(logp, here, None, REDUCTIONS["sum"], ignore_index)
        total = total + loss
        counted = counted + (here != ignore_index).sum()
        if not flags.recording:
            continue
        scale = row_scales(torch.ones_like(loss), here, ignore_index, None)
        dlogits = gradient_in_place(logp, here, scale, x.dtype)
        del logp  # in bfloat16 another array: free before the products
        parts.append(torch.mm(dlogits, weight).to(dtypes[0]))
        if dweight is None:
            dweight = product(dlogits.t(), rows, dtypes[1])
        else:
            # Not by `add_product`: Inductor cannot compile a product that adds to float32.
            dweight += product(dlogits.t(), rows, dtypes[1])
    norm = counted if reduction == "mean" else None

    def backward(dy, needs):
        d = dy if norm is None else torch.where(norm > 0, dy / norm, 0.0)
        return (
            torch.cat(parts).mul_(d) if needs[0] else None,
            delivered(needs[1], dweight.mul_(d)) if needs[1] else None,
            None,
        )

    return total if norm is None else total / norm, backward if parts else None
