"""Every setting of a training run, with its unit; `nplm train` makes its flags of this file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from nplm.errors import ConfigError, unknown
from nplm.models.config import PRESETS
from nplm.train.run import RUN_NAME
from nplm.train.window_schedule import WindowSchedule

LARGEST = 10**9  # of every count: what is larger is a slip of the finger
SEEDS = range(-(2**63), 2**64)
DEFAULT_STEPS = 2000  # updates, where neither steps nor epochs are given
_NOT_NUMPYS = "expected a torch device, as in --device torch:cpu or cuda"

_RANGES: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    # settings of TrainConfig, what they should be, and whether a value is; None is always good
    (
        "batch_size accumulate eval_every log_every sample_length context epochs keep "
        "checkpoint_every average.every",
        f"at least 1, at most {LARGEST:,}",
        lambda n: 1 <= n <= LARGEST,
    ),
    ("steps", "at least 1, fewer than 10^8", lambda n: 1 <= n < 10**8),  # a checkpoint's limit
    (
        "schedule.warmup_steps stop.patience stop.start_from_epoch average.start average.anneal",
        f"at least 0, at most {LARGEST:,}",
        lambda n: 0 <= n <= LARGEST,
    ),
    (
        "lr clip_norm spike_threshold average.swa_lr",
        "a positive number that is finite",
        lambda x: 0 < x < math.inf,
    ),
    ("schedule.min_lr weight_decay", "a finite number >= 0", lambda x: 0 <= x < math.inf),
    ("layer_decay", "a number above 0, at most 1", lambda x: 0 < x <= 1),
    ("stop.delta stop.baseline", "a finite number", math.isfinite),
    (
        "stop.stopping_threshold stop.divergence_threshold",
        "a number that is not NaN",
        lambda x: not math.isnan(x),
    ),
    ("average.decay", "a number in [0, 1]", lambda x: 0 <= x <= 1),
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
class OptimizerConfig:
    """What makes an update of the gradients."""

    name: str = "AdamW"  # a class of torch.optim; Muon: of the blocks, AdamW for the rest
    options: tuple[str, ...] = ()  # NAME=VALUE of that class: momentum=0.9 nesterov=true


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves.  Its steps are updates, or epochs with `unit`."""

    name: str = "nanogpt"  # a recipe (nplm schedule), or a class of torch.optim.lr_scheduler
    options: tuple[str, ...] = ()  # NAME=VALUE of it: step_size=4 gamma=0.5
    unit: Literal["step", "epoch"] = "step"  # when it moves: after an update, or after an epoch
    warmup_steps: int | None = None  # units until the full rate; None: 100, at most a tenth of all
    min_lr: float | None = None  # the floor, as a rate; None: the schedule's, nanogpt's is lr / 10
    parts: tuple[str, ...] = ()  # of SequentialLR, ChainedScheduler: "LinearLR total_iters=9" ...


@dataclass(frozen=True)
class StopConfig:
    """When to end before the last update."""

    patience: int | None = None  # validations in a row without improvement; None: never
    delta: float | None = None  # a validation loss must fall by more than this; None: 0
    semantics: str = "pytorchtools"  # whose rule: docs/early_stopping.md has the six
    baseline: float | None = None  # keras: the loss to beat
    start_from_epoch: int | None = None  # keras: validations at the start that are not judged
    check_finite: bool | None = None  # lightning: stop at NaN and infinity; None: True
    stopping_threshold: float | None = None  # lightning: good enough
    divergence_threshold: float | None = None  # lightning: hopeless
    threshold_mode: Literal["rel", "abs"] | None = None  # plateau: delta is a part of the best


@dataclass(frozen=True)
class AverageConfig:
    """An average of the weights, which validations, samples and `nplm generate` then use."""

    name: Literal["ema", "swa"] | None = None  # exponential, or equally weighted; None: none
    decay: float | None = None  # ema: the weight of the old average; None: 0.999
    start: int | None = None  # updates before the first that counts; None: 0, swa: 3/4 of the run
    every: int | None = None  # updates from one that counts to the next; None: 1, swa: 1 epoch
    swa_lr: float | None = None  # SWALR's rate from `start` on; None: the schedule goes on
    anneal: int | None = None  # updates (or epochs) from the rate found to swa_lr; None: 10
    anneal_strategy: Literal["cos", "linear"] | None = None  # None: cos


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
    windows: tuple[str, ...] = ()  # EPOCH:SIZE ..., micro-batches from that epoch (from 0) on
    normalise: Literal["token", "microbatch"] = "token"  # what a window's loss is the mean of
    lr: float = 1e-3  # peak learning rate
    layer_decay: float | None = None  # each block's rate by that of the one above; None: alike
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    beta1: float | None = None  # Adam's (and kin's) decay of the mean gradient; None: 0.9
    beta2: float | None = None  # Adam's decay of the mean squared gradient; None: 0.99
    weight_decay: float | None = None  # on matrices only; None: 0.1 for AdamW and Muon, else 0
    clip_norm: float | None = 1.0  # largest gradient norm; None: no clipping
    on_nonfinite: Literal["stop", "skip"] = (
        "stop"  # the run, or the update, if its loss is not finite
    )
    spike_threshold: float | None = 6.0  # tell of a loss or norm so many deviations above the mean
    eval_every: int | None = None  # updates between validations; None: 500, or an epoch
    log_every: int = 50  # updates between lines
    checkpoint_every: int | None = None  # updates between checkpoints; None: at validations
    keep: int = 2  # newest checkpoints that stay, beside the best one
    sample_length: int = 300  # tokens
    seed: int = 1337  # of weights, batches, dropout and samples
    device: str = "cpu"  # cpu (NumPy), torch:cpu or cuda
    # of weights and arithmetic; bfloat16: of products and activations, on torch devices
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    # torch devices: a block as a compiled pair, or CUDA graphs; None: region on cuda, off elsewhere
    compile: Literal["off", "region", "graph"] | None = None
    recompute: bool = False  # blocks run again in the backward: less memory, a third more time
    threads: int | None = None  # of a step; None: the physical cores, or OMP_NUM_THREADS
    out: Path = Path("runs")  # folder that gets the run's folder
    name: str | None = None  # of the run; None: the preset's

    @property
    def weight_dtype(self) -> Literal["float32", "float64"]:
        """That of weights, gradients and moments, which are never bfloat16."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return 8 if self.dtype == "float64" else 4

    @property
    def activation_itemsize(self) -> int:
        """Bytes of a number that the forward pass keeps for the backward pass."""
        return 2 if self.dtype == "bfloat16" else self.itemsize

    @property
    def capture_level(self) -> Literal["off", "region", "graph"]:
        """What `compile` means on this device."""
        if self.compile is not None:
            return self.compile
        return "region" if self.device.split(":")[0] == "cuda" else "off"

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
        for name, problem in self._contradictions(set(problems)):
            problems.setdefault(name, problem)
        if problems:
            raise ConfigError("; ".join(problems.values()))

    def _contradictions(self, bad: set[str]) -> Iterator[tuple[str, str]]:
        """Settings that are good alone and not together, or that nothing would read.

        `bad` are those that are out of range by themselves.
        """
        from nplm.train import parts  # it knows these classes

        schedule, least = self.schedule, self.schedule.min_lr
        if self.optimizer.name not in parts.OPTIMIZERS:
            yield "optimizer", parts.unknown_optimizer(self.optimizer.name)
        elif not bad & {"lr", "beta1", "beta2", "weight_decay"}:
            yield from _refused("optimizer", lambda: parts.check_optimizer(self))
        if not bad & {"lr", "schedule.warmup_steps", "schedule.min_lr"}:
            yield from _refused("schedule.name", lambda: parts.check_scheduler(schedule, self.lr))
        if least is not None and least > self.lr > 0:
            name = "schedule.min_lr"
            yield name, f"{name}: expected 0 <= min_lr <= lr={self.lr}, got {least}"
        if schedule.unit == "epoch" and self.epochs is None:
            yield "schedule.unit", "schedule.unit: 'epoch' needs epochs, got none"
        name, warmup = "schedule.warmup_steps", schedule.warmup_steps or 0
        if self.epochs is None and warmup >= (end := self.steps or DEFAULT_STEPS):
            yield name, f"{name}: expected fewer than steps={end}, got {warmup}"
        if self.device == "cpu" and self.dtype == "bfloat16":
            yield "dtype", f"dtype: {_NOT_NUMPYS}, got bfloat16 on cpu, which is NumPy"
        if self.device == "cpu" and self.compile not in (None, "off"):
            yield "compile", f"compile: {_NOT_NUMPYS}, got {self.compile} on cpu, which is NumPy"
        yield from self._of_windows()
        yield from self._without_effect(bad)

    def _of_windows(self) -> Iterator[tuple[str, str]]:
        if not self.windows:
            return
        yield from _refused("windows", lambda: self.window_schedule)
        if self.epochs is None:
            yield "windows", "windows: sizes by epoch need epochs, got none"
        if self.accumulate != 1:
            yield (
                "windows",
                f"windows: expected no accumulate beside them, got {self.accumulate}",
            )

    def _without_effect(self, bad: set[str]) -> Iterator[tuple[str, str]]:
        from nplm.train import parts

        stop, average = self.stop, self.average
        if stop.patience is not None:
            if not any(name.startswith("stop.") for name in bad):
                yield from _refused("stop.patience", lambda: parts.make_stopper(stop))
        else:
            for name in set_in(stop):
                yield f"stop.{name}", f"stop.{name}: needs stop.patience, got none"
        for name in set_in(average):
            if average.name is None:
                yield f"average.{name}", f"average.{name}: needs average.name, got none"
        if average.decay is not None and average.name == "swa":
            yield "average.decay", "average.decay: only average.name=ema has one, got swa"
        for name in ("anneal", "anneal_strategy"):
            if getattr(average, name) is not None and average.swa_lr is None:
                yield f"average.{name}", f"average.{name}: needs average.swa_lr, got none"

    @property
    def window_schedule(self) -> WindowSchedule:
        """How many micro-batches an update has, by epoch.  Raises ConfigError."""
        if self.windows:
            return WindowSchedule.parse(self.windows, "windows")
        return WindowSchedule.of(self.accumulate)


def set_in(settings: Any) -> list[str]:
    """The names of a dataclass's fields that are not at their default."""
    return [f.name for f in fields(settings) if getattr(settings, f.name) != f.default]


def _refused(name: str, make: Callable[[], Any]) -> Iterator[tuple[str, str]]:
    try:
        make()
    except ConfigError as error:
        yield name, str(error)
