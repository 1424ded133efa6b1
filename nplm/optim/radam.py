"""RAdam: Adam that waits until its second moment can be trusted.  Read adam.py before."""

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
def radam_update(
    xp: Any, params: Arrays, grads: Arrays, exp_avgs: Arrays, exp_avg_sqs: Arrays,
    steps: list[Any], *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, maximize: bool,
) -> None:  # fmt: skip
    """One step of RAdam, in place, with Adam's m and v (Liu and others, 2019, arXiv 1908.03265).

    r_inf = 2 / (1 - beta2) - 1                            how many gradients v averages in the end
    r = r_inf - 2 t beta2^t / (1 - beta2^t)                how many it averages at step t
    p = p - lr m / (1 - beta1^t)                           while r <= 5, and from then on
    p = p - lr m / (1 - beta1^t) * sqrt(1 - beta2^t) / (sqrt(v) + eps) * rectification(r)
    """
    for p, g, m, v, t in zip(params, grads, exp_avgs, exp_avg_sqs, steps):
        if maximize:
            g = -g
        if weight_decay != 0 and decoupled_weight_decay:
            p *= 1 - lr * weight_decay
        elif weight_decay != 0:
            g = g + weight_decay * p

        lerp(xp, m, g, 1 - beta1)
        v *= beta2
        v += (1 - beta2) * g * g

        bias2 = 1 - beta2**t
        r_inf = 2 / (1 - beta2) - 1
        r = r_inf - 2 * t * (beta2**t) / bias2
        move = m / (1 - beta1**t) * lr
        if r > 5.0:
            square = (r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r)
            scale = 1 / (xp.sqrt(v) + eps) * bias2**0.5  # torch divides a number in two steps
            move = move * scale * square**0.5
        p -= move


class RAdam(Optimizer):
    """Rectified Adam (Liu and others, 2019, arXiv 1908.03265).  Twin: torch.optim.RAdam.

    lr              learning rate; a Tensor of one element becomes a Python float
    betas, eps, weight_decay, decoupled_weight_decay, maximize: as in Adam
    foreach, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step (0-d, on the host), exp_avg, exp_avg_sq.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("exp_avg", "exp_avg_sq")
    absent: ClassVar[Group] = {"foreach": None} | dict.fromkeys(
        ("maximize", "capturable", "differentiable", "decoupled_weight_decay"), False
    )

    def __init__(
        self, params: Params, lr: Number = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, decoupled_weight_decay: bool = False, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        lr, betas = one_number("lr", lr), plain(betas)
        refuse_negative({"learning rate": lr, "epsilon value": eps})
        refuse_betas(betas)
        refuse_negative({"weight_decay value": weight_decay})
        defaults: Group = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        defaults |= {"decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, {**defaults, "differentiable": differentiable})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        beta1, beta2 = group["betas"]
        names = ("lr", "eps", "weight_decay", "decoupled_weight_decay", "maximize")
        lists = self.lists(params, exp_avg=0.0, exp_avg_sq=0.0)
        radam_update(*lists, beta1=beta1, beta2=beta2, **chosen(group, *names))
