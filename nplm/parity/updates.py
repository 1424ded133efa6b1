"""What of an update is rounding by its nature: the decay may cancel the gradient it is added to.

An optimizer that uses g + decay p may be left with next to nothing: one engine rounds once (a fused
multiply-add), the other twice, and what is left, however small, is then divided by its own size.
divergence.py asks here for what the budgets of state and parameters get on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nplm.parity.tolerances import Budget
from nplm.parity.trace import Entry

DECOUPLED = ("AdamW", "Adafactor", "Muon")  # the decay never meets the gradient


def coupled_decays(optimizer: Any, names: Mapping[int, str]) -> dict[str, float]:
    """By parameter: the factor of p in g + factor p (negative where -g is used), if it is not 0.

    names   by id of the parameter
    """
    decays: dict[str, float] = {}
    if optimizer is None or type(optimizer).__name__ in DECOUPLED:
        return decays
    for group in optimizer.param_groups:
        decay = group.get("weight_decay") or 0.0
        if not group.get("decoupled_weight_decay") and float(decay) != 0:
            sign = -1.0 if group.get("maximize") else 1.0
            for parameter in group["params"]:
                if id(parameter) in names:
                    decays[names[id(parameter)]] = sign * float(decay)
    return decays


class Updates:
    """What the reference's updates start from, and which share of each may be rounding.

    Isolated runs start every update from equal values; in a free one the shares add up.
    """

    def __init__(self) -> None:
        self.decays: Mapping[str, float] = {}  # what `coupled_decays` gave
        self.parameters: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}
        self.uncertain: dict[str, float] = {}  # of a gradient: what it was allowed to be off
        self.shares: dict[str, Any] = {}  # free runs: of the updates so far
        self.slacks: dict[str, Any] = {}  # likewise, what a parameter's budget got

    def learn(self, entry: Entry, allowed: Any, mode: str) -> None:
        """Keep the reference's value; to be called when the entry has been judged."""
        name, phase, free = entry.place.name, entry.place.phase, mode == "free"
        if phase in ("start", "parameter"):
            self.parameters[name] = entry.value
        elif phase == "clipped":
            self.gradients[name] = entry.value
            self.uncertain[name] = float(np.max(allowed)) if free else 0.0

    def slack(self, entry: Entry, budget: Budget, lr: float, mode: str) -> Any:
        """What the budget gets on top, element by element (or 0).

        A share s of g + decay p may be rounding: (what g may be off + the budget's share of
        |decay p|) / |g + decay p|. The parameter is uncertain by s times its change and lr, a state
        by s times its largest element.
        """
        place, value, name = entry.place, entry.value, entry.place.name
        if place.phase == "average":
            return self.slacks.get(name, 0.0)
        if place.phase == "state":
            name = name.rpartition(".")[0]
        elif place.phase != "parameter":
            return 0.0
        p, g = self.parameters.get(name), self.gradients.get(name)
        if p is None or p.shape != value.shape or value.dtype.kind != "f":
            return 0.0
        change = np.nan_to_num(np.abs(value.astype(np.float64) - p), nan=0.0, posinf=0.0)
        share: Any = 0.0
        if g is not None and name in self.decays:
            decayed = self.decays[name] * p.astype(np.float64)
            rounded = self.uncertain[name] + budget.share(place.step) * np.abs(decayed)
            with np.errstate(all="ignore"):
                share = np.where(decayed != 0, np.minimum(1.0, rounded / np.abs(g + decayed)), 0.0)
            share = np.nan_to_num(share, nan=0.0)
        total = self.shares.get(name, 0.0) + share
        if place.phase == "state":
            return total * float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
        slack = self.slacks.get(name, 0.0) + share * (change + lr)
        if mode == "free":
            self.shares[name], self.slacks[name] = total, slack
        return slack + budget.update * float(change.max(initial=0.0))
