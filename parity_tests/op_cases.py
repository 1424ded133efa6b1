"""Every op of nplm once: what to feed it, in small odd sizes; the torch twins are in
nplm/parity/op_twins.py.

`CASES[name].calls(smooth)` is a hypothesis strategy of Calls; with `smooth` it keeps away from
kinks and ties, where finite differences mean nothing: torch's own rule there is compared without.
"""

import numpy as np
import op_cases_fused  # noqa: F401  the second half of the table
from hypothesis import assume
from hypothesis import strategies as st
from op_inputs import (
    CASES,
    Call,
    Case,
    array,
    axes,
    axis,
    broadcastable,
    case,
    index,
    integers,
    mask,
    shapes,
    sides,
    split_sizes,
)  # fmt: skip

import nplm.nn.functional  # noqa: F401  it loads the fused ops

__all__ = ["CASES", "Call", "Case"]


# ---- elementwise ---------------------------------------------------------------------------------
def unary(name, low=-3.0, high=3.0):
    @case(name)
    def make(draw, smooth):
        return Call((draw(array(shapes(), smooth, low, high)),))


for _name in ("exp", "tanh", "sigmoid", "sin", "cos", "erf", "abs", "sign", "neg"):
    unary(_name)
for _name in ("log", "sqrt", "rsqrt"):
    unary(_name, 0.2, 4.0)
unary("relu")
unary("silu")
unary("copy_of")
unary("logical_not")


def binary(name, low=-3.0, high=3.0):
    @case(name)
    def make(draw, smooth):
        one, two = draw(broadcastable(2))
        x, y = draw(array(one, smooth, low, high)), draw(array(two, smooth, low, high))
        if smooth and low < 0:
            assume(np.abs(x - y).min(initial=1) > 1e-2)
        number = draw(st.sampled_from([0, 0, 0, 0, 1, 2]))  # an operand may be a number
        x = draw(st.sampled_from([2, 1.25, 0.75])) if number == 1 else x
        y = draw(st.sampled_from([2, 3, 0.5, 1, 1.75])) if number == 2 else y
        return Call((x, y))


for _name in ("add", "sub", "mul"):
    binary(_name)
binary("div", 0.3, 3.0)


for _name in ("maximum", "minimum"):
    binary(_name)
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"):
    binary(_name)


@case("pow")
def _(draw, smooth):
    one, two = draw(broadcastable(2))
    kind = draw(st.sampled_from(["arrays", "number above", "number below"]))
    if kind == "arrays":
        low = 0.3 if smooth or draw(st.booleans()) else -0.9  # ceil makes 0 of those
        x, y = draw(array(one, smooth, low, 2.5)), draw(array(two, smooth, -1.0, 2.0))
        if low < 0:
            x, y = np.asarray(np.abs(x)), np.asarray(np.abs(y))
        return Call((x, y))
    if kind == "number above":
        n = draw(st.sampled_from([0, 1, 2, 3, 4, -1, -2, 0.5, -0.5, 1.5, 2.0]))
        low = 0.3 if n < 1 or n == 1.5 else -2.0
        return Call((draw(array(one, smooth, low, 2.5)), n))
    return Call((draw(st.sampled_from([2, 0.5, 1])), draw(array(one, smooth))))


@case("clamp")
def _(draw, smooth):
    low, high = draw(st.sampled_from([(None, 1.0), (-1.0, None), (-1.0, 2.0), (0, 0), (-1, 1)]))
    return Call((draw(array(shapes(), smooth)),), {"min": low, "max": high})


@case("cast")
def _(draw, smooth):
    kinds = [np.float64] if smooth else [np.float64, np.float32]
    return Call((draw(array(shapes(), smooth)),), {"dtype": np.dtype(draw(st.sampled_from(kinds)))})


@case("where")
def _(draw, smooth):
    one, two, three = draw(broadcastable(3))
    x, y = draw(array(two, smooth)), draw(array(three, smooth))
    number = draw(st.sampled_from([0, 0, 1, 2]))
    return Call((draw(mask(one)), 1.5 if number == 1 else x, -2 if number == 2 else y))


def nonfinite(name):
    @case(name)
    def make(draw, smooth):
        x = np.array(draw(array(shapes())))
        x[draw(mask(x.shape))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        return Call((x,))


for _name in ("isnan", "isinf", "isfinite"):
    nonfinite(_name)


@case("gelu")
def _(draw, smooth):
    x = draw(array(shapes(), smooth, -6.0, 6.0))
    return Call((x,), {"approximate": draw(st.sampled_from(["none", "tanh"]))})


@case("swiglu")
def _(draw, smooth):
    shape = draw(shapes())
    return Call((draw(array(shape, smooth)), draw(array(shape, smooth))))


@case("dropout")
def _(draw, smooth):
    shape, p = draw(shapes()), draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    keep = draw(mask(shape)) if p < 1 else np.zeros(shape, bool)
    return Call((draw(array(shape, smooth)), keep), {"p": p})


@case("transfer")
def _(draw, smooth):
    return Call(
        (draw(array(shapes(), smooth)),), {"device": draw(st.sampled_from(["cpu", "torch:cpu"]))}
    )


# ---- reductions ----------------------------------------------------------------------------------
def reduction(name, least=0, one_axis=False):
    @case(name)
    def make(draw, smooth):
        x = draw(array(shapes(min_side=least), smooth))
        dim = draw(axis(x.ndim) if one_axis is True else axes(x.ndim))
        if one_axis == "or all" and isinstance(dim, tuple):
            dim = dim[0]
        options = {"dim": dim, "keepdim": draw(st.booleans())}
        if name == "var":
            axes_ = range(x.ndim) if dim is None else np.atleast_1d(dim)
            n = np.prod([x.shape[a] for a in axes_]) if x.ndim else 1
            usable = [c for c in (0, 0.5, 1, 2) if c < n]  # torch's gradients of others disagree
            options["correction"] = draw(st.sampled_from(usable or [0]))
        if name in ("sum", "mean", "var", "norm", "any", "all") and draw(st.booleans()):
            del options["keepdim"]
        return Call((x,), options)


reduction("sum")
reduction("mean")
reduction("amax", 1)
reduction("amin", 1)
reduction("max_along", 1, one_axis=True)
reduction("min_along", 1, one_axis=True)
reduction("argmax", 1, one_axis="or all")
reduction("argmin", 1, one_axis="or all")
reduction("var")
reduction("logsumexp")
reduction("norm")
reduction("any")
reduction("all")


def along(name):
    @case(name)
    def make(draw, smooth):
        x = draw(array(shapes(min_side=0 if name == "cumsum" else 1), smooth, -6.0, 6.0))
        return Call((x,), {"dim": draw(axis(x.ndim))})


along("cumsum")
along("softmax")
along("log_softmax")


# ---- shape ---------------------------------------------------------------------------------------
@case("reshape")
def _(draw, smooth):
    x = draw(array(shapes(), smooth))
    if x.size == 0:
        shape = draw(st.sampled_from([(0,), (2, 0), (0, 3, 1), x.shape]))
    else:
        parts = [(x.size,), (1, x.size), (-1, 1), (-1, x.shape[-1] if x.ndim else 1), x.shape]
        shape = draw(st.sampled_from([*parts, x.shape[::-1]]))
    return Call((x,), {"shape": shape})


@case("permute")
def _(draw, smooth):
    x = draw(array(shapes(), smooth))
    dims = draw(st.permutations(range(x.ndim)))
    return Call((x,), {"dims": tuple(d - x.ndim * draw(st.booleans()) for d in dims)})


@case("transpose")
def _(draw, smooth):
    x = draw(array(shapes(min_dims=1), smooth))
    return Call((x,), {"dim0": draw(axis(x.ndim)), "dim1": draw(axis(x.ndim))})


@case("expand")
def _(draw, smooth):
    x = draw(array(shapes(max_side=2), smooth))
    tail = tuple(draw(st.sampled_from([-1, n, 3])) if n == 1 else -1 for n in x.shape)
    return Call((x,), {"shape": (*draw(st.sampled_from([(), (2,), (1, 3)])), *tail)})


@case("flip")
def _(draw, smooth):
    x = draw(array(shapes(), smooth))
    dims = draw(axes(x.ndim)) if x.ndim else ()
    dims = () if dims is None else dims
    return Call((x,), {"dims": (dims,) if isinstance(dims, int) else dims})


def triangle(name):
    @case(name)
    def make(draw, smooth):
        x = draw(array(shapes(min_dims=2), smooth))
        return Call((x,), {"diagonal": draw(st.integers(-4, 4))})


triangle("tril")
triangle("triu")


@case("getitem")
def _(draw, smooth):
    x = draw(array(shapes(), smooth))
    return Call((x,), {"key": draw(index(x.shape))})


@case("gather")
def _(draw, smooth):
    x = draw(array(shapes(min_side=1), smooth))
    dim = draw(axis(x.ndim))
    shape = [draw(st.integers(0, n)) for n in x.shape]
    if x.ndim:
        shape[dim] = draw(sides(0, 5))
    chosen = draw(integers(tuple(shape), 0, x.shape[dim] if x.ndim else 1))
    return Call((x,), {"dim": dim, "index": chosen})


@case("concat")
def _(draw, smooth):
    shape = list(draw(shapes(min_dims=1)))
    dim = draw(axis(len(shape)))
    xs = []
    for _ in range(draw(st.integers(1, 3))):
        shape[dim] = draw(sides())
        xs.append(draw(array(tuple(shape), smooth)))
    return Call(tuple(xs), {"dim": dim})


@case("split")
def _(draw, smooth):
    x = draw(array(shapes(min_dims=1), smooth))
    dim = draw(axis(x.ndim))
    return Call((x,), {"sizes": draw(split_sizes(x.shape[dim])), "dim": dim})
