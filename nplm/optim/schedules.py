"""Learning-rate recipes that people copy, by name, built on LambdaLR.

`get_schedule(name, optimizer, ...)` finds one. Each says whose it is, and its factor at step 0:
tools differ there. s counts updates from 0, W is warmup_steps, T total_steps, p = (s - W)/(T - W).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from nplm.errors import ConfigError, unknown
from nplm.optim.lr_scheduler import LambdaLR


def get_schedule(name: str, optimizer: Any, **settings: Any) -> LambdaLR:
    """The recipe `name` of RECIPES on an optimizer, with the recipe's own settings.

    The names and formulas are those of transformers' `get_scheduler`, whose num_warmup_steps is
    warmup_steps here and num_training_steps total_steps; "nanogpt" and "llmc_..." are those tools'.
    Raises ConfigError for unknown names and settings, for missing ones and for bad values.
    """
    if name not in RECIPES:
        raise ConfigError(unknown("schedule", name, RECIPES))
    parameters = list(inspect.signature(RECIPES[name]).parameters.values())[1:]
    names = [p.name for p in parameters]
    for setting in settings:
        if setting not in names:
            raise ConfigError(unknown(f"setting of schedule {name!r}", setting, names or ["none"]))
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in settings]
    if missing:
        raise ConfigError(f"schedule {name!r} needs {' and '.join(missing)}, got none")
    return RECIPES[name](optimizer, **settings)


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


# ---- transformers --------------------------------------------------------------------------------
def constant(optimizer: Any) -> LambdaLR:
    """The factor 1.  transformers: get_constant_schedule.  At step 0: 1."""
    return LambdaLR(optimizer, lambda _: 1)


def constant_with_warmup(optimizer: Any, warmup_steps: int) -> LambdaLR:
    """s / W, then 1.  transformers: get_constant_schedule_with_warmup.  At step 0: 0."""
    _check_steps("constant_with_warmup", warmup_steps)
    return _warmed_up(optimizer, warmup_steps, lambda step: 1.0)


def linear(optimizer: Any, total_steps: int, warmup_steps: int = 0) -> LambdaLR:
    """s / W, then 1 - p, down to 0.  transformers: get_linear_schedule_with_warmup.

    At step 0: 0, without warm-up 1.
    """
    _check_steps("linear", warmup_steps, total_steps)
    fall = total_steps - warmup_steps
    return _warmed_up(optimizer, warmup_steps, lambda step: max(0.0, (total_steps - step) / fall))


def cosine(
    optimizer: Any, total_steps: int, warmup_steps: int = 0, num_cycles: float = 0.5
) -> LambdaLR:
    """s / W, then (1 + cos(2 pi num_cycles p)) / 2, half a wave by default, down to 0.

    transformers: get_cosine_schedule_with_warmup. After T the wave goes on. At step 0: 0, without
    warm-up 1.
    """
    return _cosine(optimizer, "cosine", total_steps, warmup_steps, num_cycles, 0.0)


def cosine_with_restarts(
    optimizer: Any, total_steps: int, warmup_steps: int = 0, num_cycles: int = 1
) -> LambdaLR:
    """s / W, then num_cycles half cosines from 1 to 0, each beginning at 1, and 0 from T on.

    transformers: get_cosine_with_hard_restarts_schedule_with_warmup. At step 0: 0, without
    warm-up 1.
    """
    _check_steps("cosine_with_restarts", warmup_steps, total_steps)

    def fall(step: int) -> float:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        if progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0))))

    return _warmed_up(optimizer, warmup_steps, fall)


def cosine_with_min_lr(
    optimizer: Any,
    total_steps: int,
    warmup_steps: int = 0,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_ratio: float | None = None,
) -> LambdaLR:
    """As `cosine`, but down to min_lr, or to min_lr_ratio of the rate (one of them is needed).

    transformers: get_cosine_with_min_lr_schedule_with_warmup. min_lr is divided by
    `optimizer.defaults["lr"]`, so groups with another lr have another floor. At step 0: 0, without
    warm-up 1.
    """
    floor = _floor("cosine_with_min_lr", optimizer, min_lr, min_lr_ratio)
    return _cosine(optimizer, "cosine_with_min_lr", total_steps, warmup_steps, num_cycles, floor)


def cosine_warmup_with_min_lr(
    optimizer: Any,
    total_steps: int,
    warmup_steps: int = 0,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_ratio: float | None = None,
    warmup_lr_ratio: float | None = None,
) -> LambdaLR:
    """(s + 1) / W, then as `cosine_with_min_lr` with p one update ahead: (s + 1 - W) / (T - W).

    With warmup_lr_ratio r the warm-up is r + (1 - r) s / (W - 1). transformers:
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate. At step 0: 1 / W, or r.
    """
    name = "cosine_warmup_with_min_lr"
    _check_steps(name, warmup_steps, total_steps)
    floor = _floor(name, optimizer, min_lr, min_lr_ratio)

    def factor(step: int) -> float:
        if step < warmup_steps:
            if warmup_lr_ratio is None:
                return (step + 1) / warmup_steps
            return warmup_lr_ratio + (1.0 - warmup_lr_ratio) * step / max(1, warmup_steps - 1)
        progress = (step - warmup_steps + 1) / (total_steps - warmup_steps)
        return _wave(progress, num_cycles, floor)

    return LambdaLR(optimizer, factor)


def polynomial(
    optimizer: Any,
    total_steps: int,
    warmup_steps: int = 0,
    lr_end: float = 1e-7,
    power: float = 1.0,
) -> LambdaLR:
    """s / W, then from lr to lr_end as (1 - p)^power, and lr_end after T.

    transformers: get_polynomial_decay_schedule_with_warmup; lr is `optimizer.defaults["lr"]`. At
    step 0: 0, without warm-up 1.
    """
    _check_steps("polynomial", warmup_steps, total_steps)
    lr = float(optimizer.defaults["lr"])
    if not lr > lr_end:
        raise ConfigError(f"polynomial: expected lr_end below lr={lr}, got {lr_end}")

    def fall(step: int) -> float:
        if step > total_steps:
            return lr_end / lr
        left = 1 - (step - warmup_steps) / (total_steps - warmup_steps)
        height: float = (lr - lr_end) * left**power + lr_end
        return height / lr

    return _warmed_up(optimizer, warmup_steps, fall)


def inverse_sqrt(optimizer: Any, warmup_steps: int = 0, timescale: int | None = None) -> LambdaLR:
    """s / W, then sqrt(timescale / (s - W + timescale)), timescale W or, without W, 10,000.

    transformers: get_inverse_sqrt_schedule, after big_vision. At step 0: 0, without warm-up 1.
    """
    _check_steps("inverse_sqrt", warmup_steps)
    scale = (warmup_steps or 10_000) if timescale is None else timescale
    if scale <= 0:
        raise ConfigError(f"inverse_sqrt: expected timescale > 0, got {timescale}")
    shift = scale - warmup_steps
    return _warmed_up(optimizer, warmup_steps, lambda step: 1.0 / math.sqrt((step + shift) / scale))


def warmup_stable_decay(
    optimizer: Any,
    decay_steps: int,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> LambdaLR:
    """Up from min_lr_ratio to 1, 1, then down to min_lr_ratio in decay_steps, and that after them.

    warmup_type, decay_type    linear, cosine or 1-sqrt
    stable_steps               or total_steps: what the warm-up and the decay leave

    transformers: get_wsd_schedule. At step 0: min_lr_ratio, without warm-up 1.
    """
    _check_steps("warmup_stable_decay", warmup_steps)
    _check_ratio("warmup_stable_decay", min_lr_ratio)
    for what, given in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if given not in ("linear", "cosine", "1-sqrt"):
            raise ConfigError(unknown(what, given, ("linear", "cosine", "1-sqrt")))
    if total_steps is None and stable_steps is None:
        raise ConfigError("warmup_stable_decay: expected total_steps or stable_steps, got none")
    left = None if total_steps is None else total_steps - warmup_steps - decay_steps
    stable = left if stable_steps is None else stable_steps
    if decay_steps < 0 or stable is None or stable < 0 or (left is not None and left != stable):
        raise ConfigError(
            "warmup_stable_decay: expected warmup_steps + stable_steps + decay_steps = total_steps "
            f"and none below 0, got {warmup_steps=}, {stable_steps=}, {decay_steps=}, "
            f"{total_steps=}"
        )
    rise: Callable[[float], float] = {
        "linear": lambda p: p,
        "cosine": lambda p: 0.5 * (1.0 - math.cos(math.pi * p)),
        "1-sqrt": lambda p: 1.0 - math.sqrt(1.0 - p),
    }[warmup_type]
    fall: Callable[[float], float] = {
        "linear": lambda p: 1.0 - p,
        "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * p)),
        "1-sqrt": lambda p: 1.0 - math.sqrt(p),
    }[decay_type]
    begin = warmup_steps + stable

    def factor(step: int) -> float:
        if warmup_steps <= step < begin:
            return 1.0
        if step >= begin + decay_steps:
            return min_lr_ratio
        warm = step < warmup_steps
        height = rise(step / warmup_steps) if warm else fall((step - begin) / decay_steps)
        return max(0.0, height * (1.0 - min_lr_ratio) + min_lr_ratio)

    return LambdaLR(optimizer, factor)


# ---- llm.c ---------------------------------------------------------------------------------------
def llmc_cosine(
    optimizer: Any, total_steps: int, warmup_steps: int = 0, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """(s + 1) / W, then half a cosine down to min_lr_ratio, and that after T.

    llm.c: schedulers.h, "cosine" (min_lr_ratio is its final_learning_rate_frac). At step 0: 1 / W.
    """
    return _llmc(
        optimizer, "llmc_cosine", total_steps, warmup_steps, min_lr_ratio,
        lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
    )  # fmt: skip


def llmc_linear(
    optimizer: Any, total_steps: int, warmup_steps: int = 0, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """(s + 1) / W, then a line down to min_lr_ratio, and that after T.

    llm.c: schedulers.h, "linear". At step 0: 1 / W.
    """
    return _llmc(
        optimizer, "llmc_linear", total_steps, warmup_steps, min_lr_ratio, lambda p: 1.0 - p
    )


def llmc_wsd(
    optimizer: Any, total_steps: int, warmup_steps: int = 0, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """(s + 1) / W, then 1, and in the last fifth 1 - sqrt(part of it), down to min_lr_ratio.

    llm.c: schedulers.h, "wsd" (arXiv 2405.18392). At step 0: 1 / W.
    """
    begin = 4 * total_steps // 5
    return _llmc(
        optimizer, "llmc_wsd", total_steps, warmup_steps, min_lr_ratio,
        lambda p: 1.0 - math.sqrt(p), begin,
    )  # fmt: skip


# ---- helpers -------------------------------------------------------------------------------------
Factor = Callable[[int], float]


def _warmed_up(optimizer: Any, warmup_steps: int, after: Factor) -> LambdaLR:
    """transformers' warm-up, s / W, before `after`."""
    return LambdaLR(
        optimizer, lambda step: step / warmup_steps if step < warmup_steps else after(step)
    )


def _wave(progress: float, num_cycles: float, floor: float) -> float:
    height = 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress))
    return max(0.0, height * (1 - floor) + floor)


def _cosine(
    optimizer: Any, name: str, total_steps: int, warmup_steps: int, num_cycles: float, floor: float
) -> LambdaLR:
    _check_steps(name, warmup_steps, total_steps)
    return _warmed_up(
        optimizer,
        warmup_steps,
        lambda s: _wave((s - warmup_steps) / (total_steps - warmup_steps), num_cycles, floor),
    )


def _llmc(
    optimizer: Any, name: str, total_steps: int, warmup_steps: int, min_lr_ratio: float,
    height: Callable[[float], float], begin: int | None = None,
) -> LambdaLR:  # fmt: skip
    """llm.c's warm-up, then `height` of the part of the fall, which begins after the warm-up."""
    _check_steps(name, warmup_steps, total_steps)
    _check_ratio(name, min_lr_ratio)
    fall = warmup_steps if begin is None else begin

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if step < fall:
            return 1.0
        part = min((step - fall) / (total_steps - fall), 1.0)
        return min_lr_ratio + height(part) * (1.0 - min_lr_ratio)

    return LambdaLR(optimizer, factor)


def _check_steps(name: str, warmup_steps: int, total_steps: int | None = None) -> None:
    if warmup_steps < 0:
        raise ConfigError(f"{name}: expected warmup_steps >= 0, got {warmup_steps}")
    if total_steps is not None and warmup_steps >= total_steps:
        raise ConfigError(
            f"{name}: expected warmup_steps below total_steps={total_steps}, got {warmup_steps}"
        )


def _check_ratio(name: str, min_lr_ratio: float) -> None:
    if not 0 <= min_lr_ratio <= 1:
        raise ConfigError(f"{name}: expected min_lr_ratio in [0, 1], got {min_lr_ratio}")


def _floor(name: str, optimizer: Any, min_lr: float | None, min_lr_ratio: float | None) -> float:
    """min_lr_ratio, from one of the two."""
    if min_lr_ratio is None and min_lr is not None:
        floor = min_lr / float(optimizer.defaults["lr"])
    elif min_lr is None and min_lr_ratio is not None:
        floor = min_lr_ratio
    else:
        raise ConfigError(
            f"{name}: expected one of min_lr and min_lr_ratio, got {min_lr=}, {min_lr_ratio=}"
        )
    _check_ratio(name, floor)
    return floor


RECIPES: dict[str, Callable[..., LambdaLR]] = {
    **{
        recipe.__name__: recipe
        for recipe in (
            constant, constant_with_warmup, linear, cosine, cosine_with_restarts,
            cosine_with_min_lr, cosine_warmup_with_min_lr, polynomial, inverse_sqrt,
            warmup_stable_decay, warmup_cosine, warmup_constant, llmc_cosine, llmc_linear, llmc_wsd,
        )
    },
    "nanogpt": warmup_cosine,
}  # fmt: skip
