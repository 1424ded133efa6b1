"""bfloat16 under `nplm.autocast`: what is lowered, and the copies of weights that products read.

A parameter stays float32. Products read a copy of it in bfloat16, which is made again only when the
parameter has changed: once an update, however many micro-batches and layers read it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from nplm.autograd.graph import flags
from nplm.autograd.op import OPS, override

LOWERED = (torch.float32, torch.bfloat16)  # float64 stays what it is, as under torch.autocast


class _Copies:
    """The bfloat16 copy of every parameter that a product has read, by the parameter's array.

    torch counts the writes to a tensor (`_version`), so a stale copy is known by its count. The
    copy is written in place when it is made again: who holds it (a CUDA graph) sees the new values.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[weakref.ref[torch.Tensor], list[int], torch.Tensor]] = {}

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The copy of `x`, made or refreshed if need be."""
        entry = self.known.get(id(x))
        if entry is None or entry[0]() is not x:
            copy = x.to(torch.bfloat16)
            key = id(x)
            self.known[key] = (
                weakref.ref(x, lambda gone: self._forget(key, gone)), [x._version], copy
            )  # fmt: skip
            return copy
        _, version, copy = entry
        if version[0] != x._version:
            copy.copy_(x)
            version[0] = x._version
        return copy

    def _forget(self, key: int, gone: weakref.ref[torch.Tensor]) -> None:
        entry = self.known.get(key)
        if entry is not None and entry[0] is gone:
            del self.known[key]

    def give(self, x: torch.Tensor, copy: torch.Tensor) -> None:
        """Let `copy` stand for `x` until x changes: a traced region takes its copies as inputs."""
        key = id(x)
        forget = lambda gone: self._forget(key, gone)  # noqa: E731
        self.known[key] = (weakref.ref(x, forget), [x._version], copy)

    def refresh(self, arrays: Iterable[torch.Tensor]) -> None:
        """Bring the stale copies of `arrays` up to date, all at once and in their place."""
        found = [(x, self.known.get(id(x))) for x in arrays]
        stale = [(x, e) for x, e in found if e and e[0]() is x and e[1][0] != x._version]
        if stale:
            torch._foreach_copy_([e[2] for _, e in stale], [x for x, _ in stale])
        for x, e in stale:
            e[1][0] = x._version


copies = _Copies()


def lowers(*arrays: torch.Tensor | None) -> bool:
    """Whether products run in bfloat16 now, and these arrays can."""
    return flags.autocast and all(x is None or x.dtype in LOWERED for x in arrays)


def lowered(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a product under autocast reads it: its kept copy in bfloat16."""
    return copies.of(weight) if weight.dtype == torch.float32 else weight


def in_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """An activation as a product under autocast reads it: cast, and remembered by nobody."""
    return x.to(torch.bfloat16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums and statistics of `dtype` are computed."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def widening(array: Any) -> Any:
    """`array` in float32 where it is bfloat16."""
    return array.float() if is_low(array) else array


# ---- reference ops on bfloat16 -------------------------------------------------------------------
def is_low(x: Any) -> bool:
    """Whether `x` is an array of bfloat16."""
    return isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16


def widened(name: str, *, narrow: bool = False) -> None:
    """Let op `name` run its reference on float32 copies of what arrives in bfloat16.

    Gradients come back in the dtype of their arrays. The value stays float32, as under
    torch.autocast, or with `narrow` becomes bfloat16: where it goes on to a product anyway.
    It is asked last: every file with an override of one of these ops imports this file first.
    """
    op = OPS[name]

    @override(name, backend="torch", when=lambda *arrays, **options: any(map(is_low, arrays)))
    def kernel(xp: Any, *arrays: Any, **options: Any) -> Any:
        value, backward = op.raw(xp, *map(widening, arrays), **options)
        value = in_bfloat16(value) if narrow else value
        return value, None if backward is None else narrowed(backward, arrays)

    kernel.bfloat16_only = True  # so the tests know where it is compared


def narrowed(
    backward: Callable[..., Any], arrays: tuple[Any, ...], dy_dtype: torch.dtype = torch.float32
) -> Callable[..., Any]:
    """`backward`, fed dy in `dy_dtype`, with every gradient in the dtype of its array."""
    dtypes = [x.dtype if isinstance(x, torch.Tensor) else None for x in arrays]

    def cast(dy: Any, *more: Any, **needs: Any) -> Any:
        gradients = backward(dy.to(dy_dtype), *more, **needs)
        return tuple(None if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes))

    return cast


# Where bfloat16's 8 bits would lose what follows, or dtypes would be mixed: torch.autocast's list.
for _name in (
    "cross_entropy", "cumsum", "exp", "log", "log_softmax", "logsumexp", "mean", "mse_loss",
    "nll_loss", "norm", "pow", "rsqrt", "softmax", "sqrt", "sum", "var",
):  # fmt: skip
    widened(_name)
for _name in ("attention", "layer_norm", "rms_norm"):
    widened(_name, narrow=True)
