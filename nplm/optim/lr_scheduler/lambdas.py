"""LambdaLR and MultiplicativeLR: the factor is a function of the caller's."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from nplm.optim.lr_scheduler.base import LRScheduler

LrLambda: TypeAlias = Callable[[int], float]


class _FunctionLR(LRScheduler):
    """What the two share: a function, or a list of them, one a parameter group, and its state."""

    def __init__(
        self, optimizer: Any, lr_lambda: LrLambda | Sequence[LrLambda], last_epoch: int = -1
    ) -> None:
        n = len(optimizer.param_groups)
        lambdas = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda] * n
        if len(lambdas) != n:
            raise ValueError(f"Expected {n} lr_lambdas, but got {len(lambdas)}")
        self._check_functions(lambdas)
        self.lr_lambdas: list[Any] = lambdas
        super().__init__(optimizer, last_epoch)

    def _check_functions(self, lambdas: list[Any]) -> None:
        """Nothing by default: torch's LambdaLR fails at the first call."""

    def state_dict(self) -> dict[str, Any]:
        """As the base; a callable object gives its attributes, a plain function None."""
        lambdas = [attributes_of(f) for f in self.lr_lambdas]
        return {**super().state_dict(), "lr_lambdas": lambdas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the base; callable objects get their attributes back, functions stay as they are."""
        for f, attributes in zip(self.lr_lambdas, state_dict["lr_lambdas"]):
            if attributes is not None:
                f.__dict__.update(attributes)
        super().load_state_dict({**state_dict, "lr_lambdas": self.lr_lambdas})


class LambdaLR(_FunctionLR):
    """lr = initial lr * lr_lambda(epoch).  Twin: torch.optim.lr_scheduler.LambdaLR.

    lr_lambda    one function of the step number, or a list of them, one a parameter group
    """

    def get_lr(self) -> list[Any]:
        """The closed form is the chain here: the current lr is not used."""
        self._lrs()
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base_lr * factor(self.last_epoch) for base_lr, factor in pairs]


class MultiplicativeLR(_FunctionLR):
    """lr *= lr_lambda(epoch) at every step.  Twin: torch.optim.lr_scheduler.MultiplicativeLR.

    lr_lambda    as for LambdaLR; raises TypeError for what cannot be called
    """

    def _check_functions(self, lambdas: list[Any]) -> None:
        for f in lambdas:
            if not callable(f):
                raise TypeError(f"lr_lambda should be a function, but got {type(f).__name__}")

    def get_lr(self) -> list[Any]:
        """The current lr times the factor; the constructor's step leaves it."""
        lrs = self._lrs()
        if self._is_initial:
            return lrs
        pairs = zip(lrs, self.lr_lambdas, strict=True)
        return [lr * factor(self.last_epoch) for lr, factor in pairs]


def attributes_of(function: Any) -> dict[str, Any] | None:
    """What a state_dict keeps of a callable: an object's attributes, nothing of a function."""
    if isinstance(function, types.FunctionType) or not hasattr(function, "__dict__"):
        return None
    return dict(function.__dict__)
