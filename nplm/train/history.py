"""What runs have logged, read back: updates, validations, samples, and which settings differ.

Read run.py before, which writes it, perhaps at this moment: a line that is not whole is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplm import files
from nplm.errors import CheckpointError
from nplm.train.run import RunFolder


def read_lines(path: Path, counter: str = "step") -> tuple[list[dict[str, Any]], list[str]]:
    """The entries of a file such as metrics.jsonl, and what is wrong with it; `counter` must rise.

    A file that is not there has no entries. Raises CheckpointError if it cannot be read.
    """
    if path.name not in files.list_directory(path.parent):
        return [], []
    *lines, rest = files.read_bytes(path).split(b"\n")
    entries: list[dict[str, Any]] = []
    problems, last = [], -1
    for number, line in enumerate(lines, 1):
        try:
            entry = files.parse_json(line, f"line {number}")
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if not isinstance(entry, dict) or type(entry.get(counter)) is not int:
            problems.append(f"line {number} names no {counter}")
            continue
        if entry[counter] <= last:
            problems.append(f"line {number}: {counter} {entry[counter]} follows {last}")
        last = entry[counter]
        entries.append(entry)
    if rest:
        problems.append(f"line {len(lines) + 1} is half written: its end is missing")
    return entries, problems


def number(value: Any) -> float:
    """A figure of metrics.jsonl, where NaN and infinity are text; NaN for what is no figure."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


@dataclass(frozen=True)
class History:
    """What one run was told, and what it has done so far."""

    path: Path
    settings: dict[str, Any]  # by dotted name
    metrics: list[dict[str, Any]]  # an entry an update
    sample: dict[str, Any] | None  # the last one: step, prompt, text

    @classmethod
    def read(cls, path: Path | str) -> History:
        """Read a run's folder; raises CheckpointError if it is none."""
        run = RunFolder.open(path)
        record = run.info()
        settings = dict(_flat(record.get("config"), ""))
        settings |= _flat({"versions": record.get("versions")}, "")
        corpus = record.get("corpus")
        if isinstance(corpus, dict):
            settings["corpus"] = f"{corpus.get('name')} {str(corpus.get('sha256'))[:8]}"
        metrics, _ = read_lines(run.path / "metrics.jsonl")
        samples, _ = read_lines(run.path / "samples.jsonl")
        return cls(run.path, settings, metrics, samples[-1] if samples else None)

    def curve(self, figure: str) -> dict[int, float]:
        """A figure such as "loss" or "validation_loss" by step, where it was logged."""
        return {m["step"]: number(m[figure]) for m in self.metrics if figure in m}

    def best(self) -> tuple[int, float] | None:
        """Step and loss of the lowest validation loss, the first of equals; None without one."""
        finite = {s: x for s, x in self.curve("validation_loss").items() if not math.isnan(x)}
        return min(finite.items(), key=lambda item: item[1]) if finite else None

    def seconds(self) -> float:
        """The time that all updates took together."""
        return _sum(self.curve("seconds").values())

    def tokens_per_second(self) -> float:
        """Target tokens per second of the updates; NaN without them."""
        seconds = self.seconds()
        return _sum(self.curve("tokens").values()) / seconds if seconds > 0 else math.nan


def _sum(numbers: Iterable[float]) -> float:
    """The sum of those that are finite; infinity if it is too large."""
    return sum(x for x in numbers if math.isfinite(x))


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """{"stop": {"patience": 2}} -> ("stop.patience", 2)"""
    if not isinstance(value, Mapping):
        if prefix:
            yield prefix[:-1], value
        return
    for key, item in value.items():
        yield from _flat(item, f"{prefix}{key}.")


def differences(runs: Sequence[History]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, as text; "-" where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = {
        name: [_shown(run.settings[name]) if name in run.settings else "-" for run in runs]
        for name in names
    }
    return {name: texts for name, texts in rows.items() if len(set(texts)) > 1}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value)) or "none"
    return str(value)
