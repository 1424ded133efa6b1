"""Trace: what a training run computed, value by value, in causal order, in memory or in a folder.

NumPy alone: whoever reads a trace needs neither of the two libraries that were recorded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nplm import files
from nplm.errors import CheckpointError, DataError

# In causal order. Those of MICRO_PHASES belong to a micro-batch, the others to a whole step.
PHASES = (
    "start", "batch", "forward", "loss", "backward", "gradient", "accumulated", "norm", "clipped",
    "lr", "state", "parameter", "scheduler", "average", "validation", "stopper", "random",
)  # fmt: skip
MICRO_PHASES = ("batch", "forward", "loss", "backward", "gradient", "accumulated")

FORMAT_VERSION = 1
INDEX = "trace.json"
PART_BYTES, PART_ENTRIES = 64 * 2**20, 20_000  # a part is written when it holds as much
_KINDS = "biufc"  # booleans, integers, floating and complex numbers


@dataclass(frozen=True)
class Place:
    """Where in a run a value stands.

    step    from 1, the first update; 0 is before training
    micro   micro-batch, from 1; 0 for what belongs to the whole step
    phase   one of PHASES
    name    "blocks.0.attn.qkv", "blocks.0.attn.qkv.weight", "lr.0" ...
    """

    step: int
    micro: int
    phase: str
    name: str

    def __str__(self) -> str:
        micro = f", micro-batch {self.micro}" if self.micro else ""
        return f"step {self.step}{micro}, {self.phase} of {self.name}"

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts places causally: micro-batch by micro-batch, then what the whole step did."""
        return (self.step, self.micro or math.inf, PHASES.index(self.phase))


@dataclass(frozen=True)
class Entry:
    """One value of a run.

    value   its own copy, C-contiguous
    terms   how many terms a sum behind one element has: float32 budgets grow with its root
    scale   the largest sum of absolute terms behind an element, where it is known; else 0
    """

    place: Place
    value: np.ndarray
    terms: int = 1
    scale: float = 0.0


class Trace:
    """Entries by place, in the order in which they were added.

    meta    engine, versions, dtype, threads ...: whatever JSON can hold
    """

    def __init__(self, meta: dict[str, Any] | None = None) -> None:
        self.meta: dict[str, Any] = dict(meta or {})
        self._entries: dict[Place, Entry] = {}

    def add(self, place: Place, value: Any, terms: int = 1, scale: float = 0.0) -> Place:
        """Keep a copy of `value`; a place that is taken gets "#2" (or "#3" ...) behind its name.

        Returns the place that was used. Raises DataError for what is not an array of numbers, or
        a phase that is none of PHASES.
        """
        if place.phase not in PHASES:
            raise DataError(
                f"Trace.add: expected a phase of {', '.join(PHASES)}, got {place.phase!r}"
            )
        array = np.array(value, order="C")
        if array.dtype.kind not in _KINDS:
            raise DataError(f"Trace.add: {place}: expected numbers, got dtype {array.dtype}")
        free, number = place, 1
        while free in self._entries:
            number += 1
            free = replace(place, name=f"{place.name}#{number}")
        scale = float(scale) if math.isfinite(scale) else 0.0
        self._entries[free] = Entry(free, array, max(1, int(terms)), scale)
        return free

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        engine = self.meta.get("engine", "no engine")
        return f"<Trace of {engine}: {len(self)} values of {len(self.steps())} steps>"

    def get(self, place: Place) -> Entry | None:
        """What stands at `place`, or None."""
        return self._entries.get(place)

    def causal(self) -> list[Entry]:
        """All entries by step, micro-batch and phase; within a phase as they were added."""
        return sorted(self, key=lambda entry: entry.place.order)

    def steps(self) -> list[int]:
        """The steps that have entries, rising; 0 is before training."""
        return sorted({place.step for place in self._entries})

    def of_step(self, step: int) -> list[Entry]:
        """The entries of one step, as they were added."""
        return [entry for entry in self if entry.place.step == step]

    def drop(self, step: int) -> None:
        """Forget a step: a long run is compared step by step and needs no memory for the past."""
        self._entries = {place: e for place, e in self._entries.items() if place.step != step}

    # ---- a folder ------------------------------------------------------------
    def save(self, folder: Path | str) -> Path:
        """Write `folder`, whole or not at all, and return its path; it must not exist.

        trace.json holds meta and names, part-0001.json the places of part-0001.safetensors ...,
        MANIFEST.json sizes and hashes. Raises StorageError; DataError for meta that JSON lacks.
        """
        folder = Path(folder)
        names = list(dict.fromkeys(place.name for place in self._entries))
        parts = _parts(list(self))
        index = {
            "format_version": FORMAT_VERSION, "entries": len(self), "parts": len(parts),
            "phases": PHASES, "names": names, "meta": self.meta,
        }  # fmt: skip
        try:
            json.dumps(index, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"Trace.save: meta cannot be written as JSON: {error}") from error
        number = {name: i for i, name in enumerate(names)}
        writers: dict[str, Callable[[Path], None]] = {INDEX: partial(_write_compact, value=index)}
        for n, part in enumerate(parts, 1):
            rows = [_row(entry, number) for entry in part]
            writers[f"part-{n:04d}.json"] = partial(_write_compact, value=rows)
            writers[f"part-{n:04d}.safetensors"] = partial(_write_arrays, entries=part)
        files.make_directory(folder.absolute().parent)
        return files.write_directory(folder, writers)

    @classmethod
    def load(cls, folder: Path | str) -> Trace:
        """Read what `save` wrote.  Raises CheckpointError naming the file and what is wrong."""
        folder = Path(folder)
        listed = files.verify_directory(folder)["files"]
        if INDEX not in listed:
            raise CheckpointError(f"{folder}: not a trace: {INDEX} is missing")
        index = _checked_index(files.read_json(folder / INDEX), folder / INDEX)
        parts = [f"part-{n:04d}" for n in range(1, index["parts"] + 1)]
        expected = {INDEX, *(part + end for part in parts for end in (".json", ".safetensors"))}
        if expected != set(listed):
            odd = sorted(expected ^ set(listed))
            raise CheckpointError(f"{folder}: not a trace of {len(parts)} parts: see {odd[0]}")
        trace = cls(index["meta"])
        for part in parts:
            rows = files.read_json(folder / f"{part}.json")
            arrays = files.load_tensors(folder / f"{part}.safetensors")
            for entry in _read_rows(rows, arrays, index["names"], folder / f"{part}.json"):
                trace._entries[entry.place] = entry
        if len(trace) != index["entries"]:
            raise CheckpointError(
                f"{folder / INDEX}: says {index['entries']} values, found {len(trace)}"
            )
        return trace


# ---- writing -------------------------------------------------------------------------------------
def _parts(entries: list[Entry]) -> list[list[Entry]]:
    """The entries in groups of bounded size, each a pair of files."""
    parts: list[list[Entry]] = []
    size = 0
    for entry in entries:
        if not parts or size + entry.value.nbytes > PART_BYTES or len(parts[-1]) >= PART_ENTRIES:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += entry.value.nbytes
    return parts


def _row(entry: Entry, number: dict[str, int]) -> list[Any]:
    place = entry.place
    where = [place.step, place.micro, PHASES.index(place.phase), number[place.name]]
    return [*where, str(entry.value.dtype), entry.terms, entry.scale]


def _write_compact(path: Path, value: Any) -> None:
    files.write_text(path, json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")


def _write_arrays(path: Path, entries: list[Entry]) -> None:
    files.save_tensors(path, {str(i): _as_real(e.value) for i, e in enumerate(entries)})


def _as_real(array: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs, which safetensors can hold: (...) -> (..., 2)"""
    if array.dtype.kind != "c":
        return array
    return np.stack([array.real, array.imag], -1)


# ---- reading -------------------------------------------------------------------------------------
def _checked_index(index: Any, where: Path) -> dict[str, Any]:
    version = index.get("format_version") if isinstance(index, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format version {files.shown(version)} was written by a newer nplm, this "
            f"one reads {FORMAT_VERSION}; update nplm"
        )
    kinds = {
        "format_version": int, "entries": int, "parts": int, "phases": list, "names": list,
        "meta": dict,
    }  # fmt: skip
    good = version == FORMAT_VERSION and index.keys() == kinds.keys()
    good = good and all(type(index[key]) is kind for key, kind in kinds.items())
    good = good and index["phases"] == list(PHASES) and 0 <= index["parts"] < 10_000
    if not good or not all(isinstance(name, str) for name in index["names"]):
        raise CheckpointError(f"{where}: damaged: not the index of a trace")
    return dict(index)


def _read_rows(
    rows: Any, arrays: dict[str, np.ndarray], names: list[str], where: Path
) -> Iterator[Entry]:
    if not isinstance(rows, list) or len(rows) != len(arrays):
        raise CheckpointError(
            f"{where}: damaged: expected one row for each of {len(arrays)} arrays"
        )
    for i, row in enumerate(rows):
        array = arrays.get(str(i))
        if array is None or not _is_row(row, len(names)):
            raise CheckpointError(f"{where}: damaged: row {i} does not say what an array is")
        step, micro, phase, name, dtype, terms, scale = row
        if dtype.startswith("complex") and array.ndim and array.shape[-1] == 2:
            pairs, array = array, np.empty(array.shape[:-1], dtype)
            array.real, array.imag = pairs[..., 0], pairs[..., 1]
        if str(array.dtype) != dtype:
            said = files.shown(dtype)
            raise CheckpointError(f"{where}: damaged: row {i} says {said}, found {array.dtype}")
        yield Entry(Place(step, micro, PHASES[phase], names[name]), array, terms, float(scale))


def _is_row(row: Any, n_names: int) -> bool:
    if not isinstance(row, list) or len(row) != 7:
        return False
    step, micro, phase, name, dtype, terms, scale = row
    numbers = all(type(n) is int and n >= 0 for n in (step, micro, phase, name, terms))
    good = numbers and phase < len(PHASES) and name < n_names and terms >= 1
    known = dtype in ("complex64", "complex128") or not str(dtype).startswith("complex")
    return good and isinstance(dtype, str) and known and isinstance(scale, int | float)
