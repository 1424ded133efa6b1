"""`nplm train`: flags -> TrainConfig -> nplm.train.job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator

from nplm.cli.arguments import parse
from nplm.train import job as training
from nplm.train.step import StepRecord


def main(arguments: list[str]) -> int:
    """Train, show the progress, and end with the run folder and what to type next."""
    config = parse(training.TrainConfig, arguments, "nplm train")
    job = training.prepare(config)
    print(job.plan(), flush=True)
    folder = training.run(job, *_display(config.steps))
    print(f"run folder {folder.path}")
    print(f"next       nplm generate {shlex.quote(str(folder.path))}{_prompt(job)}")
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
    if set("The ") <= set(job.tokenizer.characters):
        return " --prompt 'The '"
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for word in job.corpus.text[:1000].split():
        shown = word.encode(encoding, "replace").decode(encoding) == word and word.isprintable()
        if shown and len(word) <= 20 and not word.startswith("-"):
            return f" --prompt {shlex.quote(word)}"
    return ""  # the default fits every vocabulary
