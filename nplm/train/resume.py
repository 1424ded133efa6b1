"""A run goes on: its settings and its text as they were, and the state of its newest checkpoint.

What is restored is everything that the next update depends on. Read checkpoint.py before.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nplm import files, random
from nplm.data.text import Corpus, default_corpus, read_corpus
from nplm.errors import CheckpointError, ConfigError, DataError
from nplm.ops.creation import zeros
from nplm.optim.chained import ChainedOptimizer
from nplm.optim.lr_scheduler import LRScheduler
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
    skipped: int = 0  # updates that were not made, because a loss or gradient was not finite
    blas: str = ""  # libraries and threads: other ones may round otherwise


def newest_run(base: Path | str) -> RunFolder:
    """The run below `base` that was begun last; raises CheckpointError if there is none."""
    runs = []
    for name in files.list_directory(base) if files.is_directory(base) else ():
        if files.is_directory(Path(base) / name / "checkpoints"):
            try:
                folder = RunFolder.open(Path(base) / name)
                made = datetime.fromisoformat(str(folder.info().get("created"))).timestamp()
            except (CheckpointError, OverflowError, ValueError):
                continue  # not a whole run
            runs.append((made, len(name), name))
    if not runs:
        raise CheckpointError(f"{base}: no run is below it, found none; train one first")
    return RunFolder(Path(base) / max(runs)[2])


def settings_of(folder: RunFolder) -> TrainConfig:
    """The settings that a run was begun with; raises CheckpointError if they cannot be read."""
    where = folder.path / "run.json"
    stored = folder.info().get("config")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{where}: expected the settings of a run, got {files.shown(stored)}")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    config, problems = from_table(TrainConfig, {k: v for k, v in stored.items() if k in known})
    try:
        config.check()
    except ConfigError as error:
        problems.append(str(error))
    except TypeError as error:  # a number where text was expected, and the like
        problems.append(f"a value of the wrong type: {error}")
    if problems:
        raise CheckpointError(f"{where}: its settings cannot be used: {'; '.join(problems)}")
    return config


def corpus_of(folder: RunFolder, config: TrainConfig) -> Corpus:
    """The text that a run was begun with; raises DataError if it is another one now."""
    described = folder.info().get("corpus")
    if not isinstance(described, dict):
        raise CheckpointError(f"{folder.path / 'run.json'}: it does not say what its text was")
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


def newest_good(
    folder: RunFolder, say: Callable[[str], None]
) -> tuple[Checkpoint, Progress, list[int]]:
    """The newest checkpoint that a run can go on from, how far it is, and the steps rejected.

    `say` is told of everything that is rejected before it, with the reason. Nothing is changed.
    Raises CheckpointError if there is none: a run never begins again by itself.
    """
    steps = checkpoint_steps(folder)
    reasons = []
    for i, step in enumerate(reversed(steps)):
        try:
            checkpoint = load_checkpoint(folder.checkpoint(step))
            return checkpoint, _accepted(folder, step, checkpoint), steps[len(steps) - i :]
        except CheckpointError as error:
            reasons.append(str(error))
            say(f"rejected   {error}")
    if not steps:
        raise CheckpointError(
            f"{folder.path}: it ended before its first checkpoint, so there is nothing to go on "
            "from; begin a new run"
        )
    raise CheckpointError(
        f"{folder.path}: none of its {len(steps)} checkpoints can be used, and nothing was "
        f"changed: {'; '.join(reasons)}"
    )


def _accepted(folder: RunFolder, step: int, checkpoint: Checkpoint) -> Progress:
    """A checkpoint's progress, if it is of this step and the lines up to it are there."""
    progress = progress_of(checkpoint)
    if not step == checkpoint.step == progress.step:
        raise CheckpointError(
            f"{checkpoint.path / 'state.json'}: expected step {step}, got {checkpoint.step} and "
            f"{progress.step}: it is another checkpoint's"
        )
    for name, n_bytes in (("metrics", progress.metrics_bytes), ("samples", progress.samples_bytes)):
        path = folder.path / f"{name}.jsonl"
        if n_bytes and files.read_bytes(path)[n_bytes - 1 : n_bytes] != b"\n":
            raise CheckpointError(
                f"{path}: no line ends after {n_bytes} bytes, where {checkpoint.path.name} expects "
                "one: lines were lost or changed"
            )
    return progress


def progress_of(checkpoint: Checkpoint) -> Progress:
    """What a checkpoint says of its run; raises CheckpointError if it does not, or not all."""
    where = checkpoint.path / "state.json"
    stored = checkpoint.progress
    types = types_of(Progress)
    if not isinstance(stored, dict) or stored.keys() != types.keys():
        raise CheckpointError(f"{where}: it does not say how far the run was, so it cannot go on")
    try:
        progress = Progress(**{name: converted(stored[name], types[name]) for name in types})
    except TypeError as error:
        raise CheckpointError(f"{where}: its progress cannot be read: expected {error}") from None
    counts = (progress.step, progress.epoch, progress.metrics_bytes, progress.samples_bytes)
    if min(counts) < 0 or math.isnan(progress.best_loss) or progress.step >= 10**8:
        raise CheckpointError(f"{where}: its progress is out of range: {files.shown(stored)}")
    return progress


def load_states(checkpoint: Checkpoint, parts: dict[str, Any]) -> None:
    """Give every part (by its name in Checkpoint) its state back, and the random stream its place.

    Raises CheckpointError naming the part that a state is missing for or does not fit.
    """
    for name, part in parts.items():
        state = getattr(checkpoint, name)
        where = f"{checkpoint.path}: its state of the {name}"
        if (part is None) != (state is None):
            raise CheckpointError(
                f"{where} is {'missing' if state is None else 'there, and this run has none'}; "
                "take a checkpoint of this run"
            )
        if part is None:
            continue
        try:
            # As in torch, these would take any key and any value.
            if name in ("scheduler", "swa_scheduler"):
                _require_alike(part.state_dict(), state, name)
            if name == "optimizer":
                _require_alike(part.state_dict()["param_groups"], state["param_groups"], name)
                _require_moments(part, state)
            part.load_state_dict(state)
            if isinstance(part, LRScheduler):
                part.require_loaded_lrs()  # edited rates are refused now, not at the first step
        except (ArithmeticError, AttributeError, ConfigError, LookupError, RuntimeError, TypeError,
                ValueError) as error:  # fmt: skip
            said = textwrap.shorten(str(error), 300, placeholder=" ...")
            raise CheckpointError(f"{where} does not fit this run: {said}") from error
    try:
        random.default_generator.set_state((checkpoint.generators or {})["default"])
    except (ConfigError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its state of the random stream cannot be used: {error}"
        ) from error


def _require_moments(optimizer: Any, saved: Any) -> None:
    """Raise ValueError unless every parameter, or none, has the entries that its optimizer makes.

    What those are a step on a tiny parameter of as many axes shows.
    """
    if isinstance(optimizer, ChainedOptimizer):
        for part, its in optimizer.parts_of(saved):
            _require_moments(part, its)
        return
    state = saved["state"]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [i for group in saved["param_groups"] for i in group["params"]]
    if not isinstance(state, dict) or (state and list(state) != numbers):
        raise ValueError(f"expected the state of {len(params)} parameters, in order")
    expected = {n: _entries_of(optimizer, n) for n in {p.ndim for p in params}} if state else {}
    for p, entry in zip(params, state.values()):
        names = expected[p.ndim]
        if not isinstance(entry, dict) or entry.keys() != names.keys():
            raise ValueError(
                f"expected the entries {', '.join(names)} of {type(optimizer).__name__}"
            )
        for name, value in entry.items():
            if names[name] is None:
                if value is not None:
                    raise ValueError(f"{name}: expected nothing, got {files.shown(value)}")
                continue
            shape = () if name in optimizer.host else optimizer.entry_shape(name, p)
            if getattr(value, "shape", None) != shape or value.dtype.kind != "f":
                raise ValueError(f"{name}: expected floating numbers of shape {shape}")
        if "step" in names and not 1 <= float(entry["step"]) < 1e15:
            raise ValueError(f"step: expected 1 or more, got {float(entry['step'])}")


def _entries_of(optimizer: Any, axes: int) -> dict[str, Any]:
    """The entries that a step makes for a parameter of so many axes."""
    tiny = zeros(*[2] * axes, requires_grad=True)
    tiny.grad = zeros(*[2] * axes)
    options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    like = type(optimizer)([{"params": [tiny], **options}])
    like.step()
    return dict(like.state[tiny])


# What a schedule moves, in itself and in the optimizer's groups; all else is a setting.
_MOVES = {
    "last_epoch", "_step_count", "_last_lr", "_group_lrs", "T_cur", "T_i", "best",
    "num_bad_epochs", "cooldown_counter", "lr",
}  # fmt: skip
_CYCLED = {"betas", "momentum"}  # they move too, in groups that have a base_momentum


def _require_alike(ours: Any, theirs: Any, where: str, moves: bool = False) -> None:
    """Raise ValueError unless `theirs` has the keys of `ours`, and its values or, where they move,
    finite numbers in the place of its numbers.
    """
    if isinstance(ours, dict):
        if not isinstance(theirs, dict):
            raise ValueError(f"{where}: expected a mapping, got {files.shown(theirs)}")
        if ours.keys() != theirs.keys():
            raise ValueError(f"{where}: expected {sorted(ours)}, got {files.shown(sorted(theirs))}")
        moving = _MOVES | (_CYCLED if "base_momentum" in ours else set())
        for key in ours:
            _require_alike(ours[key], theirs[key], f"{where}.{key}", moves or key in moving)
    elif isinstance(ours, list | tuple):
        if type(theirs) is not type(ours) or len(theirs) != len(ours):
            raise ValueError(f"{where}: expected {len(ours)} values, got {files.shown(theirs)}")
        for i, (a, b) in enumerate(zip(ours, theirs)):
            _require_alike(a, b, f"{where}.{i}", moves)
    elif type(theirs) is bool or not isinstance(ours, int | float) or not moves:
        if theirs != ours or (type(theirs) is bool) != (type(ours) is bool):
            raise ValueError(f"{where}: expected {ours!r}, got {files.shown(theirs)}")
    elif not isinstance(theirs, int | float) or not (theirs == ours or abs(theirs) < 1e300):
        raise ValueError(f"{where}: expected a finite number, got {files.shown(theirs)}")
