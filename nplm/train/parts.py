"""The parts of a run that its settings choose: optimizer, schedule, stopper, average.

Read config.py before. Every class that torch has goes by its name, and options by torch's names.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from typing import TYPE_CHECKING, Any

from nplm import optim
from nplm.errors import ConfigError, unknown
from nplm.nn.module import Module
from nplm.ops.creation import zeros
from nplm.optim import lr_scheduler
from nplm.optim.chained import ChainedOptimizer
from nplm.optim.groups import Groups, decay_groups, layer_groups
from nplm.optim.lr_scheduler import SWALR, ReduceLROnPlateau
from nplm.optim.optimizer import Optimizer
from nplm.optim.schedules import RECIPES, get_schedule
from nplm.train.averaging import Average
from nplm.train.early_stopping import EarlyStopping
from nplm.train.options import FUNCTIONS, build, read_options, required, takes
from nplm.train.stopping_rules import Plateau

if TYPE_CHECKING:
    from nplm.train.config import AverageConfig, ScheduleConfig, StopConfig, TrainConfig

OPTIMIZERS: dict[str, Any] = {  # without LBFGS: its steps evaluate the loss again, by a closure
    name: getattr(optim, name)
    for name in optim.__all__
    if name[0].isupper() and name not in ("Optimizer", "ChainedOptimizer", "LBFGS")
}
SCHEDULERS: dict[str, Any] = {
    name: getattr(lr_scheduler, name)
    for name in lr_scheduler.__all__
    if name not in ("LRScheduler", "SWALR", "LambdaLR", "MultiplicativeLR")
}
MOST_PARTS = 100  # of a combined schedule: more are a slip, and slow
COMBINED = ("SequentialLR", "ChainedScheduler")  # of other schedulers: `schedule.parts`
DECOUPLED = ("AdamW", "Muon")  # whose decay does not pass through the moments: 0.1 is usual
_HIDDEN = re.compile(r"blocks\.\d+\..*weight")  # the matrices that Muon is made for
# What takes the place of `schedule.min_lr`, as a rate or as a part of lr.
_FLOORS = {"min_lr": False, "eta_min": False, "lr_end": False, "min_lr_ratio": True}


# ---- the optimizer -------------------------------------------------------------------------------
def make_optimizer(config: TrainConfig, model: Module) -> Optimizer:
    """The optimizer of a run, on all trainable parameters of the model.

    Matrices decay and vectors do not; with `layer_decay` rates fall with the depth. Muon gets the
    matrices of the blocks, AdamW the rest. Raises ConfigError.
    """
    decay, name = weight_decay(config), config.optimizer.name
    if config.layer_decay is None:
        groups = decay_groups(model, decay)
    else:
        groups = layer_groups(model, config.lr, config.layer_decay, decay)
    if name != "Muon":
        return _on(config, name, groups)
    hidden = {p for key, p in model.named_parameters() if _HIDDEN.fullmatch(key) and p.ndim == 2}
    parts = [_only(groups, hidden), _only(groups, hidden, others=True)]
    if not parts[0]:
        raise ConfigError("optimizer.name: Muon needs matrices inside blocks, the model has none")
    return ChainedOptimizer([_on(config, "Muon", parts[0]), _on(config, "AdamW", parts[1])])


def check_optimizer(config: TrainConfig) -> None:
    """Raise ConfigError for options that the optimizer does not take."""
    names = takes(OPTIMIZERS[config.optimizer.name])
    if config.optimizer.name == "Muon":
        names = [*names, "betas"]  # of the AdamW beside it
    for setting, option in (("beta1", "betas"), ("beta2", "betas"), ("weight_decay",) * 2):
        if getattr(config, setting) is not None and option not in names:
            raise ConfigError(f"{setting}: {config.optimizer.name} has no {option}; leave it out")
    tiny = zeros(1, 1, requires_grad=True)
    tiny.grad = zeros(1, 1)
    optimizer = _on(config, config.optimizer.name, [{"params": [tiny]}])
    build(optimizer.step, f"optimizer {config.optimizer.name}")  # what only a step refuses
    if config.optimizer.name == "Muon":
        _on(config, "AdamW", [{"params": [tiny]}])


def unknown_optimizer(name: str) -> str:
    """One sentence for a name that is no optimizer of a run."""
    if name == "LBFGS":
        return "optimizer.name: LBFGS steps by a closure only, so `fit` cannot; use it in Python"
    return "optimizer.name: " + unknown("optimizer", name, OPTIMIZERS)


def weight_decay(config: TrainConfig) -> float:
    """That of the matrices: given, or 0.1 where it is decoupled from the moments, else 0."""
    if config.weight_decay is not None:
        return config.weight_decay
    return 0.1 if config.optimizer.name in DECOUPLED else 0.0


def _on(config: TrainConfig, name: str, groups: Groups) -> Optimizer:
    kind = OPTIMIZERS[name]
    names = takes(kind)
    settings: dict[str, Any] = {"lr": config.lr}
    beside = name != config.optimizer.name  # AdamW beside Muon takes no options
    words = () if beside else config.optimizer.options
    where = f"optimizer {name}"
    elsewhere = {"lr": "--lr", "weight_decay": "--weight-decay", "betas": "--beta1 and --beta2"}
    settings |= read_options(words, kind, where, elsewhere)
    if "betas" in names:
        beta1 = 0.9 if config.beta1 is None else config.beta1
        beta2 = 0.99 if config.beta2 is None else config.beta2
        settings["betas"] = (beta1, beta2)
    if name == "Muon":  # so that one rate fits it and AdamW
        settings.setdefault("adjust_lr_fn", "match_rms_adamw")
    made: Optimizer = build(lambda: kind(groups, **settings), where)
    return made


def _only(groups: Groups, chosen: set[Any], others: bool = False) -> Groups:
    """The groups with just the parameters that are chosen, or just the others."""
    kept = [
        {**group, "params": [p for p in group["params"] if (p in chosen) != others]}
        for group in groups
    ]
    return [group for group in kept if group["params"]]


# ---- the schedule --------------------------------------------------------------------------------
def make_scheduler(schedule: ScheduleConfig, optimizer: Any, lr: float, end: int) -> Any:
    """The scheduler of a run of `end` units whose full rate is lr.

    Raises ConfigError, also for one that fails later or gives a rate that is none, as far as its
    first 1,000 steps show.
    """
    trial = _Rates(optimizer)
    where = f"schedule {schedule.name}"
    build(lambda: trial.run(_built(schedule, trial, lr, end), min(end, 1000), where), where)
    return _built(schedule, optimizer, lr, end)


class _Rates:
    """An optimizer's groups without parameters: for a schedule on trial."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups = [{**group, "params": []} for group in optimizer.param_groups]
        self.defaults = dict(optimizer.defaults)
        self.state: dict[Any, Any] = {}

    def step(self) -> None:
        """Nothing to do."""

    def run(self, scheduler: Any, steps: int, where: str) -> None:
        """Move the rates so many times; ConfigError for one that is below 0 or not finite."""
        for n in range(steps + 1):
            for group in self.param_groups:
                if not 0 <= group["lr"] < math.inf:
                    raise ConfigError(f"{where}: its rate after {n} steps is {group['lr']}")
            if n < steps:
                self.step()
                scheduler.step(*[0.0] * by_validation(scheduler))


def _built(schedule: ScheduleConfig, optimizer: Any, lr: float, end: int) -> Any:
    words = [schedule.name, *schedule.options]
    if schedule.name not in COMBINED:
        return _scheduler(words, optimizer, lr, end, schedule)
    where = f"schedule {schedule.name}"
    kind = SCHEDULERS[schedule.name]
    own = {"schedulers": "made of schedule.parts", "optimizer": "the run's"}
    settings = read_options(schedule.options, kind, where, own)
    ends: list[int] = []
    if "milestones" in takes(kind):
        milestones = settings.get("milestones")
        if not isinstance(milestones, list) or any(type(m) is not int for m in milestones):
            raise ConfigError(
                f"{where}: expected milestones, where a part ends, as the option milestones=[100] "
                f"or the like, got {milestones}"
            )
        ends = [*milestones, end]
    parts = []
    for i, part in enumerate(schedule.parts):
        length = end
        if i < len(ends):
            length = max(1, ends[i] - (ends[i - 1] if i else 0))
        parts.append(_scheduler(_words_of(part), optimizer, lr, length))
    if schedule.name == "ChainedScheduler":
        return build(lambda: kind(parts, **settings), where)
    return build(lambda: kind(optimizer, parts, **settings), where)


def check_scheduler(schedule: ScheduleConfig, lr: float) -> None:
    """Raise ConfigError for a schedule that there is not, or settings that do not fit it.

    The length of the run is unknown here, so what depends on it is found by `make_scheduler`.
    """
    if len(schedule.parts) > MOST_PARTS:
        n = len(schedule.parts)
        raise ConfigError(f"schedule.parts: expected at most {MOST_PARTS} parts, got {n:,}")
    for i, words in enumerate([[schedule.name], *map(_words_of, schedule.parts)]):
        if words[0] not in RECIPES and words[0] not in SCHEDULERS:
            raise ConfigError(f"schedule.{'parts' if i else 'name'}: {unknown_schedule(words[0])}")
        if i and words[0] in COMBINED:
            raise ConfigError(f"schedule.parts: {words[0]} has parts itself; expected one without")
    if bool(schedule.parts) != (schedule.name in COMBINED):
        raise ConfigError(
            f"schedule.parts: {' and '.join(COMBINED)} are made of parts and need some, others "
            f"have none, got {len(schedule.parts)} for {schedule.name}"
        )
    if schedule.name in COMBINED and (schedule.warmup_steps or schedule.min_lr is not None):
        raise ConfigError(
            f"schedule: {schedule.name} takes warm-up and floor from its parts; write them there"
        )
    _settings([schedule.name, *schedule.options], lr, 10**9, schedule)


def _words_of(part: str) -> list[str]:
    """A part's name and options."""
    try:
        return shlex.split(part) or [""]
    except ValueError as error:
        raise ConfigError(f"schedule.parts: {part!r} cannot be read: {error}") from None


def unknown_schedule(name: str) -> str:
    """One sentence for a name that is no schedule."""
    if name in ("LambdaLR", "MultiplicativeLR"):
        return f"{name} is made of a function, which a word cannot be; use it in Python"
    return unknown("schedule", name, [*RECIPES, *SCHEDULERS])


def _scheduler(
    words: list[str], optimizer: Any, lr: float, end: int, schedule: ScheduleConfig | None = None
) -> Any:
    name, settings = words[0], _settings(words, lr, end, schedule)
    if name in RECIPES:
        return build(lambda: get_schedule(name, optimizer, **settings), f"schedule {name}")
    return build(lambda: SCHEDULERS[name](optimizer, **settings), f"schedule {name}")


def _settings(
    words: list[str], lr: float, end: int, schedule: ScheduleConfig | None
) -> dict[str, Any]:
    """The arguments of one recipe or class; what it needs to know of the run is filled in."""
    name, where = words[0], f"schedule {words[0]}"
    kind = RECIPES.get(name) or SCHEDULERS[name]
    names = takes(kind)
    settings = read_options(words[1:], kind, where)
    warmup = None if schedule is None else schedule.warmup_steps
    floor = None if schedule is None else schedule.min_lr
    if warmup is not None:
        _not_twice("warmup_steps", settings, "warmup_steps", where)
        if "warmup_steps" not in names:
            raise ConfigError(
                f"schedule.warmup_steps: {name} has no warm-up, got {warmup}; leave it out, or "
                "put LinearLR before it with SequentialLR"
            )
        settings["warmup_steps"] = warmup
    if "warmup_steps" in required(kind):
        settings.setdefault("warmup_steps", min(100, end // 10))
    if floor is not None:
        lowest = next((key for key in _FLOORS if key in names), None)
        if lowest is None:
            raise ConfigError(f"schedule.min_lr: {name} has none, got {floor}; leave it out")
        _not_twice(lowest, settings, "min_lr", where)
        settings[lowest] = floor / lr if _FLOORS[lowest] else floor
    if "total_steps" in names and not {"stable_steps", "epochs"} & settings.keys():
        settings.setdefault("total_steps", end)
    if name == "CosineAnnealingLR":
        settings.setdefault("T_max", end)
    if name == "OneCycleLR":
        settings.setdefault("max_lr", lr)
    missing = [key for key in required(kind) if key not in settings and name not in COMBINED]
    if missing:
        functions = [key for key in missing if key in FUNCTIONS]
        raise ConfigError(
            f"{where} needs {' and '.join(missing)}, got none; write it as an option, "
            f"{(functions or missing)[0]}=..."
        )
    return settings


def _not_twice(option: str, settings: dict[str, Any], setting: str, where: str) -> None:
    if option in settings:
        raise ConfigError(
            f"{where}: the option {option} and schedule.{setting} are both given; leave one out"
        )


# ---- the rest ------------------------------------------------------------------------------------
def make_stopper(stop: StopConfig) -> EarlyStopping | None:
    """The judge of a run's validation losses, or None.  It keeps no weights: checkpoints do."""
    if stop.patience is None:
        return None
    own = ("patience", "delta", "semantics")
    options: Any = {
        f.name: getattr(stop, f.name) for f in dataclasses.fields(stop) if f.name not in own
    }
    return EarlyStopping(
        stop.patience, delta=stop.delta or 0, path=None, semantics=stop.semantics, **options
    )


def make_average(config: TrainConfig, model: Module, total: int) -> Average | None:
    """The averaged copy of a run's weights, or None; the run has `total` updates.

    Raises ConfigError for one that would never begin.
    """
    average = config.average
    start, every = average.start, average.every
    if average.name is not None and start is not None and start >= total:
        raise ConfigError(
            f"average.start: expected fewer than the {total} updates of this run, got {start}"
        )
    if average.name == "ema":
        decay = 0.999 if average.decay is None else average.decay
        return Average(model, decay, start or 0, every or 1)
    if average.name == "swa":
        if every is None and config.epochs is None:
            every = max(1, total // 100)
        # After three quarters of the training, as in the paper.
        return Average(model, None, 3 * total // 4 if start is None else start, every, total)
    return None


def make_swa_scheduler(average: AverageConfig, optimizer: Any) -> SWALR | None:
    """What leads the rate to `average.swa_lr` once averaging began, or None."""
    if average.swa_lr is None:
        return None
    anneal = 10 if average.anneal is None else average.anneal
    strategy: Any = average.anneal_strategy or "cos"
    return SWALR(optimizer, average.swa_lr, anneal, strategy)


def by_validation(scheduler: Any) -> bool:
    """Whether a scheduler moves after a validation, by its loss."""
    return isinstance(scheduler, ReduceLROnPlateau)


def in_words(config: TrainConfig, average: Average | None) -> str:
    """Optimizer, schedule and average, where they are not the defaults, for people."""
    c, said = config, []
    if c.optimizer.name != "AdamW":
        beside = (
            " (the blocks' matrices) and AdamW (the rest)" if c.optimizer.name == "Muon" else ""
        )
        said.append(c.optimizer.name + beside)
    if c.layer_decay is not None:
        said.append(f"rates fall by {c.layer_decay:g} a block")
    if c.schedule.name != "nanogpt":
        unit = "update" if c.schedule.unit == "step" else "epoch"
        plateau = c.schedule.name == "ReduceLROnPlateau"
        said.append(f"{c.schedule.name} after every {'validation' if plateau else unit}")
    if average is not None:
        kind = "SWA" if average.decay is None else f"EMA of {average.decay:g}"
        said.append(f"{kind} from update {average.start + 1:,} on")
    return ", ".join(said)


def stopping_in_words(stopper: EarlyStopping) -> str:
    """When early stopping ends a run, for people."""
    n, rule = stopper.patience, stopper.rule
    least = f" of more than {stopper.delta:g}" if stopper.delta else ""
    if rule is not None:
        least = rule.least(stopper.delta)
    more = "more than " if isinstance(rule, Plateau) else ""
    often = f"{more}{n} validation" + "s" * (n != 1)
    whose = "" if rule is None else f" ({stopper.semantics})"
    return f"after {often} in a row without an improvement{least}{whose}"
