"""A learning-rate range test: short training with a rising rate, and nothing is changed by it.

It trains copies of the model and the optimizer. Read step.py before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nplm import random
from nplm.data.loader import Batch, Window, as_batch, require_counts, windows_of
from nplm.errors import ConfigError, DataError
from nplm.nn.module import Module
from nplm.optim.optimizer import Optimizer
from nplm.train.accumulation import LossFunction
from nplm.train.step import train_step

SKIP_BEGIN, SKIP_END = 10, 1  # points that a suggestion leaves out


@dataclass(frozen=True)
class RangeTest:
    """What a range test found, point by point."""

    lrs: list[float] = field(default_factory=list)  # of the largest group
    losses: list[float] = field(default_factory=list)  # smoothed
    raw_losses: list[float] = field(default_factory=list)  # as they were
    stopped: str | None = None  # why it ended before the highest rate

    @property
    def suggestion(self) -> float | None:
        """`suggest()`."""
        return self.suggest()

    def suggest(
        self, skip_begin: int = SKIP_BEGIN, skip_end: int = SKIP_END, against: str = "rate"
    ) -> float | None:
        """The rate where the smoothed loss falls most steeply, or None for fewer than two points.

        Without the first and last points and those that are not finite. Lightning takes the slope
        against the rate, which after equal factors is noise over tiny steps and so favours low
        rates; against="logarithm" weighs every factor alike.
        """
        if against not in ("rate", "logarithm"):
            raise ConfigError(f"suggest: expected against 'rate' or 'logarithm', got {against!r}")
        points = list(zip(self.lrs, self.losses))[skip_begin : len(self.lrs) - skip_end]
        points = [(lr, loss) for lr, loss in points if math.isfinite(loss)]
        if len(points) < 2:
            return None
        lrs, losses = np.array(points).T
        along = lrs if against == "rate" else np.log(lrs)
        return float(lrs[np.argmin(np.gradient(losses, along))])


def lr_find(
    model: Module,
    optimizer: Optimizer,
    loader: Iterable[Batch],
    *,
    lowest: float = 1e-8,
    highest: float = 1.0,
    steps: int = 100,
    mode: str = "exponential",
    stop_above: float | None = 4.0,
    smoothing: float = 0.98,
    accumulate: int = 1,
    clip_norm: float | None = None,
    normalise: str = "token",
    loss_fn: LossFunction | None = None,
) -> RangeTest:
    """Train `steps` updates with learning rates from `lowest` to `highest` (Smith, 2015).

    mode            "exponential": equal factors from rate to rate; "linear": equal steps
    stop_above      ends when the smoothed loss exceeds this multiple of its lowest; None: never
    smoothing       s of the mean `s * mean + (1 - s) * loss`, which begins unbiased, as Adam's do
    accumulate ...  as in `fit`

    Groups keep the ratios of their rates. It ends at a loss or norm that is not finite. However it
    ends, by an error or Ctrl-C too, model, optimizer, gradients, the loader's place and the default
    random stream are what they were. A loader that gives no second pass needs a `state_dict`.
    """
    _check(lowest, highest, steps, mode, stop_above, smoothing)
    require_counts("lr_find", accumulate=accumulate)
    share = _shares(optimizer)
    # One deepcopy of both, so that the new optimizer holds the new model's parameters.
    model, optimizer = deepcopy((model, optimizer))
    model.train()
    result, mean, best = RangeTest(), 0.0, math.inf
    with _put_back(loader):
        windows = _windows(loader, accumulate)
        for i in range(steps):
            lr = _rate(i / max(steps - 1, 1), lowest, highest, mode)
            for group, part in zip(optimizer.param_groups, share):
                group["lr"] = lr * part
            record = train_step(
                model, optimizer, next(windows), clip_norm=clip_norm, on_nonfinite="skip",
                normalise=normalise, loss_fn=loss_fn,
            )  # fmt: skip
            loss = float(record.loss)
            mean = smoothing * mean + (1 - smoothing) * loss
            smooth = mean / (1 - smoothing ** (i + 1))
            result.lrs.append(lr)
            result.losses.append(smooth)
            result.raw_losses.append(loss)
            if not record.updated:
                return _stopped(result, f"at {lr:.3g} the loss or the norm was not finite")
            if stop_above is not None and i > 0 and 0 < stop_above * best < smooth:
                return _stopped(result, f"at {lr:.3g} the loss was {stop_above:g} times its lowest")
            best = min(best, smooth)
    return result


def _stopped(result: RangeTest, why: str) -> RangeTest:
    return RangeTest(result.lrs, result.losses, result.raw_losses, why)


def _rate(part: float, lowest: float, highest: float, mode: str) -> float:
    """From `lowest` at part 0 to `highest` at part 1, exactly."""
    if part in (0.0, 1.0):
        return highest if part else lowest
    if mode == "linear":
        return lowest + part * (highest - lowest)
    return math.exp(math.log(lowest) + part * (math.log(highest) - math.log(lowest)))


def _shares(optimizer: Optimizer) -> list[float]:
    """Every group's rate as a part of the largest; where a schedule began, if there is one."""
    lrs = [
        float(group["initial_lr" if "initial_lr" in group else "lr"])
        for group in optimizer.param_groups
    ]
    largest = max(lrs)
    return [lr / largest if largest > 0 else 1.0 for lr in lrs]


def _windows(loader: Iterable[Batch], accumulate: int) -> Iterator[Window[Batch]]:
    """Windows with targets, from as many passes over the loader as it takes."""
    found = True
    while found:
        found = False
        for window in windows_of(map(as_batch, loader), accumulate):
            if window.n_targets:
                found = True
                yield window
    raise DataError("lr_find: a pass over the loader gave no batch with a target")


@contextmanager
def _put_back(loader: Any) -> Iterator[None]:
    """Afterwards the loader and the default random stream are where they are now."""
    can = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    if isinstance(loader, Iterator) and not can:
        raise ConfigError(
            f"lr_find: a {type(loader).__name__} cannot be read again; give a list, a DataLoader, "
            "or a loader with state_dict and load_state_dict"
        )
    stream = random.get_rng_state()
    place = deepcopy(loader.state_dict()) if can else None
    attributes = dict(vars(loader)) if can else {}
    try:
        yield
    finally:
        if can:
            loader.load_state_dict(place)
            if not attributes.get("_resumed", True):  # a DataLoader whose next pass is a new one
                vars(loader).update(attributes)
        random.set_rng_state(stream)


def _check(
    lowest: float, highest: float, steps: int, mode: str, stop_above: float | None, smoothing: float
) -> None:
    require_counts("lr_find", steps=steps)
    for good, expected, got in (
        (0 < lowest < highest < math.inf, "0 < lowest < highest", f"{lowest} and {highest}"),
        (mode in ("exponential", "linear"), "mode 'exponential' or 'linear'", repr(mode)),
        (stop_above is None or stop_above > 1, "stop_above greater than 1 or None", stop_above),
        (0 <= smoothing < 1, "smoothing in [0, 1)", smoothing),
    ):
        if not good:
            raise ConfigError(f"lr_find: expected {expected}, got {got}")
