"""Gradient norms and clipping (twin: torch.nn.utils.clip_grad), and where a module lies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from types import GeneratorType
from typing import Any

from nplm.autograd.grad_mode import no_grad
from nplm.autograd.graph import Array
from nplm.autograd.op import update
from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import FLOATING
from nplm.ops.creation import zeros
from nplm.ops.elementwise import pow

Tensors = Tensor | Iterable[Tensor]


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of the tensors' norms: that of all their elements in one vector.

    0-d, on the device of the first tensor, to which the others come; 0 for no tensor. `foreach`
    chooses nothing here.
    Raises RuntimeError in torch's words for a norm that is not finite, if `error_if_nonfinite`.
    """
    given, norm_type = _listed(tensors), float(norm_type)
    if not given:
        return zeros(())
    kinds = _kinds(given)
    dtypes = dict.fromkeys(some[0].dtype for some in kinds)
    for dtype in dtypes:
        if dtype not in FLOATING:
            raise RuntimeError(f"get_total_norm: expected floating tensors, got {dtype}")
    if (norm_type < 0 or math.isinf(norm_type)) and any(0 in x.shape for x in given):
        raise RuntimeError(f"get_total_norm: no element, so no norm of order {norm_type}")
    device = given[0].device
    total = zeros((), dtype=max(dtypes, key=lambda dtype: dtype.itemsize), device=device)
    with no_grad():
        here = given if len(kinds) == 1 else [x.to(device) for x in given]
        total_norm_([total], here, order=norm_type)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is "
            "non-finite, so it cannot be clipped. To disable this error and scale the "
            "gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return total


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scale all gradients by max_norm / (total_norm + 1e-6), but by no more than 1.

    They are always multiplied. `total_norm` is what `get_total_norm` gave, a Tensor.
    """
    gradients, max_norm = _gradients(_listed(parameters)), float(max_norm)
    if not gradients:
        return
    if not isinstance(total_norm, Tensor):
        raise TypeError(
            "clip_grads_with_norm_: expected total_norm as a Tensor, as get_total_norm gives it, "
            f"got {type(total_norm).__name__}"
        )
    with no_grad(), total_norm.xp.quiet():
        # By the reciprocal: torch divides a number by a tensor so, and the bits are the same then.
        factor = (1.0 / (total_norm + 1e-6) * max_norm).clamp(max=1.0)
        on: dict[str, list[Tensor]] = {}
        for alike in _kinds(gradients):
            on.setdefault(alike[0].device, []).extend(alike)
        for device, here in on.items():
            scale_(here, [factor.to(device)])


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients so that their common norm is at most `max_norm`; return the old norm.

    `get_total_norm` of the gradients, and `clip_grads_with_norm_` with what it gave.
    """
    given = _listed(parameters)
    if not given and isinstance(parameters, GeneratorType):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
        )
    total = get_total_norm(_gradients(given), norm_type, error_if_nonfinite, foreach)
    clip_grads_with_norm_(given, max_norm, total, foreach)
    return total


def clip_grad_norm(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Deprecated: `clip_grad_norm_` under its name without the underscore."""
    warnings.warn(
        "`nplm.nn.utils.clip_grad_norm` is now deprecated in favor of "
        "`nplm.nn.utils.clip_grad_norm_`.",
        FutureWarning,
        stacklevel=2,
    )
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Hold every element of every gradient in [-clip_value, clip_value]."""
    for g in _gradients(_listed(parameters)):
        g.clamp_(-float(clip_value), float(clip_value))


# ---- the arithmetic ------------------------------------------------------------------------------
@update
def total_norm_(xp: Any, totals: list[Array], tensors: list[Array], *, order: float) -> None:
    """totals[0], a (), becomes the norm of the norms of the tensors."""
    (total,) = totals
    norms = [xp.astype(_norm(xp, x, order), total.dtype).reshape((1,)) for x in tensors]
    total[...] = _norm(xp, xp.concat(norms, 0), order)


def _norm(xp: Any, x: Array, order: float) -> Array:
    if order == 2:
        return xp.sqrt(xp.sum(x * x))
    if order == 0:
        return xp.sum(xp.astype(x != 0, x.dtype))
    size = xp.abs(x)
    if math.isinf(order):
        return xp.amax(size) if order > 0 else xp.amin(size)
    if order == 1:
        return xp.sum(size)
    return pow.raw(xp, xp.sum(pow.raw(xp, size, order)[0]), 1.0 / order)[0]


@update
def scale_(xp: Any, tensors: list[Array], factors: list[Array]) -> None:
    """Multiply every tensor by factors[0], a ()."""
    for x in tensors:
        x *= factors[0]


# ---- helpers -------------------------------------------------------------------------------------
def _listed(tensors: Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [gradient for p in parameters if (gradient := p.grad) is not None]


def _kinds(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors by dtype and device; asked of the arrays, for there are many each step."""
    kinds: dict[Any, list[Tensor]] = {}
    for x in tensors:
        kinds.setdefault((x.array.dtype, x.array.device), []).append(x)
    return list(kinds.values())


def device_of(module: Any) -> str:
    """Where the first parameter of a module lies; "cpu" for a module without any."""
    return next((p.device for p in module.parameters()), "cpu")
