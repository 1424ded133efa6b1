"""Random healthy scenarios: whatever a lockstep says of one of them is a false alarm.

`random_scenario(rng)` draws every setting of Scenario and of its DecoderConfig; `settings_of` names
what was drawn, so that a test can count. Read lockstep.py before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nplm.models.config import ACTIVATIONS, NORMS, POSITIONS, DecoderConfig
from nplm.parity.lockstep import NO_DECAY, Scenario

Options = dict[str, Any]

# class: (a usual learning rate, its flags and numbers with the values that are drawn)
OPTIMIZERS: dict[str, tuple[float, dict[str, tuple[Any, ...]]]] = {
    "SGD": (0.1, {"momentum": (0.0, 0.9), "dampening": (0.0, 0.3), "nesterov": (False, True)}),
    "Adam": (1e-2, {"amsgrad": (False, True), "betas": ((0.9, 0.999), (0.7, 0.9)),
                    "eps": (1e-8, 1e-6)}),
    "AdamW": (1e-2, {"amsgrad": (False, True), "betas": ((0.9, 0.999), (0.8, 0.95)),
                     "eps": (1e-8, 1e-5)}),
    "NAdam": (5e-3, {"momentum_decay": (0.004, 0.02), "decoupled_weight_decay": (False, True)}),
    "RAdam": (5e-3, {"betas": ((0.9, 0.999), (0.8, 0.9)),
                     "decoupled_weight_decay": (False, True)}),
    "Adamax": (5e-3, {"betas": ((0.9, 0.999), (0.7, 0.9))}),
    "Adagrad": (2e-2, {"lr_decay": (0.0, 0.1), "initial_accumulator_value": (0.0, 0.1)}),
    "Adadelta": (1.0, {"rho": (0.9, 0.7)}),
    "Adafactor": (1e-2, {"beta2_decay": (-0.8, -0.5), "d": (1.0, 2.0)}),
    "RMSprop": (3e-3, {"momentum": (0.0, 0.9), "centered": (False, True), "alpha": (0.99, 0.9)}),
    "Rprop": (1e-3, {"etas": ((0.5, 1.2), (0.3, 1.5))}),
    "ASGD": (1e-1, {"t0": (1e6, 1.0), "alpha": (0.75, 0.5)}),
    "Muon": (1e-2, {"nesterov": (True, False), "momentum": (0.95, 0.5)}),
}  # fmt: skip
NO_MAXIMIZE = ("Muon",)
CYCLES = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop")  # momentum or betas

# class: (draws, updates of the run, learning rate, optimizer) -> its options
SCHEDULES: dict[str, Callable[[np.random.Generator, int, float, str], Options]] = {
    "StepLR": lambda rng, n, lr, o: {"step_size": _int(rng, 1, 3), "gamma": 0.5},
    "MultiStepLR": lambda rng, n, lr, o: {"milestones": [1, _int(rng, 2, 5)], "gamma": 0.3},
    "ConstantLR": lambda rng, n, lr, o: {"factor": 0.3, "total_iters": _int(rng, 0, 4)},
    "LinearLR": lambda rng, n, lr, o: {"start_factor": 0.1, "total_iters": _int(rng, 1, 6)},
    "ExponentialLR": lambda rng, n, lr, o: {"gamma": float(rng.uniform(0.6, 1.0))},
    "PolynomialLR": lambda rng, n, lr, o: {"total_iters": _int(rng, 2, 9), "power": 1.7},
    "CosineAnnealingLR": lambda rng, n, lr, o: {"T_max": _int(rng, 2, 9), "eta_min": lr / 10},
    "CosineAnnealingWarmRestarts": lambda rng, n, lr, o: {
        "T_0": _int(rng, 1, 3), "T_mult": _int(rng, 1, 2), "eta_min": lr / 10},
    "CyclicLR": lambda rng, n, lr, o: {
        "base_lr": lr / 5, "max_lr": lr, "step_size_up": _int(rng, 1, 4),
        "mode": str(rng.choice(["triangular", "triangular2", "exp_range"])), "gamma": 0.9,
        "cycle_momentum": o in CYCLES},
    "OneCycleLR": lambda rng, n, lr, o: {
        "max_lr": lr, "total_steps": n + _int(rng, 1, 4), "three_phase": bool(rng.random() < 0.5),
        "anneal_strategy": str(rng.choice(["cos", "linear"])), "cycle_momentum": o in CYCLES},
    "ReduceLROnPlateau": lambda rng, n, lr, o: {"patience": _int(rng, 0, 2), "factor": 0.5,
                                               "threshold": float(rng.choice([1e-4, 0.1]))},
    "SWALR": lambda rng, n, lr, o: {"swa_lr": lr / 4, "anneal_epochs": _int(rng, 0, 5)},
    "SequentialLR": lambda rng, n, lr, o: {
        "schedulers": [("LinearLR", {"start_factor": 0.2, "total_iters": 2}),
                       ("ExponentialLR", {"gamma": 0.8})], "milestones": [_int(rng, 1, 3)]},
    "ChainedScheduler": lambda rng, n, lr, o: {
        "schedulers": [("ConstantLR", {"factor": 0.5, "total_iters": _int(rng, 1, 4)}),
                       ("StepLR", {"step_size": 2, "gamma": 0.7})]},
}  # fmt: skip


def random_scenario(rng: np.random.Generator, *, dtype: str | None = None) -> Scenario:
    """A scenario that any healthy build passes, small enough for some tenths of a second."""
    steps = _int(rng, 3, 8)
    optimizer = _one(rng, [*OPTIMIZERS, "SGD"])  # which has the most options
    usual, _ = OPTIMIZERS[optimizer]
    lr = usual * float(rng.choice([0.3, 1.0]))
    schedule = _one(rng, [None, *SCHEDULES])
    found = SCHEDULES[schedule](rng, steps, lr, optimizer) if schedule is not None else {}
    kind = _one(rng, ("one", "several", "by epoch"))
    accumulate: dict[str, Any] = {
        "one": 1,
        "several": _int(rng, 2, 4),
        "by epoch": {0: 1, 1: _int(rng, 2, 3)},
    }
    patience = _one(rng, (None, 1, 2, 3))
    drawn = Scenario(
        model=random_model(rng),
        steps=steps,
        batch_size=_int(rng, 1, 4),
        accumulate=accumulate[kind],
        normalise=_one(rng, ("token", "microbatch")),
        optimizer=optimizer,
        options=_options(rng, optimizer),
        lr=lr,
        weight_decay=_one(rng, (0.0, 0.01, 0.1)),
        groups=_one(rng, ("one", "decay", "layers")),
        falls=_one(rng, (0.8, 0.5)),
        schedule=schedule,
        schedule_options=found,
        schedule_unit=_one(rng, ("step", "epoch")),
        clip_norm=_one(rng, (None, 0.05, 1.0)),
        patience=patience,
        delta=_one(rng, (0.0, 0.02)),
        eval_every=_int(rng, 1, 3),
        average=_one(rng, (None, "ema", "swa")),
        decay=_one(rng, (0.9, 0.5)),
        resume_at=_int(rng, 1, steps - 1) if rng.random() < 0.6 else None,
        ignored=_one(rng, (0.0, 0.2, 0.6)),
        rows=_int(rng, 3, 12),
        dtype=dtype or _one(rng, ("float64", "float32")),
        seed=_int(rng, 0, 10**6),
    )
    return _conditioned(drawn)


def _conditioned(s: Scenario) -> Scenario:
    """Without what leaves an update to rounding, in torch as here.

    Rprop steps by signs alone. Where a row's only target stands first, attention has one key, whose
    gradient is rounding, and so it is where dropout takes all that follows: so Rprop gets rows with
    many targets and little dropout. Muon lifts every singular value to 1, also those that are
    rounding: so it gets more tokens an update than the model has channels.
    """
    if s.optimizer == "Rprop":
        model = replace(s.model, context=7, dropout=min(0.1, s.model.dropout))
        return replace(s, ignored=0.0, model=model)
    if s.optimizer == "Muon":
        m = s.model
        return replace(
            s, batch_size=4, ignored=0.0, model=replace(
                m, context=7, n_head=2, n_kv_head=m.n_kv_head and 1, n_embd=8, dropout=0.0,
                n_hidden=m.n_hidden and 11,
            ),
        )  # fmt: skip
    return s


def random_model(rng: np.random.Generator) -> DecoderConfig:
    """A tiny decoder: every setting drawn."""
    heads = _one(rng, (1, 2, 3, 4))
    # A LayerNorm of two channels gives +-1 whatever comes in, so its gradient is rounding alone.
    channels = heads * _one(rng, (4, 6) if heads == 1 else (2, 4, 6))
    shared = [g for g in range(1, heads) if heads % g == 0]
    fewer = _one(rng, shared) if shared and rng.random() < 0.5 else None
    return DecoderConfig(
        vocab_size=_int(rng, 5, 17),
        context=_int(rng, 1, 7),
        n_layer=_int(rng, 1, 3),
        n_head=heads,
        n_kv_head=fewer,
        n_embd=channels,
        n_hidden=_one(rng, (None, channels + 3)),
        norm=_one(rng, NORMS),
        norm_eps=_one(rng, (1e-5, 1e-6, 1e-2)),
        positions=_one(rng, POSITIONS),
        rope_theta=_one(rng, (10000.0, 10.0, 500000.0)),
        activation=_one(rng, ACTIVATIONS),
        bias=_one(rng, (True, False)),
        tied=_one(rng, (True, False)),
        dropout=_one(rng, (0.0, 0.1, 0.5)),
    )


def _options(rng: np.random.Generator, optimizer: str) -> Options:
    # more often the unusual value, so that 500 scenarios have each of them 20 times
    options = {
        name: values[int(rng.random() < 0.7)] for name, values in OPTIMIZERS[optimizer][1].items()
    }
    if options.get("nesterov") and optimizer == "SGD":  # Nesterov's needs one, and no dampening
        changes = {"momentum": 0.9, "dampening": 0.0}
        options |= changes if rng.random() < 0.5 else {"nesterov": False}
    if optimizer not in NO_MAXIMIZE and rng.random() < 0.15:
        options["maximize"] = True
    return options


def epoch_ends(s: Scenario) -> list[int]:
    """The updates that end an epoch, if early stopping does not end the run."""
    rows = math.ceil((len(s.data()[0][0]) - 1) / s.model.context)
    batches = math.ceil(rows / s.batch_size)
    ends: list[int] = []
    done = 0
    while done < s.steps:
        done += -(-batches // s.window(len(ends)))
        ends.append(done)
    return [end for end in ends if end <= s.steps]


def settings_of(s: Scenario) -> list[str]:
    """What this scenario is made of, in words that can be counted: "norm=rms", "resume in ..."."""
    m, ends = s.model, epoch_ends(s)
    said = [f"model.{n}={getattr(m, n)}" for n in ("norm", "positions", "activation", "bias",
            "tied", "dropout", "norm_eps", "n_layer", "n_head")]  # fmt: skip
    said += [f"model.{n}={_size(getattr(m, n))}" for n in ("vocab_size", "context", "n_embd")]
    said.append(f"model.n_kv_head={'as n_head' if m.kv_heads == m.n_head else 'fewer'}")
    said.append(f"model.n_hidden={'default' if m.n_hidden is None else 'given'}")
    if m.positions == "rope":
        said.append(f"model.rope_theta={m.rope_theta:g}")
    of_run = ("steps", "batch_size", "normalise", "optimizer", "schedule", "clip_norm", "patience",
              "eval_every", "average", "ignored", "dtype")  # fmt: skip
    said += [f"{n}={getattr(s, n)}" for n in of_run]
    if s.options.get("maximize"):
        said.append("maximize")
    said += [f"{s.optimizer}.{n}" for n, v in s.options.items() if v != _first(s.optimizer, n)]
    by_epoch = isinstance(s.accumulate, Mapping)
    said.append(f"accumulate={'by epoch' if by_epoch else 'one' if s.accumulate == 1 else 'more'}")
    if s.optimizer not in NO_DECAY:
        said.append(f"weight_decay={s.weight_decay}")
    if s.optimizer != "Muon":  # which takes one group of matrices
        said.append(f"groups={s.groups}")
        said += [f"falls={s.falls}"] if s.groups == "layers" else []
    said += [f"schedule_unit={s.schedule_unit}"] if s.schedule is not None else []
    said += [f"delta={s.delta}"] if s.patience is not None else []
    said += [f"decay={s.decay}"] if s.average == "ema" else []
    at = s.resume_at
    where = "never" if at is None else "at the end of an epoch" if at in ends else "inside an epoch"
    said.append(f"resume {where}")
    return [*said, f"epochs={min(len(ends), 3)}{' or more' if len(ends) >= 3 else ''}"]


def _first(optimizer: str, name: str) -> Any:
    return OPTIMIZERS[optimizer][1].get(name, (True,))[0]  # maximize is counted for all of them


def _size(n: int) -> str:
    return str(n) if n == 1 else "up to 7" if n <= 7 else "more"


def _one(rng: np.random.Generator, values: Any) -> Any:
    values = list(values)
    return values[_int(rng, 0, len(values) - 1)]


def _int(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))
