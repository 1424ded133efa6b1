"""Adafactor: a second moment kept as one row and one column a matrix.  Read adam.py before."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

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
def adafactor_update(
    xp: Any, params: Arrays, grads: Arrays, row_vars: Arrays, col_vars: Arrays, variances: Arrays,
    steps: list[Any], eps1s: list[Any], *, lr: float, beta2_decay: float, eps2: float, d: float,
    weight_decay: float, maximize: bool,
) -> None:  # fmt: skip
    """One step of Adafactor, in place (Shazeer and Stern, 2018, arXiv 1804.04235).

    rms(x) = sqrt(mean of x^2), w = t^beta2_decay
    r = (1 - w) r + w mean of g^2 along each row           likewise c along each column, and
    v = r c / mean(r)                                      of a vector v itself: v += w (g^2 - v)
    u = g / sqrt(max(v, eps1^2))
    p = p - max(eps2, rms(p)) min(lr, 1 / sqrt(t)) * u / max(1, rms(u) / d)

    Of a parameter, `row_vars` and `col_vars` hold None if `variances` does not, and the reverse.
    """

    def rms(x: Any) -> Any:
        return xp.sqrt(xp.sum(x * x)) / max(math.prod(x.shape), 1) ** 0.5

    for p, g, r, c, v, t, eps1 in zip(params, grads, row_vars, col_vars, variances, steps, eps1s):
        if maximize:
            g = -g
        weight = t**beta2_decay
        rate = xp.maximum(rms(p), eps2) * min(lr, 1 / t**0.5)
        if weight_decay != 0:
            p *= 1 - lr * weight_decay
        if v is None:
            lerp(xp, r, xp.mean(g * g, -1, True), weight)
            lerp(xp, c, xp.mean(g * g, -2, True), weight)
            estimate = r * c / xp.maximum(xp.mean(r, -2, True), eps1)
        else:
            lerp(xp, v, g * g, weight)
            estimate = v
        u = 1 / xp.sqrt(xp.maximum(estimate, eps1 * eps1)) * g
        p -= rate / xp.maximum(rms(u) / d, 1.0) * u


class Adafactor(Optimizer):
    """Sublinear memory (Shazeer and Stern, 2018, arXiv 1804.04235).  Twin: torch.optim.Adafactor.

    lr              the largest relative step; a Tensor of one element becomes a Python float
    beta2_decay     exponent of the share that a new square gets, t^beta2_decay; 0 or less
    eps             (eps1, eps2): the least root of a square (None: the dtype's epsilon), the least
                    scale of a parameter
    d               the largest root mean square of an update, 1 or more
    weight_decay    shrinks the parameters themselves
    maximize        as in torch
    foreach         travels in state_dicts but chooses nothing: one update a backend

    State: step (0-d, on the host), and row_var and col_var, or variance where there is one axis or
    none. Raises ValueError for values out of range, in torch's words.
    """

    moments = ("row_var", "col_var", "variance")
    absent: ClassVar[Group] = {"foreach": None}

    def __init__(
        self, params: Params, lr: Number = 1e-2, beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, weight_decay: float = 0.0,
        *, foreach: bool | None = None, maximize: bool = False,
    ) -> None:  # fmt: skip
        lr, words = one_number("lr", lr), "{} should be >= 0 but is: {}"
        refuse_negative({"Learning rate": lr}, words)
        if not beta2_decay <= 0.0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {beta2_decay}")
        if eps[0] is not None:
            refuse_negative({"epsilon1": eps[0]}, words)
        refuse_negative({"epsilon2": eps[1]}, words)
        if not d >= 1.0:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {d}")
        refuse_negative({"weight_decay": weight_decay}, words)
        defaults: Group = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d}
        defaults |= {"weight_decay": weight_decay, "foreach": foreach, "maximize": maximize}
        super().__init__(params, defaults)

    def entry_shape(self, name: str, p: Tensor) -> tuple[int, ...]:
        """A row's variance has one column, a column's has one row."""
        if p.ndim > 1 and name == "row_var":
            return (*p.shape[:-1], 1)
        return (*p.shape[:-2], 1, p.shape[-1]) if p.ndim > 1 and name == "col_var" else p.shape

    def update_group(self, group: Group, params: list[Tensor]) -> None:
        """One step of every parameter of a group."""
        eps1, eps2 = group["eps"]
        p, g, steps = self.lists(params)
        states = [self.state[p] for p in params]
        for q, state in zip(params, states):
            for name in ("row_var", "col_var") if q.ndim > 1 else ("variance",):
                if name not in state:
                    state[name] = Tensor(q.xp.zeros(self.entry_shape(name, q), q.array))
        entries: list[Any] = [[state.get(name) for state in states] for name in self.moments]
        eps1s: list[Any] = [float(np.finfo(q.dtype).eps) if eps1 is None else eps1 for q in params]
        names = ("lr", "beta2_decay", "d", "weight_decay", "maximize")
        adafactor_update(p, g, *entries, steps, eps1s, eps2=eps2, **chosen(group, *names))
