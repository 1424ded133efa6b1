"""`nplm schedule NAME` prints a schedule's rates; `--show` draws them, `--png FILE` is a figure."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from nplm import files
from nplm.cli.arguments import parse
from nplm.cli.curves import can_show
from nplm.errors import ConfigError
from nplm.ops.creation import zeros
from nplm.optim import SGD
from nplm.optim.schedules import RECIPES, get_schedule

EIGHTHS, PLAIN = " ▁▂▃▄▅▆▇█", "    #####"  # what fills a cell, in eighths of its height
COLUMNS, ROWS = 64, 8
LARGEST = 10**9  # updates: what is larger is a slip of the finger


@dataclass(frozen=True)
class ScheduleConfig:
    """Print the learning rates of a schedule at its marks, and with --show draw their curve."""

    name: str  # linear, cosine, nanogpt ...; an unknown name lists them all
    steps: int = 1000  # updates of the run
    lr: float = 1e-3  # full learning rate
    warmup_steps: int | None = None  # updates; None: the recipe's default, or a tenth of all
    min_lr: float | None = None  # the floor, as a rate
    min_lr_ratio: float | None = None  # the floor, as a part of lr
    warmup_lr_ratio: float | None = None  # where the warm-up begins, as a part of lr
    num_cycles: float | None = None  # waves of a cosine, or half waves that restart
    power: float | None = None  # of the polynomial
    lr_end: float | None = None  # the polynomial's last rate
    timescale: int | None = None  # updates until the inverse square root is at 1 / sqrt(2)
    decay_steps: int | None = None  # updates of the fall of warmup_stable_decay
    stable_steps: int | None = None  # updates between its warm-up and its fall
    warmup_type: str | None = None  # linear, cosine or 1-sqrt
    decay_type: str | None = None  # linear, cosine or 1-sqrt
    png: Path | None = None  # file that gets a figure (needs matplotlib)

    def check(self) -> None:
        """Raise a ConfigError for values out of range and for what the recipe does not have."""
        problems = []
        if not 1 <= self.steps <= LARGEST:
            problems.append(f"steps: expected at least 1, at most {LARGEST:,}, got {self.steps}")
        if not 0 < self.lr < math.inf:
            problems.append(f"lr: expected a positive number that is finite, got {self.lr}")
        for name in ("num_cycles", "power", "lr_end", "warmup_lr_ratio", "min_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                problems.append(f"{name}: expected a finite number >= 0, got {value}")
        if problems:
            raise ConfigError("; ".join(problems))
        self.rate()

    def rate(self) -> Callable[[int], float]:
        """The learning rate as a function of the update's number, from 0."""
        takes = inspect.signature(RECIPES[self.name]).parameters if self.name in RECIPES else {}
        own = ("name", "steps", "lr", "png")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        settings = {name: value for name, value in settings.items() if value is not None}
        if "total_steps" in takes and "stable_steps" not in settings:
            settings["total_steps"] = self.steps
        if "warmup_steps" in takes and takes["warmup_steps"].default is inspect.Parameter.empty:
            settings.setdefault("warmup_steps", self.steps // 10)
        optimizer = SGD([zeros(1, requires_grad=True)], lr=self.lr)
        [factor] = get_schedule(self.name, optimizer, **settings).lr_lambdas
        return lambda step: self.lr * factor(step)


def main(arguments: list[str]) -> int:
    """Print the rates at the marks; draw the curve; write the figure."""
    words = [word for word in arguments if word != "--show"]
    config = parse(ScheduleConfig, words, "nplm schedule")
    rate = config.rate()
    print(f"{config.name}: {config.steps:,} updates, full rate {config.lr:g}\n")
    print(f"{'step':>13}{'lr':>14}{'of full rate':>15}")
    for step in _marks(config):
        print(f"{step:>13,}{rate(step):>14.6g}{rate(step) / config.lr:>15.4f}")
    if len(words) < len(arguments):
        print()
        for line in _curve(rate, config.steps):
            print(line)
    if config.png is not None:
        files.write_bytes(config.png, _figure(config, rate))
        print(f"\nwritten: {config.png}")
    return 0


def _marks(config: ScheduleConfig) -> list[int]:
    """The first two updates, both sides of the warm-up's end, the quarters, the last update."""
    last, warmup = config.steps - 1, config.warmup_steps or config.steps // 10
    marks = {0, 1, warmup - 1, warmup, *(config.steps * i // 4 for i in (1, 2, 3)), last}
    return sorted(mark for mark in marks if 0 <= mark <= last)


def _curve(rate: Callable[[int], float], steps: int) -> Iterable[str]:
    """Rows from the highest rate down to 0, a column for an update out of many."""
    columns = min(COLUMNS, steps)
    rates = [rate(c * (steps - 1) // max(columns - 1, 1)) for c in range(columns)]
    top = max(rates)
    heights = [round(8 * ROWS * max(lr, 0) / top) if top > 0 else 0 for lr in rates]
    cells = EIGHTHS if can_show(EIGHTHS) else PLAIN
    for row in reversed(range(ROWS)):
        label = f"{top:.2e}" if row == ROWS - 1 else "0" if row == 0 else ""
        filled = "".join(cells[min(max(h - 8 * row, 0), 8)] for h in heights)
        yield f"{label:>10} |{filled.rstrip()}"
    yield f"{'step':>10}  0{steps - 1:>{max(columns - 1, 1)},}"


def _figure(config: ScheduleConfig, rate: Callable[[int], float]) -> bytes:
    """The curve as a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "--png: needs the package matplotlib, which is not installed: run "
            "`pip install matplotlib`, or draw the curve here with --show"
        ) from None
    count = min(config.steps, 2000)
    steps = [i * (config.steps - 1) // max(count - 1, 1) for i in range(count)]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, [rate(step) for step in steps])
    axes.set(xlabel="update", ylabel="learning rate", title=config.name, ylim=(0, None))
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()
