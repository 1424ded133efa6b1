"""Attention by torch's fused kernels, forward and backward; and RoPE.  Read ops/attention.py first.

Which kernel runs: attention_choice.py. What none of them takes (an explicit mask, dropout's mask, a
causal mask on unequal lengths) runs the reference: a row that may look nowhere gives 0 there, and
not what a kernel makes of it.
"""

from __future__ import annotations

import torch

from nplm.autograd.op import OPS, override
from nplm.backend.torch_kernels.attention_choice import candidates, remember
from nplm.backend.torch_kernels.precision import (
    in_bfloat16,
    lowers,
    narrowed,
    wide,
    widening,
)

aten = torch.ops.aten


# ---- one kernel each: (q, k, v, causal, scale) -> (y, backward), backward(dy) -> (dq, dk, dv) ----
def cpu_flash(q, k, v, causal, scale):
    """aten's flash attention for CPUs."""
    y, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)

    def backward(dy):
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dy, q, k, v, y, lse, 0.0, causal, scale=scale
        )

    return y, backward


def flash(q, k, v, causal, scale):
    """FlashAttention-2 on CUDA; takes heads in groups itself."""
    y, lse, from_q, from_k, max_q, max_k, seed, offset, _ = (
        aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    )

    def backward(dy):
        return aten._scaled_dot_product_flash_attention_backward(
            dy, q, k, v, y, lse, from_q, from_k, max_q, max_k, 0.0, causal, seed, offset,
            scale=scale,
        )  # fmt: skip

    return y, backward


def cudnn(q, k, v, causal, scale):
    """cuDNN's attention; its backward has another order of arguments, and None for no bias."""
    y, lse, from_q, from_k, max_q, max_k, seed, offset, _ = (
        aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal, False, scale=scale
        )
    )

    def backward(dy):
        return aten._scaled_dot_product_cudnn_attention_backward(
            dy, q, k, v, y, lse, seed, offset, None, from_q, from_k, max_q, max_k, 0.0, causal,
            scale=scale,
        )  # fmt: skip

    return y, backward


def efficient(q, k, v, causal, scale):
    """Memory-efficient attention on CUDA, the one that takes float32."""
    y, lse, seed, offset = aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, causal, scale=scale
    )

    def backward(dy):
        wanted = [True, True, True, False]  # q, k, v, bias
        return aten._scaled_dot_product_efficient_attention_backward(
            dy, q, k, v, None, y, lse, seed, offset, 0.0, wanted, causal, scale=scale
        )[:3]

    return y, backward


KERNELS = {"cpu": cpu_flash, "cudnn": cudnn, "flash": flash, "efficient": efficient}


# ---- the op --------------------------------------------------------------------------------------
def _fits(q, k, v, mask=None, keep=None, causal=False, scale=None, dropout_p=0.0):
    return (
        mask is None
        and keep is None
        and q.ndim == k.ndim == v.ndim == 4
        and q.dtype == k.dtype == v.dtype
        and q.is_floating_point()
        and k.shape == v.shape
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and q.numel() > 0 < k.numel()
        and q.shape[1] % k.shape[1] == 0
        and (not causal or q.shape[2] == k.shape[2])
    )


@override("attention", backend="torch", when=_fits)
def attention(xp, q, k, v, mask=None, keep=None, causal=False, scale=None, dropout_p=0.0):
    """ops.attention.attention by the first kernel of the device that takes these shapes."""
    given, low = (q, k, v), lowers(q, k, v)
    rows = [_rows(in_bfloat16(x) if low else x) for x in given]
    y, backward = _attend(xp, *rows, causal, scale)
    backward = narrowed(backward, given, rows[0].dtype) if low else backward
    return y, lambda dy: (*backward(dy), None, None)


def _attend(xp, q, k, v, causal, scale):
    """(y, backward) by the first candidate that does not refuse, after all of them the reference.

    A kernel's word about a shape is its first use: what it raises is remembered.
    """
    for name in candidates(q, k, causal):
        try:
            y, of_kernel = _in_groups(name, q, k, v, causal, scale)
        except RuntimeError as error:
            remember(name, q, k, causal, error)
            continue

        def backward(dy, name=name, of_kernel=of_kernel):
            try:
                return of_kernel(_rows(dy))
            except RuntimeError as error:  # this shape goes forward only: another from now on
                remember(name, q, k, causal, error)
                return _attend(xp, q, k, v, causal, scale)[1](dy)

        return y, backward
    op = OPS["attention"].raw
    y, backward = op(xp, *map(widening, (q, k, v)), causal=causal, scale=scale)
    return y.to(q.dtype), narrowed(lambda dy: backward(dy)[:3], (q, k, v), wide(q.dtype))


def _in_groups(name, q, k, v, causal, scale):
    """A kernel on heads that share keys: the keys are repeated for it, unless it knows groups."""
    B, H = q.shape[:2]
    G, S, D = k.shape[1:]
    if H == G or name == "flash":
        return KERNELS[name](q, k, v, causal, scale)

    def repeated(x):
        return x.unsqueeze(2).expand(B, G, H // G, S, D).reshape(B, H, S, D)

    y, backward = KERNELS[name](q, repeated(k), repeated(v), causal, scale)

    def summed(dy):
        dq, *others = backward(dy)
        return dq, *(dx.unflatten(1, (G, H // G)).sum(2) for dx in others)

    return y, summed


def _rows(x):
    """`x` with rows in one piece, as kernels want it: heads may lie anywhere."""
    return x if x.stride(-1) == 1 else x.contiguous()


# ---- RoPE ----------------------------------------------------------------------------------------
def _turns(x, cos, sin):
    half = (x.shape[-2], x.shape[-1] // 2) if x.ndim > 1 else None
    return (
        x.is_floating_point()
        and x.shape[-1] % 2 == 0
        and cos.shape == sin.shape == half
        and cos.dtype == sin.dtype
        and cos.dtype in (x.dtype, wide(x.dtype))
    )


@override("rope", backend="torch", when=_turns)
def rope(xp, x, cos, sin):
    """ops.attention.rope in float32 (or float64), written in place; the result in x's dtype."""
    dtype, working = x.dtype, wide(x.dtype)
    cos, sin = cos.to(working), sin.to(working)

    def rotated(x, back):
        x = x.to(working)
        y = torch.empty_like(x)
        (x1, x2), (y1, y2) = x.chunk(2, -1), y.chunk(2, -1)
        torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=1 if back else -1)
        torch.mul(x2, cos, out=y2).addcmul_(x1, sin, value=-1 if back else 1)
        return y.to(dtype)

    return rotated(x, False), lambda dy: (rotated(dy, True), None, None)
