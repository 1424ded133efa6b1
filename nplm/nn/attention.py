"""CausalSelfAttention: every position mixes the values of the positions up to itself."""

from __future__ import annotations

from typing import Any

from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import bfloat16, float32
from nplm.nn import functional as F
from nplm.nn.layers import Dropout, Linear
from nplm.nn.module import Module
from nplm.ops.creation import arange
from nplm.ops.elementwise import cos, sin


class CausalSelfAttention(Module):
    """Multi-head attention, or grouped-query with n_kv_head < n_head.   (B, T, C) -> (B, T, C)

    qkv packs the projections of all heads, in the order q, k, v:  C -> (H + 2 G) D.
    rope_theta: the base of rotary positions (Su et al., 2021), or None where positions are learned.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        n_kv_head: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        rope_theta: float | None = None,
    ) -> None:
        super().__init__()
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        if n_head < 1 or n_kv_head < 1 or n_embd % n_head or n_head % n_kv_head:
            raise ValueError(
                "CausalSelfAttention: expected n_embd divisible by n_head and n_head by n_kv_head, "
                f"got n_embd={n_embd}, n_head={n_head}, n_kv_head={n_kv_head}"
            )
        self.n_head, self.n_kv_head, self.head_size = n_head, n_kv_head, n_embd // n_head
        self.rope_theta = rope_theta
        self._last_angles: Any = (None, None)  # what they were made for, and they
        self.qkv = Linear(n_embd, (n_head + 2 * n_kv_head) * self.head_size, bias)
        self.proj = Linear(n_embd, n_embd, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        B, T, C = x.shape
        H, G, D = self.n_head, self.n_kv_head, self.head_size
        heads = self.qkv(x).view(B, T, H + 2 * G, D).transpose(1, 2)
        q, k, v = heads.split([H, G, G], 1)  # (B, H, T, D), (B, G, T, D) twice
        if self.rope_theta is not None:
            angles = self._angles(T, x)
            q, k = F.rope(q, *angles), F.rope(k, *angles)
        p = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=p, is_causal=True, enable_gqa=G != H
        )  # (B, H, T, D)
        out: Tensor = self.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C)))
        return out

    def _angles(self, T: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """`rope_angles`, kept for the next call: they cost as much as turning q and k."""
        dtype = float32 if like.dtype is bfloat16 else like.dtype  # 8 bits of an angle are too few
        key = (T, like.device, dtype)
        made_for, angles = self._last_angles
        if made_for != key:
            angles = rope_angles(T, self.head_size, self.rope_theta or 0.0, like.device, dtype)
            self._last_angles = (key, angles)
        found: tuple[Tensor, Tensor] = angles
        return found

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"n_head={self.n_head}, n_kv_head={self.n_kv_head}, rope_theta={self.rope_theta}"


def rope_angles(T: int, D: int, theta: float, device: str, dtype: Any) -> tuple[Tensor, Tensor]:
    """cos and sin (T, D/2) of position * theta**(-2i/D), computed in float64."""
    frequencies = theta ** (arange(0, D, 2).double() * (-1.0 / D))  # (D/2,)
    angles = arange(T).double().unsqueeze(1) * frequencies  # (T, D/2)
    return cos(angles).to(device, dtype), sin(angles).to(device, dtype)
