"""A run is a folder: how it was made (run.json), what it measured, what it wrote, its checkpoints.

runs/<date>_<name>/  run.json  attempts.jsonl  metrics.jsonl  samples.jsonl  corpus.txt
                     checkpoints/  .lock
"""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nplm import files
from nplm.backend.threads import get_num_threads
from nplm.data.text import Corpus
from nplm.errors import CheckpointError, ConfigError
from nplm.train.packing import host_array

FORMAT_VERSION = 1
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class HasDict(Protocol):
    """A tokenizer, as far as a run folder needs to know it."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return what tokenizer.json holds."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder: make one with `create`, find one again with `open`."""

    path: Path

    @classmethod
    def create(
        cls,
        base: Path | str,
        name: str,
        config: Mapping[str, Any],
        *,
        command: Sequence[str] | None = None,
        seed: int | None = None,
        corpus: Corpus | None = None,
        tokenizer: HasDict | None = None,
        date: datetime.datetime | None = None,
    ) -> "RunFolder":
        """Make `base/<date>_<name>` (or ..-2, ..-3: never one that exists) and write run.json.

        `config` holds the resolved settings: plain values, lists, mappings, dataclasses, paths. A
        default corpus is copied to corpus.txt: its text differs between versions of Python.
        Raises ConfigError for a name that is no file name or a config that JSON cannot hold,
        StorageError if the folder cannot be written.
        """
        if not RUN_NAME.fullmatch(name):
            raise ConfigError(
                f"run name {name!r}: use 1 to 100 letters, digits, '.', '_' or '-', "
                "and no '.' or '-' at the start"
            )
        now = date or datetime.datetime.now().astimezone()
        record = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "created": now.isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv if command is None else command),
            "config": _jsonable(config, "config"),
            "seed": seed,
            "versions": _versions(),
            "blas": blas(),
            "corpus": None if corpus is None else _describe(corpus),
            "tokenizer": None if tokenizer is None else dict(tokenizer.to_dict()),
        }
        run = cls(files.make_unique_directory(Path(base) / f"{now:%Y-%m-%d}_{name}"))
        files.make_directory(run.checkpoints)
        if corpus is not None and corpus.is_default:
            files.write_text(run.path / "corpus.txt", corpus.text)
        files.write_json(run.path / "run.json", record)  # last: it says that the folder is a run
        return run

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Open an existing run; raises CheckpointError if there is none, or from a newer nplm."""
        run = cls(Path(path))
        run.info()
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` updates."""
        return self.checkpoints / f"step-{step:08d}"

    def info(self) -> dict[str, Any]:
        """Return what run.json holds; raises CheckpointError if it is missing or damaged."""
        path = self.path / "run.json"
        record = files.read_json(path)
        version = record.get("format_version") if isinstance(record, dict) else None
        if type(version) is not int:
            raise CheckpointError(f"{path}: not a description of a run")
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format version {files.shown(version)} was written by a newer nplm, "
                f"this one reads {FORMAT_VERSION}; update nplm"
            )
        return dict(record)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; 0-d arrays become numbers, NaN the text "NaN".

        Text, because JSON has no NaN; `float()` reads it back. Raises StorageError.
        """
        line = json.dumps(_jsonable(metrics, "metrics"), allow_nan=False)
        files.append_line(self.path / "metrics.jsonl", line)

    def synced_bytes(self) -> tuple[int, int]:
        """Bytes of metrics.jsonl and samples.jsonl, all of them on the disk: those of the updates
        so far.  Raises StorageError.
        """
        paths = [self.path / f"{name}.jsonl" for name in ("metrics", "samples")]
        for path in paths:
            files.sync(path)
        metrics, samples = map(files.size_of, paths)
        return metrics, samples

    def attempts(self) -> int:
        """How many attempts attempts.jsonl tells of: a beginning, and resumptions."""
        path = self.path / "attempts.jsonl"
        return files.read_bytes(path).count(b"\n") if files.size_of(path) else 0

    def begin_attempt(
        self, attempt: int, step: int, metrics_bytes: int, samples_bytes: int, device: str
    ) -> None:
        """Cut the lines of updates that are made again, and write one to attempts.jsonl.

        What metrics.jsonl and samples.jsonl hold beyond `step` is cut off and kept in
        `metrics.attempt-<n>.jsonl` and the like, n being the attempt that wrote it.
        """
        for name, n_bytes in (("metrics", metrics_bytes), ("samples", samples_bytes)):
            if files.size_of(self.path / f"{name}.jsonl") != n_bytes:
                tail = self.path / f"{name}.attempt-{attempt - 1}.jsonl"
                files.cut_lines(self.path / f"{name}.jsonl", n_bytes, tail)
        record = {
            "attempt": attempt,
            "from_step": step,
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
            "device": device,
            "versions": _versions(),
            "blas": blas(),
        }
        line = json.dumps(_jsonable(record, "attempt"))
        files.append_line(self.path / "attempts.jsonl", line, sync=True)

    def log_sample(self, step: int, prompt: str, text: str) -> None:
        """Append a generated text to samples.jsonl. Raises StorageError."""
        line = json.dumps({"step": step, "prompt": prompt, "text": text})
        files.append_line(self.path / "samples.jsonl", line)


def _jsonable(value: Any, path: str) -> Any:
    """Return `value` in JSON's types; raises ConfigError naming the place of anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item, f"{path}.{i}") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "numpy"):
        value = host_array(value)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{path}: a {type(value).__name__} cannot be written as JSON")


def _describe(corpus: Corpus) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "sha256": corpus.sha256,
        "source": corpus.source,
        "characters": len(corpus.text),
    }


def _versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("numpy-lm")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"  # run from a checkout that is not installed
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "nplm": own,
        "platform": platform.platform(),
    }


def blas_in_words() -> str:
    """Every BLAS in the process with its version and threads, on one line; "" if unknown.

    The threads of a step stand behind: gradients are added up shard by shard.
    """
    found = [
        f"{pool['internal_api']} {pool['version']} ({pool['architecture']}) x{pool['num_threads']}"
        for pool in blas() or []
    ]
    return ", ".join([*found, f"{get_num_threads()} in a step"]) if found else ""


def blas() -> list[dict[str, Any]] | None:
    """Name, version and threads of every BLAS in the process; None without threadpoolctl."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    return [
        {key: pool.get(key) for key in ("internal_api", "version", "num_threads", "architecture")}
        for pool in threadpool_info()
        if pool.get("user_api") == "blas"
    ]
