"""Modules without weights, for Sequential: activations, Identity, Flatten.  Twins: torch.nn's.

The decoder calls the functions.
"""

from __future__ import annotations

from typing import Any

from nplm.autograd.tensor import Tensor
from nplm.nn import functional as F
from nplm.nn.module import Module


class Identity(Module):
    """y = x; what it is made with is ignored, so that it can stand in for any module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        """Anything, unchanged."""
        return input


class Flatten(Module):
    """The axes from start_dim to end_dim as one; the batch axis is kept by default."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        """(B, ...) -> (B, all others)"""
        y: Tensor = input.flatten(self.start_dim, self.end_dim)
        return y

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


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


class Tanh(Module):
    """y = tanh x"""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        y: Tensor = F.tanh(input)
        return y


class Sigmoid(Module):
    """y = 1 / (1 + e**-x)"""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        y: Tensor = F.sigmoid(input)
        return y


class Softmax(Module):
    """y = exp(x) / sum(exp(x)) along dim"""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.softmax(input, self.dim)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"dim={self.dim}"


class LogSoftmax(Module):
    """y = x - log(sum(exp(x))) along dim"""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"dim={self.dim}"
