"""One update: gradients of a window, their norm, clipping, the optimizer.

Read accumulation.py before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from nplm.autograd.tensor import Tensor
from nplm.data.loader import Batch
from nplm.errors import NonFiniteError
from nplm.nn.module import Module
from nplm.nn.utils import clip_grad_norm_
from nplm.optim.optimizer import Optimizer
from nplm.train.accumulation import LossFunction, accumulate


@dataclass(frozen=True)
class StepRecord:
    """What one update did.  `loss` and `grad_norm` are Tensors on the model's device."""

    loss: Tensor  # (), mean over the target tokens, as `normalise` says
    grad_norm: Tensor  # (), before clipping
    lr: float  # of the first group, as this update used it
    n_targets: int  # target tokens
    n_micro: int  # micro-batches
    seconds: float  # wall time
    updated: bool = True  # False: no targets, or skipped as non-finite
    step: int = 0  # updates so far, this one included; set by `fit`
    epoch: int = 0  # from 0; set by `fit`
    epoch_ended: bool = False  # this was the epoch's last window; set by `fit`


def train_step(
    model: Module,
    optimizer: Optimizer,
    window: Sequence[Batch],
    *,
    clip_norm: float | None = None,
    on_nonfinite: str = "stop",
    normalise: str = "token",
    loss_fn: LossFunction | None = None,
) -> StepRecord:
    """Take one optimizer step on a window of micro-batches.

    clip_norm: the largest gradient norm; None clips nothing. A window without targets makes no
    update. When the loss or the norm is not finite nothing is updated: "stop" raises
    NonFiniteError, "skip" returns a record with `updated=False`.
    """
    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(
            f"train_step: expected on_nonfinite 'stop' or 'skip', got {on_nonfinite!r}"
        )
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"train_step: expected a positive clip_norm or None, got {clip_norm}")
    began = perf_counter()
    optimizer.zero_grad()
    result = accumulate(window, model, normalise=normalise, loss_fn=loss_fn)
    # The optimizer's parameters and not the model's: what is frozen takes no part in the norm.
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = clip_grad_norm_(trained, math.inf if clip_norm is None else clip_norm)
    updated = result.n_targets > 0
    if updated and not (math.isfinite(float(result.loss)) and math.isfinite(float(norm))):
        if on_nonfinite == "stop":
            raise NonFiniteError(
                f"train_step: expected a finite loss and gradient norm, got {float(result.loss)} "
                f"and {float(norm)}; nothing was updated: lower the learning rate or set clip_norm"
            )
        updated = False
    lr = float(optimizer.param_groups[0]["lr"])
    if updated:
        optimizer.step()
    return StepRecord(
        result.loss, norm, lr, result.n_targets, result.n_micro, perf_counter() - began, updated
    )
