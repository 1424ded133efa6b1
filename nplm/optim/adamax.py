"""Adamax: Adam with the largest gradient in place of the mean square.  Read adam.py before."""

from __future__ import annotations

from typing import Any, ClassVar

from nplm.autograd.op import update
from nplm.autograd.tensor import Tensor
from nplm.optim.adam import lerp
from nplm.optim.optimizer import (
    Arrays,
    Group,
    Number,
    Optimizer,
    Params,
    chosen,
    one_number,
    plain,
    refuse_betas,
    refuse_negative,
)


@update
def adamax_update(
    xp: Any, params: Arrays, grads: Arrays, exp_avgs: Arrays, exp_infs: Arrays, steps: list[Any],
    *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of Adamax, in place (Kingma and Ba, 2014, arXiv 1412.6980, section 7.1).

    m = beta1 m + (1 - beta1) g
    u = max(beta2 u, |g| + eps)                            the largest gradient, slowly forgotten
    p = p - lr / (1 - beta1^t) * m / u
    """
    for p, g, m, u, t in zip(params, grads, exp_avgs, exp_infs, steps):
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * p
        lerp(xp, m, g, 1 - beta1)
        u[...] = xp.maximum(beta2 * u, xp.abs(g) + eps)
        p += -(lr / (1 - beta1**t)) * m / u


class Adamax(Optimizer):
    """Adam under the infinity norm (Kingma and Ba, 2014).  Twin: torch.optim.Adamax.

    lr              learning rate; a Tensor of one element becomes a Python float
    eps             added to every |g|: what keeps u from 0
    betas, weight_decay (added to the gradient), maximize: as in Adam
    foreach, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step (0-d, on the host), exp_avg, exp_inf.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("exp_avg", "exp_inf")
    absent: ClassVar[Group] = {"foreach": None} | dict.fromkeys(
        ("maximize", "differentiable", "capturable"), False
    )

    def __init__(
        self, params: Params, lr: Number = 2e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, capturable: bool = False,
    ) -> None:  # fmt: skip
        lr, betas = one_number("lr", lr), plain(betas)
        refuse_negative({"learning rate": lr, "epsilon value": eps})
        refuse_betas(betas)
        refuse_negative({"weight_decay value": weight_decay})
        defaults: Group = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"foreach": foreach, "maximize": maximize, "capturable": capturable}
        super().__init__(params, {**defaults, "differentiable": differentiable})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        beta1, beta2 = group["betas"]
        lists = self.lists(params, exp_avg=0.0, exp_inf=0.0)
        options = chosen(group, "lr", "eps", "weight_decay", "maximize")
        adamax_update(*lists, beta1=beta1, beta2=beta2, **options)
