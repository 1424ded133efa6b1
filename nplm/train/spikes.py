"""Spikes: a loss or a gradient norm far above those before.  Only reported, never acted upon."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from nplm.errors import ConfigError


class SpikeDetector:
    """z-scores of loss and gradient norm among the last `window` values of each, their own too.

    `update(loss, grad_norm)` gives a sentence for a score above `threshold`, else None; `scores`
    has both. A score is NaN until a window is full, and of a value that is not finite, which does
    not enter the window either. llm.c's OutlierDetector keeps running sums; here they are added up
    anew, so a huge value leaves no rounding behind when it has left the window.
    """

    def __init__(self, threshold: float = 6.0, window: int = 128) -> None:
        if window < 2:
            raise ConfigError(f"SpikeDetector: expected a window of 2 values or more, got {window}")
        if not threshold > 0:
            raise ConfigError(f"SpikeDetector: expected a positive threshold, got {threshold}")
        self.threshold = threshold
        self.window = window
        self.scores = {"loss": math.nan, "grad_norm": math.nan}
        self._values: dict[str, deque[float]] = {name: deque(maxlen=window) for name in self.scores}

    def update(self, loss: Any, grad_norm: Any) -> str | None:
        """Take an update's figures (numbers or Tensors); what stands out, in words, or None."""
        found = []
        for name, given in (("loss", loss), ("grad_norm", grad_norm)):
            value, values = float(given), self._values[name]
            self.scores[name] = score = _enter(values, value)
            if score > self.threshold:
                what = name.replace("grad_", "gradient ")
                found.append(
                    f"{what} {value:.4g} is {score:.1f} deviations above the mean of "
                    f"{self.window} updates"
                )
        return "; ".join(found) or None

    def state_dict(self) -> dict[str, Any]:
        """The values of both windows, ready for JSON."""
        return {name: list(values) for name, values in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken; raises ConfigError for anything else."""
        good = isinstance(state, Mapping) and state.keys() == self.scores.keys()
        for values in state.values() if good else ():
            good &= isinstance(values, list) and all(type(v) is float for v in values)
            good = good and len(values) <= self.window and all(map(math.isfinite, values))
        if not good:
            raise ConfigError(
                "SpikeDetector.load_state_dict: expected what state_dict() made, the lists 'loss' "
                f"and 'grad_norm' of at most {self.window} finite numbers"
            )
        for name, values in state.items():
            self.scores[name] = math.nan
            self._values[name] = deque(values, self.window)


def _enter(values: deque[float], value: float) -> float:
    """The score of `value`, which replaces the oldest one of a full window."""
    full = len(values) == values.maxlen
    if not math.isfinite(value):
        return math.nan
    values.append(value)
    if not full:
        return math.nan
    n = len(values)
    scale = max(map(abs, values))  # so that no square overflows
    if scale == 0:
        return 0.0
    mean = math.fsum(v / scale for v in values) / n
    deviation = math.sqrt(math.fsum((v / scale - mean) ** 2 for v in values) / n)
    return (value / scale - mean) / deviation if deviation else 0.0
