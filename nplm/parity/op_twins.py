"""The twins of the elementwise ops, the reductions and the ops that move elements.

Every op of nplm once: its torch function and how to draw its inputs.  Read op_inputs.py before.
"""

import numpy as np
import torch
from torch.nn import functional as F

from nplm.parity import op_twins_fused  # noqa: F401  the second half of the table
from nplm.parity.op_inputs import (
    TWINS,
    B,
    C,
    Call,
    T,
    V,
    chosen,
    normal,
    positive,
    silent,
    twin,
)  # fmt: skip

__all__ = ["TWINS"]


# ---- elementwise ---------------------------------------------------------------------------------
def _unary(name, function, draw=normal, scale=2.0, differentiable=True):
    @twin(name, function, differentiable=differentiable)
    def calls(rng):
        options = {} if draw is positive else {"scale": scale}
        return [Call((draw(rng, B, T, C, **options),)), Call((draw(rng, 1000, **options),))]


for _name in ("exp", "tanh", "sigmoid", "sin", "cos", "erf", "abs", "sign", "neg"):
    _unary(_name, getattr(torch, _name))
for _name in ("log", "sqrt", "rsqrt"):
    _unary(_name, getattr(torch, _name), positive)
_unary("relu", F.relu)
_unary("silu", F.silu, scale=3.0)
_unary("copy_of", torch.clone)
_unary("logical_not", torch.logical_not, differentiable=False)


def _binary(name, function, draw=normal, differentiable=True):
    @twin(name, function, differentiable=differentiable)
    def calls(rng):
        return [
            Call((draw(rng, B, T, C), draw(rng, B, T, C))),
            Call((draw(rng, B, T, C), draw(rng, C))),  # a bias
            Call((draw(rng, B * T, 1), draw(rng, B * T, C))),  # a factor a row
            Call((draw(rng, B, T, C), 0.75)),
        ]


for _name in ("add", "sub", "mul"):
    _binary(_name, getattr(torch, _name))
_binary("div", torch.div, positive)


def on_tensors(f):
    """`f` of torch for operands that may be numbers, where it takes tensors only."""

    def call(*operands):
        (dtype, *_) = [v.dtype for v in operands if isinstance(v, torch.Tensor)]
        return f(*(torch.as_tensor(v, dtype=dtype) for v in operands))

    return call


for _name in ("maximum", "minimum"):
    _binary(_name, on_tensors(getattr(torch, _name)))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"):
    _binary(_name, on_tensors(getattr(torch, _name)), differentiable=False)


@twin("pow", torch.pow)
def _(rng):
    return [
        Call((positive(rng, T, C), normal(rng, T, C))),
        *(Call((normal(rng, T, C), n)) for n in (2, 3)),
        *(Call((positive(rng, T, C), n)) for n in (0.5, -0.5, 1.5)),
        Call((2, normal(rng, T, C))),
    ]


@twin("clamp", torch.clamp)
def _(rng):
    return [Call((normal(rng, B, T, C),), {"min": -1.0, "max": 1.0})]


@twin("cast", lambda x, dtype: x.to(getattr(torch, np.dtype(dtype).name)))
def _(rng):
    return [Call((normal(rng, B, T, C),), {"dtype": np.dtype("float32")})]


@twin("where", torch.where)
def _(rng):
    return [
        Call((chosen(rng, B, T, C), normal(rng, B, T, C), normal(rng, B, T, C))),
        Call((chosen(rng, T, C), normal(rng, C), -2)),
    ]


def _nonfinite(name):
    @twin(name, getattr(torch, name), differentiable=False)
    def calls(rng):
        x = normal(rng, T, C)
        for value in (np.nan, np.inf, -np.inf):
            x[chosen(rng, T, C, p=0.1)] = value
        return [Call((x,))]


for _name in ("isnan", "isinf", "isfinite"):
    _nonfinite(_name)


@twin("gelu", F.gelu)
def _(rng):
    x = normal(rng, B, T, C, scale=3.0)
    return [Call((x,), {"approximate": kind}) for kind in ("none", "tanh")]


@twin("swiglu", lambda gate, up: F.silu(gate) * up)
def _(rng):
    return [Call((normal(rng, B, T, C, scale=3.0), normal(rng, B, T, C)))]


@twin("dropout", lambda x, keep, p: x * (keep.to(x.dtype) / (1 - p) if p < 1 else 0.0))
def _(rng):
    return [Call((normal(rng, B, T, C), chosen(rng, B, T, C, p=1 - p)), {"p": p}) for p in (0.1, 1)]


@twin("transfer", lambda x, device: x.clone())
def _(rng):
    return [Call((normal(rng, T, C),), {"device": device}) for device in ("cpu", "torch:cpu")]


# ---- reductions: along rows, along columns, over all ---------------------------------------------
def all_axes(x, dim):
    """torch's amax and logsumexp have no "all" of their own."""
    return tuple(range(x.ndim)) if dim is None else dim


def _reduction(name, function, differentiable=True, dims=(-1, 0, (0, 1), None), **more):
    @twin(name, function, differentiable=differentiable)
    def calls(rng):
        shapes = {None: (T, C), (0, 1): (B, 256, C), 0: (1024, C), -1: (B, T, C)}
        return [  # the numbers are off centre: one sum near 0 would have no scale of its own
            Call((normal(rng, *shapes[dim]) + 0.5,), {"dim": dim, "keepdim": False} | more)
            for dim in dims
        ]


_reduction("sum", torch.sum)
_reduction("mean", torch.mean)
_reduction("amax", lambda x, dim, keepdim: torch.amax(x, all_axes(x, dim), keepdim))
_reduction("amin", lambda x, dim, keepdim: torch.amin(x, all_axes(x, dim), keepdim))
_reduction("max_along", lambda x, dim, keepdim: tuple(torch.max(x, dim, keepdim)), dims=(-1, 0))
_reduction("min_along", lambda x, dim, keepdim: tuple(torch.min(x, dim, keepdim)), dims=(-1, 0))
_reduction("argmax", torch.argmax, differentiable=False, dims=(-1, 0, None))
_reduction("argmin", torch.argmin, differentiable=False, dims=(-1, 0, None))
_reduction("var", silent(torch.var), correction=1)
_reduction("logsumexp", lambda x, dim, keepdim: torch.logsumexp(x, all_axes(x, dim), keepdim))
_reduction("norm", lambda x, dim, keepdim=False: torch.linalg.vector_norm(x, 2, dim, keepdim))
_reduction("any", torch.any, differentiable=False)
_reduction("all", torch.all, differentiable=False)


def _along(name, function):
    @twin(name, function)
    def calls(rng):
        return [
            Call((normal(rng, B * T, C, scale=3.0),), {"dim": -1}),
            Call((normal(rng, T, V, scale=3.0),), {"dim": -1}),
            Call((normal(rng, 256, T, scale=3.0),), {"dim": 0}),
        ]


_along("cumsum", torch.cumsum)
_along("softmax", torch.softmax)
_along("log_softmax", torch.log_softmax)


# ---- shape ---------------------------------------------------------------------------------------
def _moving(name, function, size, **options):
    @twin(name, function)
    def calls(rng):
        return [Call((normal(rng, *size),), options)]


_moving("reshape", lambda x, shape: torch.reshape(x, shape), (B, T, C), shape=(B * T, C))
_moving("permute", torch.permute, (B, T, C), dims=(2, 0, 1))
_moving("transpose", torch.transpose, (B, T, C), dim0=1, dim1=2)
_moving("expand", lambda x, shape: x.expand(shape), (T, 1), shape=(8, T, C))
_moving("flip", torch.flip, (B, T, C), dims=(1,))
_moving("tril", torch.tril, (B, T, T), diagonal=0)
_moving("triu", torch.triu, (B, T, T), diagonal=1)
_moving("split", lambda x, sizes, dim: torch.split(x, sizes, dim), (B, T, C),
        sizes=[128, 192, 64], dim=-1)  # fmt: skip


@twin("getitem", lambda x, key: x[key])
def _(rng):
    repeated = rng.integers(0, T, 1000)  # some 16 gradients meet in an element
    return [
        Call((normal(rng, B, T, C),), {"key": (slice(None), slice(8, None, 2))}),
        Call((normal(rng, T, C),), {"key": repeated}),
    ]


@twin("gather", lambda x, dim, index: torch.gather(x, dim, index))
def _(rng):
    index = rng.integers(0, T, (1000, C))
    return [Call((normal(rng, T, C),), {"dim": 0, "index": index})]


@twin("concat", lambda *xs, dim=0: torch.cat(xs, dim))
def _(rng):
    return [Call((normal(rng, B, T, C), normal(rng, B, T, 8)), {"dim": -1})]
