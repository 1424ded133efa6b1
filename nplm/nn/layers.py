"""Layers: a table of parameters and one line of `forward` each.  Read module.py before.

Initial weights are torch's, draw by draw. `F` is nplm.nn.functional; twins are in torch.nn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from nplm.autograd.grad_mode import no_grad
from nplm.autograd.tensor import Tensor
from nplm.nn import functional as F
from nplm.nn import init
from nplm.nn.functional import refuse
from nplm.nn.module import Module, Parameter
from nplm.ops.creation import empty


def _parameter(*shape: int, device: str = "cpu", dtype: Any = None) -> Parameter:
    return Parameter(empty(*shape, dtype=dtype, device=device))


class Linear(Module):
    """y = x weight^T + bias   (..., in) -> (..., out); weight (out, in), bias (out,)"""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str = "cpu",
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _parameter(out_features, in_features, device=device, dtype=dtype)
        zeros = _parameter(out_features, device=device, dtype=dtype)
        self.register_parameter("bias", zeros if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(in), weight and bias."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


class Embedding(Module):
    """Rows of weight (V, C) picked by tokens.   (...) int -> (..., C)"""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
        max_norm: None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
        sparse: bool = False, device: str = "cpu", dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        refuse("Embedding", max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise AssertionError("Padding_idx must be within num_embeddings")
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.weight = _parameter(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with mean 0 and deviation 1; the padding row is 0."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx].fill_(0)

    def forward(self, input: Tensor) -> Tensor:
        """(...) int -> (..., C)"""
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class LayerNorm(Module):
    """Rows to mean 0 and variance 1, then weight and bias, both of `normalized_shape`."""

    def __init__(
        self, normalized_shape: int | Iterable[int], eps: float = 1e-5,
        elementwise_affine: bool = True, bias: bool = True, device: str = "cpu", dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalized_shape = _sizes(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            new = _parameter(*self.normalized_shape, device=device, dtype=dtype)
            self.register_parameter(name, new if wanted else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        affine = f"{self.elementwise_affine}, bias={self.bias is not None}"
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}"


class RMSNorm(Module):
    """Rows to root mean square 1, then weight; eps None is the dtype's machine epsilon."""

    def __init__(
        self, normalized_shape: int | Iterable[int], eps: float | None = None,
        elementwise_affine: bool = True, device: str = "cpu", dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalized_shape = _sizes(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        weight = _parameter(*self.normalized_shape, device=device, dtype=dtype)
        self.register_parameter("weight", weight if elementwise_affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        affine = self.elementwise_affine
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}"


class Dropout(Module):
    """Elements become 0 with probability p, others are divided by 1 - p; off in `eval()`."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p, self.inplace = p, inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"p={self.p}, inplace={self.inplace}"


class MLP(Module):
    """Two linear layers with GELU between, or SwiGLU's gate.   (..., C) -> (..., C)

    `activation` is "gelu", "gelu_tanh" or "swiglu"; the last packs gate and up into one `fc`.
    """

    def __init__(
        self, n_embd: int, n_hidden: int, activation: str = "gelu", bias: bool = True,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if activation not in ("gelu", "gelu_tanh", "swiglu"):
            raise ValueError(f"MLP: expected gelu, gelu_tanh or swiglu, got {activation!r}")
        self.activation = activation
        self.fc = Linear(n_embd, n_hidden * (2 if activation == "swiglu" else 1), bias)
        self.proj = Linear(n_hidden, n_embd, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        h = self.fc(x)
        if self.activation == "swiglu":
            h = F.swiglu(*h.chunk(2, -1))
        else:
            h = F.gelu(h, "tanh" if self.activation == "gelu_tanh" else "none")
        y: Tensor = self.dropout(self.proj(h))
        return y

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"activation={self.activation!r}"


def _sizes(normalized_shape: int | Iterable[int]) -> tuple[int, ...]:
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
