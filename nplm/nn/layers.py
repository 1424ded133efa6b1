"""Layers: a table of parameters and one line of `forward` each.  Read module.py before.

Initial weights are torch's, draw by draw. `F` is nplm.nn.functional; twins are in torch.nn.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, overload

from nplm.autograd.graph import no_grad
from nplm.autograd.tensor import Tensor
from nplm.nn import functional as F
from nplm.nn import init
from nplm.nn.module import Module, Parameter
from nplm.ops.creation import empty


def _parameter(*shape: int, device: str = "cpu", dtype: Any = None) -> Parameter:
    return Parameter(empty(*shape, dtype=dtype, device=device))


class Linear(Module):
    """y = x weight^T + bias   (..., in) -> (..., out); weight (out, in), bias (out,)"""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: str = "cpu",
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _parameter(out_features, in_features, device=device, dtype=dtype)
        self.register_parameter(
            "bias", _parameter(out_features, device=device, dtype=dtype) if bias else None
        )
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
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Embedding(Module):
    """Rows of weight (V, C) picked by tokens.   (...) int -> (..., C)"""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: str = "cpu",
        dtype: Any = None,
    ) -> None:
        super().__init__()
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
        self,
        normalized_shape: int | Iterable[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str = "cpu",
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _sizes(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            shape = self.normalized_shape
            self.register_parameter(
                name, _parameter(*shape, device=device, dtype=dtype) if wanted else None
            )
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
        affine = self.elementwise_affine
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}"


class RMSNorm(Module):
    """Rows to root mean square 1, then weight; eps None is the dtype's machine epsilon."""

    def __init__(
        self,
        normalized_shape: int | Iterable[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: str = "cpu",
        dtype: Any = None,
    ) -> None:
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

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"p={self.p}"


class ReLU(Module):
    """y = max(x, 0)"""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.relu(input)


class SiLU(Module):
    """y = x sigmoid(x)"""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.silu(input)


class GELU(Module):
    """y = x Phi(x), exact or with approximate="tanh"."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"approximate={self.approximate!r}"


class MLP(Module):
    """Two linear layers with GELU between, or SwiGLU's gate.   (..., C) -> (..., C)

    `activation` is "gelu", "gelu_tanh" or "swiglu"; the last packs gate and up into one `fc`.
    """

    def __init__(
        self,
        n_embd: int,
        n_hidden: int,
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
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


class CrossEntropyLoss(Module):
    """F.cross_entropy with its options kept."""

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.size_average, self.reduce = size_average, reduce
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, V) or (N, V, ...), and targets -> () or the shape of the targets"""
        return F.cross_entropy(
            input, target, self.weight, self.size_average, self.ignore_index, self.reduce,
            self.reduction, self.label_smoothing,
        )  # fmt: skip


class MSELoss(Module):
    """F.mse_loss with its reduction kept."""

    def __init__(
        self, size_average: None = None, reduce: None = None, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.size_average, self.reduce, self.reduction = size_average, reduce, reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Two of one shape -> () or that shape"""
        return F.mse_loss(input, target, self.size_average, self.reduce, self.reduction)


class ModuleList(Module):
    """A list whose modules are registered as "0", "1", ...   It has no forward."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> ModuleList:
        """Add one at the end."""
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add several at the end."""
        for module in modules:
            self.append(module)
        return self

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> ModuleList: ...
    def __getitem__(self, index: int | slice) -> Any:
        modules = list(self._modules.values())
        return type(self)(modules[index]) if isinstance(index, slice) else modules[index]

    def __setitem__(self, index: int, module: Module) -> None:
        self._modules[str(range(len(self))[index])] = module

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())


class Sequential(Module):
    """Modules called one after the other; an OrderedDict gives them names."""

    def __init__(self, *modules: Module | OrderedDict[str, Module]) -> None:
        super().__init__()
        first = modules[0] if modules else None
        named = first.items() if isinstance(first, OrderedDict) else enumerate(modules)
        for name, module in named:
            self.register_module(str(name), module)  # type: ignore[arg-type]

    def append(self, module: Module) -> Sequential:
        """Add one at the end."""
        self.register_module(str(len(self)), module)
        return self

    def __getitem__(self, index: int | slice) -> Any:
        modules = list(self._modules.items())
        if isinstance(index, slice):
            return Sequential(OrderedDict(modules[index]))
        return modules[index][1]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def forward(self, input: Any) -> Any:
        """What the last module makes of it."""
        for module in self:
            input = module(input)
        return input


def _sizes(normalized_shape: int | Iterable[int]) -> tuple[int, ...]:
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
