"""Checkpoints: everything that a run needs to go on, as one folder that is whole or absent.

checkpoints/step-00000500/{MANIFEST.json, model.safetensors, optimizer.safetensors, state.json,
tokenizer.json, with an average average.safetensors};  checkpoints/best.json names the best step.
Read before: nplm/files/manifest.py.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nplm import files
from nplm.errors import CheckpointError
from nplm.train.packing import pack, unpack
from nplm.train.run import HasDict, RunFolder

FORMAT_VERSION = 3
_STATES = (
    "optimizer", "scheduler", "swa_scheduler", "stopper", "loader", "average", "spikes",
    "generators", "metrics", "progress",
)  # fmt: skip
_IN_A_FILE = ("optimizer", "average")  # whose arrays are in a safetensors file of that name
_NEEDED = {  # by version: what state.json holds besides the format
    1: {"step", "config", "ties", "optimizer", "scheduler", "generators", "metrics"},
    2: {"step", "config", "ties", *_STATES} - {"swa_scheduler", "average", "spikes"},
    3: {"step", "config", "ties", *_STATES},
}
_STEP = re.compile(r"step-([0-9]{8})")


class TensorLike(Protocol):
    """A tensor, as far as a checkpoint needs to know it."""

    @property
    def array(self) -> Any:
        """The array that it wraps: two names of one array are tied."""

    def numpy(self) -> npt.NDArray[Any]:
        """Return the values as a NumPy array."""


class ModelLike(Protocol):
    """A model: an ordered mapping from names to tensors, as `torch.nn.Module.state_dict`."""

    def state_dict(self) -> Mapping[str, TensorLike]:
        """Return every parameter and buffer by name."""


class HasState(Protocol):
    """An optimizer or a scheduler, in torch's layout."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: nested mappings of tensors and Python values."""


class HasGeneratorState(Protocol):
    """A random generator."""

    def get_state(self) -> Any:
        """Return the state: an array, or nested Python values."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; arrays are the caller's to keep."""

    path: Path
    step: int  # optimizer steps taken
    model: dict[str, npt.NDArray[Any]]  # tied names share one array
    optimizer: dict[str, Any] | None  # torch's layout: {"state": ..., "param_groups": ...}
    scheduler: dict[str, Any] | None
    stopper: dict[str, Any] | None
    loader: dict[str, Any] | None  # the place in the data where the next window begins
    average: dict[str, Any] | None  # averaged weights: nplm/train/averaging.py
    swa_scheduler: dict[str, Any] | None
    spikes: dict[str, Any] | None
    generators: dict[str, Any] | None  # name -> state
    tokenizer: dict[str, Any] | None
    progress: dict[str, Any] | None  # what a run knows of itself: nplm/train/resume.py
    state: dict[str, Any]  # the rest: config of the model, metrics, ties


def save_checkpoint(
    run: RunFolder,
    step: int,
    *,
    model: ModelLike,
    optimizer: HasState | None = None,
    scheduler: HasState | None = None,
    stopper: HasState | None = None,
    loader: HasState | None = None,
    average: HasState | None = None,
    swa_scheduler: HasState | None = None,
    spikes: HasState | None = None,
    generators: Mapping[str, HasGeneratorState] | None = None,
    tokenizer: HasDict | None = None,
    metrics: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/step-<step>` and return its path.

    Tied parameters are stored once, with the tie. A model's `config`, if it is a dataclass, is
    stored with it. Raises StorageError if it cannot be written, or exists already; ValueError for
    a state that holds something else than arrays and plain values, or a step outside [0, 10^8).
    """
    if not 0 <= step < 10**8:
        raise ValueError(f"save_checkpoint: step must be in [0, 10^8), got {step}")
    weights, ties = _untie(model.state_dict())
    arrays: dict[str, dict[str, npt.NDArray[Any]]] = {
        name: {}
        for name, part in (("optimizer", optimizer), ("average", average))
        if part is not None
    }
    parts: dict[str, Any] = {
        "optimizer": _state_of(optimizer),
        "average": _state_of(average),
        "scheduler": _state_of(scheduler),
        "swa_scheduler": _state_of(swa_scheduler),
        "spikes": _state_of(spikes),
        "stopper": _state_of(stopper),
        "loader": _state_of(loader),
        "generators": generators and {name: g.get_state() for name, g in generators.items()},
        "metrics": metrics,
        "progress": progress,
    }
    state = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "config": pack(_config_of(model), "config"),
        "ties": ties,
        **{
            name: pack(part, "" if name in arrays else name, arrays.get(name))
            for name, part in parts.items()
        },
    }
    content: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: files.save_tensors(path, weights),
        "state.json": lambda path: files.write_json(path, state),
    }
    for name, own in arrays.items():
        content[f"{name}.safetensors"] = partial(files.save_tensors, tensors=own)
    if tokenizer is not None:
        vocabulary = dict(tokenizer.to_dict())
        content["tokenizer.json"] = lambda path: files.write_json(path, vocabulary)
    files.make_directory(run.checkpoints)
    return files.write_directory(run.checkpoint(step), content)


def _state_of(part: HasState | None) -> Mapping[str, Any] | None:
    return None if part is None else part.state_dict()


def _config_of(model: ModelLike) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return None


def _untie(
    tensors: Mapping[str, TensorLike],
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Split a state dict into arrays stored once and ties {other name: name of the stored one}."""
    first: dict[int, tuple[str, Any]] = {}  # id -> first name, and the array: an id alive is unique
    stored: dict[str, npt.NDArray[Any]] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        array = tensor.array
        owner, _ = first.setdefault(id(array), (name, array))
        if owner == name:
            stored[name] = np.asarray(tensor.numpy())
        else:
            ties[name] = owner
    return stored, ties


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Verify a checkpoint folder, then read it.

    Raises CheckpointError naming the file and the reason; nothing is returned by halves.
    """
    path = Path(path)
    content = files.load_verified(path)  # read once: what was hashed is what is parsed
    for needed in ("model.safetensors", "state.json"):
        if needed not in content:
            raise CheckpointError(f"{path / needed}: missing, so this is not a whole checkpoint")
    where = str(path / "state.json")
    state = _read_state(content["state.json"], path / "state.json")
    arrays = {
        name: files.parse_tensors(content[file], path / file)
        for name in _IN_A_FILE
        if (file := f"{name}.safetensors") in content
    }
    tokenizer = None
    if "tokenizer.json" in content:
        tokenizer = files.parse_json(content["tokenizer.json"], path / "tokenizer.json")
        _require_mapping(tokenizer, path / "tokenizer.json", "the tokenizer")
    weights = files.parse_tensors(content["model.safetensors"], path / "model.safetensors")
    parts = {
        name: unpack(state.get(name), where, arrays.get(name)) for name in (*_STATES, "config")
    }
    for name, part in parts.items():
        _require_mapping(part, path / "state.json", name)
    kept = {name: parts.pop(name) for name in ("config", "metrics")}
    return Checkpoint(
        path=path,
        step=state["step"],
        model=_tie(path, weights, state["ties"]),
        tokenizer=tokenizer,
        state=kept | {"ties": state["ties"]},
        **parts,
    )


def _require_mapping(part: Any, path: Path, name: str) -> None:
    if not isinstance(part, dict | None):
        raise CheckpointError(f"{path}: {name} is a {type(part).__name__}, expected a mapping")


def _read_state(data: bytes, path: Path) -> dict[str, Any]:
    state = files.parse_json(data, path)
    version = state.get("format_version") if isinstance(state, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {files.shown(version)} was written by a newer nplm, "
            f"this one reads {FORMAT_VERSION}; update nplm"
        )
    needed = _NEEDED.get(version) if type(version) is int else None
    if needed is None or needed - state.keys():
        raise CheckpointError(f"{path}: not the state of a checkpoint")
    if type(state["step"]) is not int or not 0 <= state["step"] < 10**8:
        raise CheckpointError(
            f"{path}: is of step {files.shown(state['step'])}, expected one in [0, 10^8)"
        )
    return dict(state)


def _tie(path: Path, stored: dict[str, npt.NDArray[Any]], ties: Any) -> dict[str, npt.NDArray[Any]]:
    if not isinstance(ties, dict):
        raise CheckpointError(f"{path / 'state.json'}: the ties of its weights cannot be read")
    for name, owner in ties.items():
        if not isinstance(owner, str) or owner not in stored:
            raise CheckpointError(
                f"{path}: {files.shown(name)} is tied to {files.shown(owner)}, which is missing"
            )
        stored[name] = stored[owner]
    return stored


def checkpoint_steps(run: RunFolder) -> list[int]:
    """The steps that have a checkpoint, rising; raises CheckpointError without their folder."""
    names = files.list_directory(run.checkpoints)
    return [int(found[1]) for found in map(_STEP.fullmatch, names) if found]


def latest_checkpoint(run: RunFolder | Path | str) -> Path | None:
    """Return the folder of the highest step, or None; loading it verifies it.

    Raises CheckpointError if the run has no folder of checkpoints.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    steps = checkpoint_steps(run)
    return run.checkpoint(steps[-1]) if steps else None


def rotate(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Remove all checkpoints but the newest `keep` and the best. Call it after a verified save.

    Raises StorageError.
    """
    for step in checkpoint_steps(run)[:-keep]:
        if step != best_step:
            files.remove_directory(run.checkpoint(step))


def mark_best(run: RunFolder, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Write best.json: the best checkpoint so far is that of `step`, which must exist."""
    if f"step-{step:08d}" not in files.list_directory(run.checkpoints):
        raise CheckpointError(f"{run.path}: step {step} has no checkpoint; save it first")
    packed = None if metrics is None else pack(metrics, "metrics")
    files.write_json(run.checkpoints / "best.json", {"step": step, "metrics": packed})


def put_best_right(run: RunFolder, step: int | None) -> None:
    """Let best.json name `step`, if that has a checkpoint and best.json names another one."""
    if step is None or step not in checkpoint_steps(run):
        return
    try:
        named = best_checkpoint(run)
    except CheckpointError:
        named = None
    if named != run.checkpoint(step):
        mark_best(run, step, load_checkpoint(run.checkpoint(step)).state["metrics"])


def best_checkpoint(run: RunFolder) -> Path | None:
    """Return the folder that best.json names, or None; CheckpointError if it names none.

    Beside a training another one may become the best between two looks, so there are three.
    """
    marker = run.checkpoints / "best.json"
    for _ in range(3):
        if marker.name not in files.list_directory(run.checkpoints):
            return None
        content = files.read_json(marker)
        step = content.get("step") if isinstance(content, dict) else None
        if type(step) is int and step in checkpoint_steps(run):
            return run.checkpoint(step)
    raise CheckpointError(f"{marker}: names step {files.shown(step)}, which has no checkpoint")
