"""A run goes on: its settings and its text as they were, and the state of its newest checkpoint.

What is restored is everything that the next update depends on. Read checkpoint.py before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplm import files
from nplm.data.text import Corpus, default_corpus, read_corpus
from nplm.errors import CheckpointError, DataError
from nplm.train.checkpoint import Checkpoint, checkpoint_steps, load_checkpoint
from nplm.train.config import TrainConfig
from nplm.train.run import RunFolder
from nplm.train.tables import converted, from_table, types_of


@dataclass
class Progress:
    """How far a run is: what a checkpoint holds beside the states of the run's parts."""

    step: int = 0  # updates so far
    epoch: int = 0  # the epoch of the next window
    best_step: int | None = None  # of the lowest validation loss
    best_loss: float = math.inf
    seconds: float = 0.0  # of training, all attempts together
    attempt: int = 1  # 1, and one more at every resumption
    metrics_bytes: int = 0  # how much of metrics.jsonl belongs to these updates
    samples_bytes: int = 0  # and of samples.jsonl
    blas: str = ""  # libraries and threads: other ones may round otherwise


def newest_run(base: Path | str) -> RunFolder:
    """The run below `base` that was begun last; raises CheckpointError if there is none."""
    runs = []
    for name in files.list_directory(base):
        if files.is_directory(Path(base) / name / "checkpoints"):
            try:
                folder = RunFolder.open(Path(base) / name)
            except CheckpointError:
                continue  # not a whole run
            runs.append((str(folder.info().get("created")), len(name), name))
    if not runs:
        raise CheckpointError(f"{base}: expected a folder with runs, found none; train one first")
    return RunFolder(Path(base) / max(runs)[2])


def settings_of(folder: RunFolder) -> TrainConfig:
    """The settings that a run was begun with; raises CheckpointError if they cannot be read."""
    where = folder.path / "run.json"
    stored = folder.info().get("config")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{where}: expected the settings of a run, got {stored!r}")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    config, problems = from_table(TrainConfig, {k: v for k, v in stored.items() if k in known})
    if problems:
        raise CheckpointError(f"{where}: its settings cannot be read: {'; '.join(problems)}")
    return config


def corpus_of(folder: RunFolder, config: TrainConfig) -> Corpus:
    """The text that a run was begun with; raises DataError if it is another one now."""
    described = folder.info().get("corpus") or {}
    if config.data:
        corpus = read_corpus(config.data)
    else:
        text = files.read_bytes(folder.path / "corpus.txt").decode("utf-8", "replace")
        corpus = Corpus.of(default_corpus().name, text, str(described.get("source")))
    if corpus.sha256 != described.get("sha256"):
        raise DataError(
            f"{corpus.source}: the text is another one than the run {folder.path} was begun with "
            f"({len(corpus.text):,} characters, then {described.get('characters')}); put it back, "
            "or begin a new run"
        )
    return corpus


def newest_good(folder: RunFolder, say: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that is whole; what is rejected before is told with the reason.

    Raises CheckpointError if there is none: a run never begins again by itself.
    """
    steps = checkpoint_steps(folder)
    reasons = []
    for step in reversed(steps):
        path = folder.checkpoint(step)
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            reasons.append(str(error))
            say(f"rejected   {error}")
    if not steps:
        raise CheckpointError(
            f"{folder.path}: it ended before its first checkpoint, so there is nothing to go on "
            "from; begin a new run"
        )
    raise CheckpointError(
        f"{folder.path}: none of its {len(steps)} checkpoints is whole, and nothing was changed: "
        + "; ".join(reasons)
    )


def progress_of(checkpoint: Checkpoint) -> Progress:
    """What a checkpoint says of its run; raises CheckpointError if it does not, or not all."""
    where = checkpoint.path / "state.json"
    stored = checkpoint.progress
    types = types_of(Progress)
    if not isinstance(stored, dict) or stored.keys() != types.keys():
        raise CheckpointError(f"{where}: it does not say how far the run was, so it cannot go on")
    try:
        return Progress(**{name: converted(stored[name], types[name]) for name in types})
    except TypeError as error:
        raise CheckpointError(f"{where}: its progress cannot be read: expected {error}") from None


def load_states(checkpoint: Checkpoint, parts: dict[str, Any]) -> None:
    """Give every part (by its name in Checkpoint) its state back.

    Raises CheckpointError naming the part that a state is missing for or does not fit.
    """
    for name, part in parts.items():
        state = getattr(checkpoint, name)
        if (part is None) != (state is None):
            raise CheckpointError(
                f"{checkpoint.path}: its state of the {name} is "
                f"{'missing' if state is None else 'there, and this run has none'}; take a "
                "checkpoint of this run"
            )
        if part is None:
            continue
        try:
            part.load_state_dict(state)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: its state of the {name} does not fit this run: {error}"
            ) from error
