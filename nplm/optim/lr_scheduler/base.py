"""LRScheduler: the calls, the warnings and the state that every schedule shares.

A schedule is one formula, `get_lr`; factors.py has the short ones.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any, cast

from nplm.errors import ConfigError
from nplm.optim.optimizer import plain

GROUP_LRS = "_group_lrs"  # the entry of a state_dict that torch's schedulers do not have

EPOCH_IS_DEPRECATED = (
    "The epoch parameter in `scheduler.step()` is deprecated: call `scheduler.step()` without it. "
    "With an epoch the closed form of the schedule is used where there is one"
)
_WRONG_ORDER = (
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`: call `optimizer.step()` "
    "first, or the first learning rate of the schedule is never used"
)
_STEP_REPLACED = (
    "Seems like `optimizer.step()` has been overridden after learning rate scheduler "
    "initialization, so whether it is called before `lr_scheduler.step()` cannot be checked"
)


class LRScheduler:
    """Moves `group["lr"]` of every parameter group.  Twin: torch.optim.lr_scheduler.LRScheduler.

    optimizer     the optimizer to move; its groups get "initial_lr" if they have none
    last_epoch    -1 starts a schedule; e >= 0 resumes after e steps, and needs "initial_lr"

    A subclass writes `get_lr`, which gives the next lr from the current one (so that schedulers
    can be chained on one optimizer), and may write `_get_closed_form_lr` for `step(epoch)`.
    The constructor takes the first step itself. To resume: build the optimizer and the schedulers,
    then load the states of both. Loading a scheduler does not write into the optimizer, but the
    next step checks that the optimizer has the learning rates of when the state was taken.
    """

    _get_lr_called_within_step: bool = False
    _is_initial: bool = False
    _loaded: tuple[list[Any], int] | None = None  # lrs of a loaded state; moves until then

    def __init__(self, optimizer: Any, last_epoch: int = -1) -> None:
        check_optimizer(optimizer)
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", copy(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming "
                    f"scheduler with last_epoch={last_epoch}: load the optimizer's state first, or "
                    "use last_epoch=-1 for a new run"
                )
        self.base_lrs: list[Any] = values(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        _watch_step(optimizer)
        self._initial_step()

    def _initial_step(self) -> None:
        """The constructor's own step: last_epoch goes from -1 to 0."""
        self._step_count = 0
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    def step(self, epoch: int | None = None) -> None:
        """Set the next learning rates; call it after `optimizer.step()`.

        `epoch` is deprecated, as in torch: it sets last_epoch and uses the closed form. Raises
        ConfigError at the first step after a load if the optimizer has other learning rates.
        """
        self.require_loaded_lrs()
        if self._step_count == 1:
            if not hasattr(self.optimizer.step, "_wrapped_by_lr_sched"):
                warnings.warn(_STEP_REPLACED, UserWarning, stacklevel=2)
            elif not getattr(self.optimizer, "_opt_called", False):
                warnings.warn(_WRONG_ORDER, UserWarning, stacklevel=2)
        self._step_count += 1
        if epoch is not None:
            warnings.warn(EPOCH_IS_DEPRECATED, UserWarning, stacklevel=2)
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        """Move last_epoch and write the new lr into the groups; counts no step."""
        self.require_loaded_lrs()
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._write_lrs(None if epoch is None else getattr(self, "_get_closed_form_lr", None))

    def _write_lrs(self, closed_form: Any = None) -> None:
        """Set every group's lr to what `get_lr` or the closed form gives."""
        self._get_lr_called_within_step = True
        try:
            lrs = self.get_lr() if closed_form is None else closed_form()
        finally:
            self._get_lr_called_within_step = False
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            write(group, "lr", lr)
        self._last_lr: list[Any] = values(self.optimizer, "lr")
        self._count_move()

    def get_lr(self) -> list[Any]:
        """The next learning rates, one a group, from the current ones and last_epoch."""
        raise NotImplementedError

    def get_last_lr(self) -> list[Any]:
        """The learning rates that this scheduler set last, one a group."""
        return self._last_lr

    def _lrs(self) -> list[Any]:
        """The current learning rates.  Warns a caller who uses get_lr() to look at them."""
        if not self._get_lr_called_within_step:
            warnings.warn(
                "get_lr() computes the next learning rate: to get the last learning rate computed "
                "by the scheduler, please use `get_last_lr()`",
                UserWarning,
                stacklevel=3,
            )
        return values(self.optimizer, "lr")

    # ---- state in and out ----------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Every attribute but the optimizer, under torch's names, and the groups' lrs.

        torch's schedulers load it too: they keep the entry "_group_lrs", and do nothing with it.
        """
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "_loaded")}
        lrs = values(self.optimizer, "lr")
        if self._loaded is not None and self._is_unmoved():  # not checked yet: pass it on
            lrs = self._loaded[0]
        return {**state, GROUP_LRS: {"lrs": lrs, "at": self._place()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()` of nplm or torch.  The optimizer's lr is not written."""
        state = dict(state_dict)
        saved = state.pop(GROUP_LRS, None)
        self.__dict__.update(state)
        # torch hands the entry on as it was loaded: it is an old one if "at" is somewhere else.
        fresh = saved is not None and saved["at"] == self._place()
        self._loaded = (saved["lrs"], _moves(self.optimizer)) if fresh else None

    def _place(self) -> list[Any]:
        """What every step changes."""
        return [self.last_epoch, getattr(self, "_step_count", None)]

    def _is_unmoved(self) -> bool:
        """Whether a state was loaded and no scheduler has moved the optimizer since."""
        return self._loaded is not None and self._loaded[1] == _moves(self.optimizer)

    def require_loaded_lrs(self) -> None:
        """Raise ConfigError if the optimizer's lrs are not those of the state that was loaded."""
        if self._is_initial or self._loaded is None or not self._is_unmoved():
            return
        pairs = zip(self._loaded[0], self.optimizer.param_groups)  # groups may have been added
        for i, (saved, group) in enumerate(pairs):
            if float(saved) != float(group["lr"]):
                raise ConfigError(
                    f"{type(self).__name__}: the loaded state was saved at lr={float(saved)!r} of "
                    f"param_groups[{i}], but the optimizer has lr={float(group['lr'])!r}; build "
                    "the schedulers first, then load the states of the optimizer and of the "
                    "schedulers, or, where another lr is wanted, leave the entry "
                    f"{GROUP_LRS!r} out of the state that is loaded"
                )

    def _count_move(self) -> None:
        """From here on the lrs of a loaded state, this one's or another's, say nothing."""
        if not self._is_initial:
            self._loaded = None
            self.optimizer._lr_moves = _moves(self.optimizer) + 1


# ---- helpers of the schedulers -------------------------------------------------------------------
def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless there are `param_groups` and a `step` (torch asks for its class)."""
    if not (hasattr(optimizer, "param_groups") and callable(getattr(optimizer, "step", None))):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")


def copy(value: Any) -> Any:
    """Numbers as they are; a tensor (torch's optimizers take one as lr) as a copy."""
    return value.clone() if hasattr(value, "clone") else value


def values(optimizer: Any, key: str) -> list[Any]:
    """`group[key]` of every group, copied."""
    return [copy(group[key]) for group in optimizer.param_groups]


def write(group: dict[str, Any], key: str, value: Any) -> None:
    """Set `group[key]`; a tensor of torch, which CUDA graphs read, is filled in place."""
    if hasattr(group[key], "fill_"):
        group[key].fill_(value.squeeze() if hasattr(value, "squeeze") else value)
    else:
        group[key] = plain(value)


def one_per_group(name: str, optimizer: Any, value: Any) -> list[Any]:
    """A list of one value a group, from such a list or from one value for all."""
    n = len(optimizer.param_groups)
    given = value if isinstance(value, list | tuple) else [value] * n
    if len(given) != n:
        raise ValueError(
            f"{name} must have the same length as optimizer.param_groups. "
            f"{name} has {len(given)} values, param_groups has {n}."
        )
    return [copy(v) for v in given]


def _moves(optimizer: Any) -> int:
    """How often nplm's schedulers have moved this optimizer, constructors not counted."""
    return getattr(optimizer, "_lr_moves", 0)


def _watch_step(optimizer: Any) -> None:
    """Wrap `optimizer.step`, once, so that `_opt_called` tells whether it ran.

    The names are torch's: its schedulers and ours can share an optimizer. The wrapper holds the
    optimizer weakly, else the two would keep each other alive.
    """
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return
    # A bound method would hold the optimizer; a replaced `step` is a plain function already.
    is_method = hasattr(optimizer.step, "__func__")
    function = optimizer.step.__func__ if is_method else optimizer.step
    reference = weakref.ref(optimizer)

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        owner = cast(Any, reference())
        owner._opt_called = True
        return function(owner, *args, **kwargs) if is_method else function(*args, **kwargs)

    watched._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = watched
