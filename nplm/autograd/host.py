"""A Tensor's values on the host: Python numbers, NumPy arrays, printing.  Base class of Tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nplm.backend.dtypes import get_default_dtype
from nplm.errors import GraphError

if TYPE_CHECKING:
    from nplm.autograd.tensor import Tensor


class HostValues:
    """What Python and NumPy ask of a Tensor."""

    __slots__ = ()
    array: Any  # Tensor's own
    xp: Any

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __eq__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __getitem__(self, key: Any) -> Tensor: ...

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array (shared memory on the CPU).  Twin: torch.Tensor.numpy."""
        if self.requires_grad:
            raise GraphError("numpy: the tensor requires a gradient: call .detach().numpy()")
        return self.__array__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.xp.to_numpy(self.array), dtype=dtype, copy=copy)

    @property
    def data(self: Any) -> Any:
        """The same memory, outside the graph: torch's older spelling of `detach()`."""
        return self.detach()

    @data.setter
    def data(self: Any, values: Tensor) -> None:
        self.array, self.xp = values.array, values.xp
        self.forget_buffer()

    def check_gradient(self: Any, gradient: Any) -> None:
        """A RuntimeError unless `gradient` may become `.grad`."""
        mine = (self.shape, self.dtype, self.device)
        theirs = tuple(getattr(gradient, name, None) for name in ("shape", "dtype", "device"))
        if mine != theirs:
            raise RuntimeError(
                f"grad: expected a Tensor of shape {mine[0]}, {mine[1]} on {mine[2]}, got "
                f"{type(gradient).__name__} of shape {theirs[0]}, {theirs[1]} on {theirs[2]}"
            )

    def __format__(self: Any, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a Tensor is not pickled: save model.state_dict() with nplm.save, or copy with "
            "copy.deepcopy or .clone()"
        )

    def item(self) -> Any:
        """The only element, as a Python number."""
        return self.array.item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self.array.tolist()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: a 0-d tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.numel() != 1:
            raise ValueError(f"bool: expected one element, got {self.shape}: use any() or all()")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.is_floating_point():
            raise TypeError(f"index: expected an integer tensor, got {self.dtype}")
        return int(self.item())

    __hash__ = object.__hash__  # `==` compares elements; a tensor as a key is itself

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        if not self.is_leaf:
            raise GraphError(
                "deepcopy: expected a leaf, got the result of an op: detach() it first"
            )
        copy = type(self)(self.xp.copy(self.array), self.requires_grad)
        copy.grad = None if self.grad is None else self.grad.__deepcopy__(memo)
        memo[id(self)] = copy
        return copy

    def __repr__(self) -> str:
        values = np.array2string(self.__array__(), precision=4, separator=", ", prefix="tensor(")
        usual = (get_default_dtype(), np.int64, np.bool_)
        details = [] if self.dtype in usual else [f"dtype={self.dtype}"]
        details += [] if self.device == "cpu" else [f"device='{self.device}'"]
        if self.node is not None:
            details.append("requires_grad=True" if self.is_leaf else f"grad_fn={self.node}")
        return f"tensor({', '.join([values, *details])})"
