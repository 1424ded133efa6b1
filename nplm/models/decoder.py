"""Decoder: the whole model on one page.  GPT-2 and Llama are settings of it (models/config.py).

Read nn/layers.py and nn/attention.py before.
"""

from __future__ import annotations

import math

from nplm.autograd.tensor import Tensor
from nplm.models.config import DecoderConfig
from nplm.nn import functional as F
from nplm.nn import init
from nplm.nn.attention import CausalSelfAttention
from nplm.nn.containers import ModuleList
from nplm.nn.layers import MLP, Dropout, Embedding, LayerNorm, Linear, RMSNorm
from nplm.nn.module import Module
from nplm.ops.creation import arange
from nplm.utils.checkpoint import checkpoint


def _norm(config: DecoderConfig) -> Module:
    if config.norm == "rms":
        return RMSNorm(config.n_embd, eps=config.norm_eps)
    return LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).   (B, T, C) -> (B, T, C)"""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = _norm(c)
        self.attn = CausalSelfAttention(
            c.n_embd, c.n_head, c.kv_heads, c.bias, c.dropout,
            rope_theta=c.rope_theta if c.positions == "rope" else None,
        )  # fmt: skip
        self.norm2 = _norm(c)
        self.mlp = MLP(c.n_embd, c.hidden, c.activation, c.bias, c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(Module):
    """tokens (B, T) -> logits (B, T, V), the scores of the next token at every position.

    Weights start as GPT-2's: normal with deviation 0.02, biases 0, and the projections that end a
    residual branch (`proj`) with 0.02 / sqrt(2 n_layer).
    """

    # No row sees another: a batch may be divided (train/shards.py).  With `recompute` the blocks
    # keep their inputs alone and run again in the backward: how to train, and no part of the model.
    row_independent, recompute = True, False

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = Embedding(config.context, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.blocks = ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = _norm(config)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.wte.weight
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module: Module) -> None:
        if isinstance(module, Linear | Embedding):
            init.normal_(module.weight, 0.0, 0.02)
        if isinstance(module, Linear) and module.bias is not None:
            init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int -> (B, T, V)"""
        return self.head(self.features(ids))

    def features(self, ids: Tensor) -> Tensor:
        """(B, T) int -> (B, T, C), what the head reads."""
        if ids.ndim != 2 or self.config.context < ids.shape[1]:
            expected = f"(B, T) with T at most {self.config.context} (context)"
            raise ValueError(f"Decoder: expected tokens {expected}, got {ids.shape}")
        x = self.wte(ids)  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.wpe(arange(ids.shape[1], device=ids.device))
        x = self.dropout(x)
        for block in self.blocks:
            x = checkpoint(block, x) if self.recompute else block(x)
        return self.norm(x)

    def loss(self, features: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
        """(B, T, C), (B, T) int -> (), or (B T,): the loss of every token; makes no logits."""
        rows, t = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
        return F.linear_cross_entropy(rows, self.head.weight, t, reduction=reduction)

    def num_parameters(self) -> int:
        """Trainable numbers; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())
