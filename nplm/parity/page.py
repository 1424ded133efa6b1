"""A Comparison as one HTML page that asks nothing of any host; its look and keys: page_assets.py.

All that is said stands in the HTML itself. The script adds the keyboard, the filters and the view
of one step; it reads the numbers from a JSON block and puts names in as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from nplm.parity.page_assets import SCRIPT, STYLE
from nplm.parity.summary import (
    Tally,
    engines,
    facts,
    headline,
    number,
    outcomes,
    phases,
    plainly,
    verdict,
)  # fmt: skip

if TYPE_CHECKING:
    from nplm.parity.divergence import Comparison
    from nplm.parity.trace import Place

COLUMNS = 240  # of the heat strip; more steps than that share columns
WORST = 5  # tensors a phase in the table; the filter finds the others
EMBEDDED = 600_000  # characters of the tensors' own strips; the least wrong tensors go without
# Levels of the heat strip: a letter each, by the error in budgets, coarser than a factor of ten
# where it matters less.
LEVELS = {
    "a": "nothing compared", "b": "no difference", "c": "up to 1e-5", "d": "up to 1e-4",
    "e": "up to 0.001", "f": "up to 0.01", "g": "up to 0.1", "h": "up to 1: the budget",
    "i": "up to 10: over", "j": "up to 1,000: over", "k": "more than 1,000: over",
    "l": "beyond any budget",
}  # fmt: skip
EDGES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1000.0, math.inf)


def render(comparison: Comparison) -> str:
    """The page as text; `report.html` is its public name."""
    strip = Strip(comparison)
    answer = verdict(comparison)
    first, second = engines(comparison)
    title = _safe(comparison.title) or "parity"
    policy = (
        f"default-src 'none'; style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    body = [
        f"<header><h1>{title}</h1><p>{_safe(first)} against {_safe(second)}, "
        f"{_safe(comparison.dtype)}, {_safe(comparison.mode)}</p></header>",
        f'<main><section id="verdict" class="{answer.split()[0]}" aria-labelledby="said">',
        f'<h2 id="said">{_safe(headline(comparison))}</h2>',
        *_first(comparison),
        "</section>",
        *_notes(comparison),
        *strip.section(comparison),
        *_phases(comparison),
        *strip.worst(),
        *_run(comparison),
        "</main>",
        '<dialog id="step" aria-labelledby="step-title"><h2 id="step-title"></h2>'
        '<div class="scroll"><table><thead><tr><th scope="col">phase<th scope="col" class="n">'
        'in budgets<th scope="col" class="n">worst error<th scope="col">tensor<th scope="col" '
        'class="n">over</tr></thead><tbody></tbody></table></div><p class="buttons">'
        '<button type="button" id="earlier">earlier</button> '
        '<button type="button" id="later">later</button> '
        '<button type="button" id="close" autofocus>close</button></p></dialog>',
    ]
    data = json.dumps(strip.data(comparison), separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    return "\n".join([
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_safe(answer)}: {title}</title><style>{STYLE}</style></head><body>",
        *body,
        f'<script type="application/json" id="data">{data}</script>',
        f"<script>{SCRIPT}</script></body></html>\n",
    ])  # fmt: skip


def _safe(text: object) -> str:
    return escape(plainly(text))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def level(error: float) -> str:
    """The letter of an error in budgets."""
    return "bcdefghijkl"[sum(error > edge for edge in EDGES) if error < math.inf else -1]


def _or_dash(x: float) -> str:
    return "-" if math.isnan(x) else number(x)


# ---- what stands above and below the heat strip --------------------------------------------------


def _first(comparison: Comparison) -> Iterator[str]:
    """The first divergence as a list of what and how much."""
    if comparison.first is None:
        return
    yield '<dl id="first">'
    for name, value in [
        ("where", str(comparison.first.place)),
        *facts(comparison, comparison.first),
    ]:
        yield f"<div><dt>{_safe(name)}</dt><dd>{_safe(value)}</dd></div>"
    yield "</dl>"


def _notes(comparison: Comparison) -> Iterator[str]:
    if comparison.notes:
        items = "".join(f"<li>{_safe(note)}" for note in comparison.notes)
        yield f'<section aria-label="notes"><ul id="notes">{items}</ul></section>'


def _table(name: str, head: Iterable[str], body: str, numeric: Iterable[int]) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    cells = "".join(
        f'<th scope="col"{" class=n" if i in numeric else ""}>{text}</th>'
        for i, text in enumerate(head)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table><thead><tr>{cells}</tr></thead>{body}</table></div>"
    )


def _phases(comparison: Comparison) -> Iterator[str]:
    """A row a phase: what was compared, the worst errors, where, the mark."""
    counts = any(tally.values for tally in phases(comparison).values())
    rows = ""
    for phase, tally in phases(comparison).items():
        if not tally.tensors:
            mark, kind = "not compared", "none"
        else:
            mark, kind = (f"{tally.over:,} over", "over") if tally.over else ("within", "within")
        rows += (
            f'<tr class="{kind}"><th scope="row">{_safe(phase)}</th>'
            f"<td class=mark>{mark}</td>"
            f"<td class=n>{tally.values if counts else tally.tensors:,}</td>"
            f"<td class=n>{_or_dash(tally.worst)}</td>"
            f"<td class=n>{number(tally.error) if tally.tensors else '-'}</td>"
            f"<td>{_where(tally.place)}</td></tr>\n"
        )
    yield "<section><h2>Every phase, in causal order</h2>"
    head = ("phase", "", "values" if counts else "tensors", "worst error", "in budgets", "where")
    yield _table("every phase", head, f"<tbody>{rows}</tbody>", (2, 3, 4)) + "</section>"


def _where(place: Place | None) -> str:
    if place is None:
        return "-"
    micro = f", micro-batch {place.micro}" if place.micro else ""
    return f"step {place.step}{micro}: <code>{_safe(place.name)}</code>"


def _run(comparison: Comparison) -> Iterator[str]:
    """Settings and versions, a row each: "expected.versions.torch" and its value."""
    rows = "".join(
        f'<tr><th scope="row">{_safe(name)}</th><td>{_safe(value)}</td></tr>'
        for name, value in _flat(comparison.meta)
    )
    if rows:
        yield "<section><h2>The run</h2>"
        yield _table("the run", ("setting", "value"), f"<tbody>{rows}</tbody>", ()) + "</section>"
    yield (
        "<footer><p>An error is the largest difference between two tensors; in budgets: divided by "
        "what its phase allows, so more than 1 is a divergence.</p></footer>"
    )


def _flat(value: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(item)


# ---- the heat strip ------------------------------------------------------------------------------


class Strip:
    """Outcomes by phase and column, and by tensor; a column is a step, or several in a long run."""

    def __init__(self, comparison: Comparison) -> None:
        found = list(outcomes(comparison))
        steps = sorted({outcome.place.step for outcome in found})
        share = max(1, math.ceil(len(steps) / COLUMNS))
        self.groups = [steps[i : i + share] for i in range(0, len(steps), share)]
        column = {step: i for i, group in enumerate(self.groups) for step in group}
        self.phases = [phase for phase, tally in phases(comparison).items() if tally.tensors]
        self.cells: dict[tuple[str, int], Tally] = {}
        self.tensors: dict[tuple[str, str], Tally] = {}
        self.strips: dict[tuple[str, str], list[str]] = {}  # a level a column
        for outcome in found:
            place, c = outcome.place, column[outcome.place.step]
            self.cells.setdefault((place.phase, c), Tally()).add(outcome)
            key = (place.phase, place.name)
            self.tensors.setdefault(key, Tally()).add(outcome)
            levels = self.strips.setdefault(key, ["a"] * len(self.groups))
            levels[c] = max(levels[c], level(outcome.error))
        self.start = None
        if comparison.first is not None:
            first = comparison.first.place
            self.start = (first.phase, column[first.step])

    def label(self, c: int) -> str:
        """ "step 7", or "steps 15 to 28"."""
        group = self.groups[c]
        return f"step {group[0]}" if len(group) == 1 else f"steps {group[0]} to {group[-1]}"

    def level(self, phase: str, c: int) -> str:
        """The letter of a cell."""
        tally = self.cells.get((phase, c))
        return level(tally.error) if tally else "a"

    def section(self, comparison: Comparison) -> Iterator[str]:
        """Filters, legend, the strip itself, and the details of the cell in focus."""
        if not self.cells:
            return
        options = "".join(f"<option>{_safe(phase)}</option>" for phase in self.phases)
        yield (
            "<section><h2>Error by phase and step</h2>"
            '<form id="filter" role="search" aria-label="filter" hidden><label>phase <select '
            f'id="phase"><option value="">all</option>{options}</select></label> <label>tensor '
            '<input id="name" type="search" placeholder="part of its name" autocomplete="off" '
            'spellcheck="false"></label> <label class="check"><input id="over" type="checkbox"> '
            'only over budget</label> <span id="found" role="status"></span></form>'
        )
        shown = {cell for phase in self.phases for c in range(len(self.groups))
                 for cell in self.level(phase, c)}  # fmt: skip
        legend = "".join(
            f'<li><span class="key {letter}"></span>{text}</li>'
            for letter, text in LEVELS.items()
            if letter in shown or letter in "bh"
        )
        if self.start:
            legend += '<li><span class="key first"></span>the first divergence</li>'
        yield f'<ul id="legend" aria-label="error in budgets">{legend}</ul>'
        width = next(w for w, most in (("w4", 8), ("w3", 30), ("w2", 90), ("w1", COLUMNS))
                     if len(self.groups) <= most)  # fmt: skip
        yield (
            '<div class="scroll strip"><table id="strip" role="grid" aria-readonly="true" '
            f'aria-describedby="keys" aria-label="worst error by phase and step" class="{width}">'
        )
        yield from self._ticks({"w4": 1, "w3": 5, "w2": 10, "w1": 20}[width])
        current = self.start or (self.phases[0], 0)
        for phase in self.phases:
            yield f'<tr><th scope="row">{_safe(phase)}</th>' + "".join(
                self._cell(phase, c, current) for c in range(len(self.groups))
            )
        yield '</tbody></table></div><p id="keys" hidden>Arrow keys, Home, End, Page Up and Page '
        yield "Down move; Enter shows all phases of a step.</p>"
        yield '<p id="details" hidden></p></section>'

    def _ticks(self, every: int) -> Iterator[str]:
        yield '<thead><tr><th scope="col">step</th>'
        for c in range(0, len(self.groups), every):
            span = min(every, len(self.groups) - c)
            text = self.groups[c][0] if span * 2 >= every else ""
            yield f'<th scope="colgroup" colspan="{span}">{text}</th>'
        yield "</tr></thead><tbody>"

    def _cell(self, phase: str, c: int, current: tuple[str, int]) -> str:
        tally = self.cells.get((phase, c))
        error = "nothing compared"
        if tally:
            many = f"{number(tally.error)} of the budget"
            error = many if tally.error < math.inf else LEVELS["l"]
        first = " first" if (phase, c) == self.start else ""
        tab = "0" if (phase, c) == current else "-1"
        return (
            f'<td class="{self.level(phase, c)}{first}" tabindex={tab} '
            f'title="{self.label(c)}: {error}">'
        )

    def worst(self) -> Iterator[str]:
        """The tensors that were farthest off, a group a phase."""
        if not self.tensors:
            return
        body = ""
        for phase in self.phases:
            body += f'<tbody><tr><th scope="rowgroup" colspan="5">{_safe(phase)}</th></tr>'
            for name, tally in self._ranked(phase)[:WORST]:
                at = tally.place
                step = f"{at.step}{f' / {at.micro}' if at.micro else ''}" if at else "-"
                body += f"<tr{' class=over' if tally.over else ''}><td><code>{_safe(name)}</code>"
                for text in (number(tally.error), _or_dash(tally.worst), step,
                             f"{tally.over:,} of {tally.tensors:,}"):  # fmt: skip
                    body += f"<td class=n>{text}"
                body += "</tr>"
            body += "</tbody>\n"
        yield '<section id="worst"><h2>The worst tensors of every phase</h2>'
        head = ("tensor", "in budgets", "worst error", "at step / micro-batch", "over budget")
        yield _table("the worst tensors", head, body, (1, 2, 3, 4)) + "</section>"

    def _ranked(self, phase: str) -> list[tuple[str, Tally]]:
        of_phase = [(name, tally) for (p, name), tally in self.tensors.items() if p == phase]
        return sorted(of_phase, key=lambda pair: -pair[1].error)

    def data(self, comparison: Comparison) -> dict[str, Any]:
        """What the script needs: names once, then rows of numbers that are already text."""
        names: dict[str, int] = {}

        def row(tally: Tally) -> list[Any]:
            at = tally.place
            name = names.setdefault(plainly(at.name), len(names)) if at else -1
            place = [at.step, at.micro] if at else [0, 0]
            worst = _or_dash(tally.worst)
            return [number(tally.error), worst, name, *place, tally.tensors, tally.over]

        cells = [
            [row(tally) if (tally := self.cells.get((phase, c))) else 0
             for c in range(len(self.groups))]
            for phase in self.phases
        ]  # fmt: skip
        tensors = []
        room = EMBEDDED
        ranked = sorted(self.tensors.items(), key=lambda item: -item[1].error)
        for (phase, name), tally in ranked:
            room -= len(self.groups) + len(name) + 40
            if room < 0:
                break
            number_of = names.setdefault(plainly(name), len(names))
            levels = "".join(self.strips[phase, name])
            tensors.append([self.phases.index(phase), number_of, row(tally), levels])
        return {
            "columns": [self.label(c) for c in range(len(self.groups))],
            "phases": [plainly(phase) for phase in self.phases],
            "cells": cells,
            "tensors": tensors,
            "left_out": len(self.tensors) - len(tensors),
            "names": list(names),
            "levels": LEVELS,
            "worst": WORST,
        }
