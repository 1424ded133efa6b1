"""The ops under torch's names, signatures and defaults.  Twin: torch.nn.functional.

Values (targets in range, tokens in the vocabulary) are checked here, on NumPy arrays, and nowhere
below: an op only looks at shapes and dtypes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from nplm.autograd.tensor import Tensor
from nplm.backend.dtypes import int64
from nplm.errors import DataError
from nplm.ops import activation as _activation
from nplm.ops import attention as _attention
from nplm.ops import dropout as _dropout
from nplm.ops import embedding as _embedding
from nplm.ops import linear as _linear
from nplm.ops import loss as _loss
from nplm.ops import norm as _norm
from nplm.ops.creation import arange
from nplm.ops.draws import dropout_mask, keep_mask
from nplm.ops.elementwise import sigmoid, tanh
from nplm.ops.head import linear_cross_entropy as _linear_cross_entropy
from nplm.random import Generator

__all__ = [
    "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "linear",
    "linear_cross_entropy", "log_softmax", "mse_loss", "nll_loss", "one_hot", "relu", "rms_norm",
    "rope", "scaled_dot_product_attention",
    "sigmoid", "silu", "softmax", "swiglu", "tanh",
]  # fmt: skip


def refuse(name: str, **options: Any) -> None:
    """Options of torch's that nplm does not have: only their "off" value is taken.

    `size_average` and `reduce` are off when they are None: False means something in torch.
    """
    for option, value in options.items():
        if value or (value is not None and option in ("size_average", "reduce")):
            raise NotImplementedError(f"{name}: {option}={value!r} is not supported; leave it out")


def check_range(name: str, what: str, ids: Tensor, n: int, ignore_index: int | None = None) -> None:
    """A DataError that names the first id outside [0, n).  Looks at NumPy arrays only."""
    if ids.device != "cpu" or ids.is_floating_point():
        return
    values: np.ndarray = ids.array
    wrong = (values < 0) | (values >= n)
    if ignore_index is not None:
        wrong &= values != ignore_index
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise DataError(
            f"{name}: {what} must be integers in [0, {n})"
            + (f" or {ignore_index} (ignored)" if ignore_index is not None else "")
            + f", got {values[place]} at {place}"
        )


# ---- layers --------------------------------------------------------------------------------------
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b   input (..., I), weight (O, I), bias (O,) -> (..., O)"""
    y: Tensor = _linear.linear(input, weight, bias)
    return y


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of weight (V, C) picked by input (...) -> (..., C)"""
    refuse("embedding", max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
    if padding_idx is not None:
        padding_idx %= weight.shape[0]
    check_range("embedding", "ids", input, weight.shape[0])
    y: Tensor = _embedding.embedding(input, weight, padding_idx)
    return y


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """1 at the class, 0 elsewhere: int64 (...) -> (..., num_classes); -1: the largest class + 1"""
    if tensor.dtype != int64:
        raise RuntimeError(f"one_hot: expected int64, got {tensor.dtype}; convert it with .long()")
    classes: Tensor = tensor.cpu()
    if tensor.numel() == 0 and num_classes <= 0:
        raise RuntimeError("one_hot: expected num_classes >= 1 for an empty tensor")
    n = num_classes if num_classes != -1 else int(classes.max()) + 1
    check_range("one_hot", "classes", classes, n)
    y: Tensor = (tensor.unsqueeze(-1) == arange(n, device=tensor.device)).long()
    return y


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The last axes (of sizes normalized_shape) to mean 0 and variance 1, then scaled and moved."""
    n_axes = _rows("layer_norm", input, normalized_shape)
    y: Tensor = _norm.layer_norm(input, weight, bias, n_axes, eps)
    return y


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """The last axes to root mean square 1, then scaled; eps None: the dtype's machine epsilon."""
    n_axes = _rows("rms_norm", input, normalized_shape)
    eps = float(np.finfo(input.dtype).eps) if eps is None else eps
    y: Tensor = _norm.rms_norm(input, weight, n_axes, eps)
    return y


def _rows(name: str, input: Tensor, normalized_shape: Sequence[int]) -> int:
    sizes = tuple(normalized_shape)
    if not sizes or input.shape[-len(sizes) :] != sizes:
        raise RuntimeError(
            f"{name}: given normalized_shape={list(sizes)}, expected an input whose last axes have "
            f"these sizes, got {input.shape}"
        )
    return len(sizes)


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Each element is 0 with probability p, the others are divided by 1 - p.

    The mask is drawn on the host from torch's stream (the default generator, unless one is given);
    on a card from a stream there, which that one seeds.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if inplace:
        refuse("dropout", inplace=inplace)
    if not training or p == 0:
        return input
    y: Tensor = _dropout.dropout(input, dropout_mask(input, p, generator), p)
    return y


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale q k^T + mask) v   query (.., H, T, D), key (.., G, S, D), value (.., G, S, E)

    `enable_gqa` lets H be a multiple of G. A boolean mask is True where a query may look.
    """
    if is_causal and attn_mask is not None:
        raise RuntimeError("attention: expected attn_mask or is_causal, got both; merge the masks")
    if not enable_gqa and query.shape[:-2] != key.shape[:-2]:
        raise RuntimeError(
            f"attention: expected as many key heads as query heads, got {query.shape} and "
            f"{key.shape}; set enable_gqa=True for grouped heads"
        )
    flat = query.ndim == 2
    if flat:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    keep = None
    if dropout_p > 0:
        keep = keep_mask(query, (*query.shape[:-1], key.shape[-2]), dropout_p)
    y: Tensor = _attention.attention(
        query, key, value, attn_mask, keep, is_causal, scale, dropout_p
    )
    return y.squeeze(0) if flat else y


def rope(input: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves layout   input (..., T, D), cos and sin (T, D/2).  nplm's own."""
    y: Tensor = _attention.rope(input, cos, sin)
    return y


# ---- activations ---------------------------------------------------------------------------------
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """y = max(x, 0)"""
    refuse("relu", inplace=inplace)
    y: Tensor = _activation.relu(input)
    return y


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """y = x sigmoid(x)"""
    refuse("silu", inplace=inplace)
    y: Tensor = _activation.silu(input)
    return y


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """y = x Phi(x); approximate="tanh" is GPT-2's."""
    y: Tensor = _activation.gelu(input, approximate)
    return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = silu(gate) up.  nplm's own: one op instead of two."""
    y: Tensor = _activation.swiglu(gate, up)
    return y


def _dim(name: str, input: Tensor, dim: int | None) -> int:
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. Change the call to include "
            "dim=X as an argument.",
            stacklevel=3,
        )
        return 0 if input.ndim in (0, 1, 3) else 1
    return dim


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """y = exp(x) / sum(exp(x)) along dim"""
    input = input if dtype is None else input.to(dtype)
    y: Tensor = _activation.softmax(input, _dim("softmax", input, dim))
    return y


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """y = x - log(sum(exp(x))) along dim"""
    input = input if dtype is None else input.to(dtype)
    y: Tensor = _activation.log_softmax(input, _dim("log_softmax", input, dim))
    return y


# ---- losses --------------------------------------------------------------------------------------
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """input (V,), (N, V) or (N, V, d1, ...); target without V, or probabilities with it."""
    refuse("cross_entropy", size_average=size_average, reduce=reduce)
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    rows = _classes_last(input)
    if target.is_floating_point():
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    _check_targets("cross_entropy", input, target, ignore_index)
    loss: Tensor = _loss.cross_entropy(
        rows, target.reshape(-1), weight, ignore_index, reduction, label_smoothing
    )
    return loss.reshape(target.shape) if reduction == "none" else loss


def linear_cross_entropy(
    input: Tensor, weight: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """cross_entropy(linear(input, weight), target) of input (N, C), weight (V, C), target (N,).

    nplm's own: on NumPy the logits (N, V) are never held as a whole.
    """
    check_range("linear_cross_entropy", "targets", target, weight.shape[0], ignore_index)
    loss: Tensor = _linear_cross_entropy(input, weight, target, ignore_index, reduction)
    return loss


def _classes_last(input: Tensor) -> Tensor:
    """(V,), (N, V) or (N, V, d1, ...) -> (rows, V)"""
    if input.ndim > 2:
        input = input.permute(0, *range(2, input.ndim), 1)
    return input.reshape(-1, input.shape[-1]) if input.ndim != 2 else input


def _check_targets(name: str, input: Tensor, target: Tensor, ignore_index: int) -> None:
    expected = input.shape[:1] + input.shape[2:] if input.ndim > 1 else ()
    if target.shape != expected:
        raise ValueError(
            f"{name}: expected targets of shape {expected} for inputs {input.shape}, "
            f"got {target.shape}"
        )
    classes = input.shape[1] if input.ndim > 1 else input.shape[0]
    check_range(name, "targets", target, classes, ignore_index)


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    """Targets as probabilities: -sum(w t log p), and "mean" divides by the number of rows."""
    if target.shape != input.shape:
        raise ValueError(
            f"cross_entropy: expected probabilities of shape {input.shape}, got {target.shape}"
        )
    logp = log_softmax(_classes_last(input), 1)
    t = _classes_last(target)
    if smoothing:
        t = t * (1 - smoothing) + smoothing / t.shape[1]
    t = t if weight is None else t * weight
    losses: Tensor = -(logp * t).sum(1)
    if reduction == "none":
        losses = losses.reshape(input.shape[:1] + input.shape[2:] if input.ndim > 1 else ())
    elif reduction == "sum":
        losses = losses.sum()
    else:
        losses = losses.sum() / math.prod(losses.shape)
    return losses


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
) -> Tensor:
    """-input[target], input of log-probabilities in cross_entropy's shapes."""
    refuse("nll_loss", size_average=size_average, reduce=reduce)
    _check_targets("nll_loss", input, target, ignore_index)
    loss: Tensor = _loss.nll_loss(
        _classes_last(input), target.reshape(-1), weight, ignore_index, reduction
    )
    return loss.reshape(target.shape) if reduction == "none" else loss


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
) -> Tensor:
    """(input - target)**2"""
    refuse("mse_loss", size_average=size_average, reduce=reduce)
    if input.shape != target.shape:
        warnings.warn(
            f"Using a target size ({target.shape}) that is different to the input size "
            f"({input.shape}): they broadcast, which is likely not what you want.",
            stacklevel=2,
        )
    loss: Tensor = _loss.mse_loss(input, target, reduction)
    return loss
