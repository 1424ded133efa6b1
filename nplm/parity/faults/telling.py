"""What was found of the planted faults: a table for a terminal, and a page for docs/."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nplm.parity.faults.finding import FAULTS, find
from nplm.parity.faults.planting import MODES, Fault
from nplm.parity.trace import Place

WIDTH = 80  # columns of the table
NAME, PLACE, ERROR = 33, 30, 8  # of which the name, the place and each mode's error


@dataclass(frozen=True)
class Found:
    """What one run with a fault said.

    place   of the first divergence, or None
    kind    of it: "value", "missing" ..., and "exact" for a value whose budget is 0
    error   of it, in units of its budget; inf where that says nothing
    """

    name: str
    mode: str
    seed: int
    place: Place | None
    kind: str = ""
    error: float = 0.0

    @property
    def right(self) -> bool:
        """Whether that is what the table of faults says of this mode."""
        fault = FAULTS[self.name]
        if self.mode not in fault.modes:
            return self.place is None
        return self.place is not None and fault.expects(self.place)

    @property
    def size(self) -> str:
        """The error in units of the budget, or the kind where there is no such number."""
        if self.place is None:
            return "unseen"
        return self.kind if self.kind != "value" else f"{self.error:.0e}".replace("e+", "e")


def look(name: str, mode: str = "isolated", seed: int = 0) -> Found:
    """Run both engines with a fault planted, and keep what the comparison named first."""
    comparison = find(name, mode, seed)
    if comparison.first is None:
        return Found(name, mode, seed, None)
    first = comparison.first
    error = next(m.error for m in comparison.measured if m.place == first.place)
    kind = "exact" if first.kind == "value" and first.budget == 0 else first.kind
    return Found(name, mode, seed, first.place, kind, error)


def look_for_all(seeds: Iterable[int] = (0,)) -> list[Found]:
    """Every fault in both modes."""
    return [look(name, mode, seed) for name in FAULTS for mode in MODES for seed in seeds]


def table(results: Iterable[Found]) -> str:
    """80 columns, a line a fault: its name, the place that was named first, and how far it was off.

    Of several seeds the smallest error is shown. A place is step.micro-batch, phase, tensor; what
    is not as FAULTS says is marked with "!".
    """
    results = list(results)
    lines = [_line("fault", "named first", [f"{mode:>{ERROR}}" for mode in MODES])]
    lines.append("-" * WIDTH)
    for name, found in _by_name(results).items():
        places = {f.place for f in found if f.place is not None}
        at = " or ".join(sorted(map(_short, places))) or "-"
        errors = [f"{_of_mode(found, mode):>{ERROR}}" for mode in MODES]
        lines.append(_line(name, at, errors, " " if all(f.right for f in found) else "!"))
    lines += ["", *summary(results)]
    return "\n".join(lines) + "\n"


def summary(results: list[Found]) -> Iterator[str]:
    """A line a mode: how many were found at their place, and how many it cannot see."""
    for mode in MODES:
        of_mode = [f for f in results if f.mode == mode]
        if of_mode:
            seen = [f for f in of_mode if mode in FAULTS[f.name].modes]
            right, wrong = sum(f.right for f in seen), sum(not f.right for f in of_mode)
            rest = f", {len(of_mode) - len(seen)} it cannot see" if len(of_mode) > len(seen) else ""
            bad = f", {wrong} WRONG" if wrong else ""
            yield f"{mode}: {right} of {len(seen)} found where they were planted{rest}{bad}"


def markdown(results: Iterable[Found] | None = None) -> str:
    """The page docs/parity_faults.md; runs every fault in both modes if no results are given."""
    results = look_for_all() if results is None else list(results)
    found, lines = _by_name(results), [_INTRODUCTION.format(n=len(FAULTS))]
    groups = dict.fromkeys(fault.group for fault in FAULTS.values())
    for group in groups:
        lines += [f"\n## {group.capitalize()}\n",
                  "| fault | planted in | named first | isolated | free |",
                  "|---|---|---|--:|--:|"]  # fmt: skip
        for fault in (f for f in FAULTS.values() if f.group == group and f.name in found):
            sizes = [_of_mode(found[fault.name], mode) for mode in MODES]
            cells = [f"**{fault.name}**<br>{fault.sentence}", f"`{fault.target[5:]}`"]
            lines.append("| " + " | ".join([*cells, str(fault.place), *sizes]) + " |")
    lines += ["\n## What a mode cannot see\n", *_unseen(FAULTS.values())]
    lines += ["\n## Found\n", *(f"* {line}" for line in summary(results))]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
# Planted faults

A check that was never seen to fail proves nothing. So each of these {n} faults is planted in nplm
on purpose, nplm and PyTorch train in lockstep, and the comparison has to name the place of the
first divergence: step, micro-batch, phase and tensor. It is not told what was planted.

`nplm parity --fault NAME` shows one of them, `nplm parity --list-faults` lists all. A fault is a
few words of one function, replaced in a compiled copy; the files of the library do not change.

The last two columns say how far the first divergence is off, in units of its budget, in the two
modes of `lockstep`: *isolated* starts every phase from PyTorch's values, *free* lets both engines
go their own way. "exact" stands for quantities that may not differ at all.

This page is made by `nplm.parity.faults.markdown()`.\
"""


def _unseen(faults: Iterable[Fault]) -> Iterator[str]:
    for fault in faults:
        if fault.unseen:
            blind = " and ".join(mode for mode in MODES if mode not in fault.modes)
            yield f"* **{fault.name}**, {blind}: {fault.unseen}."


def _by_name(results: Iterable[Found]) -> dict[str, list[Found]]:
    found: dict[str, list[Found]] = {}
    for result in results:
        found.setdefault(result.name, []).append(result)
    return found


def _of_mode(found: list[Found], mode: str) -> str:
    some = [f for f in found if f.mode == mode]
    return min(some, key=lambda f: f.error).size if some else ""


def _short(place: Place) -> str:
    return f"{place.step}.{place.micro} {place.phase} {place.name}"


def _line(name: str, place: str, errors: list[str], mark: str = " ") -> str:
    if len(place) > PLACE:  # the end of a dotted name tells more than its beginning
        head, _, tail = place.rpartition(" ")
        place = f"{head} ~{tail[-(PLACE - len(head) - 2) :]}"
    return f"{name:<{NAME}.{NAME}}{mark}{place:<{PLACE}}{''.join(errors)}"
