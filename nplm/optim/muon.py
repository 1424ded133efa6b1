"""Muon: momentum whose singular values are made equal, for weight matrices.

torch does that part in bfloat16, a dtype that NumPy lacks: `bfloat16` rounds float32 to it.
"""

from __future__ import annotations

import math
from typing import Any

from nplm.autograd.op import update
from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import float32, float64
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


def bfloat16(xp: Any, x: Any) -> Any:
    """x in float32, rounded to the 8 bits of bfloat16, ties to even.  Twin: x.bfloat16().float()

    In float64, a number 2^45 times larger leaves room for just 8 bits of x beside it; what x has in
    float32 is an even multiple of the last of them there, so ties go to even. Below 2^-126, where
    bfloat16 has fewer bits, it keeps 8.
    """
    wide = xp.astype(xp.astype(x, float32), float64)
    large = 2.0**45 * wide
    return xp.astype((large + wide) - large, float32)


def orthogonalize(
    xp: Any, g: Any, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Any:
    """U S' V^T of a matrix U S V^T, with all of S' near 1 (0.7 to 1.2), by Newton and Schulz.

    X = g / |g|, then `steps` times: G = X X^T, X = a X + (b G + c G G) X. Everything is rounded to
    bfloat16 as torch's CPU does: after every product with its sum, which have float32 inside.
    """
    if steps >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    if len(coefficients) != 3:
        raise ValueError("Coefficients must be a tuple of exactly 3 values")
    a, b, c = coefficients
    tall = g.shape[0] > g.shape[1]
    x = bfloat16(xp, xp.swapaxes(g, 0, 1) if tall else g)
    norm = bfloat16(xp, xp.sqrt(xp.sum(x * x)))
    x = bfloat16(xp, x / xp.maximum(norm, bfloat16(xp, xp.full((), eps, x))))
    for _ in range(steps):
        gram = bfloat16(xp, xp.matmul(x, xp.swapaxes(x, 0, 1)))
        polynomial = bfloat16(xp, b * gram + c * xp.matmul(gram, gram))
        x = bfloat16(xp, a * x + xp.matmul(polynomial, x))
    return xp.swapaxes(x, 0, 1) if tall else x


@update
def muon_update(
    xp: Any, params: Arrays, grads: Arrays, momentum_buffers: Arrays, *, lr: float,
    weight_decay: float, momentum: float, nesterov: bool, ns_coefficients: Any, eps: float,
    ns_steps: int, adjust_lr_fn: str | None,
) -> None:  # fmt: skip
    """One step of Muon, in place (Jordan and others, 2024, kellerjordan.github.io/posts/muon).

    b = momentum b + (1 - momentum) g
    u = orthogonalize(b), or with nesterov orthogonalize((1 - momentum) g + momentum b)
    p = (1 - lr weight_decay) p - lr scale u               scale = sqrt(max(1, rows / columns)), or
                                                           0.2 sqrt(max(rows, columns)) for AdamW's
    """
    for p, g, b in zip(params, grads, momentum_buffers):
        lerp(xp, b, g, 1 - momentum)
        direction = b
        if nesterov:
            direction = xp.copy(g)
            lerp(xp, direction, b, momentum)
        u = xp.astype(orthogonalize(xp, direction, ns_coefficients, ns_steps, eps), p.dtype)
        rows, columns = p.shape
        scale = math.sqrt(max(1, rows / columns)) if columns else 1.0
        if adjust_lr_fn == "match_rms_adamw":
            scale = 0.2 * math.sqrt(max(rows, columns))
        p *= 1 - lr * weight_decay
        p += -(lr * scale) * u


class Muon(Optimizer):
    """Momentum, orthogonalized by Newton and Schulz, for matrices only.  Twin: torch.optim.Muon.

    lr              learning rate; a Tensor of one element becomes a Python float
    weight_decay    shrinks the parameters themselves
    momentum, nesterov  of a running mean, not a sum as in SGD
    ns_coefficients, ns_steps, eps  of the iteration; eps is the least norm that it divides by
    adjust_lr_fn    "original" (or None): times sqrt(max(1, rows / columns));
                    "match_rms_adamw": times 0.2 sqrt(max(rows, columns)), to reuse AdamW's lr

    State: momentum_buffer. Raises ValueError, in torch's words, for values out of range and for a
    parameter without exactly two axes (torch: for one of a later group, at its first step).
    """

    moments = ("momentum_buffer",)

    def __init__(
        self, params: Params, lr: Number = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315), eps: float = 1e-7,
        ns_steps: int = 5, adjust_lr_fn: str | None = None,
    ) -> None:  # fmt: skip
        lr, words = one_number("lr", lr), "{} should be >= 0 but is: {}"
        limits = {"Learning rate": lr, "momentum": momentum, "weight decay": weight_decay}
        refuse_negative(limits, words)
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"Adjust learning rate function {adjust_lr_fn} is not supported")
        defaults: Group = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        defaults |= {"nesterov": nesterov, "ns_coefficients": ns_coefficients, "eps": eps}
        super().__init__(params, {**defaults, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn})

    def add_param_group(self, param_group: Group) -> None:
        """As `Optimizer.add_param_group`; refuses what is not a matrix."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.ndim != 2:
                self.param_groups.pop()
                raise ValueError(
                    "Muon only supports 2D parameters "
                    f"whereas we found a parameter with size: {p.shape}"
                )

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                zeros = p.xp.zeros(p.shape, p.array)
                self.state[p]["momentum_buffer"] = Tensor(zeros)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        names = [name for name in self.defaults if name in group]
        grads: list[Any] = [p.grad for p in params]
        muon_update(params, grads, buffers, **chosen(group, *names))
