"""Gradient clipping (twin: torch.nn.utils.clip_grad), and where a module lies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from nplm.autograd.grad_mode import no_grad
from nplm.autograd.tensor import Tensor
from nplm.ops.api import stack
from nplm.ops.creation import zeros


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not tensors and isinstance(parameters, Iterator):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3
        )
    return [p.grad for p in tensors if p.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients so that their common norm is at most `max_norm`; return the old norm.

    The norm is that of the tensors' norms. Gradients are always multiplied, by at most 1, and the
    factor is max_norm / (norm + 1e-6). `foreach` chooses nothing here.
    """
    gradients = _gradients(parameters)
    norm_type, max_norm = float(norm_type), float(max_norm)
    if not gradients:
        return zeros(())
    with no_grad(), gradients[0].xp.quiet():
        norms = stack([_norm(g, norm_type) for g in gradients])
        total = _norm(norms, norm_type)
        if error_if_nonfinite and not math.isfinite(total.item()):
            raise RuntimeError(
                f"The total norm of order {norm_type} for gradients from `parameters` is "
                "non-finite, so it cannot be clipped. To disable this error and scale the "
                "gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
            )
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for g in gradients:
            g.mul_(factor)
    return total


def _norm(x: Tensor, order: float) -> Tensor:
    result: Tensor
    if order == 2:
        result = x.norm()
    elif math.isinf(order):
        result = x.abs().max() if order > 0 else x.abs().min()
    elif order == 1:
        result = x.abs().sum()
    elif order == 0:
        result = (x != 0).to(x.dtype).sum()
    else:
        result = (x.abs() ** order).sum() ** (1.0 / order)
    return result


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Hold every element of every gradient in [-clip_value, clip_value]."""
    for g in _gradients(parameters):
        g.clamp_(-float(clip_value), float(clip_value))


def device_of(module: Any) -> str:
    """Where the first parameter of a module lies; "cpu" for a module without any."""
    return next((p.device for p in module.parameters()), "cpu")
