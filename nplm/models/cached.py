"""The decoder once more, for generation on NumPy: a token is one row, keys and values are kept.

Read decoder.py before: the same scores without Tensors, without a graph, without the positions
that were there before.  What an op costs beside its arithmetic is most of the time of one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nplm.autograd import overrides
from nplm.autograd.graph import flags
from nplm.autograd.op import Op
from nplm.autograd.tensor import Tensor
from nplm.backend import numpy as xp
from nplm.models.decoder import Block, Decoder
from nplm.nn.attention import CausalSelfAttention, rope_angles
from nplm.nn.containers import ModuleList
from nplm.nn.functional import check_range
from nplm.nn.layers import MLP, Dropout, Embedding, LayerNorm, Linear, RMSNorm
from nplm.nn.module import Module
from nplm.ops.activation import gelu, swiglu
from nplm.ops.attention import attention, rope

Rows = np.ndarray  # (T, C)
Layer = Callable[[Rows], Rows]
KNOWN = (
    Block, CausalSelfAttention, Decoder, Dropout, Embedding, LayerNorm, Linear, MLP, ModuleList,
    RMSNorm,
)  # fmt: skip


class CachedDecoder:
    """`decoder(tokens)` gives the scores of the next token (V,), as `model(tokens)[0, -1]` does.

    One token more than in the last call costs one row, and attention over the rows before; any
    other tokens are computed anew. So are all past the `context`th: each of the last `context`
    tokens is then at another position than in the last call, and its key is another one too.

    held     the tokens whose keys and values are kept
    cache    (L, 2, G, context, D) keys and values; memory that is not used yet is not taken

    Each has a cache of its own, so any number can read one model; its weights must stay as they
    are meanwhile. Nothing is recorded, and dropout is off whatever the model's mode.
    """

    def __init__(self, model: Decoder) -> None:
        self.config = c = model.config
        D = c.n_embd // c.n_head
        self.held: list[int] = []
        self.table = model.wte.weight.array  # (V, C)
        self.positions = model.wpe.weight.array if c.positions == "learned" else None
        self.cache = np.empty((c.n_layer, 2, c.kv_heads, c.context, D), self.table.dtype)
        angles = None
        if c.positions == "rope":  # of all positions at once
            cos, sin = rope_angles(
                c.context, D, c.rope_theta, model.wte.weight.device, model.wte.weight.dtype
            )
            angles = cos.array, sin.array
        self.blocks = [
            (_norm(block.norm1), _attention(block.attn, kept, angles), _norm(block.norm2),
             _mlp(block.mlp))
            for block, kept in zip(model.blocks, self.cache)
        ]  # fmt: skip
        self.norm, self.head = _norm(model.norm), _linear(model.head)

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """The scores (V,) after these tokens, at least one.

        Raises DataError for a token outside the vocabulary.
        """
        seen = list(tokens[-self.config.context :])
        start = len(self.held) if self.held == seen[:-1] else 0
        ids = np.array(seen[start:], np.int64)  # (T,)
        check_range("embedding", "ids", Tensor(ids[None]), len(self.table))
        self.held = []  # until all layers have kept theirs
        with xp.quiet():
            x = self.table[ids]  # (T, C)
            if self.positions is not None:
                x += self.positions[start : start + len(ids)]
            for norm1, attend, norm2, mlp in self.blocks:
                x += attend(norm1(x), start)
                x += mlp(norm2(x))
            scores: np.ndarray = self.head(self.norm(x[-1:]))[0]
        self.held = seen
        return scores


def cached(model: Any) -> CachedDecoder | None:
    """The model with a cache, or None for one that has to be called as a whole.

    That is every model but a Decoder of nplm's own layers, in NumPy arrays of one dtype, whose
    `forward`s are their classes'; and any model while only reference ops are used.
    """
    if flags.reference or overrides._always_reference or type(model) is not Decoder:
        return None
    own = all(type(m) in KNOWN and "forward" not in vars(m) for m in model.modules())
    kinds = {(p.xp.name, p.dtype) for p in model.parameters()}
    return CachedDecoder(model) if own and [name for name, _ in kinds] == ["numpy"] else None


# ---- layers: from a module to a function of rows -------------------------------------------------
def _value(op: Op, *arrays: Any, **options: Any) -> Any:
    """What an op returns, by its fastest body, of raw arrays."""
    body = overrides.choose(op.name, xp, arrays, options) or op.raw
    return body(xp, *arrays, **options)[0]


def _linear(layer: Linear) -> Layer:
    weight = layer.weight.array.T  # (in, out)
    if layer.bias is None:
        return lambda x: np.dot(x, weight)
    bias = layer.bias.array
    return lambda x: np.dot(x, weight) + bias


def _norm(layer: Module) -> Layer:
    eps, weight, C = layer.eps, layer.weight.array, len(layer.weight)
    bias = layer.bias.array if isinstance(layer, LayerNorm) and layer.bias is not None else None

    def scaled(n: Rows) -> Rows:
        n = n / np.sqrt(np.vecdot(n, n) / C + eps)[:, None]
        n *= weight
        return n if bias is None else np.add(n, bias, out=n)

    if isinstance(layer, RMSNorm):
        return scaled
    return lambda x: scaled(x - np.add.reduce(x, -1, keepdims=True) / C)


def _mlp(layer: MLP) -> Layer:
    fc, proj, kind = _linear(layer.fc), _linear(layer.proj), layer.activation
    if kind == "swiglu":
        return lambda x: proj(_value(swiglu, *np.split(fc(x), 2, -1)))
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    return lambda x: proj(_value(gelu, fc(x), approximate=approximate))


def _attention(
    layer: CausalSelfAttention, kept: np.ndarray, angles: tuple[np.ndarray, np.ndarray] | None
) -> Callable[[Rows, int], Rows]:
    """Rows that begin at position `start` mix the values up to themselves; theirs are kept.

    kept (2, G, room, D): keys and values.  angles: cos and sin (room, D/2), or None.
    """
    H, G, D = layer.n_head, layer.n_kv_head, layer.head_size
    qkv, proj = _linear(layer.qkv), _linear(layer.proj)
    keys, values = kept
    scale = 1 / math.sqrt(D)

    def one(q: np.ndarray, stop: int) -> Rows:  # q (H, 1, D): every key is visible
        q = q.reshape(G, H // G, D)
        p = np.matmul(q, keys[:, :stop].swapaxes(1, 2))  # (G, H/G, S)
        p *= scale
        p -= p.max(-1, keepdims=True)
        np.exp(p, out=p)
        y = np.matmul(p, values[:, :stop])  # (G, H/G, D)
        y /= p.sum(-1, keepdims=True)
        return y.reshape(1, H * D)

    def attend(x: Rows, start: int) -> Rows:
        T, stop = len(x), start + len(x)
        heads = qkv(x).reshape(T, H + 2 * G, D).swapaxes(0, 1)  # (H + 2 G, T, D): q, k, v
        q, k = heads[:H], heads[H : H + G]
        if angles is not None:
            cos, sin = angles
            turned = rope.raw(xp, heads[: H + G], cos[start:stop], sin[start:stop])[0]
            q, k = turned[:H], turned[H:]
        keys[:, start:stop], values[:, start:stop] = k, heads[H + G :]
        if T == 1:
            return proj(one(q, stop))
        y = _value(attention, q[None], k[None], heads[None, H + G :], None, None, causal=True)
        return proj(y[0].swapaxes(0, 1).reshape(T, H * D))  # from (H, T, D)

    return attend
