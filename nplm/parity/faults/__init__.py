"""Faults on purpose: each is planted in nplm, and lockstep.py has to name its place."""

from nplm.parity.faults.finding import FAULTS, base, find, plant
from nplm.parity.faults.planting import MODES, Fault
from nplm.parity.faults.telling import Found, look, look_for_all, markdown, table

__all__ = [
    "FAULTS", "MODES", "Fault", "Found", "base", "find", "look", "look_for_all", "markdown",
    "plant", "table",
]  # fmt: skip
