"""Rprop: only the signs of gradients count; for whole batches.  Read adam.py before."""

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
    one_number,
    plain,
    refuse_negative,
)


@update
def rprop_update(
    xp: Any, params: Arrays, grads: Arrays, prevs: Arrays, step_sizes: Arrays, *,
    eta_minus: float, eta_plus: float, smallest: float, largest: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of Rprop, in place (Riedmiller and Braun, 1993), element by element.

    Sign as before: the step size grows by eta_plus. Sign turned: it shrinks by eta_minus, and the
    gradient counts as 0, now and at the next step. Then p = p - sign(g) * step size.
    """
    for p, g, previous, size in zip(params, grads, prevs, step_sizes):
        if maximize:
            g = -g
        product = g * previous
        factor = xp.where(product > 0, eta_plus, xp.ones(g.shape, g))
        factor = xp.where(product < 0, eta_minus, factor)
        size[...] = xp.minimum(xp.maximum(size * factor, smallest), largest)
        g = xp.where(product < 0, 0.0, g)
        zero = xp.zeros(g.shape, g)
        p -= xp.where(g > 0, size, xp.where(g < 0, -size, zero))  # a NaN moves nothing, as in torch
        previous[...] = g


class Rprop(Optimizer):
    """Resilient backpropagation (Riedmiller and Braun, 1993).  Twin: torch.optim.Rprop.

    lr              the first step size; a Tensor of one element becomes a Python float
    etas            (shrink, grow): 0 < shrink < 1 < grow
    step_sizes      the smallest and the largest step size
    maximize        as in torch
    foreach, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step (0-d, on the host), prev (the gradient before), step_size.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("prev", "step_size")
    absent: ClassVar[Group] = {"foreach": None} | dict.fromkeys(
        ("maximize", "differentiable", "capturable"), False
    )

    def __init__(
        self, params: Params, lr: Number = 1e-2, etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50), *, capturable: bool = False,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        lr, etas = one_number("lr", lr), plain(etas)
        refuse_negative({"learning rate": lr})
        if not 0.0 < etas[0] < 1.0 < etas[1]:
            raise ValueError(f"Invalid eta values: {etas[0]}, {etas[1]}")
        defaults: Group = {"lr": lr, "etas": etas, "step_sizes": step_sizes, "foreach": foreach}
        defaults |= {"maximize": maximize, "capturable": capturable}
        super().__init__(params, {**defaults, "differentiable": differentiable})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        *lists, _ = self.lists(params, prev=0.0, step_size=group["lr"])
        (eta_minus, eta_plus), (smallest, largest) = group["etas"], group["step_sizes"]
        rprop_update(
            *lists, eta_minus=eta_minus, eta_plus=eta_plus, smallest=smallest, largest=largest,
            maximize=group["maximize"],
        )  # fmt: skip
