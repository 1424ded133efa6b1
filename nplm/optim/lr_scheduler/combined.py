"""Several schedulers on one optimizer: one after the other, or all at every step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from nplm.optim.lr_scheduler.base import LRScheduler, values, write


class _Combined(LRScheduler):
    """What the two share: checks of the members, and a state that nests theirs."""

    _schedulers: Sequence[Any]

    def _check_members(self, optimizer: Any, schedulers: Sequence[Any]) -> None:
        name = type(self).__name__
        for i, scheduler in enumerate(schedulers):
            member = type(scheduler)
            if not hasattr(scheduler, "optimizer"):
                raise TypeError(f"{name} at index {i} should have `optimizer` as its attribute")
            if any(base.__name__ == "ReduceLROnPlateau" for base in member.__mro__):  # or torch's
                raise ValueError(
                    f"{name} does not support `ReduceLROnPlateau`, whose step needs a metric, but "
                    f"got one at index {i}"
                )
            if optimizer != scheduler.optimizer:
                raise ValueError(
                    f"{name} expects all schedulers to belong to the same optimizer, but "
                    f"{member.__name__} at index {i} has another one"
                )

    def state_dict(self) -> dict[str, Any]:
        """The own attributes and, under "_schedulers", the members' states."""
        left_out = ("optimizer", "_schedulers")  # no lrs: the members' states have them
        state = {key: value for key, value in self.__dict__.items() if key not in left_out}
        return {**state, "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from such a state, of nplm or torch; the members check the lrs."""
        state = dict(state_dict)
        for scheduler, member in zip(self._schedulers, state.pop("_schedulers")):
            scheduler.load_state_dict(member)
        self.__dict__.update(state)


class SequentialLR(_Combined):
    """Scheduler i runs from milestones[i - 1] on, until milestones[i]; each begins at its step 0.

    schedulers    all of one optimizer; building them has moved the lr, which is put back here
    milestones    steps, rising, one fewer than the schedulers

    Twin: torch.optim.lr_scheduler.SequentialLR.
    """

    def __init__(
        self,
        optimizer: Any,
        schedulers: list[Any],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        if len(schedulers) < 1:
            raise ValueError("SequentialLR expects at least one scheduler, but got no scheduler.")
        self._check_members(optimizer, schedulers)
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                "SequentialLR expects one milestone fewer than schedulers, but got "
                f"{len(milestones)} milestones for {len(schedulers)} schedulers"
            )
        self._schedulers = schedulers
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            write(group, "lr", group["initial_lr"])
        _undo_first_step(self)
        first = schedulers[bisect_right(milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def step(self) -> None:  # type: ignore[override]  # as torch's: no epoch
        """Step the scheduler whose turn it is; at its milestone it begins."""
        epoch = self.last_epoch + 1
        turn = bisect_right(self._milestones, epoch)
        scheduler = self._schedulers[turn]
        if turn > 0 and self._milestones[turn - 1] == epoch:
            scheduler._update_lr(0)
        else:
            scheduler.step()
        self.last_epoch = epoch
        self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(_Combined):
    """Steps all its schedulers, in their order, at every step: chainable forms multiply.

    Twin: torch.optim.lr_scheduler.ChainedScheduler.
    """

    def __init__(self, schedulers: Sequence[Any], optimizer: Any = None) -> None:
        if len(schedulers) < 1:
            raise ValueError(
                "ChainedScheduler expects at least one scheduler to be chained, but got no "
                "scheduler."
            )
        optimizer = optimizer or schedulers[0].optimizer
        self._check_members(optimizer, schedulers)
        self._schedulers = schedulers
        self.optimizer = optimizer
        self._last_lr = values(optimizer, "lr")

    def step(self) -> None:  # type: ignore[override]  # as torch's: no epoch
        """Step every scheduler."""
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = values(self.optimizer, "lr")


def _undo_first_step(scheduler: Any) -> None:
    """Take back the step that each constructor took, through all nested schedulers."""
    if hasattr(scheduler, "_schedulers"):
        for member in scheduler._schedulers:
            _undo_first_step(member)
    elif hasattr(scheduler, "last_epoch"):
        scheduler.last_epoch -= 1
