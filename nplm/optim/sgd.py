"""SGD with momentum: the update on arrays, and the class with torch's arguments around it."""

from __future__ import annotations

from typing import Any, ClassVar

from nplm.autograd.op import update
from nplm.autograd.tensor import Tensor
from nplm.optim.flat import entries_like
from nplm.optim.optimizer import Arrays, Group, Number, Optimizer, Params, check_flags, one_number


@update
def sgd_update(
    xp: Any, params: Arrays, grads: Arrays, momentum_buffers: Arrays, fresh: list[Any], *,
    lr: float, momentum: float, dampening: float, weight_decay: float, nesterov: bool,
    maximize: bool,
) -> None:  # fmt: skip
    """p -= lr * g, or with momentum p -= lr * b, where b = momentum * b + (1 - dampening) * g

    A buffer that is `fresh` (one bool each) becomes g, undamped. Without momentum both lists are
    empty. Rounding is that of torch's single-tensor loop, but for its fused multiply-adds.
    """
    for i, (p, g) in enumerate(zip(params, grads)):
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * p
        if momentum != 0:
            b = momentum_buffers[i]
            if fresh[i]:
                b[...] = g
            else:
                b *= momentum
                b += (1 - dampening) * g
            g = g + momentum * b if nesterov else b
        p += -lr * g


class SGD(Optimizer):
    """Stochastic gradient descent, with (Nesterov) momentum and L2 decay.  Twin: torch.optim.SGD.

    lr              learning rate; a Tensor of one element becomes a Python float
    momentum, dampening, nesterov, weight_decay (added to the gradient), maximize: as in torch
    foreach, fused  travel in state_dicts but choose nothing here: there is one update a backend
    differentiable  must be False: nplm has first-order gradients only

    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("momentum_buffer",)
    absent: ClassVar[Group] = {
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "fused": False,
    }

    def __init__(
        self, params: Params, lr: Number = 1e-3, momentum: float = 0, dampening: float = 0,
        weight_decay: Number = 0, nesterov: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        lr, weight_decay = one_number("lr", lr), one_number("weight_decay", weight_decay)
        if lr < 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if momentum < 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if weight_decay < 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        check_flags(foreach=foreach, fused=fused, differentiable=differentiable)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group; makes momentum buffers where there are none."""
        fresh: list[Any] = []
        buffers: list[Any] = []
        if group["momentum"] != 0:
            fresh = [self.state[p].get("momentum_buffer") is None for p in params]
            new = [p for p, is_new in zip(params, fresh) if is_new]
            for p, entry in zip(new, entries_like(new, 0.0)):
                self.state[p]["momentum_buffer"] = entry
            buffers = [self.state[p]["momentum_buffer"] for p in params]
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
        grads: list[Any] = [p.grad for p in params]
        sgd_update(params, grads, buffers, fresh, **{name: group[name] for name in names})
