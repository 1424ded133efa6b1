"""`nplm compare RUN RUN ...`: what was set differently, and what came of it.  Reads only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nplm.cli.arguments import parse
from nplm.cli.curves import curve_of, heights_to_show
from nplm.errors import ConfigError
from nplm.train import report
from nplm.train.history import History, differences

WIDTH = 80  # columns of a page of two or three runs
CURVE = 46  # columns of the longest curve
SAMPLE_LINES = 6


@dataclass(frozen=True)
class CompareConfig:
    """Hold two or more runs side by side: settings that differ, losses, curves, samples."""

    runs: tuple[Path, ...]  # the runs' folders, two or more

    def check(self) -> None:
        """Raise a ConfigError for fewer than two runs."""
        if len(self.runs) < 2:
            raise ConfigError(
                f"expected nplm compare RUN RUN ..., two runs or more, got {len(self.runs)}"
            )


def main(arguments: list[str]) -> int:
    """Print the comparison."""
    config = parse(CompareConfig, arguments, "nplm compare")
    runs = [History.read(path) for path in config.runs]
    names = [f"run {i}" for i in range(1, len(runs) + 1)]
    for name, run in zip(names, runs):
        print(f"{name}  {run.path}")
    for title, rows in (
        ("settings that differ", differences(runs)),
        ("validation loss by step (* lowest of its run)", _validations(runs)),
        ("results", _results(runs)),
    ):
        print(f"\n{title}" + ("" if rows else ": none"))
        for line in _table(names, rows) if rows else ():
            print(line)
    print("\ntraining loss, every curve on the same axes")
    for line in _curves(names, runs, heights_to_show()):
        print(line)
    for name, run in zip(names, runs):
        print()
        for line in _sample(name, run):
            print(line)
    return 0


def _validations(runs: Sequence[History]) -> dict[str, list[str]]:
    curves = [run.curve("validation_loss") for run in runs]
    best = [run.best() for run in runs]
    return {
        f"{step:,}": [
            f"{curve[step]:.4f}{'*' if top and top[0] == step else ' '}" if step in curve else ""
            for curve, top in zip(curves, best)
        ]
        for step in sorted({step for curve in curves for step in curve})
    }


def _results(runs: Sequence[History]) -> dict[str, list[str]]:
    best = [run.best() for run in runs]
    last = [list(run.curve("loss").values())[-1:] for run in runs]
    return {
        "updates": [f"{run.metrics[-1]['step']:,}" if run.metrics else "0" for run in runs],
        "best step": [f"{top[0]:,}" if top else "-" for top in best],
        "best loss": [f"{top[1]:.4f}" if top else "-" for top in best],
        "last loss": [f"{loss[0]:.4f}" if loss else "-" for loss in last],
        "tokens/s": [_or_dash(run.tokens_per_second(), "{:,.0f}") for run in runs],
        "time of updates": [_time(run.seconds()) for run in runs],
    }


def _or_dash(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    return f"{seconds:.1f} s" if seconds < 60 else report.clock(seconds)


def _table(names: Sequence[str], rows: dict[str, list[str]]) -> Iterable[str]:
    """Names in front, a column a run; what is too long for its column is cut in the middle."""
    rows = {"": list(names), **rows}
    first = min(max(map(len, rows)), 30)
    least = max(len(text) for texts in rows.values() for text in texts)
    column = max(9, min(least, (WIDTH - 2 - first) // len(names) - 2))
    for name, texts in rows.items():
        cells = "".join(f"  {_cut(text, column):>{column}}" for text in texts)
        yield f"  {_cut(name, first):<{first}}{cells}".rstrip()


def _cut(text: str, width: int) -> str:
    text = _plain(text)
    if len(text) <= width:
        return text
    head = (width - 2) // 3  # the end of a path says more than its beginning
    return f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def _curves(names: Sequence[str], runs: Sequence[History], heights: str) -> Iterable[str]:
    """A line a run: first loss, its curve, last loss; x where a loss was not finite."""
    losses = [run.curve("loss") for run in runs]
    finite = [x for curve in losses for x in curve.values() if math.isfinite(x)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    end = max((step for curve in losses for step in curve), default=0)
    for name, curve in zip(names, losses):
        if not curve:
            yield f"  {name}  no update yet"
            continue
        values = list(curve.values())
        width = max(1, round(CURVE * max(curve) / max(end, 1)))
        drawn = curve_of(curve, width, low, high, heights)
        yield f"  {name}  {values[0]:.4f}  {drawn}  {values[-1]:.4f}"


def _sample(name: str, run: History) -> Iterable[str]:
    if run.sample is None:
        yield f"{name} has written no sample yet"
        return
    yield f"last sample of {name}, at step {run.sample['step']}"
    lines = str(run.sample.get("text", "")).strip().splitlines()
    for line in lines[:SAMPLE_LINES]:
        text = _plain(line)
        yield "    " + (text if len(text) <= WIDTH - 4 else text[: WIDTH - 7] + "...")
    if len(lines) > SAMPLE_LINES:
        yield f"    ... {report.counted(len(lines) - SAMPLE_LINES, 'line')} more"


def _plain(text: str) -> str:
    """No character that moves the cursor or colours a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
