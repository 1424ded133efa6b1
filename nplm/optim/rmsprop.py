"""RMSprop: steps divided by the root of a running mean square.  Read adam.py before."""

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
    refuse_negative,
)


@update
def rmsprop_update(
    xp: Any, params: Arrays, grads: Arrays, square_avgs: Arrays, grad_avgs: Arrays,
    momentum_buffers: Arrays, *, lr: float, alpha: float, eps: float, weight_decay: float,
    momentum: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of RMSprop, in place (Hinton, 2012, lecture 6e; centered: Graves, 2013, 1308.0850).

    v = alpha v + (1 - alpha) g^2
    a = alpha a + (1 - alpha) g                            centered only: v - a^2 is the variance
    p = p - lr * g / (sqrt(v - a^2) + eps)                 or, with momentum, p = p - lr * b, where
    b = momentum b + g / (sqrt(v - a^2) + eps)

    `grad_avgs` is empty unless centered, `momentum_buffers` without momentum.
    """
    for i, (p, g, v) in enumerate(zip(params, grads, square_avgs)):
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * p
        v *= alpha
        v += (1 - alpha) * g * g
        variance = v
        if grad_avgs:
            lerp(xp, grad_avgs[i], g, 1 - alpha)
            variance = v - grad_avgs[i] * grad_avgs[i]
        scale = xp.sqrt(variance) + eps
        if momentum_buffers:
            b = momentum_buffers[i]
            b *= momentum
            b += g / scale
            p += -lr * b
        else:
            p += -lr * g / scale


class RMSprop(Optimizer):
    """Gradients divided by their running root mean square.  Twin: torch.optim.RMSprop.

    lr              learning rate; a Tensor of one element becomes a Python float
    alpha           the share of the mean square that stays at each step
    centered        divide by the standard deviation instead
    eps (outside the root), weight_decay (added to the gradient), momentum, maximize: as in torch
    foreach, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step (0-d, on the host), square_avg, with momentum momentum_buffer, centered grad_avg.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("square_avg", "momentum_buffer", "grad_avg")
    absent: ClassVar[Group] = {"momentum": 0, "foreach": None} | dict.fromkeys(
        ("centered", "maximize", "differentiable", "capturable"), False
    )

    def __init__(
        self, params: Params, lr: Number = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0, momentum: float = 0, centered: bool = False,
        capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        lr = one_number("lr", lr)
        limits = {"learning rate": lr, "epsilon value": eps, "momentum value": momentum}
        refuse_negative({**limits, "weight_decay value": weight_decay, "alpha value": alpha})
        defaults: Group = {"lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps}
        defaults |= {"centered": centered, "weight_decay": weight_decay, "foreach": foreach}
        defaults |= {"capturable": capturable, "maximize": maximize}
        super().__init__(params, {**defaults, "differentiable": differentiable})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        extra = ["grad_avg"] * bool(group["centered"])
        extra += ["momentum_buffer"] * bool(group["momentum"] > 0)
        p, g, v, *others, _ = self.lists(params, square_avg=0.0, **dict.fromkeys(extra, 0.0))
        entries = dict(zip(extra, others))
        options = chosen(group, "lr", "alpha", "eps", "weight_decay", "momentum", "maximize")
        averages, buffers = (entries.get(name, []) for name in ("grad_avg", "momentum_buffer"))
        rmsprop_update(p, g, v, averages, buffers, **options)
