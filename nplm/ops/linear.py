"""Matrix products: `matmul` of any rank and `linear`, the op that most of training is made of."""

import math

from nplm.autograd.op import op
from nplm.ops.elementwise import unbroadcast


def _check_dtypes(name, x, y):
    """Products do not promote, as in torch: a float64 weight in a float32 model is a mistake."""
    if x.dtype != y.dtype:
        raise RuntimeError(f"{name}: expected operands of one dtype, got {x.dtype} and {y.dtype}")


@op(needs=True)
def matmul(xp, x, y):
    """Product of the last two axes, the others broadcast.   (..., N, K), (..., K, M) -> (..., N, M)

    dx = dz y^T, dy = x^T dz. A vector on the left is a row, on the right a column.
    Twin: torch.matmul
    """
    _check_dtypes("matmul", x, y)
    if 0 in (x.ndim, y.ndim):
        raise RuntimeError("matmul: both arguments need at least one axis; use * for numbers")
    a = x if x.ndim > 1 else x.reshape((1, x.shape[0]))
    b = y if y.ndim > 1 else y.reshape((y.shape[0], 1))
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(
            f"matmul: shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be multiplied: "
            f"expected equal inner sizes, got {a.shape[-1]} and {b.shape[-2]}"
        )
    z = xp.matmul(a, b)  # (..., N, M)
    full = z.shape
    shape = tuple(full[:-2]) + (full[-2],) * (x.ndim > 1) + (full[-1],) * (y.ndim > 1)

    def backward(dz, needs):
        dz = dz.reshape(full)
        dx = unbroadcast(xp, xp.matmul(dz, xp.swapaxes(b, -1, -2)), a) if needs[0] else None
        dy = unbroadcast(xp, xp.matmul(xp.swapaxes(a, -1, -2), dz), b) if needs[1] else None
        return dx if dx is None else dx.reshape(x.shape), dy if dy is None else dy.reshape(y.shape)

    return z.reshape(shape), backward


@op(needs=True)
def linear(xp, x, weight, bias=None):
    """x (..., I), weight (O, I), bias (O,) or None -> (..., O)

    y = x weight^T + bias   dx = dy weight, dweight = dy^T x, dbias = sum of dy over the rows
    Twin: torch.nn.functional.linear
    """
    _check_dtypes("linear", x, weight)
    O, I = weight.shape
    if x.ndim == 0 or x.shape[-1] != I:
        raise RuntimeError(
            f"linear: expected inputs with {I} features for weight {(O, I)}, got {tuple(x.shape)}"
        )
    rows = x.reshape((math.prod(x.shape[:-1]), I))  # (N, I)
    y = xp.matmul(rows, xp.swapaxes(weight, 0, 1))  # (N, O)
    if bias is not None:
        y += bias
    shape = (*tuple(x.shape[:-1]), O)

    def backward(dy, needs):
        dy = dy.reshape(y.shape)  # (N, O)
        dx = xp.matmul(dy, weight).reshape(x.shape) if needs[0] else None
        dweight = xp.matmul(xp.swapaxes(dy, 0, 1), rows) if needs[1] else None
        dbias = xp.sum(dy, axis=0) if bias is not None and needs[2] else None
        return dx, dweight, dbias

    return y.reshape(shape), backward
