"""Every scheduler with usual arguments and random ones, and how a training loop walks them."""

import importlib
import math

import torch
from hypothesis import strategies as st

import nplm
from nplm import optim

OURS, THEIRS = optim.lr_scheduler, torch.optim.lr_scheduler
LIBRARIES = {nplm: OURS, torch: THEIRS}
STEPS = 300


class Decay:
    """A callable with state, which a state_dict carries."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, epoch):
        return self.rate**epoch


# Short enough that 60 steps pass every bend.
USUAL = {
    "LambdaLR": {"lr_lambda": lambda epoch: 0.97**epoch},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 1 - 0.02 * (epoch % 3)},
    "StepLR": {"step_size": 3, "gamma": 0.7},
    "MultiStepLR": {"milestones": [4, 4, 9, 30], "gamma": 0.7},
    "ConstantLR": {"factor": 0.3, "total_iters": 8},
    "LinearLR": {"start_factor": 0.1, "total_iters": 11},
    "ExponentialLR": {"gamma": 0.93},
    "PolynomialLR": {"total_iters": 40, "power": 1.7},
    "CosineAnnealingLR": {"T_max": 13, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 7, "T_mult": 2, "eta_min": 0.01},
    "CyclicLR": {
        "base_lr": 0.01,
        "max_lr": 0.2,
        "step_size_up": 6,
        "step_size_down": 9,
        "mode": "triangular2",
    },
    "OneCycleLR": {"max_lr": [0.2, 0.1], "total_steps": 70},
    "SWALR": {"swa_lr": [0.02, 0.01], "anneal_epochs": 12},
    "ReduceLROnPlateau": {"patience": 2, "factor": 0.6},
}
SINGLE = list(USUAL)
KINDS = [*SINGLE, "SequentialLR", "ChainedScheduler"]
CYCLING = ("CyclicLR", "OneCycleLR")

factors = st.floats(0.01, 1.0)
ends = st.just(0.0) | st.floats(1e-9, 1.0)  # below, 0 / 0 is NaN on both sides
counts = st.integers(1, 400)
momenta = {
    "cycle_momentum": st.booleans(),
    "base_momentum": st.floats(0.1, 0.9),
    "max_momentum": st.floats(0.1, 0.99),
}
OPTIONS = {
    "LambdaLR": st.builds(lambda rate: {"lr_lambda": Decay(rate)}, st.floats(0.9, 1.01)),
    "MultiplicativeLR": st.builds(lambda a: {"lr_lambda": Decay(a)}, st.floats(0.99, 1.001)),
    "StepLR": st.fixed_dictionaries({"step_size": st.integers(1, 90), "gamma": factors}),
    "MultiStepLR": st.fixed_dictionaries(
        {"milestones": st.lists(st.integers(0, 300), max_size=6), "gamma": factors}
    ),
    "ConstantLR": st.fixed_dictionaries({"factor": ends, "total_iters": counts}),
    "LinearLR": st.fixed_dictionaries(
        {"start_factor": factors, "end_factor": ends, "total_iters": counts}
    ),
    "ExponentialLR": st.fixed_dictionaries({"gamma": st.floats(0.9, 1.01)}),
    "PolynomialLR": st.fixed_dictionaries({"total_iters": counts, "power": st.floats(0.1, 3)}),
    "CosineAnnealingLR": st.fixed_dictionaries(
        {"T_max": counts, "eta_min": st.sampled_from([0.0, 1e-5, 0.02])}
    ),
    "CosineAnnealingWarmRestarts": st.fixed_dictionaries(
        {
            "T_0": st.integers(1, 90),
            "T_mult": st.integers(1, 3),
            "eta_min": st.sampled_from([0, 1e-5, 0.02]),
        }
    ),
    "CyclicLR": st.fixed_dictionaries(
        {
            "base_lr": st.floats(1e-5, 0.1),
            "max_lr": st.floats(0.1, 1.0),
            "step_size_up": st.integers(1, 90),
            "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
            "gamma": st.floats(0.95, 1.0),
            **momenta,
        },
        optional={
            "step_size_down": st.integers(1, 90),
            "scale_fn": st.builds(Decay, st.floats(0.9, 1.0)),
            "scale_mode": st.sampled_from(["cycle", "iterations"]),
        },
    ),
    "OneCycleLR": st.fixed_dictionaries(
        {
            "max_lr": st.floats(1e-3, 1.0),
            # beyond the end: torch's error; quarters of 4 n steps: a step where two phases meet
            "total_steps": st.one_of(st.integers(250, 500), st.sampled_from([260, 400])),
            "pct_start": st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.25, 0.5])),
            "anneal_strategy": st.sampled_from(["cos", "linear"]),
            "div_factor": st.floats(1, 50),
            "final_div_factor": st.floats(1, 1e5),
            "three_phase": st.booleans(),
            **momenta,
        }
    ),
    "SWALR": st.fixed_dictionaries(
        {
            "swa_lr": st.floats(1e-4, 0.5),
            "anneal_epochs": st.integers(0, 200),
            "anneal_strategy": st.sampled_from(["cos", "linear"]),
        }
    ),
    "ReduceLROnPlateau": st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.floats(0.1, 0.99),
            "patience": st.integers(0, 9),
            "threshold": st.sampled_from([0.0, 1e-4, 0.1]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 5),
            "min_lr": st.sampled_from([0, 1e-3]),
            "eps": st.sampled_from([0.0, 1e-8, 1e-3]),
        }
    ),
}
rates = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=3)
seeds = st.integers(0, 10**6)


def schedules_of(kinds):
    """Random (kind, arguments) of some kinds."""
    return st.one_of(*[st.tuples(st.just(kind), OPTIONS[kind]) for kind in kinds])


def metric(step, seed=0):
    """What a validation might give: ties, plateaus, now and then NaN or infinity."""
    draw = (step * 7919 + seed * 104729 + 13) % 101
    return {0: math.nan, 1: math.inf, 2: -math.inf}.get(draw, 3.0 - 0.01 * step + draw // 20)


def optimizer_of(library, lrs=(0.1, 0.03), kind="SGD", **options):
    groups = [{"params": [library.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    made = optim if library is nplm else torch.optim
    if kind == "SGD":
        options = {"momentum": 0.5, **options}
    return getattr(made, kind)(groups, lr=0.5, **options)


def class_of(module, kind):
    if kind == "SWALR" and module is THEIRS:
        return importlib.import_module("torch.optim.swa_utils").SWALR
    return getattr(module, kind)


def make(module, optimizer, kind, **more):
    """One scheduler with usual arguments, or one that combines several."""
    if kind == "SequentialLR":
        members = [
            make(module, optimizer, k) for k in ("LinearLR", "ExponentialLR", "CosineAnnealingLR")
        ]
        return module.SequentialLR(optimizer, members, milestones=[4, 17])
    if kind == "ChainedScheduler":
        return module.ChainedScheduler(
            [make(module, optimizer, k) for k in ("ConstantLR", "StepLR", "CosineAnnealingLR")]
        )
    usual = dict(USUAL[kind])
    n = len(optimizer.param_groups)
    if kind in ("OneCycleLR", "SWALR"):  # one value a group
        usual = {k: v[:n] if isinstance(v, list) else v for k, v in usual.items()}
    return class_of(module, kind)(optimizer, **{**usual, **more})


def rates_of(optimizer):
    """The lr and the momentum, or Adam's betas, of every group."""
    return [(g["lr"], g.get("momentum"), g.get("betas")) for g in optimizer.param_groups]


def lrs(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def move(scheduler, step, seed=0):
    if "Plateau" in type(scheduler).__name__:
        scheduler.step(metric(step, seed))
    else:
        scheduler.step()


def walk(optimizer, schedulers, steps=STEPS, first=0, seed=0):
    """Rates of every group before each step, as a loop would use them; then the error, if any."""
    seen = [rates_of(optimizer)]
    for step in range(first, first + steps):
        optimizer.step()
        try:
            for scheduler in schedulers:
                move(scheduler, step, seed)
        except (ValueError, ZeroDivisionError, NotImplementedError) as error:
            if isinstance(error, nplm.errors.ConfigError):
                raise
            return [*seen, type(error)]
        seen.append(rates_of(optimizer))
    return seen
