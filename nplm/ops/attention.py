"""Attention: softmax(q k^T) v with a causal or explicit mask, heads in groups; and RoPE."""

import math

from nplm.autograd.op import op
from nplm.ops.dropout import dropout_scale
from nplm.ops.elementwise import unbroadcast
from nplm.ops.reduce import top_of


@op
def rope(xp, x, cos, sin):
    """Rotate pairs (i, i + D/2) of each head by an angle that grows with the position.

    x (..., T, D), cos and sin (T, D/2) -> (..., T, D)      (Su et al., 2021; the halves layout of
    GPT-NeoX and Llama)   y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin;  backward turns by -angle.
    """
    half = x.shape[-1] // 2
    if tuple(cos.shape) != (x.shape[-2], half) or x.shape[-1] % 2:
        raise RuntimeError(
            f"rope: expected cos and sin of shape {(x.shape[-2], half)} and an even head size for "
            f"x {tuple(x.shape)}, got {tuple(cos.shape)}"
        )

    def rotate(x, sin):
        x1, x2 = x[..., :half], x[..., half:]
        return xp.concat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)

    return rotate(x, sin), lambda dy: (rotate(dy, -sin), None, None)


def _scores_mask(xp, scores, mask, causal):
    """Scores with -inf where a query must not look."""
    minus_inf = xp.full((), -math.inf, scores)
    if causal:
        T, S = scores.shape[-2:]
        scores = scores + xp.triu(xp.full((T, S), -math.inf, scores), 1)
    if mask is not None:
        if xp.is_floating(mask):
            return scores + xp.astype(mask, scores.dtype)
        return xp.where(mask, scores, minus_inf)
    return scores


@op
def attention(xp, q, k, v, mask=None, keep=None, causal: bool = False, scale: float | None = None,
              dropout_p: float = 0.0):  # fmt: skip
    """q (..., H, T, D), k (..., G, S, D), v (..., G, S, E) -> (..., H, T, E), G divides H

    p = softmax(scale q k^T + mask), y = p v;  query heads h share the key head h // (H / G).
    mask broadcasts to (..., H, T, S): booleans (True looks) or numbers that are added; `causal`
    lets position t see 0..t. keep (..., H, T, S) is dropout's mask on p. A row that may look
    nowhere gives 0. Twin: torch.nn.functional.scaled_dot_product_attention(enable_gqa=True)
    """
    H, T, D = q.shape[-3:]
    G, S, E = v.shape[-3:]
    if k.shape[-1] != D or k.shape[-3:-1] != v.shape[-3:-1] or G == 0 or H % G:
        raise RuntimeError(
            f"attention: expected q (..., H, T, D), k (..., G, S, D), v (..., G, S, E) with H a "
            f"multiple of G, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    scale = 1 / math.sqrt(D) if scale is None else scale
    batch = tuple(q.shape[:-3])

    def rows(x):  # (..., H, T, N) -> (..., G, H/G T, N): the heads of a group share one product
        return x.reshape((*batch, G, H // G * T, x.shape[-1]))

    grouped = rows(q)
    scores = xp.matmul(grouped, xp.swapaxes(k, -1, -2)) * scale  # (..., G, H/G T, S)
    scores = _scores_mask(xp, scores.reshape((*batch, H, T, S)), mask, causal)
    top = top_of(xp, scores, (scores.ndim - 1,))
    e = xp.exp(scores - xp.where(top == -math.inf, xp.zeros((), top), top))
    total = xp.sum(e, axis=-1, keepdims=True)
    p = e / xp.where(total == 0, xp.ones((), total), total)  # (..., H, T, S)
    keep_scale = None if keep is None else dropout_scale(xp, keep, p, dropout_p)
    dropped = p if keep is None else p * keep_scale

    def backward(dy):
        dv = xp.matmul(xp.swapaxes(rows(dropped), -1, -2), rows(dy))
        dp = xp.matmul(rows(dy), xp.swapaxes(v, -1, -2)).reshape(p.shape)
        dp = dp if keep is None else dp * keep_scale
        ds = p * (dp - xp.sum(dp * p, axis=-1, keepdims=True))
        dq = xp.matmul(rows(ds), k).reshape(q.shape) * scale
        dk = xp.matmul(xp.swapaxes(rows(ds), -1, -2), grouped) * scale
        dmask = unbroadcast(xp, ds, mask) if mask is not None else None
        return dq, unbroadcast(xp, dk, k), unbroadcast(xp, dv, v), dmask, None

    return xp.matmul(rows(dropped), v).reshape((*batch, H, T, E)), backward
