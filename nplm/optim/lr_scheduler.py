"""Learning-rate schedulers with torch's mechanics: the same lr, bit for bit, at every step.

They move any optimizer that has `param_groups` and `step`: nplm's and torch's own.
"""

from __future__ import annotations

import functools
import math
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from nplm.optim.optimizer import plain

LrLambda: TypeAlias = Callable[[int], float]

_EPOCH_IS_DEPRECATED = (
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
    then load the states of both (loading a scheduler does not write into the optimizer).
    """

    _get_lr_called_within_step: bool = False
    _is_initial: bool = False

    def __init__(self, optimizer: Any, last_epoch: int = -1) -> None:
        if not (hasattr(optimizer, "param_groups") and callable(getattr(optimizer, "step", None))):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", _copy(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming "
                    f"scheduler with last_epoch={last_epoch}: load the optimizer's state first, or "
                    "use last_epoch=-1 for a new run"
                )
        self.base_lrs: list[Any] = _values(optimizer, "initial_lr")
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

        `epoch` is deprecated, as in torch: it sets last_epoch and uses the closed form.
        """
        if self._step_count == 1:
            if not hasattr(self.optimizer.step, "_wrapped_by_lr_sched"):
                warnings.warn(_STEP_REPLACED, UserWarning, stacklevel=2)
            elif not getattr(self.optimizer, "_opt_called", False):
                warnings.warn(_WRONG_ORDER, UserWarning, stacklevel=2)
        self._step_count += 1
        if epoch is not None:
            warnings.warn(_EPOCH_IS_DEPRECATED, UserWarning, stacklevel=2)
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        """Move last_epoch and write the new lr into the groups; counts no step."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        closed_form = None if epoch is None else getattr(self, "_get_closed_form_lr", None)
        self._get_lr_called_within_step = True
        try:
            lrs = self.get_lr() if closed_form is None else closed_form()
        finally:
            self._get_lr_called_within_step = False
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            if hasattr(group["lr"], "fill_"):  # torch's tensor lr, which CUDA graphs read, stays
                group["lr"].fill_(lr)
            else:
                group["lr"] = plain(lr)
        self._last_lr: list[Any] = _values(self.optimizer, "lr")

    def get_lr(self) -> list[Any]:
        """The next learning rates, one a group, from the current ones and last_epoch."""
        raise NotImplementedError

    def get_last_lr(self) -> list[Any]:
        """The learning rates that this scheduler set last, one a group."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """Every attribute but the optimizer, under torch's names."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()` of nplm or torch.  The optimizer's lr is not written."""
        self.__dict__.update(state_dict)

    def _lrs(self) -> list[Any]:
        """The current learning rates.  Warns a caller who uses get_lr() to look at them."""
        if not self._get_lr_called_within_step:
            warnings.warn(
                "get_lr() computes the next learning rate: to get the last learning rate computed "
                "by the scheduler, please use `get_last_lr()`",
                UserWarning,
                stacklevel=3,
            )
        return _values(self.optimizer, "lr")


class LambdaLR(LRScheduler):
    """lr = initial lr * lr_lambda(epoch).  Twin: torch.optim.lr_scheduler.LambdaLR.

    lr_lambda    one function of the step number, or a list of them, one a parameter group
    """

    def __init__(
        self, optimizer: Any, lr_lambda: LrLambda | Sequence[LrLambda], last_epoch: int = -1
    ) -> None:
        n = len(optimizer.param_groups)
        lambdas = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda] * n
        if len(lambdas) != n:
            raise ValueError(f"Expected {n} lr_lambdas, but got {len(lambdas)}")
        self.lr_lambdas: list[Any] = lambdas
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The closed form is the chain here: the current lr is not used."""
        self._lrs()
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base_lr * factor(self.last_epoch) for base_lr, factor in pairs]

    def state_dict(self) -> dict[str, Any]:
        """As the base; a callable object gives its attributes, a plain function None."""
        lambdas = [
            None if isinstance(f, types.FunctionType) or not hasattr(f, "__dict__")
            else dict(f.__dict__)
            for f in self.lr_lambdas
        ]  # fmt: skip
        return {**super().state_dict(), "lr_lambdas": lambdas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the base; callable objects get their attributes back, functions stay as they are."""
        for f, attributes in zip(self.lr_lambdas, state_dict["lr_lambdas"]):
            if attributes is not None:
                f.__dict__.update(attributes)
        super().load_state_dict({**state_dict, "lr_lambdas": self.lr_lambdas})


class StepLR(LRScheduler):
    """lr *= gamma every step_size steps.  Twin: torch.optim.lr_scheduler.StepLR."""

    def __init__(
        self, optimizer: Any, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The current lr, times gamma at multiples of step_size."""
        lrs = self._lrs()
        if self.last_epoch == 0 or self.last_epoch % self.step_size != 0:
            return lrs
        return [lr * self.gamma for lr in lrs]

    def _get_closed_form_lr(self) -> list[Any]:
        factor = self.gamma ** (self.last_epoch // self.step_size)
        return [base_lr * factor for base_lr in self.base_lrs]


class LinearLR(LRScheduler):
    """From start_factor to end_factor times the initial lr in total_iters steps: a warm-up.

    Twin: torch.optim.lr_scheduler.LinearLR. Raises ValueError unless 0 < start_factor <= 1 and
    0 <= end_factor <= 1.
    """

    def __init__(
        self,
        optimizer: Any,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if start_factor > 1.0 or start_factor <= 0:
            raise ValueError(
                "Starting multiplicative factor expected to be greater than 0 and less or equal "
                f"to 1, got {start_factor}"
            )
        if end_factor > 1.0 or end_factor < 0:
            raise ValueError(
                f"Ending multiplicative factor expected to be between 0 and 1, got {end_factor}"
            )
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The current lr times the ratio of two neighbours on the line."""
        lrs = self._lrs()
        if self.last_epoch == 0:
            return [lr * self.start_factor for lr in lrs]
        if self._is_initial or self.last_epoch > self.total_iters:
            return lrs
        rise = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (self.last_epoch - 1) * rise
        factor = 1.0 + rise / before
        return [lr * factor for lr in lrs]

    def _get_closed_form_lr(self) -> list[Any]:
        rise = self.end_factor - self.start_factor
        done = min(self.total_iters, self.last_epoch)
        factor = self.start_factor + rise * done / self.total_iters
        return [base_lr * factor for base_lr in self.base_lrs]


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial lr to eta_min in T_max steps (and up again after them).

    Loshchilov and Hutter, 2016, arXiv 1608.03983, without restarts.
    Twin: torch.optim.lr_scheduler.CosineAnnealingLR.
    """

    def __init__(
        self, optimizer: Any, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The distance to eta_min times the ratio of two neighbours on the curve."""
        lrs = self._lrs()
        if self._is_initial:
            return lrs
        if self._step_count == 1 and self.last_epoch > 0:
            return self._get_closed_form_lr()
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:  # leaves eta_min: 0 / 0
            rise = 1 - math.cos(math.pi / self.T_max)
            pairs = zip(lrs, self.base_lrs, strict=True)
            return [lr + (base_lr - self.eta_min) * rise / 2 for lr, base_lr in pairs]
        ratio = self._one_plus_cos(self.last_epoch) / self._one_plus_cos(self.last_epoch - 1)
        return [ratio * (lr - self.eta_min) + self.eta_min for lr in lrs]

    def _get_closed_form_lr(self) -> list[Any]:
        height = self._one_plus_cos(self.last_epoch)
        return [self.eta_min + (lr - self.eta_min) * height / 2 for lr in self.base_lrs]

    def _one_plus_cos(self, epoch: int) -> float:
        return 1 + math.cos(math.pi * epoch / self.T_max)


def _copy(value: Any) -> Any:
    """Numbers as they are; a tensor (torch's optimizers take one as lr) as a copy."""
    return value.clone() if hasattr(value, "clone") else value


def _values(optimizer: Any, key: str) -> list[Any]:
    return [_copy(group[key]) for group in optimizer.param_groups]


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
