"""TorchDecoder: the twin of nplm/models/decoder.py for every DecoderConfig.

Written only from torch.nn and torch.nn.functional. The names of the parameters and the order of
construction are the same, so state_dicts travel by name and equal seeds give the same weights.
The rotary positions turn complex numbers, where nplm multiplies by cosines and sines.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def rope(x, theta):
    """Turn (x[i], x[i + D/2]) by position * theta**(-2i/D).   x (..., T, D)"""
    T, D = x.shape[-2:]
    speed = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * speed  # (T, D/2)
    turned = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1).to(x.dtype)


class TorchAttention(nn.Module):
    """The twin of nplm.nn.CausalSelfAttention."""

    def __init__(self, n_embd, n_head, n_kv_head=None, bias=True, dropout=0.0, rope_theta=None):
        super().__init__()
        self.H, self.G, self.D = n_head, n_kv_head or n_head, n_embd // n_head
        self.rope_theta = rope_theta
        self.qkv = nn.Linear(n_embd, (self.H + 2 * self.G) * self.D, bias=bias)
        self.proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        """(B, T, C) -> (B, T, C)"""
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, self.H + 2 * self.G, self.D).transpose(1, 2)
        q, k, v = heads.split((self.H, self.G, self.G), dim=1)
        if self.rope_theta is not None:
            q, k = rope(q, self.rope_theta), rope(k, self.rope_theta)
        p = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p, enable_gqa=True)
        return self.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C)))


class TorchMLP(nn.Module):
    """The twin of nplm.nn.MLP."""

    def __init__(self, n_embd, n_hidden, activation="gelu", bias=True, dropout=0.0):
        super().__init__()
        self.activation = activation
        self.fc = nn.Linear(n_embd, n_hidden * (1 + (activation == "swiglu")), bias=bias)
        self.proj = nn.Linear(n_hidden, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        """(..., C) -> (..., C)"""
        h = self.fc(x)
        if self.activation == "swiglu":
            gate, up = h.tensor_split(2, -1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h, approximate={"gelu": "none", "gelu_tanh": "tanh"}[self.activation])
        return self.dropout(self.proj(h))


def norm(config):
    """LayerNorm or RMSNorm, as the config says."""
    if config.norm == "rms":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


class TorchBlock(nn.Module):
    """The twin of nplm.models.decoder.Block."""

    def __init__(self, config):
        super().__init__()
        theta = config.rope_theta if config.positions == "rope" else None
        self.norm1 = norm(config)
        self.attn = TorchAttention(
            config.n_embd, config.n_head, config.n_kv_head, config.bias, config.dropout, theta
        )
        self.norm2 = norm(config)
        hidden = config.n_hidden or 4 * config.n_embd
        self.mlp = TorchMLP(config.n_embd, hidden, config.activation, config.bias, config.dropout)

    def forward(self, x):
        """(B, T, C) -> (B, T, C)"""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TorchDecoder(nn.Module):
    """tokens (B, T) -> logits (B, T, V), as nplm.models.Decoder."""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.context, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([TorchBlock(config) for _ in range(config.n_layer)])
        self.norm = norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.wte.weight
        self.apply(self._start)
        for block in self.blocks:  # the projections that end a residual branch
            for linear in (block.attn.proj, block.mlp.proj):
                nn.init.normal_(linear.weight, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _start(module):
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids):
        """(B, T) int -> (B, T, V)"""
        x = self.wte(ids)
        if hasattr(self, "wpe"):
            x = x + self.wpe(torch.arange(ids.shape[1]))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
