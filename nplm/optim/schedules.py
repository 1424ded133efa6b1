"""Learning-rate recipes that people copy, by name, built on LambdaLR."""

from __future__ import annotations

import math
from typing import Any

from nplm.errors import ConfigError
from nplm.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Any, warmup_steps: int, total_steps: int, min_lr_ratio: float = 0.1
) -> LambdaLR:
    """nanoGPT's schedule: a linear warm-up, then half a cosine down to min_lr_ratio * lr.

    Update s (from 0) has lr * (s + 1) / (warmup_steps + 1) in the warm-up, so the first one is not
    wasted; from total_steps on the rate stays at the floor.
    """
    if not 0 <= warmup_steps < total_steps or not 0 <= min_lr_ratio <= 1:
        raise ConfigError(
            "warmup_cosine: expected 0 <= warmup_steps < total_steps and min_lr_ratio in [0, 1], "
            f"got warmup_steps={warmup_steps}, total_steps={total_steps}, {min_lr_ratio=}"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if step > total_steps:
            return min_lr_ratio
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return min_lr_ratio + 0.5 * (1 + math.cos(math.pi * progress)) * (1 - min_lr_ratio)

    return LambdaLR(optimizer, factor)


def warmup_constant(optimizer: Any, warmup_steps: int) -> LambdaLR:
    """The same warm-up, then the full rate."""
    if warmup_steps < 0:
        raise ConfigError(f"warmup_constant: expected warmup_steps >= 0, got {warmup_steps}")
    return LambdaLR(optimizer, lambda step: min((step + 1) / (warmup_steps + 1), 1.0))
