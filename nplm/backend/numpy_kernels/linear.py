"""`linear` and `embedding` on NumPy: products split over threads, gradients written in place."""

import math

import numpy as np

from nplm.autograd.op import override
from nplm.autograd.sinks import LEAST, Sink
from nplm.backend.scratch import ones
from nplm.backend.threads import number_of_parts, products_in_parts


def product(a, b):
    """a (N, K) @ b (K, M), its rows over the threads when the BLAS has only one."""
    if number_of_parts(len(a), LEAST, products=True) <= 1:
        return np.matmul(a, b)
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    products_in_parts(len(a), lambda i, j: np.matmul(a[i:j], b, out=out[i:j]), LEAST)
    return out


def weight_gradient(need, dy, x):
    """dy^T x (O, I) for whoever needs it: into a sink, then None is left to return."""
    if isinstance(need, Sink):
        need.add_product(dy.T, x)
        need.complete()
        return None
    return product(dy.T, x) if need else None


def bias_gradient(need, dy):
    """The sum of dy (N, O) over its rows, for whoever needs it: likewise."""
    if isinstance(need, Sink):
        return need.add_sum(dy)
    return np.matmul(ones(len(dy), dy.dtype), dy) if need else None


def _fits(x, weight, bias=None):
    dtype = x.dtype
    return (
        x.ndim > 0
        and dtype == weight.dtype
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (dtype == bias.dtype and bias.shape == weight.shape[:1]))
    )


@override("linear", backend="numpy", when=_fits)
def linear(xp, x, weight, bias=None):
    """ops.linear.linear: split over rows; dweight goes straight into its buffer; y is not kept."""
    O, I = weight.shape
    rows = x.reshape(math.prod(x.shape[:-1]), I)  # (N, I)
    N = rows.shape[0]
    y = product(rows, weight.T)  # (N, O)
    if bias is not None:
        y += bias

    def backward(dy, needs):
        dy = dy.reshape(N, O)
        dx = product(dy, weight).reshape(x.shape) if needs[0] else None
        dweight = weight_gradient(needs[1], dy, rows)
        return dx, dweight, None if bias is None else bias_gradient(needs[2], dy)

    return y.reshape(*x.shape[:-1], O), backward


@override(
    "embedding", backend="numpy", when=lambda ids, weight, padding_idx=None: padding_idx is None
)
def embedding(xp, ids, weight, padding_idx=None):
    """ops.embedding.embedding: with a sink, no table of zeros is made for the rows."""
    if xp.is_floating(ids):
        raise TypeError(f"embedding: expected integer ids, got {ids.dtype}; use ids.long()")
    V, C = weight.shape

    def backward(dy, needs):
        values, flat = dy.reshape(math.prod(ids.shape), C), ids.reshape(-1)
        if isinstance(needs[1], Sink):
            needs[1].add_rows(flat, values)
            return None, None
        return None, xp.sum_rows(values, flat, V) if needs[1] else None

    return weight[ids], backward
