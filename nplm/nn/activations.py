"""Activations as modules, for Sequential; the decoder calls the functions.  Twins: torch.nn's."""

from __future__ import annotations

from nplm.autograd.tensor import Tensor
from nplm.nn import functional as F
from nplm.nn.module import Module


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
