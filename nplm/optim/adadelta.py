"""Adadelta: steps in the unit of the steps before, not of the gradients.  Read adam.py before."""

from __future__ import annotations

from typing import Any, ClassVar

from nplm.autograd.op import update
from nplm.autograd.tensor import Tensor
from nplm.optim.optimizer import (
    Arrays,
    Group,
    Number,
    Optimizer,
    Params,
    chosen,
    one_number,
    refuse_negative,
)


@update
def adadelta_update(
    xp: Any, params: Arrays, grads: Arrays, square_avgs: Arrays, acc_deltas: Arrays, *,
    lr: float, rho: float, eps: float, weight_decay: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of Adadelta, in place (Zeiler, 2012, arXiv 1212.5701).

    v = rho v + (1 - rho) g^2
    d = sqrt(a + eps) / sqrt(v + eps) * g
    a = rho a + (1 - rho) d^2
    p = p - lr d
    """
    for p, g, v, a in zip(params, grads, square_avgs, acc_deltas):
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * p
        v *= rho
        v += (1 - rho) * g * g
        d = xp.sqrt(a + eps) / xp.sqrt(v + eps) * g
        a *= rho
        a += (1 - rho) * d * d
        p += -lr * d


class Adadelta(Optimizer):
    """Adaptive steps without a rate to choose (Zeiler, 2012).  Twin: torch.optim.Adadelta.

    lr              a factor on the step; a Tensor of one element becomes a Python float
    rho             the share of both mean squares that stays at each step, from 0 to 1
    eps (inside the roots), weight_decay (added to the gradient), maximize: as in torch
    foreach, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step (0-d, on the host), square_avg, acc_delta.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("square_avg", "acc_delta")
    absent: ClassVar[Group] = {"foreach": None} | dict.fromkeys(
        ("maximize", "differentiable", "capturable"), False
    )

    def __init__(
        self, params: Params, lr: Number = 1.0, rho: float = 0.9, eps: float = 1e-6,
        weight_decay: float = 0, foreach: bool | None = None, *, capturable: bool = False,
        maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        lr = one_number("lr", lr)
        refuse_negative({"learning rate": lr})
        if not 0.0 <= rho <= 1.0:
            raise ValueError(f"Invalid rho value: {rho}")
        refuse_negative({"epsilon value": eps, "weight_decay value": weight_decay})
        defaults: Group = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"maximize": maximize, "capturable": capturable, "foreach": foreach}
        super().__init__(params, {**defaults, "differentiable": differentiable})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        *lists, _ = self.lists(params, square_avg=0.0, acc_delta=0.0)
        names = ("lr", "rho", "eps", "weight_decay", "maximize")
        adadelta_update(*lists, **chosen(group, *names))
