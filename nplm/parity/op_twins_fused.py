"""The twins of the fused ops: products, embedding, norms, attention, losses.  Read op_twins.py."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from nplm.parity.op_inputs import B, C, Call, T, V, chosen, normal, silent, twin


# ---- products, embedding, norms ------------------------------------------------------------------
@twin("matmul", torch.matmul)
def _(rng):
    return [
        Call((normal(rng, B * T, C), normal(rng, C, 512))),
        Call((normal(rng, B, 6, T, 64), normal(rng, B, 6, 64, T))),
        Call((normal(rng, B, T, C), normal(rng, C, 64))),
    ]


@twin("linear", F.linear)
def _(rng):
    return [
        Call((normal(rng, 8, 128, C), normal(rng, C, C, scale=0.05), normal(rng, C))),
        Call((normal(rng, B, T, C), normal(rng, 4 * C, C, scale=0.05), None)),
    ]


@twin("embedding", lambda ids, weight, padding_idx: F.embedding(ids, weight, padding_idx))
def _(rng):
    return [
        Call((rng.integers(0, V, (8, 256)), normal(rng, V, C)), {"padding_idx": None}),
        Call((rng.integers(0, 65, (8, 256)), normal(rng, 65, C)), {"padding_idx": 0}),
    ]


def layer_norm_twin(x, weight=None, bias=None, n_axes=1, eps=1e-5):
    """torch names the sizes of the last axes where the op counts them."""
    return F.layer_norm(x, x.shape[x.ndim - n_axes :], weight, bias, eps=eps)


def rms_norm_twin(x, weight=None, n_axes=1, eps=1e-5):
    """As `layer_norm_twin`."""
    return F.rms_norm(x, x.shape[x.ndim - n_axes :], weight, eps=eps)


@twin("layer_norm", layer_norm_twin)
def _(rng):
    x = normal(rng, 8, 128, C, scale=2.0)
    far = normal(rng, B, T, C) + 5.0  # a mean that is large beside the deviation
    return [
        Call((x, normal(rng, C), normal(rng, C)), {"n_axes": 1, "eps": 1e-5}),
        Call((far, normal(rng, C), None), {"n_axes": 1, "eps": 1e-5}),
        Call((x, None, None), {"n_axes": 1, "eps": 1e-5}),
    ]


@twin("rms_norm", rms_norm_twin)
def _(rng):
    x = normal(rng, 8, 128, C, scale=2.0)
    return [
        Call((x, normal(rng, C)), {"n_axes": 1, "eps": 1e-5}),
        Call((x, None), {"n_axes": 1, "eps": 1e-5}),
    ]


# ---- attention -----------------------------------------------------------------------------------
def rope_twin(x, cos, sin):
    """The halves turned by torch's own products."""
    x1, x2 = x.chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)


@twin("rope", rope_twin, constant=(1, 2))
def _(rng):
    angles = np.arange(T)[:, None] * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    return [Call((normal(rng, B, 6, T, 64), np.cos(angles), np.sin(angles)))]


def attention_twin(q, k, v, mask=None, keep=None, causal=False, scale=None, dropout_p=0.0):
    """scaled_dot_product_attention by torch's readable kernel, MATH; dropout's mask handed in."""
    T, S = q.shape[-2], k.shape[-2]
    if causal and mask is not None:
        lower = torch.ones(T, S).tril().bool()
        mask = mask & lower if mask.dtype == torch.bool else mask.where(lower, -math.inf)
        causal = False
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        attend = F.scaled_dot_product_attention
        if keep is None:
            return attend(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True)
        p = attend(q, k, torch.eye(S, dtype=v.dtype).expand(*k.shape[:-1], S), mask,
                   is_causal=causal, scale=scale, enable_gqa=True)  # fmt: skip
    v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
    kept = keep.to(p.dtype) / (1 - dropout_p) if dropout_p < 1 else 0.0
    return (p * kept) @ v


@twin("attention", attention_twin)
def _(rng):
    def heads(n, T, D=64):
        return normal(rng, 2, n, T, D)

    plain = {"causal": False, "scale": None, "dropout_p": 0.0}
    return [
        Call((heads(4, 256), heads(4, 256), heads(4, 256), None, None), plain | {"causal": True}),
        Call((heads(4, T), heads(2, T), heads(2, T), normal(rng, T, T), None), plain),
        Call(
            (heads(4, T), heads(4, T), heads(4, T), None, chosen(rng, 2, 4, T, T, p=0.9)),
            plain | {"causal": True, "dropout_p": 0.1},
        ),
    ]


# ---- losses --------------------------------------------------------------------------------------
def _class_loss(name, function, scale):
    @twin(name, function, constant=(2,))
    def calls(rng):
        def one(N, V, weight=None, **options):
            targets = np.where(chosen(rng, N, p=0.9), rng.integers(0, V, N), -100)
            x = normal(rng, N, V, scale=scale)
            x = -np.abs(x) - 1 if name == "nll_loss" else x  # log-probabilities; no sum near 0
            return Call((x, targets, weight), {"ignore_index": -100, "reduction": "mean"} | options)

        weight = rng.uniform(0.1, 2.0, V)
        found = [one(512, 65), one(B * T, V), one(64, V, weight, reduction="none")]
        if name == "cross_entropy":
            found.append(one(64, V, weight, label_smoothing=0.1))
        return found


_class_loss("cross_entropy", F.cross_entropy, 3.0)
_class_loss("nll_loss", F.nll_loss, 1.0)


def linear_cross_entropy_twin(x, weight, targets, **options):
    """torch has the two halves."""
    return F.cross_entropy(F.linear(x, weight), targets, **options)


@twin("linear_cross_entropy", linear_cross_entropy_twin, constant=(2,))
def _(rng):
    def one(N, V, **options):
        targets = np.where(chosen(rng, N, p=0.9), rng.integers(0, V, N), -100)
        inputs = (normal(rng, N, C), normal(rng, V, C, scale=0.05), targets)
        return Call(inputs, {"ignore_index": -100, "reduction": "mean"} | options)

    return [one(512, 65), one(B * T, V), one(64, 5000, reduction="none")]


@twin("mse_loss", silent(F.mse_loss))
def _(rng):
    return [
        Call((normal(rng, B, T, C), normal(rng, B, T, C)), {"reduction": "mean"}),
        Call((normal(rng, B * T, C), normal(rng, C)), {"reduction": "none"}),
    ]
