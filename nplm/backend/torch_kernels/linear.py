"""`linear`, `matmul` and `embedding` on torch, in bfloat16 under autocast.  Read ops/linear.py.

Weights' gradients are float32 whatever the products run in, and go straight into a sink.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from nplm.autograd.op import OPS, override
from nplm.backend.torch_kernels.precision import (
    in_bfloat16,
    lowered,
    lowers,
    narrowed,
)
from nplm.backend.torch_kernels.sinks import TorchSink

aten = torch.ops.aten


# ---- products that end in a wider dtype ----------------------------------------------------------
@functools.cache
def widens(device: torch.device) -> bool:
    """Whether a bfloat16 product can write and add to float32 itself on this device: tried once.

    The CPU cannot, nor can a torch or a card without such a kernel. While a region is traced, it
    must look at the card and not at the tracer's tensors: modes are switched off for it.
    """
    if device.type != "cuda" or "dtype_out" not in aten.addmm.overloads():
        return False
    try:
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():
            ones = torch.ones((16, 16), dtype=torch.bfloat16, device=device)
            total = torch.mm(ones, ones, out_dtype=torch.float32)
            aten.addmm.dtype_out(total, ones, ones, torch.float32, out=total)
            return bool((total == 32.0).all())
    except (AssertionError, AttributeError, ImportError, RuntimeError, TypeError):
        return False


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a (N, K) @ b (K, M) in `dtype`, which may be wider than theirs.

    Where the product cannot write its own float32 sums they are rounded to bfloat16 first, as
    torch.autocast does everywhere.
    """
    if a.dtype == dtype:
        return torch.mm(a, b)
    if widens(a.device):
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """total += a @ b, by the product itself where it can."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    if widens(a.device):
        return aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    return total.add_(torch.mm(a, b))


def weight_gradient(need: Any, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> Any:
    """a @ b in `dtype` for whoever needs it: into a sink, then None is left to return."""
    if not isinstance(need, TorchSink):
        return product(a, b, dtype) if need else None
    if a.dtype == dtype:
        need.add_product(a, b)
    elif need.array is not None:
        add_product(need.array, a, b)
    else:
        need.take(product(a, b, dtype))
    return None


def delivered(need: Any, gradient: torch.Tensor) -> Any:
    """A gradient that nobody else holds: into a sink, then None is left to return."""
    if not isinstance(need, TorchSink):
        return gradient
    need.take(gradient)
    return None


# ---- linear --------------------------------------------------------------------------------------
def _fits(x, weight, bias=None):
    return (
        x.ndim > 0
        and weight.ndim == 2
        and x.shape[-1] == weight.shape[1]
        and x.is_floating_point()
        and (bias is None or (bias.dtype == weight.dtype and bias.shape == weight.shape[:1]))
        and (x.dtype == weight.dtype or lowers(x, weight))
    )


@override("linear", backend="torch", when=_fits)
def linear(xp, x, weight, bias=None):
    """ops.linear.linear with the bias in the product; under autocast bfloat16 in and out."""
    O, I = weight.shape
    N, x_dtype, dtype = math.prod(x.shape[:-1]), x.dtype, weight.dtype
    shape, has_bias = x.shape, bias is not None
    rows = x.reshape(N, I)
    if lowers(x, weight):
        rows, weight = in_bfloat16(rows), lowered(weight)
        bias = lowered(bias) if has_bias else None
    y = torch.addmm(bias, rows, weight.t()) if has_bias else torch.mm(rows, weight.t())

    def backward(dy, needs):
        dy = dy.reshape(N, O)
        dx = torch.mm(dy, weight).view(shape).to(x_dtype) if needs[0] else None
        dweight = weight_gradient(needs[1], dy.t(), rows, dtype)
        dbias = None
        if has_bias and needs[2]:
            dbias = delivered(needs[2], dy.sum(0, dtype=dtype))
        return dx, dweight, dbias

    return y.view(*shape[:-1], O), backward


@override(
    "matmul", backend="torch",
    when=lambda x, y: lowers(x, y) and x.ndim > 0 and y.ndim > 0,
)  # fmt: skip
def matmul(xp, x, y):
    """ops.linear.matmul in bfloat16, under autocast."""
    value, backward = OPS["matmul"].raw(xp, in_bfloat16(x), in_bfloat16(y))
    return value, narrowed(backward, (x, y), dy_dtype=torch.bfloat16)


matmul.bfloat16_only = True


# ---- embedding -----------------------------------------------------------------------------------
def _is_table(ids, weight, padding_idx=None):
    return ids.dtype in (torch.int64, torch.int32) and weight.is_floating_point()


@override("embedding", backend="torch", when=_is_table)
def embedding(xp, ids, weight, padding_idx=None):
    """ops.embedding.embedding by aten's kernels, in bfloat16 under autocast.

    Raises IndexError on the CPU for ids outside [0, V), as torch does.
    """
    (V, C), dtype, table = weight.shape, weight.dtype, weight.shape
    y = aten.embedding(weight, ids)

    def backward(dy, needs):
        if not needs[1]:
            return None, None
        dy = dy.to(dtype)  # sums of bfloat16 would lose the rows of frequent tokens
        if isinstance(needs[1], TorchSink) and padding_idx is None:
            needs[1].add_rows(ids.reshape(-1), dy.reshape(-1, C), table)
            return None, None
        padding = -1 if padding_idx is None else padding_idx
        dweight = aten.embedding_dense_backward(dy, ids, V, padding, False)
        return None, delivered(needs[1], dweight)

    return in_bfloat16(y) if lowers(weight) else y, backward
