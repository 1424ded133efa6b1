"""What a case of an op is, and float64 inputs to draw: shapes, axes, indices, layouts.

The twins themselves are the package's: nplm/parity/op_twins.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import SearchStrategy

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
TF = torch.nn.functional

from nplm.parity.op_inputs import Call, silent  # noqa: E402  (it needs torch)
from nplm.parity.op_twins import TWINS  # noqa: E402

__all__ = ["CASES", "TF", "Call", "Case", "silent", "torch"]


@dataclass(frozen=True)
class Case:
    """The twin of an op, and small odd inputs for it."""

    calls: Callable[[bool], SearchStrategy[Call]]  # (smooth) -> strategy
    twin: Callable[..., Any]
    takes_gradient: Callable[[Call], tuple[bool, ...]]
    differentiable: bool


CASES: dict[str, Case] = {}


def case(name):
    """The decorated `f(draw, smooth) -> Call` makes the inputs of op `name`; its twin is nplm's."""

    def register(make):
        twin = TWINS[name]
        CASES[name] = Case(
            st.composite(make), twin.function, twin.takes_gradient, twin.differentiable
        )
        return make

    return register


def sides(least=0, most=3):
    return st.integers(least, most)


def shapes(min_dims=0, max_dims=3, min_side=0, max_side=4):
    return hnp.array_shapes(
        min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side
    )


def broadcastable(n):
    return hnp.mutually_broadcastable_shapes(num_shapes=n, max_dims=3, min_side=0, max_side=3).map(
        lambda drawn: drawn.input_shapes
    )


def values(rng, shape, low, high, smooth):
    """Uniform numbers; rounded ones (ties, kinks at 0) half of the time unless `smooth`, where all
    are apart from each other and from every simple fraction of the interval."""
    n = int(np.prod(shape))
    if smooth:
        places = rng.permutation(n) + rng.uniform(0.1, 0.3, n)
        return np.asarray(low + (high - low) * places / max(n, 1)).reshape(shape)
    x = rng.uniform(low, high, shape)
    return np.asarray(np.ceil(x)) if rng.random() < 0.5 else np.asarray(x)


def laid_out(x, layout):
    """The same numbers in other places of memory."""
    if layout == "fortran" and x.ndim:
        return np.asfortranarray(x)
    if layout == "strided" and x.ndim:
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "offset":
        return np.concatenate([[np.nan], x.reshape(-1)])[1:].reshape(x.shape)
    return x


LAYOUTS = st.sampled_from(["plain", "plain", "fortran", "strided", "offset"])


@st.composite
def array(draw, shape, smooth=True, low=-3.0, high=3.0):
    """A float64 array of a shape (or a strategy of shapes), not always contiguous."""
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return laid_out(values(rng, shape, low, high, smooth), draw(LAYOUTS))


@st.composite
def integers(draw, shape, low, high):
    """int64 in [low, high)"""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.asarray(rng.integers(low, high, shape))


@st.composite
def mask(draw, shape):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.asarray(rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.8, 1.0])))


def axis(ndim):
    return st.integers(-max(ndim, 1), max(ndim, 1) - 1)


@st.composite
def axes(draw, ndim):
    """None, one axis, or a tuple of different ones, counted from either end."""
    if ndim == 0:
        return draw(st.sampled_from([None, 0, -1]))
    several = draw(st.lists(st.integers(0, ndim - 1), min_size=1, unique=True))
    several = tuple(a - ndim * draw(st.booleans()) for a in several)
    return draw(st.sampled_from([None, several[0], several]))


@st.composite
def split_sizes(draw, n):
    """Sizes that add up to `n`, some of them 0."""
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=3)))
    ends = [0, *cuts, n]
    return [b - a for a, b in zip(ends, ends[1:])]


@st.composite
def index(draw, shape):
    """Any index into `shape` that torch takes: slices with positive steps, integers, None,
    Ellipsis, integer arrays that broadcast, boolean arrays."""
    key, rest = [], list(shape)
    dots = draw(st.sampled_from(["no", "yes"]))
    common = draw(st.sampled_from([(2,), (3,), (2, 2)]))
    has_mask = False
    while rest and (dots == "drawn" or draw(st.integers(0, 5))):  # after ... come the last axes
        n = rest[0]
        kind = draw(st.sampled_from(["slice", "int", "none", "dots", "array", "array", "mask"]))
        if kind == "none":
            key.append(None)
            continue
        if kind == "dots":
            if dots == "yes":
                dots = "drawn"
                key.append(Ellipsis)
                rest = rest[draw(st.integers(0, len(rest))) :]
            continue
        if kind == "mask" and not has_mask and not any(isinstance(k, np.ndarray) for k in key):
            wide = draw(st.integers(1, len(rest)))
            chosen = draw(mask(tuple(rest[:wide])))
            key.append(chosen)
            has_mask, rest, common = True, rest[wide:], (int(chosen.sum()),)
            continue
        rest = rest[1:]
        if kind == "slice" or n == 0:
            bound = st.none() | st.integers(-n - 1, n + 1)
            key.append(slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, 3]))))
        elif kind == "int":
            key.append(draw(st.integers(-n, n - 1)))
        else:
            own = draw(st.sampled_from([common, (1,), common[-1:]]))
            key.append(draw(integers(own, -n, n)))
    return tuple(key) if len(key) != 1 or draw(st.booleans()) else key[0]
