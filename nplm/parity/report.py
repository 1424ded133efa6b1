"""A Comparison as text for a terminal, as JSON for scripts, and as one HTML page (page.py)."""

from __future__ import annotations

import json
import math
import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nplm import files
from nplm.errors import ConfigError
from nplm.parity import page
from nplm.parity.summary import (
    Tally,
    difference,
    engines,
    facts,
    headline,
    look_at,
    number,
    outcomes,
    phases,
    plainly,
    verdict,
)

if TYPE_CHECKING:
    from nplm.parity.divergence import Comparison, Divergence

FORMAT, VERSION = "nplm-parity-report", 1  # VERSION rises when a key changes its meaning
SUFFIXES = (".html", ".json", ".txt")
WIDTH = 80  # columns of the table


# ---- text ----------------------------------------------------------------------------------------


def text(comparison: Comparison, *, encoding: str | None = None, colour: bool = False) -> str:
    """The comparison for a terminal: what was held against what, a line a phase, the verdict.

    `encoding` (default: that of stdout) decides which characters may be used; the table fits
    80 columns.
    """
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "ascii"
    plain = not _encodes("✓✗─…", encoding)
    encoding = "ascii" if plain else encoding
    lines = [*_wrapped(plainly(comparison.title) or "parity")]
    first, second = engines(comparison)
    lines += _wrapped(plainly(f"{first} against {second}, {comparison.dtype}, {comparison.mode}"))
    for note in comparison.notes:
        lines += _wrapped(plainly(note), "note: ")
    lines += ["", *_table(comparison, plain, colour), ""]
    bad = verdict(comparison) != "equal"
    lines += [_painted(line, bad, colour) for line in _wrapped(headline(comparison))]
    if comparison.first is not None:
        for name, value in facts(comparison, comparison.first):
            lines += _wrapped(plainly(value), f"  {plainly(name):<10}  ")
    return "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding) + "\n"


def _table(comparison: Comparison, plain: bool, colour: bool) -> Iterator[str]:
    """A line a phase that has values; the others are named below."""
    tallies = phases(comparison)
    rows = {phase: tally for phase, tally in tallies.items() if tally.tensors}
    counts = any(tally.values for tally in rows.values())
    head = ("phase", "values" if counts else "tensors", "worst", "/budget", "step")
    cells = [(head, "tensor", "", False)]
    first = comparison.first.place.phase if comparison.first else None
    for phase, tally in rows.items():
        at = tally.place
        compared = tally.values if counts else tally.tensors
        shown = (
            plainly(phase), f"{compared:,}" if compared < 10**9 else f"{compared:.2e}",
            _or_dash(tally.worst), number(tally.error), str(at.step) if at else "-",
        )  # fmt: skip
        mark = ("X" if plain else "✗") if tally.over else ("ok" if plain else "✓")
        mark += " first" if phase == first else ""
        cells.append((shown, plainly(at.name) if at else "-", mark, bool(tally.over)))
    if not rows:
        return
    widths = [min(max(_columns(row[0][i]) for row in cells), 13) for i in range(len(head))]
    end = max(len(mark) for _, _, mark, _ in cells)
    room = WIDTH - sum(widths) - 2 * (len(widths) + bool(end)) - end
    for row, name, mark, over in cells:
        columns = [_padded(row[0], widths[0])]
        columns += [_padded(cell, width, right=True) for cell, width in zip(row[1:], widths[1:])]
        columns += [_padded(name, room, plain=plain), _painted(mark, over, colour and bool(mark))]
        yield "  ".join(columns).rstrip()
        if row is head:
            yield ("-" if plain else "─") * WIDTH
    if absent := [phase for phase in tallies if phase not in rows]:
        yield from _wrapped("not compared: " + ", ".join(absent))


def _or_dash(x: float) -> str:
    return "-" if math.isnan(x) else number(x)


def _columns(text: str) -> int:
    """Columns of a terminal: East Asian letters take two, combining marks none."""
    wide = {"W": 2, "F": 2}
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me")
        else wide.get(unicodedata.east_asian_width(c), 1)
        for c in text
    )


def _padded(text: str, width: int, *, right: bool = False, plain: bool = False) -> str:
    """Exactly `width` columns; what is longer loses its middle: a name's end says more."""
    text = text.encode("ascii", "backslashreplace").decode() if plain else text
    if _columns(text) > width:
        gap = ".." if plain else "…"
        head, tail = "", ""
        for c in text:
            if _columns(head + c) > (width - len(gap)) // 3:
                break
            head += c
        for c in reversed(text):
            if _columns(head + gap + c + tail) > width:
                break
            tail = c + tail
        text = head + gap + tail
    space = " " * (width - _columns(text))
    return space + text if right else text + space


def _wrapped(text: str, begin: str = "") -> list[str]:
    """Lines of 80 columns; only a longer word (a name) makes a longer line."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin),
        break_long_words=False, break_on_hyphens=False,
    ) or [begin.rstrip()]  # fmt: skip


def _painted(text: str, bad: bool, colour: bool) -> str:
    return f"\x1b[{31 if bad else 32}m{text}\x1b[0m" if colour else text


def _encodes(characters: str, encoding: str) -> bool:
    try:
        characters.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# ---- JSON, HTML, files ---------------------------------------------------------------------------


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything that was found, in JSON's types.

    What JSON has no number for is "NaN", "Infinity" or "-Infinity", which float() reads. `measured`
    and `divergences` have a row a place; their columns are named beside them.
    """
    columns = ("step", "micro", "phase", "name", "error", "worst", "values", "over_budget")
    sides = ("step", "micro", "phase", "name", "kind", "index", "actual", "expected", "budget")
    found = list(outcomes(comparison))
    total = Tally()
    for outcome in found:
        total.add(outcome)
    answer = {
        "format": FORMAT,
        "version": VERSION,
        "title": comparison.title,
        "verdict": verdict(comparison),
        "equal": comparison.equal,
        "headline": headline(comparison),
        "mode": comparison.mode,
        "dtype": comparison.dtype,
        "steps": comparison.steps,
        "tensors": total.tensors,
        "values": total.values or None,
        "over_budget": total.over,
        "first": _first(comparison.first) if comparison.first else None,
        "phases": [
            {"phase": phase, "tensors": tally.tensors, "values": tally.values or None,
             "over_budget": tally.over, "error": tally.error, "worst": tally.worst,
             "at": vars(tally.place) if tally.place else None}
            for phase, tally in phases(comparison).items()
        ],
        "divergence_columns": sides,
        "divergences": [
            (*vars(d.place).values(), d.kind, d.index, d.actual, d.expected, d.budget)
            for d in comparison.divergences
        ],
        "measured_columns": columns,
        "measured": [(*vars(o.place).values(), o.error, o.worst, o.values or None, o.over)
                     for o in found],
        "notes": comparison.notes,
        "meta": comparison.meta,
    }  # fmt: skip
    strict: dict[str, Any] = _strict(answer)
    return strict


def _first(divergence: Divergence) -> dict[str, Any]:
    said = {f.name: getattr(divergence, f.name) for f in fields(divergence)}
    return {
        **said,
        "place": vars(divergence.place),
        "difference": difference(divergence),
        "look_at": look_at(divergence),
        "sentence": divergence.sentence(),
    }


def _strict(value: Any) -> Any:
    """The same in dicts with text keys, lists, text, numbers, true, false and null."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _strict(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return "NaN" if math.isnan(value) else names.get(value, float(value))
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_strict(item) for item in value]
    return str(value)


def html(comparison: Comparison) -> str:
    """One page that asks nothing of any host: verdict, heat strip, tables (see page.py)."""
    return page.render(comparison)


def write_report(comparison: Comparison, path: Path | str) -> None:
    """Write a comparison to a file, as its suffix says: .html, .json or .txt.

    Raises ConfigError for another suffix, StorageError where it cannot be written.
    """
    check_suffix(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".html":
        written = html(comparison)
    elif suffix == ".json":
        written = json.dumps(to_json(comparison), allow_nan=False) + "\n"
    else:
        written = text(comparison, encoding="utf-8")
    files.write_text(path, written)


def check_suffix(path: Path | str) -> None:
    """Raise a ConfigError where `write_report` would not know what to write."""
    if Path(path).suffix.lower() not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ConfigError(f"report: expected a file that ends in {known}, got {str(path)!r}")
