"""`nplm train`: a TOML file and flags -> TrainConfig -> nplm.train.job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nplm.cli.arguments import parse
from nplm.errors import DataError
from nplm.train import job as training
from nplm.train.config import TrainConfig
from nplm.train.step import StepRecord


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a decoder on text.  The defaults are nanoGPT's character model for a CPU."""

    config: Path | None = None  # TOML file of these settings ([schedule] and [stop] are tables)


def main(arguments: list[str]) -> int:
    """Train, show the progress, and end with the run folder and what to type next."""
    config = parse(TrainCommand, arguments, "nplm train")
    job = training.prepare(config)
    print(job.plan(), flush=True)
    result = training.run(job, *_display(job.total))
    if result.stopped is not None:
        print(f"stopped    {result.stopped}")
    if result.best_step is not None:
        print(f"best       step {result.best_step}, validation loss {result.best_loss:.4f}")
    print(f"run folder {result.folder.path}")
    run = shlex.quote(str(result.folder.path))
    print(f"next       nplm generate {run}{_prompt(job)}")
    print(f"           nplm generate {run} --temperature 0.5 --seed 2")
    return 0


def _display(
    steps: int,
) -> tuple[Callable[[str], None], Callable[[Iterator[StepRecord]], Iterator[StepRecord]]]:
    """What prints a line, and what shows the progress: tqdm's bar, or nothing without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or sys.stderr is None:
        return (lambda line: print(line, flush=True)), iter

    def say(line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def progress(records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        # disable=None: a bar on a terminal, none in a file or a pipe
        return iter(tqdm(records, total=steps, unit="update", disable=None, leave=False))

    return say, progress


def _prompt(job: training.Job) -> str:
    """A flag with a prompt that the model can read: 'The ', or else a word of its text."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for words in ("The ", *job.corpus.text[:1000].split()):
        shown = words.encode(encoding, "replace").decode(encoding) == words and words.isprintable()
        if shown and len(words) <= 20 and not words.startswith("-") and _known(job, words):
            return f" --prompt {shlex.quote(words)}"
    return ""  # the default fits every vocabulary


def _known(job: training.Job, words: str) -> bool:
    try:
        job.tokenizer.encode(words)
    except DataError:
        return False
    return True
