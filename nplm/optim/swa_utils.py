"""Averages of a model's weights over its training: SWA and EMA.  Twin: torch.optim.swa_utils.

In float64 the bits are torch's: its averages of one tensor round every operation, its averages of
lists are one `lerp`, whose multiply-add rounds once (on x86 with AVX2 or AVX512).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np

from nplm.autograd.factory import tensor
from nplm.autograd.grad_mode import no_grad
from nplm.autograd.tensor import Tensor
from nplm.nn.module import Module
from nplm.optim.lr_scheduler.swa import SWALR
from nplm.random import _halves, _sum_to_odd, _two_sum

__all__ = [
    "SWALR", "AveragedModel", "get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn",
    "get_swa_multi_avg_fn", "update_bn",
]  # fmt: skip

AverageOne = Callable[[Tensor, Tensor, Tensor], Tensor]  # averaged, current, n_averaged -> new
AverageMany = Callable[[list[Tensor], list[Tensor], Tensor], None]  # writes into the first list


def get_ema_avg_fn(decay: float = 0.999) -> AverageOne:
    """decay * averaged + (1 - decay) * current, of one tensor.   swa_utils.get_ema_avg_fn"""
    _check_decay(decay)

    def ema_update(averaged: Tensor, current: Tensor, n_averaged: Any) -> Tensor:
        with no_grad():
            return decay * averaged + (1 - decay) * current

    return ema_update


def get_ema_multi_avg_fn(decay: float = 0.999) -> AverageMany:
    """The same for lists, in place, by `lerp`.   swa_utils.get_ema_multi_avg_fn"""
    _check_decay(decay)

    def ema_update(averaged: list[Tensor], current: list[Tensor], n_averaged: Any) -> None:
        with no_grad():
            for old, new in zip(averaged, current, strict=True):
                if old.is_floating_point():
                    _lerp_(old, new, 1 - decay)
                else:
                    old.copy_(old * decay + new * (1 - decay))

    return ema_update


def get_swa_avg_fn() -> AverageOne:
    """The mean of n + 1 models from that of n, of one tensor.   swa_utils.get_swa_avg_fn"""

    def swa_update(averaged: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
        with no_grad():
            return averaged + (current - averaged) / (n_averaged + 1)

    return swa_update


def get_swa_multi_avg_fn() -> AverageMany:
    """The same for lists of floating tensors, in place.   swa_utils.get_swa_multi_avg_fn

    A Tensor `n_averaged`, as AveragedModel gives it, makes 1 / (n + 1) a float32 number, in torch
    too: `get_swa_avg_fn` is the more exact one, and the default.
    """

    def swa_update(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        weight = float(1 / (n_averaged + 1))
        for old, new in zip(averaged, current, strict=True):
            if not old.is_floating_point():
                raise RuntimeError(
                    f"get_swa_multi_avg_fn: expected floating tensors, got {old.dtype}; "
                    "get_swa_avg_fn takes integers too"
                )
            _lerp_(old, new, weight)

    return swa_update


class AveragedModel(Module):
    """A copy of `model`, `module`, whose weights average what `update_parameters` is given.

    The first update copies; every later one is an equally weighted mean (SWA), or what `avg_fn`
    (one tensor) or `multi_avg_fn` (lists, in place) makes of it. Buffers follow the model, or with
    `use_buffers` are averaged too. `n_averaged` counts the updates and is in the state_dict; the
    functions are not. Raises AssertionError for both functions at once.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: str | None = None,
        avg_fn: AverageOne | None = None,
        multi_avg_fn: AverageMany | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("Only one of avg_fn and multi_avg_fn should be provided")
        self.module = deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", tensor(0, np.int64, device or "cpu"))
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.use_buffers = use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives with the averaged weights."""
        return self.module(*args, **kwargs)

    def update_parameters(self, model: Module) -> None:
        """Take the weights of `model` into the average.

        Raises ValueError, before anything changes, for a model of other names or shapes (torch
        averages as many as both have).
        """
        _require_alike(self.module, model)
        with no_grad():
            self._update(model)
            self.n_averaged += 1

    def _update(self, model: Module) -> None:
        ours, theirs = _weights(self.module, self.use_buffers), _weights(model, self.use_buffers)
        theirs = [new.detach().to(old.device) for old, new in zip(ours, theirs)]
        if int(self.n_averaged) == 0:
            for old, new in zip(ours, theirs):
                old.copy_(new)
        elif self.multi_avg_fn is not None:
            for many in _by_kind(ours, theirs):
                self.multi_avg_fn(*many, self.n_averaged.to(many[0][0].device))
        else:
            average = self.avg_fn or get_swa_avg_fn()
            for old, new in zip(ours, theirs):
                old.copy_(average(old, new, self.n_averaged.to(old.device)))
        if not self.use_buffers:
            for old, new in zip(self.module.buffers(), model.buffers()):
                old.copy_(new)


def update_bn(loader: Iterable[Any], model: Module, device: str | None = None) -> None:
    """Nothing, and the loader is not read: no module of nplm keeps statistics of its batches.

    It is here for code that calls it, as torch's does nothing for a model without batch norm.
    """
    for _ in model.modules():
        pass  # what is no Module is refused, as in torch


def _check_decay(decay: float) -> None:
    if decay < 0.0 or decay > 1.0:
        raise ValueError(
            f"Invalid decay value {decay} provided. Please provide a value in [0,1] range."
        )


def _weights(model: Module, with_buffers: bool) -> list[Tensor]:
    buffers = model.buffers() if with_buffers else ()
    return [t.detach() for t in chain(model.parameters(), buffers)]


def _require_alike(averaged: Module, model: Module) -> None:
    ours, theirs = (
        {name: t.shape for name, t in chain(m.named_parameters(), m.named_buffers())}
        for m in (averaged, model)
    )
    if ours != theirs:
        first = next(name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"update_parameters: expected the model that was copied, with {first} of shape "
            f"{ours.get(first)}, got {theirs.get(first)}"
        )


def _by_kind(
    ours: list[Tensor], theirs: list[Tensor]
) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Both lists in parts of one device and dtype."""
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for old, new in zip(ours, theirs):
        part = kinds.setdefault((old.device, old.dtype), ([], []))
        part[0].append(old)
        part[1].append(new)
    return kinds.values()


def _lerp_(start: Tensor, end: Tensor, weight: float) -> None:
    """start moves towards end by the fraction `weight`, in place.   torch.Tensor.lerp_"""
    if start.xp.name != "numpy":
        start.array.lerp_(end.array, weight)  # torch's own
        return
    kind = start.dtype.type
    a, b = np.atleast_1d(start.array), np.atleast_1d(end.array)
    fraction = kind(weight)
    with start.xp.quiet():
        if fraction < 0.5:
            moved = _multiply_add(b - a, fraction, a)
        else:  # from the other end, so that weight 1 gives it exactly
            moved = _multiply_add(b - a, fraction - kind(1), b)
    start.array[...] = moved.reshape(start.shape)


def _multiply_add(x: Any, factor: Any, y: Any) -> Any:
    """x * factor + y, rounded once: see `nplm.random.fused_multiply_add`."""
    plain = x * factor + y
    x, factor, y = (np.asarray(value, np.float64) for value in (x, factor, y))
    product = x * factor
    if plain.dtype == np.float32:  # whose products are exact in float64
        fused = _sum_to_odd(product, y).astype(np.float32)
        return np.where(np.isfinite(plain), fused, plain)
    (x1, x2), (f1, f2) = _halves(x), _halves(factor)
    error = x2 * f2 - (((product - x1 * f1) - x2 * f1) - x1 * f2)
    low, low_error = _two_sum(y, error)
    high, high_error = _two_sum(product, low)
    fused = high + _sum_to_odd(low_error, high_error)
    return np.where((error == 0) | ~np.isfinite(fused), plain, fused)
