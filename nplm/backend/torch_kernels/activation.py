"""Activations on torch by aten's kernels and their backwards; softmax too.

Read ops/activation.py first.  Each keeps its input or its output, whichever a neighbour keeps too.
"""

from __future__ import annotations

import torch

from nplm.autograd.op import override
from nplm.backend.torch_kernels.precision import is_low

aten = torch.ops.aten


def _floating(x, **options):
    return x.is_floating_point()


def _known(x, approximate="none"):
    return x.is_floating_point() and approximate in ("none", "tanh")


@override("gelu", backend="torch", when=_known)
def gelu(xp, x, approximate="none"):
    """ops.activation.gelu by aten::gelu and aten::gelu_backward."""
    y = aten.gelu(x, approximate=approximate)
    return y, lambda dy: (aten.gelu_backward(dy, x, approximate=approximate),)


@override("silu", backend="torch", when=_floating)
def silu(xp, x):
    """ops.activation.silu by aten::silu and aten::silu_backward."""
    return aten.silu(x), lambda dy: (aten.silu_backward(dy, x),)


@override("relu", backend="torch", when=_floating)
def relu(xp, x):
    """ops.activation.relu; y is kept, and the next product keeps it too."""
    y = aten.relu(x)
    return y, lambda dy: (aten.threshold_backward(dy, y, 0),)


def _gated(gate, up):
    return (
        gate.is_floating_point()
        and gate.ndim > 0
        and gate.shape == up.shape
        and gate.dtype == up.dtype
    )


@override("swiglu", backend="torch", when=_gated)
def swiglu(xp, gate, up):
    """ops.activation.swiglu; both gradients lie side by side in one array, for the layer that made
    gate and up as one: `split` (shape.py) finds it."""
    a = aten.silu(gate)

    def backward(dy):
        whole = torch.empty(
            (*gate.shape[:-1], 2 * gate.shape[-1]), dtype=gate.dtype, device=gate.device
        )  # fmt: skip
        dgate, dup = whole.chunk(2, -1)
        torch.mul(dy, a, out=dup)
        da = torch.mul(dy, up, out=a)
        aten.silu_backward(da, gate, grad_input=dgate)
        dgate.part_of = dup.part_of = whole
        return dgate, dup

    return a * up, backward


# ---- softmax -------------------------------------------------------------------------------------
def _along(x, dim):
    return x.is_floating_point() and not is_low(x) and isinstance(dim, int)


@override("softmax", backend="torch", when=_along)
def softmax(xp, x, dim):
    """ops.activation.softmax by aten's kernels; y alone is kept."""
    y = aten._softmax(x, dim, False)
    return y, lambda dy: (aten._softmax_backward_data(dy, y, dim, y.dtype),)


@override("log_softmax", backend="torch", when=_along)
def log_softmax(xp, x, dim):
    """ops.activation.log_softmax by aten's kernels; y alone is kept."""
    y = aten._log_softmax(x, dim, False)
    return y, lambda dy: (aten._log_softmax_backward_data(dy, y, dim, y.dtype),)
