"""`linear_cross_entropy` on NumPy: over tiles of the vocabulary, so that no logits are kept.

Read ops/head.py and linear.py before.  A softmax over tiles is the "online" one (Milakov and
Gimelshein, 2018): every tile has a maximum and a sum of its own, and they are joined at the end.
"""

import numpy as np

from nplm.autograd.op import override
from nplm.autograd.sinks import Sink
from nplm.backend.numpy_kernels.linear import product
from nplm.backend.scratch import ones, scratch
from nplm.backend.threads import products_in_parts, team

TILE = 2048  # classes of a tile
CHUNK = 1 << 17  # elements that exp and its neighbours work on at a time: they stay in the cache
KEEP = 1 << 27  # exponentials kept for the backward; above, they are computed a second time


def _fits(x, weight, targets, ignore_index=-100, reduction="mean"):
    return (
        x.ndim == 2
        and targets.ndim == 1
        and x.dtype == weight.dtype
        and x.shape[1] == weight.shape[1]
        and x.shape[0] == targets.shape[0]
        and x.shape[0] * weight.shape[0] > 0
        and targets.dtype.kind == "i"
        and reduction in ("mean", "sum", "none")
    )


def _tiles(V):
    """(start, stop) of every tile; the classes are shared out evenly."""
    n = -(-V // TILE)
    return [(V * k // n, V * (k + 1) // n) for k in range(n)]


def _by_rows(tile, body):
    """body(i, j) on chunks of a tile's rows that fit the cache."""
    step = max(1, CHUNK // tile.shape[1])
    for i in range(0, tile.shape[0], step):
        body(i, min(i + step, tile.shape[0]))


def _finite(top):
    """A row's largest score, or 0 where all are -inf: -inf - -inf would be NaN."""
    return np.where(top == -np.inf, top.dtype.type(0), top)


def _scale_rows(tile, scale):
    def body(i, j):
        tile[i:j] *= scale[i:j, None]

    _by_rows(tile, body)


def _exponentials(x, weight, targets, span, top=None, at_target=None):
    """(exp(logits - top) of one tile (N, V/n), top, its sums); top is the tile's own if not given.

    `at_target` (N,) gets the logit of the rows whose target lies in the tile.
    """
    a, b = span
    tile = np.matmul(x, weight[a:b].T)
    if at_target is not None:
        rows = np.flatnonzero((targets >= a) & (targets < b))
        at_target[rows] = tile[rows, targets[rows] - a]
    N = len(x)
    own = np.empty(N, x.dtype) if top is None else top
    sums = np.empty(N, x.dtype)

    def body(i, j):
        part = tile[i:j]
        if top is None:
            np.max(part, axis=1, out=own[i:j])
        part -= _finite(own[i:j])[:, None]
        np.exp(part, out=part)
        np.matmul(part, ones(b - a, x.dtype), out=sums[i:j])

    _by_rows(tile, body)
    return tile, own, sums


@override("linear_cross_entropy", backend="numpy", when=_fits)
def linear_cross_entropy(xp, x, weight, targets, ignore_index=-100, reduction="mean"):
    """ops.head.linear_cross_entropy: tiles are shared out over the threads; dweight goes straight
    into its buffer, tile by tile."""
    N, V = x.shape[0], weight.shape[0]
    spans = _tiles(V)
    counted = targets != ignore_index
    at_target = np.zeros(N, x.dtype)
    kept = [None] * len(spans)
    tops, sums = np.empty((2, len(spans), N), x.dtype)

    def forward(start, stop):
        for k in range(start, stop):
            tile, tops[k], sums[k] = _exponentials(x, weight, targets, spans[k], None, at_target)
            kept[k] = tile if N * V <= KEEP else None

    _shared(len(spans), forward)
    top = _finite(tops.max(axis=0))  # (N,)
    sums *= np.exp(tops - top)
    total = sums.sum(axis=0)
    losses = np.log(total) + top - at_target
    losses[~counted] = 0.0
    norm = counted.sum().astype(x.dtype) if reduction == "mean" else None

    def backward(dy, needs):
        d = np.where(counted, dy / norm if reduction == "mean" else dy, 0).astype(x.dtype)  # (N,)
        into, dweight = needs[1], None
        if needs[1] and not isinstance(into, Sink):
            dweight = np.empty(weight.shape, weight.dtype)
            into = Sink(dweight)
        parts, share = [], d / total

        def tiles(start, stop):
            dx = None
            for k in range(start, stop):
                a, b = spans[k]
                tile, kept[k] = kept[k], None
                if tile is None:
                    tile, *_ = _exponentials(x, weight, targets, spans[k], top)
                    _scale_rows(tile, share)
                else:
                    _scale_rows(tile, share * np.exp(tops[k] - top))
                rows = np.flatnonzero((targets >= a) & (targets < b) & counted)
                tile[rows, targets[rows] - a] -= d[rows]
                if needs[1]:
                    into.add_product(tile.T, x, a)
                if needs[0]:
                    dx = _added(dx, tile, weight[a:b])
            parts.append((start, dx))

        _shared(len(spans), tiles)
        if needs[1]:
            into.complete()
        dx = None
        for _, part in sorted(parts, key=lambda p: p[0]):  # in this order, whoever came first
            dx = part if dx is None else np.add(dx, part, out=dx)
        return dx, dweight, None

    if reduction == "none":
        return losses, backward
    loss = losses.sum()
    return loss if reduction == "sum" else loss / norm, backward


def _shared(n, body):
    """Over the threads if there are tiles for all of them, else here: products split their rows."""
    if n >= team():
        products_in_parts(n, body)
    else:
        body(0, n)


def _added(dx, tile, weight):
    """dx + tile weight; the first product is dx."""
    if dx is None:
        return product(tile, weight)
    dx += np.matmul(tile, weight, out=scratch("head", dx.shape, dx.dtype))
    return dx
