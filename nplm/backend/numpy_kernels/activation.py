"""Activations on NumPy: one pass over tiles gives the value and what its gradient will be
multiplied by, which is kept in place of x.  Read ops/activation.py and kernels/tiles.py before.

Temporaries are overwritten, and NumPy's slow loops (where, powers, sign, maximum with a number) are
avoided; sigmoid and the normal distribution go through tanh, which NumPy does fastest in float32.
"""

import math

import numpy as np

from nplm.autograd.op import override
from nplm.backend import numpy as namespace
from nplm.backend.numpy_kernels.tiles import in_tiles
from nplm.backend.scratch import ones, scratch


def floating(x, *others, **options):
    """Whether there is something to do, in float32 or float64."""
    return x.size > 0 and x.dtype.kind == "f"


def _elementwise(x, body):
    """body(x, y, slope) on flat tiles of x -> (y, backward): y = f(x), slope = f'(x)."""
    y, slope = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    flat, flat_y, flat_slope = x.reshape(-1), y.reshape(-1), slope.reshape(-1)
    in_tiles(x.size, 1, lambda i, j: body(flat[i:j], flat_y[i:j], flat_slope[i:j]))

    def backward(dy):  # names neither x nor y: who is named here is kept
        rows = dy.reshape(-1)
        in_tiles(
            slope.size, 1, lambda i, j: np.multiply(flat_slope[i:j], rows[i:j], flat_slope[i:j])
        )
        return (slope,)

    return y, backward


# ---- GELU ----------------------------------------------------------------------------------------
# Phi(x) = (1 + tanh(x P(x**2))) / 2 with a polynomial P: exactly so for "tanh", of degree 1. The
# normal distribution's own P, fitted for float32: |Phi - fit| < 5e-8, |x (Phi - fit)| < 8e-8.
_TANH_P = (math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi))
_NORMAL_P = (
    0.79788484855, 0.0363330054, -3.23127389e-05, -5.54652055e-05, 3.998357275e-06,
    -1.351932635e-07, 1.8438220245e-09,
)  # fmt: skip


def _half_and_half(t):
    """t <- (1 + t) / 2, which makes Phi of a tanh"""
    t *= 0.5
    t += 0.5


def _tanh_of(x, square, coefficients, out):
    """out <- tanh(x P(x**2))"""
    np.multiply(square, coefficients[-1], out=out)
    for c in coefficients[-2:0:-1]:
        out += c
        out *= square
    out += coefficients[0]
    out *= x
    np.tanh(out, out=out)


def _gelu_tanh(x, y, slope):
    """y <- x Phi, slope <- Phi + x u' (1 - t**2) / 2 with Phi = (1 + t) / 2, t = tanh(u)"""
    square = np.square(x, out=scratch("square", x.shape, x.dtype))
    _tanh_of(x, square, _TANH_P, y)
    square *= 1.5 * _TANH_P[1]
    square += 0.5 * _TANH_P[0]  # u' / 2
    np.square(y, out=slope)
    np.subtract(1.0, slope, out=slope)
    slope *= square
    slope *= x
    _half_and_half(y)
    slope += y
    y *= x


def _gelu_erf(x, y, slope):
    """y <- x Phi, slope <- Phi + x Phi'"""
    np.square(x, out=slope)
    if x.dtype == np.float32:
        _tanh_of(x, slope, _NORMAL_P, y)
    else:
        y[...] = namespace.erf(x * math.sqrt(0.5))
    _half_and_half(y)
    slope *= -0.5
    np.exp(slope, out=slope)
    slope *= math.sqrt(0.5 / math.pi)
    slope *= x
    slope += y
    y *= x


def _known(x, approximate="none"):
    return floating(x) and approximate in ("none", "tanh")


@override("gelu", backend="numpy", when=_known)
def gelu(xp, x, approximate="none"):
    """ops.activation.gelu in one pass; the derivative is kept, x and Phi are not."""
    return _elementwise(x, _gelu_tanh if approximate == "tanh" else _gelu_erf)


# ---- SiLU and SwiGLU -----------------------------------------------------------------------------
def _silu(x, y, slope, s):
    """y <- x s, slope <- s + y (1 - s) with s = sigmoid(x), which is left in `s`"""
    np.multiply(x, 0.5, out=s)
    np.tanh(s, out=s)
    _half_and_half(s)
    np.multiply(x, s, out=y)
    np.subtract(1.0, s, out=slope)
    slope *= y
    slope += s


@override("silu", backend="numpy", when=floating)
def silu(xp, x):
    """ops.activation.silu in one pass; the derivative is kept, x and the sigmoid are not."""
    return _elementwise(x, lambda *tile: _silu(*tile, scratch("silu", tile[0].shape, x.dtype)))


def _gated(gate, up):
    return floating(gate) and gate.ndim > 0 and gate.shape == up.shape and gate.dtype == up.dtype


@override("swiglu", backend="numpy", when=_gated)
def swiglu(xp, gate, up):
    """ops.activation.swiglu in one pass; what both gradients are made of, up silu'(gate) and
    silu(gate), is kept side by side, and so are they: one array, for the layer that made both."""
    H = gate.shape[-1]
    N = gate.size // H
    y, packed = np.empty(gate.shape, gate.dtype), np.empty((*gate.shape[:-1], 2 * H), gate.dtype)
    gates, ups, ys, pairs = (
        gate.reshape(N, H),
        up.reshape(N, H),
        y.reshape(N, H),
        packed.reshape(N, 2, H),
    )

    def forward(i, j):
        by_gate, by_up = pairs[i:j, 0], pairs[i:j, 1]
        _silu(gates[i:j], by_up, by_gate, scratch("silu", (j - i, H), gate.dtype))
        by_gate *= ups[i:j]
        np.multiply(by_up, ups[i:j], out=ys[i:j])

    in_tiles(N, H, forward)

    def backward(dy):
        rows = dy.reshape(N, 1, H)
        in_tiles(N, 2 * H, lambda i, j: np.multiply(pairs[i:j], rows[i:j], out=pairs[i:j]))
        return packed[..., :H], packed[..., H:]

    return y, backward


# ---- ReLU ----------------------------------------------------------------------------------------
@override("relu", backend="numpy", when=floating)
def relu(xp, x):
    """ops.activation.relu with a mask of bytes in place of an array of floats."""
    y = np.clip(x, 0.0, np.inf)  # 3 times as fast as maximum(x, 0)
    positive = x > 0
    return y, lambda dy: (np.multiply(dy, positive),)


# ---- softmax over the last axis ------------------------------------------------------------------
def _last(x, dim):
    return floating(x) and isinstance(dim, int) and x.ndim > 0 and dim in (-1, x.ndim - 1)


def exponentials(x, out):
    """out <- exp(x - top) (N, V) and the sums of its rows (N,), top their largest"""
    np.subtract(x, np.max(x, axis=1, keepdims=True), out=out)
    np.exp(out, out=out)
    return np.matmul(out, ones(x.shape[1], x.dtype))  # as a product: 4 times as fast as a sum


def _by_rows(x, forward, backward):
    """forward(x, y) and backward(dy, y, dx) on tiles of rows (N, V) -> (y, backward); y is kept."""
    V = x.shape[-1]
    N = x.size // V

    def tiled(body, *arrays):
        out = np.empty(arrays[0].shape, arrays[0].dtype)
        rows = [a.reshape(N, V) for a in (*arrays, out)]
        in_tiles(N, V, lambda i, j: body(*(a[i:j] for a in rows)))
        return out

    y = tiled(forward, x)
    return y, lambda dy: (tiled(backward, dy, y),)


@override("softmax", backend="numpy", when=_last)
def softmax(xp, x, dim):
    """ops.activation.softmax in place; y alone is kept."""

    def forward(x, y):
        y /= exponentials(x, y)[:, None]

    def backward(dy, y, dx):
        np.subtract(dy, np.vecdot(dy, y)[:, None], out=dx)
        dx *= y

    return _by_rows(x, forward, backward)


@override("log_softmax", backend="numpy", when=_last)
def log_softmax(xp, x, dim):
    """ops.activation.log_softmax in place; y alone is kept."""
    each = ones(x.shape[-1], x.dtype)

    def forward(x, y):
        np.subtract(x, np.max(x, axis=1, keepdims=True), out=y)
        e = np.exp(y, out=scratch("log_softmax", y.shape, y.dtype))
        y -= np.log(np.matmul(e, each))[:, None]

    def backward(dy, y, dx):
        np.exp(y, out=dx)
        dx *= np.matmul(dy, each)[:, None]
        np.subtract(dy, dx, out=dx)

    return _by_rows(x, forward, backward)
