"""compare: hold one trace against another in causal order, and name the first value that is off.

Read trace.py before; what is allowed stands in tolerances.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nplm.parity.tolerances import NOISE_SHARE, Budget, budget_for
from nplm.parity.trace import Entry, Place, Trace
from nplm.parity.updates import Updates

Budgets = Callable[[str, str, str], Budget]  # (run's dtype, phase, mode) -> Budget


@dataclass(frozen=True)
class Measured:
    """How far one value was off.

    error   largest |actual - expected| in units of its budget; inf where they cannot be compared
    worst   largest |actual - expected|
    terms   behind one element: what a float32 budget grows with
    """

    place: Place
    error: float
    worst: float
    terms: int
    size: int = 0  # elements


@dataclass(frozen=True)
class Divergence:
    """A value that is not what it should be.

    kind    "value", "nan" (on one side), "shape", "dtype", "missing" or "extra"
    index   of the element that is farthest off, or None
    actual, expected  numbers at that index, or shapes or dtypes as text
    budget  the largest difference that was allowed there; `reason` says why
    """

    place: Place
    kind: str
    index: tuple[int, ...] | None
    actual: Any
    expected: Any
    budget: float
    reason: str

    def sentence(self) -> str:
        """One or two plain lines."""
        if self.kind == "missing":
            return f"{self.place}: missing; only the reference has it"
        if self.kind == "extra":
            return f"{self.place}: the reference has nothing there"
        if self.kind in ("shape", "dtype"):
            return f"{self.place}: expected {self.kind} {self.expected}, got {self.actual}"
        at = "" if not self.index else f" at {list(self.index)}"
        first = f"{self.place}{at}: expected {self.expected!r}, got {self.actual!r}"
        if self.kind == "nan":
            return f"{first}\n  not a number on one side alone"
        off = abs(self.actual - self.expected)
        return f"{first}\n  off by {off:.3g}, allowed {self.budget:.3g}: {self.reason}"


@dataclass
class Comparison:
    """What a comparison found.

    mode        "free": both runs went their own way; "isolated": each phase had equal inputs
    dtype       of the run's parameters
    measured    in the reference's causal order
    first       the first divergence in that order, or None
    divergences all of them, in that order
    steps       how many were compared
    meta        "actual" and "expected": the metas of both traces; settings, for reports
    notes       what was seen but not judged, one sentence each
    """

    title: str
    mode: str
    dtype: str
    measured: list[Measured] = field(default_factory=list)
    first: Divergence | None = None
    divergences: list[Divergence] = field(default_factory=list)
    steps: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _noise: _Noise | None = field(default=None, repr=False, compare=False)
    _steps: set[int] = field(default_factory=set, repr=False, compare=False)

    @property
    def equal(self) -> bool:
        """Whether everything was within its budget."""
        return self.first is None

    def by_phase(self) -> dict[str, float]:
        """The worst error of every phase, in units of the budget."""
        worst: dict[str, float] = {}
        for m in self.measured:
            worst[m.place.phase] = max(worst.get(m.place.phase, 0.0), m.error)
        return worst

    def grid(self) -> dict[tuple[str, int], float]:
        """The worst error of every phase and step, in units of the budget."""
        worst: dict[tuple[str, int], float] = {}
        for m in self.measured:
            key = (m.place.phase, m.place.step)
            worst[key] = max(worst.get(key, 0.0), m.error)
        return worst


_ALONE = "rounding alone"


def _share(worst: float, lr: float) -> str:
    return f" ({worst / lr:.2g} lr)" if lr else ""


class _Noise:
    """Elements whose gradient is rounding alone: Adam makes whole steps of it.

    Adam divides a gradient by its own size. Where a share s of the largest |gradient| so far may
    be rounding, an update is uncertain by s lr, which the budget of the parameter gets on top.
    What never was above the noise floor is reported and not judged in state and parameters:
    attention ignores a shift of all keys, so the gradient of their bias is a sum that cancels, and
    each engine has its own remainder. Only `free` runs need this: isolated ones start each update
    from equal gradients. What is exactly 0 on both sides (the embedding of an absent token) is
    judged.
    """

    def __init__(self) -> None:
        self.masks: dict[str, np.ndarray] = {}  # by parameter: not judged
        self.slack: dict[str, np.ndarray] = {}  # by parameter: the sum of 2 s lr
        self.shares: dict[str, np.ndarray] = {}  # by parameter: the sum of s
        self.peaks: dict[str, np.ndarray] = {}  # by parameter: the largest |gradient| so far
        self.lr: dict[int, float] = {}  # largest of all groups, by step
        self.uncertain: list[tuple[str, int, np.ndarray]] = []  # s of this step, until lr is known
        self.worst: dict[str, float] = {}  # largest difference not judged, by parameter
        self.updates = Updates()

    def learn_lr(self, place: Place, value: np.ndarray) -> None:
        """The largest learning rate of a step."""
        if place.phase == "lr" and place.name.startswith("lr."):
            largest = float(np.abs(value).max(initial=0.0))
            self.lr[place.step] = max(largest, self.lr.get(place.step, 0.0))

    def learn_gradient(
        self, actual: np.ndarray, expected: Entry, allowed: float, floor: float
    ) -> None:
        """What share of each element of `.grad` may be rounding; below `floor` all of it."""
        place, value = expected.place, expected.value
        if place.phase != "clipped" or value.dtype.kind != "f":
            return
        here = np.maximum(np.abs(value), np.abs(actual), dtype=np.float64)
        peak = np.fmax(here, self.peaks.get(place.name, 0.0))
        self.peaks[place.name] = peak
        share = np.where(here > 0, np.minimum(1.0, allowed / np.where(peak > 0, peak, 1.0)), 0.0)
        self.uncertain.append((place.name, place.step, share))
        small = (peak < floor) & (here > 0)
        if small.any() or place.name in self.masks:
            self.masks[place.name] = self.masks.get(place.name, False) | small

    def settle(self) -> None:
        """The gradients of a step are followed by its lr: add both up."""
        for name, step, share in self.uncertain:
            lr = self.lr.get(step, 0.0)
            self.slack[name] = self.slack.get(name, 0.0) + 2 * lr * share
            self.shares[name] = self.shares.get(name, 0.0) + share
        self.uncertain.clear()

    def name(self, place: Place, shape: tuple[int, ...]) -> str | None:
        """The parameter that a value of state, parameters or averages belongs to."""
        for name in (place.name, place.name.rpartition(".")[0]):
            if place.phase in ("state", "parameter", "average") and name in self.peaks:
                return name if self.peaks[name].shape == shape else None
        return None

    def notes(self) -> Iterator[str]:
        lr = max(self.lr.values(), default=0.0)
        few: list[str] = []
        for name, worst in self.worst.items():
            count, size = int(self.masks[name].sum()), self.masks[name].size
            if 10 * count < size:
                few.append(name)
                continue
            yield (
                f"{name}: the gradient of {count} of {size} elements is {_ALONE}; reported, not "
                f"judged: they end up to {worst:.2g} apart{_share(worst, lr)}"
            )
        if few:
            count = sum(int(self.masks[name].sum()) for name in few)
            worst = max(self.worst[name] for name in few)
            yield (
                f"the first gradient of {count} single elements in {len(few)} tensors is {_ALONE}; "
                f"reported, not judged: they end up to {worst:.2g} apart{_share(worst, lr)}"
            )


def compare(
    actual: Trace,
    expected: Trace,
    *,
    mode: str = "free",
    title: str = "",
    budgets: Budgets | None = None,
    into: Comparison | None = None,
) -> Comparison:
    """Hold every value of `actual` against that of `expected`, in the causal order of the latter.

    NaN equals NaN and inf equals inf at the same index. What only one of them has is a divergence,
    and so is another dtype of an activation, gradient, state or parameter. `budgets` replaces the
    table of tolerances.py. With `into`, these are the next steps of that comparison: a long run is
    compared step by step, and the traces' steps are dropped.
    """
    names = [str(trace.meta.get("engine", "?")) for trace in (actual, expected)]
    dtype = str(expected.meta.get("dtype") or "float64")
    result = into or Comparison(
        title or f"{names[0]} against {names[1]}", mode, dtype,
        meta={"actual": _told(actual), "expected": _told(expected)}, _noise=_Noise(),
    )  # fmt: skip
    optimizer = str(expected.meta.get("optimizer"))
    choose = budgets or partial(budget_for, optimizer=optimizer)
    noise = result._noise or _Noise()
    result._noise = noise
    noise.updates.decays = expected.meta.get("decays") or {}
    for entry, other in _merged(actual, expected):
        budget = choose(result.dtype, entry.place.phase, result.mode)
        found = _one(entry, other, budget, noise, result)
        if found is not None:
            result.divergences.append(found)
            result.first = result.first or found
    result._steps |= {step for step in expected.steps() + actual.steps() if step}
    result.steps = len(result._steps)
    result.notes = [n for n in result.notes if _ALONE not in n] + list(noise.notes())
    return result


def _told(trace: Trace) -> dict[str, Any]:
    return {key: value for key, value in trace.meta.items() if key != "decays"}  # one a parameter


def _merged(actual: Trace, expected: Trace) -> list[tuple[Entry, Entry | str | None]]:
    """(expected entry, its partner or None), and (actual entry, "extra"), in causal order."""
    pairs: list[tuple[Entry, Entry | str | None]] = [(e, actual.get(e.place)) for e in expected]
    pairs += [(e, "extra") for e in actual if expected.get(e.place) is None]
    return sorted(pairs, key=lambda pair: pair[0].place.order)


def _one(
    entry: Entry, other: Entry | str | None, budget: Budget, noise: _Noise, result: Comparison
) -> Divergence | None:
    place = entry.place

    def off(kind: str, a: Any, e: Any) -> Divergence:
        result.measured.append(Measured(place, math.inf, math.inf, entry.terms, entry.value.size))
        return Divergence(place, kind, None, a, e, 0.0, "")

    if not isinstance(other, Entry):
        if other is None:
            return off("missing", None, str(entry.value.shape))
        return off("extra", str(entry.value.shape), None)
    a, e = other.value, entry.value
    if a.shape != e.shape:
        return off("shape", str(a.shape), str(e.shape))
    if a.dtype != e.dtype and not budget.any_dtype:
        return off("dtype", str(a.dtype), str(e.dtype))
    noise.learn_lr(place, e)
    gap = _gap(a, e)
    lr = noise.lr.get(place.step, 0.0)
    allowed: Any = _allowed(entry, budget, lr, place.step)
    if result.mode == "free":
        noise.learn_gradient(a, entry, allowed, NOISE_SHARE * _allowed(entry, budget, lr, 1))
        gap, allowed = _without_noise(gap, allowed, entry, noise)
    allowed = allowed + noise.updates.slack(entry, budget, lr, result.mode)
    noise.updates.learn(entry, allowed, result.mode)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        errors = np.where(gap == 0, 0.0, gap / np.asarray(allowed, np.float64))
    error, worst = float(errors.max(initial=0.0)), float(gap.max(initial=0.0))
    result.measured.append(Measured(place, error, worst, entry.terms, entry.value.size))
    if error <= 1:
        return None
    index = tuple(int(i) for i in np.unravel_index(int(errors.argmax()), gap.shape))
    one_nan = e.dtype.kind in "fc" and bool(np.isnan(a[index]) != np.isnan(e[index]))
    kind = "nan" if one_nan else "value"
    there = float(np.broadcast_to(allowed, gap.shape)[index])
    return Divergence(place, kind, index, a[index].item(), e[index].item(), there, budget.reason)


def _without_noise(
    gap: np.ndarray, allowed: float, entry: Entry, noise: _Noise
) -> tuple[np.ndarray, Any]:
    """The gap without elements that are not judged, and the budget with what Adam adds to it."""
    place = entry.place
    if place.phase == "forward":
        mask = noise.masks.get(f"{place.name.partition('#')[0]}.bias")
        if mask is not None and mask.shape == gap.shape[-1:]:
            gap = np.where(mask, 0.0, gap)  # the shift of the keys itself
        return gap, allowed
    name = noise.name(place, gap.shape)
    if name is None:
        return gap, allowed
    noise.settle()
    mask = noise.masks.get(name)
    if mask is not None:
        if place.phase == "parameter":
            noise.worst[name] = float(gap[mask].max(initial=0.0))
        gap = np.where(mask, 0.0, gap)
    if place.phase == "state":  # RMSprop's momentum is a mean of gradients over their sizes
        return gap, allowed + noise.shares[name] * _largest(entry.value)
    return gap, allowed + noise.slack[name]


def _allowed(entry: Entry, budget: Budget, lr: float, step: int) -> float:
    """The largest difference that an element of this entry may have."""
    if entry.value.dtype.kind not in "fc":
        return 0.0  # counters, tokens, masks, random states: no rounding
    return budget.allowed(_largest(entry.value), entry.terms, entry.scale, lr, step)


def _largest(value: np.ndarray) -> float:
    return float(np.abs(value[np.isfinite(value)]).max(initial=0.0))


def _gap(a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """|a - e| in float64; 0 where both are NaN or the same infinity, else inf where one is."""
    if a.dtype.kind in "biu" and e.dtype.kind in "biu":
        low = np.minimum(a, e) if a.dtype == e.dtype else None
        if low is not None and a.dtype.kind != "b":
            high = np.maximum(a, e)
            return high.astype(np.float64) - low if a.dtype.itemsize < 8 else (a != e) * 1.0
        return (a != e).astype(np.float64)
    wide = np.complex128 if "c" in (a.dtype.kind, e.dtype.kind) else np.float64
    x, y = a.astype(wide), e.astype(wide)
    with np.errstate(all="ignore"):
        gap = np.asarray(np.abs(x - y))
        same = (x == y) | (np.isnan(x) & np.isnan(y))
    return np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
