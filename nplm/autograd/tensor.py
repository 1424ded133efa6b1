"""Tensor: an array of one backend, its gradient, and where it came from.  Read graph.py before.

The operators and methods that are ops (`+`, `@`, `x.sum()`, `x[...]`) are bound in `ops/__init__`;
`item()`, `len()`, `repr()` and their like are in host.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from nplm.autograd.graph import Array, Leaf, Node, run_backward
from nplm.autograd.host import HostValues
from nplm.backend import namespace_of
from nplm.errors import GraphError

BackwardInto = dict["Tensor", Array]


class Tensor(HostValues):
    """An n-dimensional array that can record what is done to it.  Twin: torch.Tensor.

    array           the raw NumPy array or (detached) torch tensor; written in place by optimizers
    grad            the gradient after `backward()`, a Tensor, or None
    xp              the namespace of the array: nplm.backend.numpy or .torch (backend/contract.py)
    node, output    what made it: output `output` of `node`; a Leaf for a leaf that wants gradients

    Made by `nplm.tensor`, `nplm.zeros` ...; the constructor wraps an array without a copy.
    """

    __slots__ = ("__weakref__", "_grad", "array", "hooks", "node", "output", "xp")
    __array_ufunc__ = None  # else `ndarray * Tensor` would become an array of objects

    def __init__(self, array: Array, requires_grad: bool = False) -> None:
        self.xp: Any = (xp := namespace_of(array))
        xp.dtype_of(array)  # refuses what is not supported, float16 for example
        self.array = array if xp.name == "numpy" else array.detach()
        self._grad: Tensor | None = None
        self.node: Node | None = None
        self.output = 0
        self.hooks: tuple[Callable[[Tensor], None], ...] = ()
        if requires_grad:
            self.requires_grad_()

    # ---- what it is ----------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all axes."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return int(self.array.ndim)

    @property
    def dtype(self) -> np.dtype[Any]:
        """`nplm.float32` and so on: NumPy's dtype object, whatever the backend."""
        dtype: np.dtype[Any] = self.xp.dtype_of(self.array)
        return dtype

    @property
    def device(self) -> str:
        """`"cpu"` (NumPy), `"torch:cpu"` or `"cuda"`."""
        return str(self.xp.device_of(self.array))

    def size(self, dim: int | None = None) -> Any:
        """`shape`, or the size of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim

    def numel(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def is_floating_point(self) -> bool:
        """Whether it holds float32 or float64 (or, on torch devices, bfloat16)."""
        return bool(self.xp.is_floating(self.array))

    # ---- its place in the graph ----------------------------------------------
    @property
    def requires_grad(self) -> bool:
        """Whether what is done to it is recorded."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @property
    def is_leaf(self) -> bool:
        """Whether nothing made it that a gradient could flow back to."""
        return self.node is None or isinstance(self.node, Leaf)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Want a gradient (or no longer).  Only leaves that hold floating numbers can."""
        if not self.is_leaf:
            if not requires_grad:
                raise GraphError("requires_grad: expected a leaf, got an op's result: detach() it")
        elif not requires_grad:
            self.node = None
        elif not self.is_floating_point():
            raise GraphError(
                f"requires_grad: expected a floating tensor, got {self.dtype}: only float32 and "
                "float64 can have gradients; convert it with .float()"
            )
        elif self.node is None:
            self.node = Leaf(weakref.ref(self))
        return self

    def detach(self) -> Tensor:
        """The same memory, outside the graph."""
        return Tensor(self.array)

    @property
    def grad(self) -> Tensor | None:
        """The gradient, a Tensor of the same shape, dtype and device, or None."""
        return self._grad

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        if gradient is not None:
            self.check_gradient(gradient)
        self._grad = gradient

    def backward(
        self, gradient: Tensor | float | None = None, *, into: BackwardInto | None = None
    ) -> None:
        """Add d(self)/d(leaf), times `gradient`, to `.grad` of every leaf below.

        `gradient` has this tensor's shape, or is a number; it may be left out for one element.
        With `into` the gradients are added to the arrays of that dict instead, keyed by leaf
        (missing entries are made), no `.grad` changes and no hook is called.
        """
        if self.node is None:
            raise GraphError(
                "backward: it was not recorded: no input requires a gradient, or under no_grad()"
            )
        if gradient is None and self.numel() != 1:
            raise GraphError(
                f"backward: expected a scalar, got shape {self.shape}: reduce it with .sum() or "
                ".mean(), or give the gradient"
            )
        if isinstance(gradient, Tensor):
            if gradient.shape != self.shape or gradient.xp is not self.xp:
                raise GraphError(
                    f"backward: expected a gradient of shape {self.shape} on {self.device}, "
                    f"got {gradient.shape} on {gradient.device}"
                )
            seed = self.xp.astype(gradient.array, self.array.dtype)
        else:
            seed = self.xp.full(self.shape, 1.0 if gradient is None else gradient, self.array)

        def deposit(leaf: Leaf, gradient: Array) -> None:
            tensor = leaf.owner()
            if tensor is not None:  # else nobody is left to read it
                tensor.accumulate(gradient, into)

        with self.xp.quiet():
            run_backward(self.node, self.output, seed, deposit)

    def accumulate(self, gradient: Array, into: BackwardInto | None = None) -> None:
        """Take a gradient that has arrived: a copy first, later ones are added to it in place."""
        assert tuple(gradient.shape) == self.shape, (gradient.shape, self.shape)
        if into is not None:
            if self in into:
                into[self] += gradient
            else:
                into[self] = self.xp.copy(gradient)
        elif self.grad is None:
            self.grad = Tensor(self._own_copy(gradient))
        else:
            self.grad.array += gradient
        if into is None:
            for hook in self.hooks:
                hook(self)

    def forget_buffer(self) -> None:
        """A Parameter owns a gradient buffer and drops it here."""

    def _own_copy(self, gradient: Array) -> Array:
        """Memory for a first gradient; a Parameter reuses its buffer here."""
        return self.xp.copy(gradient)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> None:
        """Call `hook(self)` once per backward, when the last gradient of this leaf has arrived."""
        if self.node is None or not self.is_leaf:
            raise GraphError("post accumulate grad hooks: expected a leaf that requires a gradient")
        self.hooks += (hook,)

    def retain_grad(self) -> None:
        """Keep the gradient of a result of an op in `.grad` too."""
        if self.node is None:
            raise GraphError("retain_grad: this tensor does not require a gradient")
        if not self.is_leaf:
            keep = weakref.WeakMethod(self._retain)
            self.node.hooks += ((self.output, lambda dy: (f := keep()) and f(dy)),)

    def _retain(self, gradient: Array) -> None:
        self.grad = Tensor(self.xp.copy(gradient))
