"""`nplm lr-find`: a learning-rate range test with the text and the model of `nplm train`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from nplm.cli.arguments import given_flags, parse
from nplm.cli.curves import curve_of, heights_to_show
from nplm.errors import ConfigError, NplmError
from nplm.train import job as training
from nplm.train.config import AverageConfig, ScheduleConfig, StopConfig, TrainConfig
from nplm.train.lr_find import SKIP_BEGIN, SKIP_END, RangeTest, lr_find

ROWS = 20  # of the table
WIDTH = 60  # columns of the curve
# Settings of `nplm train` that this test does not use: a file may have them, a flag may not be one.
UNUSED = (
    "--steps", "--lr", "--eval-every", "--log-every", "--checkpoint-every", "--keep",
    "--sample-length", "--out", "--name", "--windows", "--on-nonfinite", "--spike-threshold",
)  # fmt: skip
TABLES = ("--schedule.", "--stop.", "--average.")  # nor any of these


@dataclass(frozen=True)
class LrFindCommand(TrainConfig):
    """Train a moment with a rising learning rate and suggest one; nothing is written."""

    config: Path | None = None  # TOML file of the settings of nplm train
    lowest: float = 1e-6  # learning rate of the first update
    highest: float = 1.0  # and of the last one
    updates: int = 100  # from the one to the other
    mode: Literal["exponential", "linear"] = "exponential"  # equal factors, or equal steps
    stop_above: float | None = 4.0  # end at this multiple of the lowest loss; None: never

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        problems = []
        try:
            super().check()
        except ConfigError as error:
            problems.append(str(error))
        if not 0 < self.lowest < self.highest < math.inf:
            problems.append(
                f"lowest: expected 0 < lowest < highest, got {self.lowest} and {self.highest}"
            )
        least = SKIP_BEGIN + SKIP_END + 2
        if not least <= self.updates <= 10**6:
            problems.append(
                f"updates: expected at least {least}, at most 1,000,000, got {self.updates}"
            )
        if self.stop_above is not None and not self.stop_above > 1:
            problems.append(f"stop_above: expected more than 1 or None, got {self.stop_above}")
        if problems:
            raise ConfigError("; ".join(problems))


def main(arguments: list[str]) -> int:
    """Run the test; print a table, a curve and the suggestion."""
    command = parse(LrFindCommand, arguments, "nplm lr-find", TrainConfig)
    given = given_flags(LrFindCommand, arguments)
    if unused := [flag for flag in given if flag in UNUSED or flag.startswith(TABLES)]:
        raise ConfigError(f"the range test does not use {', '.join(unused)}; leave it out")
    config = TrainConfig(**{f.name: getattr(command, f.name) for f in fields(TrainConfig)})
    # The test sets the rates, so the schedule is none.
    still = ScheduleConfig("constant")
    bare = replace(config, schedule=still, stop=StopConfig(), average=AverageConfig(), windows=())
    job = training.prepare(replace(bare, lr=command.highest, steps=None))
    print("\n".join(job.plan().splitlines()[:2]))
    tokens = config.batch_size * config.accumulate * job.model.config.context
    print(f"range test {command.updates:,} updates of {tokens:,} tokens, learning rates "
          f"{command.lowest:g} to {command.highest:g} ({command.mode})", flush=True)  # fmt: skip
    with training.arithmetic(config):
        found = lr_find(
            job.model, job.optimizer, job.batches, lowest=command.lowest, highest=command.highest,
            steps=command.updates, mode=command.mode, stop_above=command.stop_above,
            accumulate=config.accumulate, clip_norm=config.clip_norm, normalise=config.normalise,
        )  # fmt: skip
    _show(found)
    linear = command.mode == "linear"
    rate = found.suggest(against="rate" if linear else "logarithm")
    if rate is None:
        raise NplmError(
            f"no suggestion, because the test ended after {len(found.lrs)} updates; try a lower "
            "--lowest or --highest, or more --updates"
        )
    after = found.losses[SKIP_BEGIN:-SKIP_END]
    if not min(after) < after[0]:
        raise NplmError(
            "no suggestion, because the loss did not fall; try a lower --lowest, or more --updates"
        )
    along = "the rate" if linear else "its logarithm"
    print(f"steepest   {rate:.2g} against {along}")
    if not linear:
        print(f"           {found.suggestion:.2g} against the rate itself, as Lightning has it")
    print(f"next       nplm train --lr {rate:.2g} with the settings of this test")
    return 0


def _show(found: RangeTest) -> None:
    points = list(zip(found.lrs, found.losses))
    every = max(1, -(-len(points) // ROWS))
    print(f"{'rate':>10}{'smoothed loss':>16}")
    for lr, loss in points[::every]:
        print(f"{lr:>10.2e}{loss:>16.4f}")
    finite = [loss for loss in found.losses if math.isfinite(loss)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    heights = heights_to_show()
    curve = curve_of(dict(enumerate(found.losses, 1)), WIDTH, low, high, heights)
    print(f"loss       {curve}  {low:.4f} to {high:.4f}")
    first, last = (f"{lr:.1e}" for lr in (found.lrs[0], found.lrs[-1]))
    print(f"rate       {first}{last:>{max(len(curve) - len(first), len(last) + 1)}}")
    if found.stopped:
        print(f"stopped    {found.stopped}")
