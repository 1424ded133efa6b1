"""Losses as modules: their options kept, the work in functional.py.  Twins: torch.nn's."""

from __future__ import annotations

from nplm.autograd.tensor import Tensor
from nplm.nn import functional as F
from nplm.nn.module import Module


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


class NLLLoss(Module):
    """F.nll_loss with its options kept."""

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.size_average, self.reduce = size_average, reduce
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Log-probabilities (N, V) or (N, V, ...), and targets -> () or the shape of the targets"""
        return F.nll_loss(
            input, target, self.weight, self.size_average, self.ignore_index, self.reduce,
            self.reduction,
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
