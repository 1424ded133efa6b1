"""Activations: relu, silu, both GELUs, swiglu, softmax and log_softmax."""

import math

from nplm.autograd.op import op
from nplm.ops.reduce import axes_of, top_of


@op
def relu(xp, x):
    """y = max(x, 0), gradient 0 at 0   Twin: torch.nn.functional.relu"""
    positive = xp.astype(x > 0, x.dtype)
    return xp.maximum(x, 0), lambda dy: (dy * positive,)


@op
def silu(xp, x):
    """y = x sigmoid(x)   Twin: torch.nn.functional.silu"""
    s = xp.sigmoid(x)
    return x * s, lambda dy: (dy * (s * (1 + x * (1 - s))),)


@op
def gelu(xp, x, approximate: str = "none"):
    """y = x Phi(x), Phi the normal distribution function   (Hendrycks and Gimpel, 2016)

    approximate="tanh": Phi is (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))) / 2, as in GPT-2.
    Twin: torch.nn.functional.gelu
    """
    if approximate == "tanh":
        k = math.sqrt(2 / math.pi)
        t = xp.tanh(k * (x + 0.044715 * (x * x * x)))
        phi = 0.5 * (1 + t)

        def slope():  # d Phi / dx
            return (0.5 * k) * (1 - t * t) * (1 + (3 * 0.044715) * (x * x))
    elif approximate == "none":
        phi = 0.5 * (1 + xp.erf(x * math.sqrt(0.5)))

        def slope():
            return math.sqrt(0.5 / math.pi) * xp.exp(-0.5 * (x * x))
    else:
        raise RuntimeError(f"gelu: expected approximate 'none' or 'tanh', got {approximate!r}")
    return x * phi, lambda dy: (dy * (phi + x * slope()),)


@op
def swiglu(xp, gate, up):
    """y = silu(gate) up   gate, up (..., C) -> (..., C)   (Shazeer, 2020)

    Twin: torch.nn.functional.silu(gate) * up
    """
    if gate.shape != up.shape:
        raise RuntimeError(
            f"swiglu: expected gate and up of one shape, got {tuple(gate.shape)} and "
            f"{tuple(up.shape)}"
        )
    s = xp.sigmoid(gate)
    a = gate * s

    def backward(dy):
        return dy * up * (s * (1 + gate * (1 - s))), dy * a

    return a * up, backward


@op
def softmax(xp, x, dim: int):
    """y = exp(x) / sum(exp(x)) along dim   dx = y (dy - sum(dy y))   Twin: torch.softmax"""
    axes = axes_of("softmax", dim, x.ndim)
    e = xp.exp(x - top_of(xp, x, axes))
    y = e / xp.sum(e, axis=axes, keepdims=True)

    def backward(dy):
        return (y * (dy - xp.sum(dy * y, axis=axes, keepdims=True)),)

    return y, backward


@op
def log_softmax(xp, x, dim: int):
    """y = x - log(sum(exp(x))) along dim   dx = dy - exp(y) sum(dy)   Twin: torch.log_softmax"""
    axes = axes_of("log_softmax", dim, x.ndim)
    z = x - top_of(xp, x, axes)
    y = z - xp.log(xp.sum(xp.exp(z), axis=axes, keepdims=True))

    def backward(dy):
        return (dy - xp.exp(y) * xp.sum(dy, axis=axes, keepdims=True),)

    return y, backward
