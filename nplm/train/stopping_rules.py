"""The rules of other tools, for `EarlyStopping(semantics=...)`. Read early_stopping.py before.

Each is the code of its tool, at the version that it names: a function of one loss and of what
EarlyStopping remembers. `delta` is what Keras and Lightning call min_delta, others threshold.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from nplm.errors import ConfigError

DEFAULT = "pytorchtools"  # `EarlyStopping` itself
PATIENCE = "patience"  # the cause of a stop that EarlyStopping puts into words


class Options(TypedDict, total=False):
    """What some rules can be told besides patience and delta; None is the same as not given."""

    mode: str | None  # "min" (default), or "max": larger is better
    baseline: float | None  # the counter starts again only at a loss that also beats this
    start_from_epoch: int | None  # calls at the start that are not judged; None: 0
    check_finite: bool | None  # stop at the first NaN or infinity; None: True
    stopping_threshold: float | None  # stop at the first loss better than this
    divergence_threshold: float | None  # stop at the first loss worse than this
    threshold_mode: str | None  # delta is "rel" (default), a fraction of the best, or "abs"


class Memory(Protocol):
    """What a rule reads of an EarlyStopping: the state before the call that it judges."""

    patience: int
    delta: float
    best_val_loss: float | None
    counter: int
    calls: int


class Verdict(NamedTuple):
    """What a rule makes of one call."""

    best: float | None  # what the next loss has to improve on
    counter: int  # calls in a row without improvement
    keep: bool = False  # whether this call's weights are the best
    stop: str | None = None  # PATIENCE, or a sentence that says what else
    ignored: str | None = None  # why the loss was not judged


def bad(memory: Memory, limit: int | None = None) -> Verdict:
    """One more call without improvement: stop when the counter has reached the limit."""
    counter = memory.counter + 1
    limit = memory.patience if limit is None else limit
    return Verdict(memory.best_val_loss, counter, stop=PATIENCE if counter >= limit else None)


@dataclass(frozen=True)
class Rule:
    """A rule; its fields are the options that it has."""

    def __call__(self, loss: float, memory: Memory) -> Verdict:
        """What comes of this loss, by what was known before it."""
        raise NotImplementedError

    @property
    def worst(self) -> float:
        """The loss that every other one improves on."""
        return math.inf

    def least(self, delta: float) -> str:
        """The words that follow "no improvement"."""
        return f" of more than {delta:g}" if delta else ""


@dataclass(frozen=True)
class Pytorchtools2020(Rule):
    """pytorchtools.py, Bjarten/early-stopping-pytorch from June 2020 to October 2024."""

    def __call__(self, loss: float, memory: Memory) -> Verdict:
        """What is not worse improves: so do ties, NaN, and anything after a NaN."""
        best = memory.best_val_loss
        if best is not None and loss > best - memory.delta:
            return bad(memory)
        return Verdict(loss, 0, keep=True)


@dataclass(frozen=True)
class Directed(Rule):
    """What the tools share that can also look for the largest value."""

    mode: str = "min"

    @property
    def larger(self) -> bool:
        """Whether larger is better."""
        return self.mode == "max"

    @property
    def worst(self) -> float:
        """The loss that every other one improves on."""
        return -math.inf if self.larger else math.inf

    def better(self, value: float, than: float) -> bool:
        """Whether it is strictly better; never so with NaN."""
        return value > than if self.larger else value < than

    def plus(self, value: float, delta: float) -> float:
        """A value that is worse by delta."""
        return value - delta if self.larger else value + delta

    def best(self, memory: Memory) -> float:
        """The best so far; before the first the worst there is."""
        return self.worst if memory.best_val_loss is None else memory.best_val_loss


@dataclass(frozen=True)
class Keras(Directed):
    """keras.callbacks.EarlyStopping, Keras 3.15.1 with its default precision, float32."""

    baseline: float | None = None
    start_from_epoch: int = 0

    def better(self, value: float, than: float) -> bool:
        """Whether it is strictly better in float32: what rounds to the same number is a tie."""
        both = np.array([value, than])
        with np.errstate(over="ignore"):  # beyond float32 it is infinity, there as here
            value, than = both.astype(np.float32).tolist()
        return super().better(value, than)

    def __call__(self, loss: float, memory: Memory) -> Verdict:
        """The first loss is the best, even NaN: then nothing improves. Only |delta| counts."""
        best, counter = memory.best_val_loss, memory.counter
        if memory.calls < self.start_from_epoch:
            return Verdict(best, counter, ignored=f"before epoch {self.start_from_epoch}: ignored")
        held = self.plus(loss, abs(memory.delta))
        if best is not None and not self.better(held, best):
            return bad(memory)  # Keras spares its epoch 0, which is always an improvement
        beaten = self.baseline is None or self.better(held, self.baseline)
        return Verdict(loss, 0 if beaten else counter + 1, keep=True)

    def least(self, delta: float) -> str:
        """The same, of |delta|, with the baseline."""
        beyond = "" if self.baseline is None else f" that also beats the baseline {self.baseline:g}"
        return super().least(abs(delta)) + beyond


@dataclass(frozen=True)
class Lightning(Directed):
    """lightning.pytorch.callbacks.EarlyStopping, Lightning 2.6.6.

    The weights, which Lightning leaves to its ModelCheckpoint, are kept at an improvement, and
    where stopping_threshold is reached.
    """

    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None

    def __call__(self, loss: float, memory: Memory) -> Verdict:
        """Finite? Reached? Diverged? Improved? The first that holds decides."""
        reached, diverged = self.stopping_threshold, self.divergence_threshold
        unmoved = Verdict(memory.best_val_loss, memory.counter)
        if self.check_finite and not math.isfinite(loss):
            return unmoved._replace(stop=f"{loss} is not finite")
        if reached is not None and self.better(loss, reached):
            return unmoved._replace(
                stop=f"{loss:.6g} is better than stopping_threshold={reached:g}", keep=True
            )
        if diverged is not None and self.better(-loss, -diverged):
            return unmoved._replace(
                stop=f"{loss:.6g} is worse than divergence_threshold={diverged:g}"
            )
        if self.better(self.plus(loss, memory.delta), self.best(memory)):
            return Verdict(loss, 0, keep=True)
        return bad(memory)


@dataclass(frozen=True)
class Plateau(Directed):
    """torch.optim.lr_scheduler.ReduceLROnPlateau, torch 2.13: stop where it first cuts the lr."""

    threshold_mode: str = "rel"

    def __call__(self, loss: float, memory: Memory) -> Verdict:
        """It acts one call later than others: when the counter is above the patience."""
        best, delta = self.best(memory), memory.delta
        if self.threshold_mode == "rel":
            bar = best * (delta + 1.0 if self.larger else 1.0 - delta)
        else:
            bar = best + delta if self.larger else best - delta
        if self.better(loss, bar):
            return Verdict(loss, 0, keep=True)
        return bad(memory, memory.patience + 1)

    def least(self, delta: float) -> str:
        """The same, of a fraction of the best."""
        relative = " times that" if delta and self.threshold_mode == "rel" else ""
        return super().least(delta) + relative


@dataclass(frozen=True)
class Transformers(Directed):
    """transformers.EarlyStoppingCallback with Trainer's best model, 5.24.0; the same since 4.47."""

    def __call__(self, loss: float, memory: Memory) -> Verdict:
        """Whatever is better becomes the best; only more than delta sets the counter back."""
        best = self.best(memory)
        keep = self.better(loss, best)
        enough = memory.calls == 0 or (keep and abs(loss - best) > memory.delta)
        counter = 0 if enough else memory.counter + 1
        stop = PATIENCE if counter >= memory.patience else None  # patience 0: at the first call
        return Verdict(loss if keep else best, counter, keep, stop)


RULES: dict[str, type[Rule] | None] = {
    DEFAULT: None,
    "pytorchtools-2020": Pytorchtools2020,
    "keras": Keras,
    "lightning": Lightning,
    "plateau": Plateau,
    "transformers": Transformers,
}
NAN_CAN_BE_BEST = ("pytorchtools-2020", "keras")


def _names(kind: type[Rule] | None) -> list[str]:
    return [] if kind is None else [field.name for field in fields(kind)]


def options_of(rule: Rule | None) -> dict[str, Any]:
    """Every option of a rule, as a state holds it."""
    return {} if rule is None else asdict(rule)


def make_rule(semantics: Any, options: Mapping[str, Any]) -> Rule | None:
    """The rule of that name with these options; None for EarlyStopping's own.

    Raises ConfigError for a name or an option that there is not, or a value that it cannot be, and
    TypeError for an argument that no rule has.
    """
    if not isinstance(semantics, str) or semantics not in RULES:
        raise ConfigError(
            f"EarlyStopping: expected semantics as one of {', '.join(RULES)}, got {semantics!r}"
        )
    kind, settings = RULES[semantics], {}
    for name, value in options.items():
        if name not in Options.__annotations__:
            raise TypeError(f"EarlyStopping: there is no argument {name!r}")
        if value is None:
            continue
        if name not in _names(kind):
            having = ", ".join(other for other in RULES if name in _names(RULES[other]))
            raise ConfigError(
                f"EarlyStopping: semantics {semantics!r} has no {name}, leave it out; "
                f"those with one: {having}"
            )
        settings[name] = _option(name, value)
    return None if kind is None else kind(**settings)


def _option(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name == "check_finite":
        expected, good = "True or False", isinstance(value, bool)
    elif name == "start_from_epoch":
        expected, good = "a whole number >= 0", whole and bool(value >= 0)
    elif name in ("mode", "threshold_mode"):
        names = ("min", "max") if name == "mode" else ("rel", "abs")
        expected, good = " or ".join(map(repr, names)), isinstance(value, str) and value in names
    else:
        expected = "a number in float64's range, not NaN"
        good = isinstance(value, float) or (whole and abs(value) <= sys.float_info.max)
        good = good and not math.isnan(value)
    if not good:
        raise ConfigError(f"EarlyStopping: expected {name} as {expected}, got {value!r}")
    return value
