"""Adagrad: steps divided by the root of the sum of all squares so far.  Read adam.py before."""

from __future__ import annotations

from typing import Any, ClassVar

from nplm.autograd.factory import tensor
from nplm.autograd.op import update
from nplm.autograd.tensor import Tensor
from nplm.optim.optimizer import (
    Arrays,
    Group,
    Number,
    Optimizer,
    Params,
    check_flags,
    chosen,
    one_number,
    refuse_negative,
)


@update
def adagrad_update(
    xp: Any, params: Arrays, grads: Arrays, sums: Arrays, steps: list[Any], *,
    lr: float, lr_decay: float, weight_decay: float, eps: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of Adagrad, in place (Duchi, Hazan and Singer, 2011, JMLR 12).

    s = s + g^2
    p = p - lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)
    """
    for p, g, s, t in zip(params, grads, sums, steps):
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * p
        s += g * g
        p += -(lr / (1 + (t - 1) * lr_decay)) * g / (xp.sqrt(s) + eps)


class Adagrad(Optimizer):
    """Adaptive subgradients (Duchi, Hazan and Singer, 2011).  Twin: torch.optim.Adagrad.

    lr              learning rate; a Tensor of one element becomes a Python float
    lr_decay        lr / (1 + (t - 1) lr_decay) at step t
    initial_accumulator_value  what the sums of squares begin with
    weight_decay (added to the gradient), eps, maximize: as in torch
    foreach, fused  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State, made by the constructor: step (0-d, on the host), sum.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("sum",)
    absent: ClassVar[Group] = {
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "fused": None,
    }

    def __init__(
        self, params: Params, lr: Number = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        lr = one_number("lr", lr)
        limits = {"learning rate": lr, "lr_decay value": lr_decay}
        limits |= {"weight_decay value": weight_decay}
        limits |= {"initial_accumulator_value value": initial_accumulator_value}
        refuse_negative({**limits, "epsilon value": eps})
        check_flags(foreach=foreach, fused=fused, differentiable=differentiable)
        defaults: Group = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "foreach": foreach}
        defaults |= {"weight_decay": weight_decay, "maximize": maximize, "fused": fused}
        defaults |= {"initial_accumulator_value": initial_accumulator_value}
        super().__init__(params, {**defaults, "differentiable": differentiable})
        for p in [p for group in self.param_groups for p in group["params"]]:
            start = p.xp.full(p.shape, initial_accumulator_value, p.array)
            self.state[p] = {"step": tensor(0.0), "sum": Tensor(start)}

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        start = self.defaults["initial_accumulator_value"]  # for those of a later group
        names = ("lr", "lr_decay", "weight_decay", "eps", "maximize")
        adagrad_update(*self.lists(params, sum=start), **chosen(group, *names))
