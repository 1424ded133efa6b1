"""Several optimizers as one: each has parameters of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nplm.errors import ConfigError
from nplm.optim.optimizer import Group, Optimizer


class ChainedOptimizer(Optimizer):
    """Steps every one of `optimizers`, in order: Muon for matrices, AdamW for the rest, say.

    optimizers    with no parameter in common, and none that steps by closure only; in place of a
                  ChainedOptimizer among them are its own
    param_groups  those of all of them, in order; `state` likewise

    Its `state_dict()` has the layout of a single optimizer's, with the parameters counted through.
    Megatron-LM has one of this name. Raises ConfigError for no optimizer, and for one that needs a
    closure; ValueError for a parameter in two of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        if not optimizers:
            raise ConfigError("ChainedOptimizer: expected at least one optimizer, got none")
        if closing := [type(o).__name__ for o in optimizers if o.needs_closure]:
            raise ConfigError(f"ChainedOptimizer: {closing[0]} steps by closure only; use it alone")
        self.optimizers: list[Optimizer] = []
        for given in optimizers:
            self.optimizers += given.optimizers if isinstance(given, ChainedOptimizer) else [given]
        params = [p for group in self.param_groups for p in group["params"]]
        if len(set(params)) < len(params):
            raise ValueError("some parameters appear in more than one optimizer")
        self.defaults = self.optimizers[0].defaults

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        """The groups of all optimizers: the dicts themselves, in a new list."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, dict[str, Any]]:  # type: ignore[override]
        """{parameter: its entries} of all optimizers, in a new dict."""
        return {p: entries for o in self.optimizers for p, entries in o.state.items()}

    def add_param_group(self, param_group: Group) -> None:
        """Refused: only the optimizers themselves know whose parameters these are."""
        raise ConfigError("ChainedOptimizer: add the group to one of its optimizers")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every optimizer; `closure()` computes the loss, once, before the first."""
        loss = None
        for optimizer in self.optimizers:
            given = optimizer.step(closure)
            loss, closure = (given if loss is None else loss), None
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()`; raises, and changes nothing, if it is none."""
        parts = list(self.parts_of(state_dict))
        before = [(optimizer.state, optimizer.param_groups) for optimizer in self.optimizers]
        try:
            for optimizer, part in parts:
                optimizer.load_state_dict(part)
        except Exception:
            for optimizer, (state, groups) in zip(self.optimizers, before):
                optimizer.state, optimizer.param_groups = state, groups
            raise

    def parts_of(self, state_dict: dict[str, Any]) -> Iterator[tuple[Optimizer, dict[str, Any]]]:
        """Every optimizer with its part of a `state_dict()`."""
        saved, first = state_dict["param_groups"], 0
        if len(saved) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        known = {i for group in saved for i in group["params"]}
        if strangers := [key for key in state_dict["state"] if key not in known]:
            raise ValueError(f"loaded state dict has a state of {strangers[0]!r}, of no group")
        for optimizer in self.optimizers:
            groups = saved[first : (first := first + len(optimizer.param_groups))]
            own = {i for group in groups for i in group["params"]}
            state = {key: entries for key, entries in state_dict["state"].items() if key in own}
            yield optimizer, {"state": state, "param_groups": groups}

    def __getstate__(self) -> dict[str, Any]:
        """What is copied: the optimizers, not a `step` that a scheduler has wrapped."""
        return {"optimizers": self.optimizers, "defaults": self.defaults}
