"""Causal attention in blocks of query rows, and RoPE by complex numbers, on NumPy.

Read ops/attention.py first.  Letters as there; R = H / G query heads share a key head.
"""

import math

import numpy as np

from nplm.autograd.op import override
from nplm.backend import threads
from nplm.backend.scratch import ones, scratch

_BLOCK = 64  # query rows at a time; 32 and 128 are slower by 2 and 12 %
_TILE = 1 << 18  # scores of a block in all heads of a tile: its scratch takes 1 MB in float32
_LEAST = 1 << 15  # scores that make a thread of its own worth starting
_REACH = 4.0  # the rounding of a score x makes exp(x) wrong by x ulps, unless x is shifted to 0
_LATER = {  # what is added where a query must not look, within a block on the diagonal
    np.dtype(dtype): np.triu(np.full((_BLOCK, _BLOCK), -math.inf, dtype), 1)
    for dtype in (np.float32, np.float64)
}


def _is_causal(q, k, v, mask=None, keep=None, causal=False, scale=None, dropout_p=0.0):
    if not causal or mask is not None or not q.ndim == k.ndim == v.ndim == 4:
        return False
    B, H, T, D = q.shape
    G, dtype = k.shape[1], q.dtype
    return (
        dtype == k.dtype
        and dtype == v.dtype
        and dtype in _LATER
        and q.size > 0 < v.size
        and H % G == 0
        and k.shape == (B, G, T, D)
        and v.shape[:3] == (B, G, T)
        and (keep is None or (keep.shape == (B, H, T, T) and dropout_p < 1))
    )


@override("attention", backend="numpy", when=_is_causal)
def attention(xp, q, k, v, mask=None, keep=None, causal=False, scale=None, dropout_p=0.0):
    """ops.attention.attention where it is causal: blocks of query rows skip the masked half.

    Products take q, k and v where they are (views of a packed qkv, for example), p is kept without
    its masked blocks, and everything between two products happens in place. y and the gradients
    are laid out for the model: y as (B, T, H, E) in memory, dq, dk and dv side by side in one
    (B, T, H D + G D + G E), so that merging heads, and joining q, k and v, copies nothing.
    A NaN in a key reaches the rows of its own block and later ones; in the reference every row.
    """
    B, H, T, D = q.shape
    G, E = k.shape[1], v.shape[-1]
    R = H // G
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    drop = None if keep is None else (keep.reshape(B, G, R, T, T), 1 / (1 - dropout_p))
    y = _heads(np.empty((B, T, H * E), q.dtype), G, R)
    q, k, v = _in_groups(q, R), _in_groups(k, 1), _in_groups(v, 1)
    tiles = _tiles(B, H, G, T)
    kept = [None] * len(tiles)  # p of each tile, a list of blocks

    def forward(start, stop):
        for n in range(start, stop):
            at = tiles[n]
            kept[n] = _forward(q[at], k[at], v[at], scale, _of_tile(drop, at), y[at])

    def backward(dy):
        dy = _in_groups(dy, R)
        packed = np.empty((B, T, H * D + G * D + G * E), q.dtype)
        dq = _heads(packed[..., : H * D], G, R)
        dk = _heads(packed[..., H * D : (H + G) * D], G, 1)
        dv = _heads(packed[..., (H + G) * D :], G, 1)

        def of_tiles(start, stop):
            for n in range(start, stop):
                at = tiles[n]
                into = dq[at], dk[at], dv[at]
                _backward(dy[at], q[at], k[at], v[at], kept[n], scale, _of_tile(drop, at), into)

        threads.in_parts(len(tiles), of_tiles)
        return dq.reshape(B, H, T, D), dk.reshape(B, G, T, D), dv.reshape(B, G, T, E), None, None

    threads.in_parts(len(tiles), forward)
    return y.reshape(B, H, T, E), backward


def _heads(x, G, R):
    """The heads of a (B, T, G R N), as a view (B, G, R, T, N)."""
    B, T, width = x.shape
    return x.reshape(B, T, G, R, width // (G * R)).transpose(0, 2, 3, 1, 4)


def _in_groups(x, R):
    """(B, G R, T, N) -> (B, G, R, T, N): a view, unless BLAS could not read rows of it."""
    if x.strides[-1] != x.itemsize or x.strides[-2] < x.shape[-1] * x.itemsize:
        x = np.ascontiguousarray(x)
    return x.reshape(x.shape[0], x.shape[1] // R, R, *x.shape[2:])


def _tiles(B, H, G, T):
    """Slices of batch and key heads, of at most _TILE scores where it can be; some per thread."""
    scores = B * H * min(_BLOCK, T) * T
    team = min(threads.team(), scores // _LEAST) if threads.blas_is_held() else 1
    team = max(team, 1)
    n = team * -(-scores // (team * _TILE))
    if n == 1:
        return [(slice(0, B), slice(0, G))]
    rows = min(B, n)
    heads = min(G, -(-n // rows))
    return [
        (slice(B * i // rows, B * (i + 1) // rows), slice(G * h // heads, G * (h + 1) // heads))
        for i in range(rows)
        for h in range(heads)
    ]


def _of_tile(drop, at):
    return None if drop is None else (drop[0][at], drop[1])


def _forward(q, k, v, scale, drop, y):
    """Fill y (b, g, R, T, E) of one tile; return p, a list of (b, g, R, j - i, j) for rows i..j."""
    T, blocks = q.shape[-2], []
    keys = k.swapaxes(-1, -2)
    for i in range(0, T, _BLOCK):
        j = min(i + _BLOCK, T)
        p = np.matmul(q[..., i:j, :], keys[..., :j])
        p *= scale
        _softmax(p, _LATER[p.dtype][: j - i, : j - i], ones(j, p.dtype))
        blocks.append(p)
        p = p if drop is None else _dropped(p, drop)
        np.matmul(p, v[..., :j, :], out=y[..., i:j, :])
    return blocks


def _softmax(p, later, each):
    """Softmax over the last axis, in place; `later` masks the last columns.

    Subtracting the largest score of each row keeps exp from overflow, and takes longer than exp
    itself. It is left out where no score is beyond +-_REACH: decided for the heads of a group at
    once, so that bits do not depend on the tile that they lie in.
    """
    m, (b, g, R, _, j) = len(later), p.shape
    flat = p.reshape(b, g, R * m * j)
    near = np.maximum.reduce(flat, -1) <= _REACH  # False for NaN
    near &= np.minimum.reduce(flat, -1) >= -_REACH
    all_near = near.all()
    p[..., -m:] += later
    if not all_near:
        top = p.max(-1, keepdims=True)
        p -= np.where(near[..., None, None, None] | (top == -math.inf), p.dtype.type(0), top)
    np.exp(p, out=p)
    total = np.matmul(p, each)[..., None]
    if not all_near:
        total[total == 0] = 1  # a row whose scores are all -inf gives 0
    p *= np.reciprocal(total, out=total)


def _dropped(p, drop):
    """p keep / (1 - dropout_p), in scratch."""
    keep, factor = drop
    rows, j = p.shape[-2:]
    out = scratch("attention.dropped", p.shape, p.dtype)
    np.multiply(p, keep[..., j - rows : j, :j], out=out)
    out *= factor
    return out


def _backward(dy, q, k, v, blocks, scale, drop, into):
    """Fill dq, dk and dv of one tile; p is dropped block by block."""
    dq, dk, dv = into
    values, T = v.swapaxes(-1, -2), q.shape[-2]
    for i in reversed(range(0, T, _BLOCK)):
        j = min(i + _BLOCK, T)
        p, q_i, dy_i = blocks.pop(), q[..., i:j, :], dy[..., i:j, :]
        first = j == T  # these rows see every key: they fill dk and dv, the others add
        _add_product(dv, p if drop is None else _dropped(p, drop), dy_i, first)
        ds = scratch("attention.ds", p.shape, p.dtype)
        np.matmul(dy_i, values[..., :j], out=ds)  # dp
        if drop is not None:
            ds *= drop[0][..., i:j, :j]
            ds *= drop[1]
        ds -= np.vecdot(ds, p)[..., None]  # not dy y, which is shorter but cancels less exactly
        ds *= p
        ds *= scale
        np.matmul(ds, k[..., :j, :], out=dq[..., i:j, :])
        _add_product(dk, ds, q_i, first)


def _add_product(total, a, b, first):
    """total (b, g, 1, T, N)[:j] += a^T b, over the rows of all R heads of a group at once.

    a (b, g, R, m, j), b (b, g, R, m, N); reshaping copies only b, and only where R > 1.
    """
    batch, groups, R, m, j = a.shape
    total = total[..., 0, :j, :]
    turned = a.reshape(batch, groups, R * m, j).swapaxes(-1, -2)
    b = b.reshape(batch, groups, R * m, b.shape[-1])
    if first:
        np.matmul(turned, b, out=total)
    else:
        more = scratch("attention.product", total.shape, total.dtype)
        total += np.matmul(turned, b, out=more)


# ---- rotary positions ----------------------------------------------------------------------------
def _is_rotation(x, cos, sin):
    return (
        x.ndim >= 2
        and x.shape[-1] % 2 == 0
        and cos.shape == sin.shape == (x.shape[-2], x.shape[-1] // 2)
        and x.dtype == cos.dtype == sin.dtype
        and x.dtype in _LATER
    )


@override("rope", backend="numpy", when=_is_rotation)
def rope(xp, x, cos, sin):
    """ops.attention.rope: a pair is a complex number, one product with cos + i sin turns it.

    y and dx lie in memory in the order of x and dy: heads that are views of (B, T, H, D) stay so.
    """
    turn = np.empty(cos.shape, np.result_type(cos, np.complex64))  # (T, D/2)
    turn.real, turn.imag = cos, sin
    return _turned(x, turn), lambda dy: (_turned(dy, turn.conj()), None, None)


def _turned(x, turn):
    half = x.shape[-1] // 2
    pairs = scratch("rope", (*x.shape[:-1], half), turn.dtype)
    pairs.real, pairs.imag = x[..., :half], x[..., half:]
    pairs *= turn
    y = np.empty_like(x)
    y[..., :half], y[..., half:] = pairs.real, pairs.imag
    return y
