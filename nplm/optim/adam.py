"""Adam and AdamW: the update on arrays, and the classes with torch's arguments around it.

The arithmetic stands alone; groups and state are explained in optimizer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

from nplm.autograd.op import update
from nplm.autograd.tensor import Tensor
from nplm.optim.optimizer import Arrays, Group, Number, Optimizer, Params, check_flags, one_number


def lerp(xp: Any, m: Any, g: Any, weight: float) -> None:
    """m moves towards g by the fraction `weight`, in place.  Twin: torch.Tensor.lerp_"""
    if weight < 0.5:
        m += weight * (g - m)
    else:  # from the other end, so that weight 1 gives g exactly
        rounded = xp.full((), weight, m)  # to m's dtype before the subtraction, as torch does
        m[...] = g - (g - m) * (1 - rounded)


@update
def adam_update(
    xp: Any, params: Arrays, grads: Arrays, exp_avgs: Arrays, exp_avg_sqs: Arrays,
    max_exp_avg_sqs: Arrays, steps: list[Any], *, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
) -> None:  # fmt: skip
    """One step of Adam, in place; t = steps[i] counts the parameter's updates, this one included.

    m = beta1 m + (1 - beta1) g                 mean of the gradients, too small while t is small
    v = beta2 v + (1 - beta2) g^2               mean of their squares, too small likewise
    p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Weight decay is added to g (Adam) or taken from p at once (AdamW: "decoupled"). AMSGrad divides
    by the largest v so far. The order of operations, and with it the rounding, is that of torch's
    single-tensor loop, but for its fused multiply-adds and MKL's square root.
    """
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs)):
        if maximize:
            g = -g
        if weight_decay != 0 and decoupled_weight_decay:
            p *= 1 - lr * weight_decay
        elif weight_decay != 0:
            g = g + weight_decay * p

        lerp(xp, m, g, 1 - beta1)
        v *= beta2
        v += (1 - beta2) * g * g
        if amsgrad:
            v_max = max_exp_avg_sqs[i]
            v_max[...] = xp.maximum(v_max, v)
            v = v_max

        bias1 = 1 - beta1 ** steps[i]  # Python floats: no array grows to float64
        bias2 = 1 - beta2 ** steps[i]
        p += -(lr / bias1) * m / (xp.sqrt(v) / bias2**0.5 + eps)


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2014, arXiv 1412.6980).  Twin: torch.optim.Adam.

    lr              learning rate; a Tensor of one element becomes a Python float
    betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay: as in torch
    foreach, fused, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step (0-d, on the host), exp_avg, exp_avg_sq, with amsgrad max_exp_avg_sq.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    absent: ClassVar[Group] = {"foreach": None, "fused": None} | dict.fromkeys(
        ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay"), False
    )

    def __init__(
        self, params: Params, lr: Number = 1e-3, betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, amsgrad: bool = False, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False, fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:  # fmt: skip
        by_lists = foreach and not capturable
        lr = one_number("lr", lr, by_lists)
        numbers = tuple(one_number(f"betas[{i}]", beta, by_lists) for i, beta in enumerate(betas))
        limits = {"learning rate": lr, "epsilon value": eps, "weight_decay value": weight_decay}
        for name, value in limits.items():
            if not value >= 0.0:  # NaN too
                raise ValueError(f"Invalid {name}: {value}")
        for i in (0, 1):
            if not 0.0 <= numbers[i] < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {numbers[i]}")
        if not any(all(isinstance(b, kind) for b in betas) for kind in (float, Tensor)):
            raise ValueError("betas must be either both floats or both Tensors")
        check_flags(foreach=foreach, fused=fused, differentiable=differentiable)
        defaults: Group = {"lr": lr, "betas": numbers, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"amsgrad": amsgrad, "maximize": maximize, "foreach": foreach}
        defaults |= {"capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, {**defaults, "decoupled_weight_decay": decoupled_weight_decay})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group; makes the moments of those that have none."""
        names = self.moments if group["amsgrad"] else self.moments[:2]
        *lists, steps = self.lists(params, **dict.fromkeys(names, 0.0))
        if not group["amsgrad"]:
            lists.append([])  # no v_max
        options = {"beta1": group["betas"][0], "beta2": group["betas"][1]}
        for name in ("lr", "eps", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize"):
            options[name] = group[name]
        adam_update(*lists, steps, **options)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv 1711.05101).

    The arguments of `Adam`, where `weight_decay` shrinks the parameters themselves.
    Twin: torch.optim.AdamW.
    """

    def __init__(
        self, params: Params, lr: Number = 1e-3, betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2, amsgrad: bool = False, *,
        maximize: bool = False, foreach: bool | None = None, capturable: bool = False,
        differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        flags: Group = {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        flags |= {"differentiable": differentiable, "fused": fused, "decoupled_weight_decay": True}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **flags)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Optimizer.load_state_dict`; the decay stays decoupled, whoever wrote the state."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
