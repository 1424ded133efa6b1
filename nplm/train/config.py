"""Every setting of a training run, with its unit; `nplm train` makes its flags of this file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from nplm.errors import ConfigError
from nplm.models.config import PRESETS, unknown
from nplm.train.run import RUN_NAME

LARGEST = 10**9  # of every count: what is larger is a slip of the finger
SEEDS = range(-(2**63), 2**64)
DEFAULT_STEPS = 2000  # updates, where neither steps nor epochs are given

_RANGES: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    # settings of TrainConfig, what they should be, and whether a value is; None is always good
    (
        "batch_size accumulate eval_every log_every sample_length context epochs stop.patience "
        "keep checkpoint_every schedule.step_size",
        f"at least 1, at most {LARGEST:,}",
        lambda n: 1 <= n <= LARGEST,
    ),
    ("steps", "at least 1, fewer than 10^8", lambda n: 1 <= n < 10**8),  # a checkpoint's limit
    ("schedule.warmup_steps", f"at least 0, at most {LARGEST:,}", lambda n: 0 <= n <= LARGEST),
    ("lr clip_norm", "a positive number that is finite", lambda x: 0 < x < math.inf),
    (
        "schedule.min_lr schedule.gamma weight_decay stop.delta",
        "a finite number >= 0",
        lambda x: 0 <= x < math.inf,
    ),
    ("dropout", "a probability in [0, 1)", lambda p: 0 <= p < 1),
    ("beta1 beta2", "a number in [0, 1)", lambda x: 0 <= x < 1),
    ("threads", "at least 1, at most 1024", lambda n: 1 <= n <= 1024),
    ("seed", "-2^63 to 2^64 - 1", SEEDS.__contains__),
    (
        "name",
        "1 to 100 letters, digits, '.', '_' or '-', and no '.' or '-' at the start",
        RUN_NAME.fullmatch,
    ),
)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves.  Its steps are updates, or epochs with `unit`."""

    name: Literal["cosine", "constant", "step"] = "cosine"  # after the warm-up; step: StepLR
    unit: Literal["step", "epoch"] = "step"  # when it moves: after an update, or after an epoch
    warmup_steps: int | None = None  # units until the full rate; None: 100, at most a tenth of all
    min_lr: float | None = None  # the cosine's floor; None: a tenth of lr
    step_size: int | None = None  # of "step": units from one drop to the next; None: 30
    gamma: float | None = None  # of "step": the factor of a drop; None: 0.1


@dataclass(frozen=True)
class StopConfig:
    """When to end before the last update."""

    patience: int | None = None  # validations in a row without improvement; None: never
    delta: float | None = None  # a validation loss must fall by more than this; None: 0


@dataclass(frozen=True)
class TrainConfig:
    """Train a decoder on text.  The defaults are nanoGPT's character model for a CPU."""

    preset: str = "char"  # model: char, tiny-llama or gpt2 (its vocabulary becomes the text's)
    data: tuple[Path, ...] = ()  # text files (UTF-8) or folders; none: Python's own reference
    tokenizer: Literal["character", "byte"] = "character"  # what a token is
    context: int | None = None  # positions a token sees; None: the preset's
    dropout: float | None = None  # probability; None: the preset's
    steps: int | None = None  # updates; None: as many as the epochs have, or 2,000
    epochs: int | None = None  # passes over the text, shuffled; None: windows at random places
    batch_size: int = 12  # rows in a micro-batch
    accumulate: int = 1  # micro-batches an update
    lr: float = 1e-3  # peak learning rate
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    beta1: float = 0.9  # AdamW's decay of the mean gradient
    beta2: float = 0.99  # AdamW's decay of the mean squared gradient
    weight_decay: float = 0.1  # on matrices only
    clip_norm: float | None = 1.0  # largest gradient norm; None: no clipping
    eval_every: int | None = None  # updates between validations; None: 500, or an epoch
    log_every: int = 50  # updates between lines
    checkpoint_every: int | None = None  # updates between checkpoints; None: at validations
    keep: int = 2  # newest checkpoints that stay, beside the best one
    sample_length: int = 300  # tokens
    seed: int = 1337  # of weights, batches, dropout and samples
    device: str = "cpu"  # cpu (NumPy), torch:cpu or cuda
    dtype: Literal["float32", "float64"] = "float32"  # of weights and arithmetic
    threads: int | None = None  # of the BLAS; None: as many as it takes by itself
    out: Path = Path("runs")  # folder that gets the run's folder
    name: str | None = None  # of the run; None: the preset's

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return 8 if self.dtype == "float64" else 4

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        problems = {
            name: f"{name}: expected {expected}, got {value!r}"
            for names, expected, good in _RANGES
            for name in names.split()
            if (value := attrgetter(name)(self)) is not None and not good(value)
        }
        if self.preset not in PRESETS:
            problems["preset"] = unknown("preset", self.preset, PRESETS)
        for name, problem in self._contradictions():
            problems.setdefault(name, problem)
        if problems:
            raise ConfigError("; ".join(problems.values()))

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Settings that are good alone and not together, or that nothing would read."""
        schedule, least = self.schedule, self.schedule.min_lr
        for setting, reader in (("min_lr", "cosine"), ("step_size", "step"), ("gamma", "step")):
            if getattr(schedule, setting) is not None and schedule.name != reader:
                name = f"schedule.{setting}"
                yield name, f"{name}: only schedule.name={reader} has one, got {schedule.name}"
        if least is not None and least > self.lr > 0:
            name = "schedule.min_lr"
            yield name, f"{name}: expected 0 <= min_lr <= lr={self.lr}, got {least}"
        if schedule.unit == "epoch" and self.epochs is None:
            yield "schedule.unit", "schedule.unit: 'epoch' needs epochs, got none"
        name, warmup = "schedule.warmup_steps", schedule.warmup_steps or 0
        if schedule.name == "step" and warmup:
            yield name, f"{name}: schedule.name=step has no warm-up, got {warmup}"
        if self.epochs is None and warmup >= (end := self.steps or DEFAULT_STEPS):
            yield name, f"{name}: expected fewer than steps={end}, got {warmup}"
        if self.stop.delta is not None and self.stop.patience is None:
            yield "stop.delta", "stop.delta: needs stop.patience, got none"
