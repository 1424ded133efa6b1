"""Errors judged three ways: nplm's and torch's float32, both against torch's float64.

A Row is one quantity (a value, one gradient) of one op or layer; Rows are all of a run, with one
verdict, as a table and as JSON. Read ops.py after.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

import nplm
from nplm.parity.tolerances import FLOOR, FORMULA, HALF_ULP, RATIO, STALE, to_numpy


@dataclass(frozen=True)
class Reason:
    """Why nplm's float32 error exceeds torch's, and by how much it may."""

    limit: float
    text: str
    everywhere: bool = True  # False: only some processors' libraries need it


@dataclass(frozen=True)
class Errors:
    """Of several draws: `worst` = largest error / largest element, `median` = of rms / rms."""

    worst: float
    median: float


@dataclass(frozen=True)
class Row:
    """One quantity of one op or layer."""

    name: str
    quantity: str  # "value", "gradient of weight"
    draws: int
    formula: float  # float64: largest |nplm - torch| / largest |torch|, of the worst draw
    ours: Errors  # float32, nplm against the truth
    theirs: Errors  # float32, torch against the truth
    trouble: str = ""  # another shape, dtype or non-finite elements: not comparable

    @property
    def ratio(self) -> float:
        """nplm's float32 error over torch's: the larger of the ratios of worst and of median."""
        pairs = ((self.ours.worst, self.theirs.worst), (self.ours.median, self.theirs.median))
        return max(max(a, FLOOR) / max(b, FLOOR) for a, b in pairs)


@dataclass
class Rows:
    """The rows of one level and the verdict about them."""

    level: str  # "ops" | "layers"
    rows: list[Row]
    reasons: dict[str, Reason]
    meta: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def reason(self, row: Row) -> Reason | None:
        """The known reason for a row: that of its quantity ("sum: value"), or of its name."""
        return self.reasons.get(f"{row.name}: {row.quantity}") or self.reasons.get(row.name)

    def fault(self, row: Row) -> str:
        """What is wrong with a row, in words; "" where nothing is."""
        if row.trouble:
            return row.trouble
        if not row.formula <= FORMULA:
            return f"float64: off by {row.formula:.1e} of the largest element, budget {FORMULA:.0e}"
        known = self.reason(row)
        limit = known.limit if known else RATIO
        if not row.ratio <= limit:
            return f"float32: {row.ratio:.1f} times torch's own error, budget {limit:g}"
        return ""

    @property
    def faults(self) -> list[tuple[Row, str]]:
        """Every red row and what is wrong with it."""
        return [(row, text) for row in self.rows if (text := self.fault(row))]

    @property
    def equal(self) -> bool:
        """Whether every row is within its budgets."""
        return not self.faults

    def stale(self) -> list[str]:
        """Reasons that no row needs: all rows that they speak of are below STALE."""
        used = {key for row in self.rows if row.ratio > STALE
                for key in (f"{row.name}: {row.quantity}", row.name)}  # fmt: skip
        there = {row.name for row in self.rows}
        return sorted(
            key for key, reason in self.reasons.items()
            if reason.everywhere and key not in used and key.split(": ")[0] in there
        )  # fmt: skip

    def verdict(self) -> str:
        """One plain sentence."""
        if self.equal:
            return f"{self.level}: equal: {len(self.rows)} quantities within their budgets"
        row, text = self.faults[0]
        return (
            f"{self.level}: diverged: {len(self.faults)} of {len(self.rows)} quantities; "
            f"first {row.quantity} of {row.name}: {text}"
        )

    def to_json(self) -> dict[str, Any]:
        """Numbers, strings and lists only; NaN and infinity as text."""
        return {
            "level": self.level, "equal": self.equal, "verdict": self.verdict(),
            "budgets": {"formula": FORMULA, "ratio": RATIO}, "meta": self.meta,
            "rows": [_plain(asdict(row) | {
                "ratio": row.ratio, "fault": self.fault(row),
                "reason": known.text if (known := self.reason(row)) else "",
            }) for row in self.rows],
        }  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)


# ---- measuring -----------------------------------------------------------------------------------
@dataclass
class Gathered:
    """The errors of one quantity, draw by draw."""

    formula: list[float] = field(default_factory=list)
    ours: list[tuple[float, float]] = field(default_factory=list)
    theirs: list[tuple[float, float]] = field(default_factory=list)
    trouble: str = ""

    def row(self, name: str, quantity: str) -> Row:
        """The worst and the median of the draws."""
        ours, theirs = (
            Errors(max(w for w, _ in found), statistics.median(t for _, t in found))
            for found in (self.ours, self.theirs)
        )
        formula = max(self.formula)
        return Row(name, quantity, len(self.formula), formula, ours, theirs, self.trouble)


def errors(actual: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(largest error / largest element, rms error / rms) of a tensor against the float64 truth.

    A tensor of zeros is measured in absolute numbers; other elements or places of NaN: infinity.
    """
    if actual.shape != truth.shape:
        return np.inf, np.inf
    a, t = (np.asarray(v, np.float64) for v in (actual, truth))
    finite, own = np.isfinite(t), np.isfinite(a)
    if not (finite.all() and own.all()):
        if not (finite == own).all() or not np.array_equal(a[~finite], t[~finite], True):
            return np.inf, np.inf
        a, t = a[finite], t[finite]
    if t.size == 0:
        return 0.0, 0.0
    off, t = (a - t).ravel(), t.ravel()
    largest, farthest = (max(v.max(), -v.min()) for v in (t, off))
    rms, rms_off = (np.sqrt(np.dot(v, v) / v.size) for v in (t, off))
    return float(farthest / (largest or 1)), float(rms_off / (rms or 1))


Results = dict[str, Any]  # quantity -> array, of one run of one draw


def gather(found: dict[str, Gathered], run: Callable[[str, str], Results], where: str = "") -> None:
    """Add one draw: `run(engine, dtype)` with engine "nplm" or "torch", dtype "float32", "float64"
    or "truth" (torch only: float64 arithmetic on the float32 inputs)."""
    runs = {
        key: {name: to_numpy(value) for name, value in run(*key).items()}
        for key in [("torch", "float64"), ("torch", "float32"), ("torch", "truth"),
                    ("nplm", "float64"), ("nplm", "float32")]
    }  # fmt: skip
    theirs64, theirs, truth, ours64, ours = runs.values()
    for quantity in theirs:
        here = found.setdefault(quantity, Gathered())
        for runs_of_ours in (ours, ours64):
            if quantity not in runs_of_ours or runs_of_ours[quantity].dtype == object:  # None
                here.trouble = here.trouble or f"missing{where}"
                runs_of_ours[quantity] = np.zeros(())
        here.trouble = here.trouble or _trouble(ours[quantity], theirs[quantity], where)
        here.formula.append(errors(ours64[quantity], theirs64[quantity])[0])
        here.ours.append(errors(ours[quantity], truth[quantity]))
        here.theirs.append(errors(theirs[quantity], truth[quantity]))


def _trouble(ours: np.ndarray, theirs: np.ndarray, where: str) -> str:
    if ours.shape != theirs.shape:
        return f"shape {ours.shape}, expected {theirs.shape}{where}"
    if ours.dtype != theirs.dtype:
        return f"dtype {ours.dtype}, expected {theirs.dtype}{where}"
    if ours.dtype.kind != "f" and not np.array_equal(ours, theirs):
        return f"other elements{where}"
    return ""


@contextmanager
def fixed(threads: int = 1) -> Iterator[None]:
    """torch on so many threads; both random streams are put back afterwards."""
    before, state = torch.get_num_threads(), nplm.random.default_generator.get_state()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)
        nplm.random.default_generator.set_state(state)


def versions() -> dict[str, Any]:
    """Who was compared."""
    return {"nplm": nplm.__version__, "numpy": np.__version__, "torch": torch.__version__}


# ---- the table -----------------------------------------------------------------------------------
def _number(x: float) -> str:
    return "0" if x == 0 else f"{x / HALF_ULP:.2f}" if np.isfinite(x) else "inf"


def _line(rows: Rows, row: Row) -> str:
    known = rows.reason(row)
    mark = "RED" if rows.fault(row) else "why" if known and row.ratio > RATIO else "ok"
    formula = "0" if row.formula == 0 else f"{row.formula:.0e}"
    cells = [_number(v) for v in (row.ours.worst, row.theirs.worst)]
    cells += [_number(v) for v in (row.ours.median, row.theirs.median)]
    quantity = row.quantity.replace("gradient of ", "d ")
    return (
        f"{row.name[:20]:20} {quantity[:13]:13} {formula:>6}"
        + "".join(f"{cell:>7}" for cell in cells)
        + f"{row.ratio:>6.2f} {mark}"
    )


def table(rows: Rows, only: Sequence[str] | None = None) -> str:
    """80 columns: every row, the reasons that were needed, what is red, and the verdict.

    float64 is relative to the largest element; float32 in units of 2**-24, half a last place.
    """
    lines = [
        f"{'':41}   worst float32 median float32",
        f"{rows.level[:-1]:20} {'quantity':13} float64   nplm  torch   nplm  torch ratio",
        "-" * 80,
    ]
    shown = [row for row in rows if only is None or row.name in only]
    lines += [_line(rows, row) for row in shown]
    lines.append("-" * 80)
    keys = {k for row in shown if row.ratio > RATIO for k in (f"{row.name}: {row.quantity}",
            row.name)}  # fmt: skip
    texts: dict[str, list[str]] = {}
    for key in sorted(keys & rows.reasons.keys()):
        texts.setdefault(rows.reasons[key].text, []).append(key)
    for text, names in texts.items():
        lines += wrap(f"why: {', '.join(names)}: {text}")
    for row, fault in rows.faults:
        lines += wrap(f"RED: {row.name}, {row.quantity}: {fault}")
    return "\n".join([*lines, *wrap(rows.verdict())]) + "\n"


def wrap(text: str) -> list[str]:
    """Lines of at most 80 columns; what follows the first is set in."""
    import textwrap

    return textwrap.wrap(text, 80, subsequent_indent="     ", break_on_hyphens=False)
