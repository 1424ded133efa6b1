"""`nplm train`: flags -> TrainConfig -> nplm.train.job."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from nplm.cli.arguments import parse
from nplm.train import job as training
from nplm.train.step import StepRecord


def main(arguments: list[str]) -> int:
    """Train, show the progress, and end with the run folder and what to type next."""
    from tqdm import tqdm

    config = parse(training.TrainConfig, arguments, "nplm train")
    job = training.prepare(config)
    print(job.plan(), flush=True)

    def say(line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def progress(records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        # disable=None: a bar on a terminal, none in a file or a pipe
        return iter(tqdm(records, total=config.steps, unit="update", disable=None, leave=False))

    folder = training.run(job, say, progress)
    print(f"run folder {folder.path}")
    print(f"next       nplm generate {folder.path} --prompt 'The '")
    return 0
