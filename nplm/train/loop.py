"""The loop: `fit` yields one record per update, and everything else is a statement in your `for`.

Read step.py before. There are no callbacks: evaluate, stop, save and log in the loop's body.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from nplm.autograd.grad_mode import no_grad
from nplm.data.loader import Batch, as_batch, marked_windows, require_counts
from nplm.errors import ConfigError, DataError
from nplm.nn.module import Module
from nplm.optim.optimizer import Optimizer
from nplm.train.shards import token_losses
from nplm.train.step import StepRecord, train_step
from nplm.train.window_schedule import WindowSchedule


class Scheduler(Protocol):
    """Whatever moves the learning rates when `step()` is called."""

    def step(self) -> Any:
        """Set the next learning rates."""


@dataclass(frozen=True)
class Evaluation:
    """The loss over a whole loader."""

    loss: float  # mean over the target tokens, whatever the batch size
    n_targets: int  # target tokens
    perplexity: float  # e**loss


def fit(
    model: Module,
    optimizer: Optimizer,
    loader: Iterable[Batch],
    *,
    accumulate: int | Mapping[int, int] = 1,
    scheduler: Scheduler | None = None,
    scheduler_unit: str = "step",
    clip_norm: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    first_step: int = 0,
    first_epoch: int = 0,
    **options: Any,
) -> Iterator[StepRecord]:
    """Train, `accumulate` batches an update, and yield a record after each: use it in a `for`.

    accumulate={0: 1, 4: 8}: one batch an update in epochs 0 to 3, eight from epoch 4 on.
    Ends after `epochs` passes over the loader or `steps` updates, whichever comes first. The
    scheduler moves after every update, or with scheduler_unit="epoch" after an epoch's last one;
    when a record is yielded, model, optimizer and scheduler are ready for the next update.
    A loader that is an iterator gives one epoch. One without a sure `len` (an iterator, or a
    DataLoader of an IterableDataset) is read one window ahead, only if `epochs` is given or the
    scheduler needs an epoch's end. Its batches are Batches or pairs (inputs, targets). `options`
    are train_step's: on_nonfinite, normalise, loss_fn.
    """
    if epochs is None and steps is None:
        raise ConfigError("fit: expected epochs or steps, got neither; say when to stop")
    sizes = WindowSchedule.of(accumulate)
    require_counts("fit", or_none=True, epochs=epochs, steps=steps)
    if optimizer.needs_closure:
        raise ConfigError(f"fit: {type(optimizer).__name__} steps by closure only; loop by hand")
    if scheduler_unit not in ("step", "epoch"):
        raise ConfigError(f"fit: expected scheduler_unit 'step' or 'epoch', got {scheduler_unit!r}")
    model.train()
    ahead = epochs is not None or scheduler_unit == "epoch" or sizes.changes
    step = first_step
    for epoch in itertools.count(first_epoch) if epochs is None else range(first_epoch, epochs):
        before, window = step, None
        for window, ended in marked_windows(loader, sizes.size(epoch), ahead):
            if steps is not None and step >= steps:
                return
            record = train_step(model, optimizer, window, clip_norm=clip_norm, **options)
            step += record.updated
            moves = ended if scheduler_unit == "epoch" else record.updated
            if scheduler is not None and moves:
                scheduler.step()
            yield replace(record, step=step, epoch=epoch, epoch_ended=ended)
            if steps is not None and step >= steps:
                return  # before the loader is asked for more: its cursor stays here
        if step == before:
            if epoch and isinstance(loader, Iterator):
                return  # it is used up
            why = "no targets, or no finite loss" if window else "the loader gave no batch"
            raise DataError(f"fit: an epoch ended without an update: {why}")


def evaluate(model: Module, loader: Iterable[Batch]) -> Evaluation:
    """The mean loss over every target of the loader, without dropout and without a graph.

    Token losses are summed in float64, so the batch size does not matter; draws no random numbers.
    """
    training, total, n_targets = model.training, 0.0, 0
    model.eval()
    try:
        with no_grad():
            for batch in map(as_batch, loader):
                for losses in token_losses(model, batch):  # (tokens,), of some rows at a time
                    total += float(losses.sum(dtype=np.float64))
                n_targets += batch.n_targets()
    finally:
        model.train(training)
    if n_targets == 0:
        raise DataError("evaluate: expected at least one target token, got none in the loader")
    loss = total / n_targets
    return Evaluation(loss, n_targets, math.exp(loss) if loss < 700 else math.inf)
