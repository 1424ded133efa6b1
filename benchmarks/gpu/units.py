"""What the suite consists of: units, each with its limit in seconds.  Read suite.py after."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ask:
    """How the suite is asked to run, and when a unit has to be done."""

    device: str  # "cuda" or "cpu"
    small: bool = False  # tiny shapes: to show that the command works
    until: float = float("inf")  # time.monotonic()
    kept: dict[str, Any] = field(default_factory=dict)  # what a process's units share: engines

    @property
    def place(self) -> str:
        """The device as nplm names it."""
        return "torch:cpu" if self.device == "cpu" else self.device

    def left(self) -> float:
        """Seconds that the unit may still take."""
        return self.until - time.monotonic()


class CheckError(Exception):
    """What a check found wrong, in a sentence."""


@dataclass(frozen=True)
class Unit:
    """One check or one measurement.  It fails by raising; what it returns is written down."""

    name: str
    group: str  # units of a group share a process, until one of them breaks it
    seconds: float  # limit: what takes longer is cut
    run: Callable[[Ask], dict[str, Any]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    small: bool = True  # whether it is part of `--small`


UNITS: dict[str, Unit] = {}


def unit(name: str, group: str, seconds: float, **more: Any) -> Any:
    """Enter the decorated function into the suite, after what is there."""

    def register(run: Callable[[Ask], dict[str, Any]]) -> Callable[[Ask], dict[str, Any]]:
        UNITS[name] = Unit(name, group, seconds, run, **more)
        return run

    return register


def chosen(ask: Ask, only: tuple[str, ...] = ()) -> list[Unit]:
    """The units of a run, in their order; `only` names some of them, or their beginnings."""
    return [
        u
        for u in UNITS.values()
        if ask.device in u.devices
        and (u.small or not ask.small)
        and (not only or any(u.name.startswith(word) for word in only))
    ]
