"""Sinks on torch: where the gradients of a window are added up, by the product itself if it can.

Read autograd/sinks.py before: a kernel with `needs` finds a sink in place of True.
"""

from __future__ import annotations

import torch


class TorchSink:
    """One leaf's gradient while a window runs.

    array       the sum so far, in the leaf's dtype, or None; the sink owns it
    kept        memory for the sum whose address must stay (a CUDA graph writes there), or None
    """

    __slots__ = ("array", "dtype", "kept")

    def __init__(self, leaf: torch.Tensor, kept: torch.Tensor | None = None) -> None:
        self.array: torch.Tensor | None = None
        self.dtype, self.kept = leaf.dtype, kept

    @property
    def filled(self) -> bool:
        """Whether a gradient has arrived."""
        return self.array is not None

    def take(self, gradient: torch.Tensor) -> None:
        """Add an array that nobody else holds: the first one becomes the sum."""
        if self.array is not None:
            self.array += gradient
        elif self.kept is not None:
            self.array = self.kept.copy_(gradient)
        else:
            self.array = gradient.to(self.dtype)

    def add(self, gradient: torch.Tensor) -> None:
        """Add an array that somebody else may hold."""
        first = self.array is None and self.kept is None and gradient.dtype == self.dtype
        self.take(gradient.clone() if first else gradient)

    def add_product(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add a @ b, both of the leaf's dtype.   a (O, N), b (N, I); no temporary."""
        if self.array is not None:
            self.array.addmm_(a, b)
        elif self.kept is not None:
            self.array = torch.mm(a, b, out=self.kept)
        else:
            self.array = torch.mm(a, b)

    def add_rows(self, ids: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]) -> None:
        """Add values[i] (N, C) to row ids[i] of an array of `shape` (V, C)."""
        if self.array is None:
            new = self.kept
            self.array = (
                torch.zeros(shape, dtype=self.dtype, device=values.device)
                if new is None else new.zero_()
            )  # fmt: skip
        self.array.index_add_(0, ids, values.to(self.dtype))
