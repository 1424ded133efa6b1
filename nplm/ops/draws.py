"""Random tensors under torch's names, new ones and in place: torch's CPU stream, on any device.

torch fills a tensor in the order of its memory, which `_draw` repeats.  Nothing here is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nplm import random
from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import get_default_dtype, int64
from nplm.errors import BackendError
from nplm.ops import masks
from nplm.ops.creation import in_order, order_of, place, size_of
from nplm.ops.inplace import in_place
from nplm.random import Generator

NOT_GIVEN: Any = object()


def _stream(generator: Generator | None) -> Generator:
    return generator or random.default_generator


# ---- new tensors ---------------------------------------------------------------------------------
def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Uniform in [0, 1)."""
    drawn = _stream(generator).rand(size_of(size), dtype=dtype or get_default_dtype())
    return place(drawn, device, requires_grad)


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Normal with mean 0 and standard deviation 1."""
    drawn = _stream(generator).randn(size_of(size), dtype=dtype or get_default_dtype())
    return place(drawn, device, requires_grad)


def randint(
    low: int = 0,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Integers in [low, high): `randint(high, size)` or `randint(low, high, size)`, as in torch."""
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    drawn = _stream(generator).randint(low, high, size_of((size,)), dtype or int64)
    return place(drawn, device, requires_grad)


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """The integers 0 .. n-1 in random order."""
    return place(_stream(generator).randperm(n, dtype or int64), device, requires_grad)


def bernoulli(
    input: Tensor, p: float | None = None, *, generator: Generator | None = None
) -> Tensor:
    """1 with probability input[i], or p, else 0; in the shape and dtype of `input`."""
    chances = np.asarray(input.detach()) if p is None else p
    drawn = _stream(generator).bernoulli(input.shape, chances).astype(input.dtype)
    return place(drawn, input.device)


def normal(
    mean: Any,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = False,
) -> Tensor:
    """Normal, with a mean and a standard deviation for every element.   Twin: torch.normal

    Of one or two tensors, which broadcast; or of two numbers and a size, where the dtype, the
    device and `requires_grad` are free.
    """
    given = [x for x in (mean, std) if isinstance(x, Tensor)]
    if not given:
        if size is None:
            raise TypeError("normal: expected a tensor, or numbers and a size; add size=(...)")
        kind = dtype or get_default_dtype()
        drawn = _stream(generator).normal(size_of((size,)), mean, std, kind)
        return place(drawn, device, requires_grad)
    if size is not None or dtype is not None:
        raise TypeError("normal: tensors give the size and the dtype; leave out size= and dtype=")
    mean, std = (np.asarray(x.detach()) if isinstance(x, Tensor) else x for x in (mean, std))
    if isinstance(std, np.ndarray) and not (std >= 0).all():
        raise RuntimeError("normal: expected every std >= 0; take std.abs()")
    shape = np.broadcast_shapes(*(x.shape for x in given))
    scale = 1.0 if isinstance(std, np.ndarray) else std
    drawn = _stream(generator).normal(shape, 0.0, scale, given[0].dtype)
    if isinstance(std, np.ndarray):  # two roundings here, one in `normal_`
        drawn = (drawn * std).astype(drawn.dtype)
    return place((drawn + mean).astype(drawn.dtype), given[0].device)


# ---- like another tensor -------------------------------------------------------------------------
def _like(
    input: Tensor, draw: Callable[..., Any], dtype: Any, device: str | None, requires_grad: bool
) -> Tensor:
    """`draw(shape, dtype, contiguous)` in the shape and the order in memory of `input`."""
    order, _ = order_of(input)
    long_axes = [axis for axis in order if input.shape[axis] != 1]
    contiguous = long_axes == sorted(long_axes) or 0 in input.shape
    drawn = draw([input.shape[axis] for axis in order], dtype or input.dtype, contiguous)
    return place(in_order(drawn, order), device or input.device, requires_grad)


def rand_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """`rand` in the shape, dtype and on the device of `input`."""
    g = _stream(generator)
    draw = lambda shape, kind, contiguous: g.rand(shape, dtype=kind)  # noqa: E731
    return _like(input, draw, dtype, device, requires_grad)


def randn_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """`randn` in the shape, dtype and on the device of `input`."""
    g = _stream(generator)
    draw = lambda shape, kind, contiguous: g.normal(shape, 0, 1, kind, contiguous)  # noqa: E731
    return _like(input, draw, dtype, device, requires_grad)


def randint_like(
    input: Tensor,
    low: int = 0,
    high: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """`randint` in the shape, dtype and on the device of `input`."""
    low, high = (0, low) if high is None else (low, high)
    g = _stream(generator)
    draw = lambda shape, kind, contiguous: g.randint(low, high, shape, kind)  # noqa: E731
    return _like(input, draw, dtype, device, requires_grad)


def dropout_mask(input: Tensor, p: float = 0.5, generator: Generator | None = None) -> Tensor:
    """What dropout keeps of `input`: booleans, drawn in the order of its memory.

    On a card, and for a region, by `keep_mask`.
    """
    given = masks.handed_in()
    if on_card(input.device) or given is not None:
        if given is not None and not order_of(input)[1]:
            raise BackendError(
                "dropout: a region takes masks of contiguous arrays only, got strides; call "
                "contiguous() before, or train op by op (--compile off)"
            )
        return keep_mask(input, input.shape, p, generator)
    g = _stream(generator)
    draw = lambda shape, kind, contiguous: masks.shared_out(  # noqa: E731
        tuple(shape), lambda whole: g.dropout_mask(whole, p)
    )
    return _like(input, draw, None, None, False)


def on_card(device: str) -> bool:
    """Whether masks are drawn there and not on the host: a mask is as large as what it drops."""
    return device.startswith("cuda")


def keep_mask(
    like: Tensor, shape: tuple[int, ...], p: float, generator: Generator | None = None
) -> Tensor:
    """A mask of `shape` for dropout on the device of `like`, drawn from the first element on.

    On a card from a stream of its own there, seeded from the host's. So the host's stream, which
    is in every checkpoint, still decides about every mask; but the masks are not torch's, and
    outside of what parity claims.
    """
    given = masks.handed_in()
    if given is not None:
        return Tensor(given.take(masks.Asked(shape, p, generator), like))
    g = _stream(generator)
    if on_card(like.device):
        return Tensor(like.xp.dropout_mask(shape, p, g.random_int63(), like.array))
    drawn = masks.shared_out(shape, lambda whole: g.dropout_mask(whole, p))
    return Tensor(like.xp.asarray(drawn, None, like.device))


# ---- in place: methods of a tensor ---------------------------------------------------------------
def _fill(self: Tensor, draw: Callable[..., Any]) -> None:
    """`draw(shape)` into `self`, the first number to its first address."""
    order, _ = order_of(self)
    drawn = in_order(draw([self.shape[axis] for axis in order]), order)
    self.array[...] = self.xp.asarray(drawn, None, self.device)


@in_place
def normal_(
    self: Tensor, mean: float = 0, std: float = 1, *, generator: Generator | None = None
) -> None:
    """Every element becomes a normal draw."""
    g, (_, contiguous) = _stream(generator), order_of(self)
    _fill(self, lambda shape: g.normal(shape, mean, std, self.dtype, contiguous))


@in_place
def uniform_(
    self: Tensor, from_: float = 0, to: float = 1, *, generator: Generator | None = None
) -> None:
    """Every element becomes a draw from [from_, to)."""
    _fill(self, lambda shape: _stream(generator).uniform(shape, from_, to, self.dtype))


@in_place
def exponential_(self: Tensor, lambd: float = 1, *, generator: Generator | None = None) -> None:
    """Every element becomes an exponential draw of rate `lambd`."""
    _fill(self, lambda shape: _stream(generator).exponential(shape, lambd, self.dtype))


@in_place
def bernoulli_(
    self: Tensor, p: float | Tensor = 0.5, *, generator: Generator | None = None
) -> None:
    """Every element becomes 1 with probability p, which may be a tensor that broadcasts, else 0."""
    g, order = _stream(generator), order_of(self)[0]
    if isinstance(p, Tensor):
        chances = np.broadcast_to(np.asarray(p.detach()), self.shape).transpose(order)
        _fill(self, lambda shape: g.bernoulli(shape, chances).astype(self.dtype))
    else:
        _fill(self, lambda shape: g.bernoulli(shape, p).astype(self.dtype))


@in_place
def random_(
    self: Tensor,
    from_: int | None = None,
    to: Any = NOT_GIVEN,
    *,
    generator: Generator | None = None,
) -> None:
    """Every element becomes an integer of [from_, to): `x.random_(to)`, `x.random_(from_, to)`.

    `to` None, and `x.random_()`: up to the largest of the dtype (of a float: that up to which every
    integer is one).
    """
    g = _stream(generator)
    if from_ is None or to is None:
        _fill(self, lambda shape: g.random(shape, self.dtype, from_))
    else:
        low, high = (0, from_) if to is NOT_GIVEN else (from_, to)
        _fill(self, lambda shape: g.randint(low, high, shape, self.dtype))
