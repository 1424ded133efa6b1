"""Gradient accumulation: a window (a list of micro-batches) has the gradient of one large batch.

The gradient of a step is `sum over micro-batches of d(sum of token losses) / N`, N being the target
tokens of the whole window. Dividing each mean loss by their number K instead is right only when
all micro-batches have equally many targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nplm.autograd.factory import tensor
from nplm.autograd.tensor import BackwardInto, Tensor
from nplm.data.loader import Batch, Window, as_batch
from nplm.nn import functional as F
from nplm.nn.module import Module
from nplm.nn.utils import device_of
from nplm.train.shards import accumulate_in_shards

LossFunction = Callable[[Tensor, Tensor], Tensor]  # logits (B, T, V), targets (B, T) -> () a sum


@dataclass(frozen=True)
class WindowResult:
    """What a window gave; its gradients are in `.grad` (or in `into`)."""

    loss: Tensor  # (), mean over the window's targets (or of means: normalise); NaN without any
    n_targets: int  # tokens that count
    n_micro: int  # micro-batches


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (B, T, V), targets (B, T) -> (), the sum over the targets that are not ignored."""
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum"
    )


def accumulate(
    window: Sequence[Batch],
    model: Module,
    *,
    normalise: str = "token",
    loss_fn: LossFunction | None = None,
    into: BackwardInto | None = None,
) -> WindowResult:
    """Add the gradient of a window of batches to every parameter's `.grad`, or to `into`.

    normalise="token" is the definition above; "microbatch" is the plain `loss / len(window)` of
    most tutorials: the mean of the micro-batches' means. `loss_fn` returns a *sum* of token losses.
    A window without targets changes no gradient. Pairs (inputs, targets) may stand for Batches.
    """
    if normalise not in ("token", "microbatch"):
        raise ValueError(
            f"accumulate: expected normalise 'token' or 'microbatch', got {normalise!r}"
        )
    window = window if isinstance(window, Window) else Window(map(as_batch, window))
    divided = accumulate_in_shards(window, model, normalise, loss_fn) if into is None else None
    if divided is not None:  # the same sum, on all cores
        return WindowResult(divided, window.n_targets, len(window))
    loss_fn, device = loss_fn or summed_cross_entropy, device_of(model)
    total = window.n_targets  # counted on the host, before anything runs
    loss = tensor(0.0 if total else float("nan"), device=device)
    for batch, count in zip(window, window.counts):
        if count == 0:
            continue
        logits = model(tensor(batch.inputs, device=device))
        summed = loss_fn(logits, tensor(batch.targets, device=device))
        share = 1 / total if normalise == "token" else 1 / (count * len(window))
        summed.backward(share, into=into)
        loss = loss + summed.detach() * share
    return WindowResult(loss, total, len(window))
