"""`nplm train`: a TOML file and flags -> TrainConfig -> nplm.train.job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nplm.bench.profile import profile
from nplm.cli.arguments import given_flags, parse
from nplm.errors import ConfigError, DataError
from nplm.train import job as training
from nplm.train.config import TrainConfig
from nplm.train.resume import corpus_of, newest_run, settings_of
from nplm.train.run import RunFolder
from nplm.train.step import StepRecord

# With --resume a run keeps its settings: these alone may be given, and change no result.
WITH_RESUME = (
    "--resume", "--out", "--device", "--threads", "--log-every", "--checkpoint-every", "--keep",
)  # fmt: skip


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a decoder on text.  The defaults are nanoGPT's character model for a CPU.

    --profile prints at the end where the time went, op by op.
    """

    config: Path | None = None  # TOML file of these settings; those with a dot stand in tables
    resume: str | None = None  # a run's folder, or newest (below --out): go on with it


def main(arguments: list[str]) -> int:
    """Train, show the progress, and end with the run folder and what to type next."""
    wants_profile = "--profile" in arguments
    arguments = [word for word in arguments if word != "--profile"]
    command = parse(TrainCommand, arguments, "nplm train", TrainConfig)
    given = given_flags(TrainCommand, arguments)
    folder, config, corpus = None, _settings(command), None
    if "--resume" in given:
        folder, config = _resumed(command, given)
        corpus = corpus_of(folder, config)
    job = training.prepare(config, corpus)
    print(job.plan(), flush=True)
    with profile() if wants_profile else nullcontext() as found:
        result = training.run(job, *_display(job.total), resume=folder)
    if found is not None:
        print(found.table(max(1, result.step - result.resumed_at)))
    path = shlex.quote(str(result.folder.path))
    if result.signal is not None:
        print(f"interrupted, and a checkpoint is kept\nnext       nplm train --resume {path}")
        return 128 + result.signal
    if result.stopped is not None:
        print(f"stopped    {result.stopped}")
    elif folder is not None and result.resumed_at == job.total:
        print(f"finished   all {job.total:,} updates were made before")
    if result.best_step is not None:
        print(f"best       step {result.best_step}, validation loss {result.best_loss:.4f}")
    print(f"run folder {result.folder.path}")
    print(f"next       nplm generate {path}{_prompt(job)}")
    print(f"           nplm generate {path} --temperature 0.5 --seed 2")
    return 0


def _settings(command: TrainCommand) -> TrainConfig:
    """A command's settings, without what is only the command's."""
    return TrainConfig(**{f.name: getattr(command, f.name) for f in fields(TrainConfig)})


def _resumed(command: TrainCommand, given: list[str]) -> tuple[RunFolder, TrainConfig]:
    """The run to go on with, and its settings with the few that may change."""
    if not command.resume:
        raise ConfigError("--resume: expected a run's folder or 'newest', got nothing")
    if "--out" in given and command.resume != "newest":
        raise ConfigError("--out: a run stays in its folder; with --resume it is for 'newest' only")
    if others := [flag for flag in given if flag not in WITH_RESUME]:
        raise ConfigError(
            f"--resume: a run keeps its settings, so leave out {', '.join(others)}; with it may "
            f"stand {', '.join(WITH_RESUME[1:])}"
        )
    newest = command.resume == "newest"
    folder = newest_run(command.out) if newest else RunFolder.open(str(command.resume))
    names = [flag[2:].replace("-", "_") for flag in given if flag not in ("--resume", "--out")]
    changes = {name: getattr(command, name) for name in names}
    return folder, replace(settings_of(folder), **changes)


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
