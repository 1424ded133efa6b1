"""ASGD: gradient descent that also keeps the mean of its parameters.  Read adam.py before."""

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
    chosen,
    one_number,
    refuse_negative,
)


@update
def asgd_update(
    xp: Any, params: Arrays, grads: Arrays, axs: Arrays, etas: list[Any], mus: list[Any], *,
    lambd: float, weight_decay: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of averaged SGD, in place (Polyak and Juditsky, 1992), each with its eta and mu.

    p = (1 - lambd eta) p - eta g
    a = a + mu (p - a)                                     the mean of the parameters; mu = 1: a = p
    """
    for p, g, a, eta, mu in zip(params, grads, axs, etas, mus):
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * p
        p *= 1 - lambd * eta
        p += -eta * g
        if mu == 1:
            a[...] = p
        else:
            a += (p - a) * mu


class ASGD(Optimizer):
    """Averaged SGD (Polyak and Juditsky, 1992).  Twin: torch.optim.ASGD.

    lr              the first rate; a Tensor of one element becomes a Python float
    lambd, alpha    the rate after step t is lr / (1 + lambd lr t)^alpha; lambd also decays p
    t0              the step where averaging begins: mu is 1 / max(1, t - t0) after step t
    weight_decay (added to the gradient), maximize: as in torch
    foreach, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step, eta and mu (0-d, on the host; an update uses those of the one before), ax (the
    mean). Raises ValueError for values out of range, in torch's words.
    """

    moments = ("ax",)
    host = ("step", "eta", "mu")
    absent: ClassVar[Group] = {"foreach": None} | dict.fromkeys(
        ("maximize", "differentiable", "capturable"), False
    )

    def __init__(
        self, params: Params, lr: Number = 1e-2, lambd: float = 1e-4, alpha: float = 0.75,
        t0: float = 1e6, weight_decay: float = 0, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False, capturable: bool = False,
    ) -> None:  # fmt: skip
        lr = one_number("lr", lr)
        refuse_negative({"learning rate": lr, "weight_decay value": weight_decay})
        defaults: Group = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "foreach": foreach}
        defaults |= {"weight_decay": weight_decay, "maximize": maximize, "capturable": capturable}
        super().__init__(params, {**defaults, "differentiable": differentiable})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group; sets the rate and the weight of the next."""
        lr, lambd = group["lr"], group["lambd"]
        p, g, a, steps = self.lists(params, ax=0.0)
        states = [self.state[p] for p in params]
        etas = [state.setdefault("eta", tensor(float(lr))) for state in states]
        mus = [state.setdefault("mu", tensor(1.0)) for state in states]
        rates, weights = ([number.item() for number in numbers] for numbers in (etas, mus))
        options = chosen(group, "lambd", "weight_decay", "maximize")
        asgd_update(p, g, a, rates, weights, **options)
        for t, eta, mu in zip(steps, etas, mus):
            eta.array[...] = tensor(lr / ((1 + lambd * lr * t) ** group["alpha"])).array
            mu.array[...] = tensor(1 / max(1, t - group["t0"])).array
