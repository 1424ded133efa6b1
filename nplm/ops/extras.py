"""More of torch's names, each put together from ops: order, products, shapes, draws, equality."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from nplm import random
from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import bool_, get_default_dtype
from nplm.ops import elementwise, linear, shape
from nplm.ops.api import ValuesIndices, masked_fill, unsqueeze
from nplm.ops.creation import size_of
from nplm.ops.inplace import in_place
from nplm.ops.reduce import as_row, axis_of


# ---- order ---------------------------------------------------------------------------------------
def _order(name: str, input: Tensor, dim: int, descending: bool) -> tuple[int, np.ndarray]:
    """(axis, places in order): NaN counts as the largest, equal ones keep their order."""
    axis = axis_of(name, dim, input.ndim)
    values = as_row(np.asarray(input.detach()))
    if not descending:
        return axis, np.argsort(values, axis, kind="stable")
    backwards = np.argsort(np.flip(values, axis), axis, kind="stable")
    return axis, np.flip(values.shape[axis] - 1 - backwards, axis)


def _picked(input: Tensor, axis: int, places: np.ndarray) -> ValuesIndices:
    """The values at `places` along an axis, with their gradient, and the places."""
    places = places.reshape(input.shape) if input.ndim == 0 else places
    indices = input.xp.asarray(places.copy(), None, input.device)  # torch takes no negative steps
    return ValuesIndices(shape.gather(input, axis, indices), Tensor(indices))


def sort(
    input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False
) -> ValuesIndices:
    """(values, indices) in order along dim; always stable.   Twin: torch.sort"""
    return _picked(input, *_order("sort", input, dim, descending))


def argsort(
    input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False
) -> Tensor:
    """The indices that sort along dim; always stable.   Twin: torch.argsort"""
    return _picked(input.detach(), *_order("argsort", input, dim, descending)).indices


def topk(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> ValuesIndices:
    """(values, indices) of the k largest along dim, in order; of equals the first.

    Twin: torch.topk, which leaves open which of equals it takes, and their order unless `sorted`.
    """
    if input.dtype == bool_:
        raise RuntimeError("topk: expected numbers, got booleans; convert them with .int()")
    axis, places = _order("topk", input, dim, largest)
    k, n = operator.index(k), places.shape[axis]
    if not 0 <= k <= n:
        raise RuntimeError(f"topk: expected 0 <= k <= {n} (axis {dim}), got k={k}")
    return _picked(input, axis, places[(slice(None),) * axis + (slice(k if input.ndim else n),)])


# ---- products ------------------------------------------------------------------------------------
def _expect_axes(name: str, ndim: int, *tensors: Tensor) -> None:
    if any(x.ndim != ndim for x in tensors):
        shapes = " and ".join(str(x.shape) for x in tensors)
        raise RuntimeError(f"{name}: expected tensors of {ndim} axes, got {shapes}; use matmul")


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """(N, K), (K, M) -> (N, M): matmul of matrices and nothing else.   Twin: torch.mm"""
    _expect_axes("mm", 2, input, mat2)
    return linear.matmul(input, mat2)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """(B, N, K), (B, K, M) -> (B, N, M): B is not broadcast.   Twin: torch.bmm"""
    _expect_axes("bmm", 3, input, mat2)
    if input.shape[0] != mat2.shape[0]:
        raise RuntimeError(
            f"bmm: expected as many matrices in both, got {input.shape} and {mat2.shape}; "
            "matmul broadcasts"
        )
    return linear.matmul(input, mat2)


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """(N,), (N,) -> (): the sum of products.   Twin: torch.dot"""
    _expect_axes("dot", 1, input, tensor)
    return linear.matmul(input, tensor)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """(N,), (M,) -> (N, M): every product of two.   Twin: torch.outer"""
    _expect_axes("outer", 1, input, vec2)
    return elementwise.mul(unsqueeze(input, 1), vec2)


def square(input: Tensor) -> Tensor:
    """y = x**2   Twin: torch.square"""
    return elementwise.pow(input, 2)


# ---- shape ---------------------------------------------------------------------------------------
def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """A read-only view, broadcast to the shape of `other`."""
    return shape.expand(input, other.shape)


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """The same elements in the shape of `other`."""
    return shape.reshape(input, other.shape)


def repeat(input: Tensor, *sizes: Any) -> Tensor:
    """The whole tensor again and again along every axis: (2,).repeat(3, 2) -> (3, 4).  A copy."""
    times = size_of(sizes)
    extra = len(times) - input.ndim
    if extra < 0 or min(times, default=0) < 0:
        raise RuntimeError(
            f"repeat: expected at least {input.ndim} numbers >= 0 for shape {input.shape}, "
            f"got {times}"
        )
    own = (1,) * extra + input.shape
    apart = shape.reshape(input, tuple(n for size in own for n in (1, size)))
    tiled = shape.expand(apart, tuple(n for pair in zip(times, own) for n in pair)).clone()
    return shape.reshape(tiled, tuple(n * size for n, size in zip(times, own)))


def ndimension(input: Tensor) -> int:
    """The number of axes."""
    return input.ndim


def nelement(input: Tensor) -> int:
    """The number of elements."""
    return input.numel()


# ---- equality ------------------------------------------------------------------------------------
def equal(input: Tensor, other: Tensor) -> bool:
    """Whether both have one shape and the same elements; NaN equals nothing.   Twin: torch.equal"""
    return input.shape == other.shape and bool(elementwise.eq(input, other).all())


def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + |rtol other|, element by element.   Twin: torch.isclose"""
    if input.dtype != other.dtype:
        raise RuntimeError(f"isclose: expected one dtype, got {input.dtype} and {other.dtype}")
    if rtol < 0 or atol < 0:
        raise RuntimeError(f"isclose: expected rtol, atol >= 0, got rtol={rtol}, atol={atol}")
    a, b = input.detach(), other.detach()
    close = elementwise.eq(a, b)
    if equal_nan:
        both = elementwise.logical_and(elementwise.isnan(a), elementwise.isnan(b))
        close = elementwise.logical_or(close, both)
    if rtol == atol == 0:
        return close
    if not input.is_floating_point():
        a, b = (elementwise.cast(v, get_default_dtype()) for v in (a, b))
    error = elementwise.abs(a - b)
    near = elementwise.le(error, elementwise.abs(b * rtol) + atol)
    near = elementwise.logical_and(near, elementwise.isfinite(error))  # infinity is near itself
    return elementwise.logical_or(close, near)


# ---- draws: torch's CPU stream, whatever the device ----------------------------------------------
def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: random.Generator | None = None,
) -> Tensor:
    """Indices drawn by weight   (V,) -> (num_samples,), (B, V) -> (B, num_samples)"""
    g = generator or random.default_generator
    drawn = g.multinomial(np.asarray(input.detach()), num_samples, replacement)
    return Tensor(input.xp.asarray(drawn, None, input.device))


@in_place
def masked_fill_(self: Tensor, mask: Tensor, value: float) -> None:
    """Where the mask holds an element becomes `value`."""
    if mask.dtype != bool_:
        raise RuntimeError(f"masked_fill_: expected a mask of booleans, got {mask.dtype}")
    self.array[...] = masked_fill(self.detach(), mask, value).array
