"""NAdam: Adam with Nesterov's look ahead.  Read adam.py before."""

from __future__ import annotations

from typing import Any, ClassVar

from nplm.autograd.factory import tensor
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
def nadam_update(
    xp: Any, params: Arrays, grads: Arrays, exp_avgs: Arrays, exp_avg_sqs: Arrays,
    steps: list[Any], mu_products: list[Any], mus: list[Any], next_mus: list[Any], *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, maximize: bool,
) -> None:  # fmt: skip
    """One step of NAdam, in place, with Adam's m and v; M = mu_1 mu_2 ... mu_t (Dozat, 2016).

    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)         a momentum that grows to beta1
    s = sqrt(v / (1 - beta2^t)) + eps
    p = p - lr (1 - mu_t) / (1 - M) * g / s - lr mu_t+1 / (1 - M mu_t+1) * m / s

    `mu_products` holds M, `mus` and `next_mus` hold mu_t and mu_t+1, one number each a parameter.
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
        scale = xp.sqrt(v / (1 - beta2 ** steps[i])) + eps
        p += -lr * (1.0 - mus[i]) / (1.0 - mu_products[i]) * g / scale
        p += -lr * next_mus[i] / (1.0 - mu_products[i] * next_mus[i]) * m / scale


class NAdam(Optimizer):
    """Adam with Nesterov momentum (Dozat, 2016, ICLR workshop).  Twin: torch.optim.NAdam.

    lr              learning rate; a Tensor of one element becomes a Python float
    momentum_decay  how fast the momentum grows from beta1 / 2 to beta1; 0 leaves it at beta1 / 2
    betas, eps, weight_decay, decoupled_weight_decay, maximize: as in Adam
    foreach, capturable  travel in state_dicts but choose nothing: one update a backend
    differentiable  must be False: nplm has first-order gradients only

    State: step and mu_product (0-d, on the host), exp_avg, exp_avg_sq. A load keeps mu_product as
    it is; torch's casts it to the parameter's dtype, and a float64 run of torch goes on otherwise.
    Raises ValueError for values out of range, in torch's words.
    """

    moments = ("exp_avg", "exp_avg_sq")
    host = ("step", "mu_product")
    absent: ClassVar[Group] = {"foreach": None} | dict.fromkeys(
        ("maximize", "capturable", "differentiable", "decoupled_weight_decay"), False
    )

    def __init__(
        self, params: Params, lr: Number = 2e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        lr, betas = one_number("lr", lr), plain(betas)
        refuse_negative({"learning rate": lr, "epsilon value": eps})
        refuse_betas(betas)
        refuse_negative(
            {"weight_decay value": weight_decay, "momentum_decay value": momentum_decay}
        )
        defaults: Group = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"momentum_decay": momentum_decay, "maximize": maximize, "foreach": foreach}
        defaults |= {"capturable": capturable, "differentiable": differentiable}
        super().__init__(params, {**defaults, "decoupled_weight_decay": decoupled_weight_decay})

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        beta1, beta2 = group["betas"]
        lists = self.lists(params, exp_avg=0.0, exp_avg_sq=0.0)
        mus, next_mus = (
            [beta1 * (1.0 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in steps]
            for steps in (lists[-1], [t + 1 for t in lists[-1]])
        )
        products = [self.state[p].setdefault("mu_product", tensor(1.0)) for p in params]
        for product, mu in zip(products, mus):
            product.array *= mu
        names = ("lr", "eps", "weight_decay", "decoupled_weight_decay", "maximize")
        nadam_update(
            *lists, [product.item() for product in products], mus, next_mus,
            beta1=beta1, beta2=beta2, **chosen(group, *names),
        )  # fmt: skip
