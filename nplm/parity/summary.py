"""A Comparison counted and put into words: what report.py and page.py show of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nplm.parity.trace import PHASES

if TYPE_CHECKING:
    from nplm.parity.divergence import Comparison, Divergence
    from nplm.parity.trace import Place

NUMERIC = ("value", "nan")  # the kinds of divergence that have two numbers
# Where to look when a phase is the first to diverge: all that comes before it agrees.
LOOK_AT = {
    "start": "how both sides begin: load the same state_dict, or seed both before building",
    "batch": "the loader: order of the shuffle, targets one token on, where a resume continues",
    "forward": "the forward of this module: what it was given agrees",
    "loss": "the loss: mean or sum, ignore_index, the number of targets that it is divided by",
    "backward": "the backward of what reads this activation: the gradients after it agree",
    "gradient": "the parameter's part of its module's backward: the activations' gradients agree",
    "accumulated": "accumulation: the division by targets, zero_grad, a weight that is used twice",
    "norm": "the total norm: which parameters it counts, and its order",
    "clipped": "the factor max_norm / (norm + 1e-6), at most 1, and when it is applied",
    "lr": "the learning rate of this step: which schedule, stepped before or after the optimizer",
    "state": "the optimizer's moments: betas, decay added to the gradient, the step count",
    "parameter": "the update itself: bias corrections, eps in or outside the root, weight decay",
    "scheduler": "scheduler.step(): how often it is called, last_epoch after a resume",
    "average": "the average: its decay, its first step, whether buffers take part",
    "validation": "evaluation: model.eval(), the same batches, the mean over tokens or batches",
    "stopper": "early stopping: how ties count, delta, patience, what the best value is",
    "random": "the draws from the stream: how many, in which order",
}


class Outcome(NamedTuple):
    """What came of one place: `error` in budgets, `worst` absolute (NaN: no values compared)."""

    place: Place
    error: float
    worst: float
    values: int
    over: bool


@dataclass
class Tally:
    """Outcomes taken together; `place` is where the error was largest, None if nothing differs."""

    tensors: int = 0
    values: int = 0
    over: int = 0
    error: float = 0.0
    worst: float = math.nan
    place: Place | None = None

    def compared(self) -> str:
        """How much was compared, in elements where they were counted."""
        return counted(self.values, "value") if self.values else counted(self.tensors, "tensor")

    def add(self, outcome: Outcome) -> None:
        """Count one more outcome; of equal errors the first keeps the place."""
        self.tensors += 1
        self.values += outcome.values
        self.over += outcome.over
        if outcome.error > self.error:
            self.error, self.place = outcome.error, outcome.place
        if not self.worst >= outcome.worst and outcome.worst == outcome.worst:
            self.worst = outcome.worst


def outcomes(comparison: Comparison) -> Iterator[Outcome]:
    """Every place of a comparison once: what was measured, then what was not."""
    diverged = {d.place: d.kind for d in comparison.divergences}
    for m in comparison.measured:
        kind = diverged.pop(m.place, None)
        error = math.inf if math.isnan(m.error) else m.error
        worst = m.worst if kind in (None, *NUMERIC) else math.nan
        over = kind is not None or error > 1
        yield Outcome(m.place, error, worst, getattr(m, "size", 0), over)
    for place in diverged:
        yield Outcome(place, math.inf, math.nan, 0, True)


def phases(comparison: Comparison) -> dict[str, Tally]:
    """A tally a phase, in causal order; a phase of another name comes last."""
    tallies: dict[str, Tally] = {phase: Tally() for phase in PHASES}
    for outcome in outcomes(comparison):
        tallies.setdefault(outcome.place.phase, Tally()).add(outcome)
    return tallies


def verdict(comparison: Comparison) -> str:
    """ "equal", "diverged", or "nothing compared", which proves nothing."""
    if not comparison.equal:
        return "diverged"
    return "equal" if comparison.measured else "nothing compared"


def headline(comparison: Comparison) -> str:
    """The verdict in one sentence, with how much was compared."""
    total = Tally()
    for outcome in outcomes(comparison):
        total.add(outcome)
    if verdict(comparison) == "nothing compared":
        return "nothing was compared, so nothing is proved"
    if comparison.equal:
        return (
            f"equal: {counted(comparison.steps, 'step')}, {total.compared()}, "
            "every one within its budget"
        )
    where = f"; the first is {plainly(comparison.first.place)}" if comparison.first else ""
    return (
        f"diverged: {total.over:,} of {counted(total.tensors, 'tensor')} in "
        f"{counted(comparison.steps, 'step')}{where}"
    )


def engines(comparison: Comparison) -> tuple[str, str]:
    """What the two sides are called: the judged one, then the reference."""
    names = [comparison.meta.get(side) for side in ("actual", "expected")]
    names = [name.get("engine") if isinstance(name, dict) else name for name in names]
    first, second = (str(name) if name else side for name, side in zip(names, ("this", "its twin")))
    return (first, second) if first != second else (first, f"{second} (reference)")


def facts(comparison: Comparison, divergence: Divergence) -> list[tuple[str, str]]:
    """A divergence as lines of (what, text): index, both values, budget, what to look at."""
    found: list[tuple[str, str]] = []
    if divergence.index is not None:
        found.append(("index", str(tuple(map(int, divergence.index)))))
    what = divergence.kind if divergence.kind in ("shape", "dtype") else ""
    for name, value in zip(engines(comparison), (divergence.actual, divergence.expected)):
        found.append((name, f"{what} {exact(value)}".strip()))
    if divergence.kind in NUMERIC:
        gap = difference(divergence)
        times = gap / divergence.budget if divergence.budget > 0 else math.inf
        many = f", {number(times)} times the budget" if math.isfinite(times) else ""
        found.append(("difference", number(gap) + many))
        found.append(("budget", f"{number(divergence.budget)}: {divergence.reason}"))
    elif divergence.reason:
        found.append(("because", divergence.reason))
    return [*found, ("look at", look_at(divergence))]


def look_at(divergence: Divergence) -> str:
    """What to look at first: all that comes before the place agrees."""
    if divergence.kind in ("missing", "extra"):
        return "what was recorded: both sides must run the same modules, steps and micro-batches"
    return LOOK_AT.get(divergence.place.phase, "what computes this value")


def difference(divergence: Divergence) -> float:
    """|actual - expected|, or NaN where they are no numbers."""
    try:
        return float(abs(divergence.actual - divergence.expected))
    except (TypeError, ValueError, OverflowError):
        return math.nan


# ---- how things are written ----------------------------------------------------------------------


def number(x: float) -> str:
    """At most eight characters for an error: "0", "0.0123", "3.1e-14", "inf"."""
    if x == 0 or not math.isfinite(x):
        return "0" if x == 0 else str(float(x))
    return f"{x:.3g}" if 1e-3 <= abs(x) < 1e4 else f"{x:.1e}"


def exact(value: Any) -> str:
    """A value with all its digits; text and None as they are."""
    if isinstance(value, str):
        return value
    return "nothing" if value is None else repr(getattr(value, "item", lambda: value)())


def counted(n: int, what: str) -> str:
    """12345, "value" -> "12,345 values"."""
    return f"{n:,} {what}" + "s" * (n != 1)


def plainly(value: object) -> str:
    """Text in which nothing moves a cursor, ends a line or hides: such characters are escaped."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
