"""From samples to a batch: numbers and arrays become Tensors, containers keep their form."""

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from nplm.autograd.factory import as_tensor, tensor
from nplm.autograd.tensor import Tensor
from nplm.ops.api import stack

_NUMPY_NUMBERS = (np.bool_, np.number)


def default_collate(batch: Sequence[Any]) -> Any:
    """Samples of one form -> one thing of that form, every leaf with a new first axis (B, ...).

    Tensors and arrays are stacked and keep their dtype; a Python float gives float64, an int int64,
    a bool bool; text and bytes stay as they are; dicts, named tuples and lists keep their type, a
    plain tuple becomes a list. Raises TypeError for what cannot be stacked, RuntimeError for
    tensors or lists of unequal size.  Twin: torch.utils.data.default_collate.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        if wrong := [type(sample) for sample in batch if not isinstance(sample, Tensor)]:
            raise TypeError(
                f"default_collate: expected only Tensors beside a Tensor, got {wrong[0]}"
            )
        return stack(list(batch))
    if isinstance(first, np.ndarray):
        if first.dtype.kind in "SUO":
            raise _cannot_collate(first.dtype)
        return stack([as_tensor(array) for array in batch])
    if isinstance(first, _NUMPY_NUMBERS):
        return as_tensor(np.asarray(batch))
    if isinstance(first, float | int):
        if wrong := [type(sample) for sample in batch if not hasattr(sample, "__float__")]:
            raise TypeError(
                f"default_collate: expected only numbers beside a number, got {wrong[0]}"
            )
        return tensor(batch, dtype=np.float64 if isinstance(first, float) else None)
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return _rebuilt(first, {key: default_collate([s[key] for s in batch]) for key in first})
    if isinstance(first, Sequence):
        if not _is_named(first) and any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        return _rebuilt(first, [default_collate(samples) for samples in zip(*batch)])
    raise _cannot_collate(type(first))


def default_convert(data: Any) -> Any:
    """One sample with its NumPy arrays and numbers as Tensors, and the rest as it is.

    Twin: torch.utils.data.default_convert.
    """
    if isinstance(data, np.ndarray):
        return data if data.dtype.kind in "SUO" else as_tensor(data)
    if isinstance(data, _NUMPY_NUMBERS):
        return as_tensor(np.asarray(data))
    if isinstance(data, Mapping):
        return _rebuilt(data, {key: default_convert(data[key]) for key in data})
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return _rebuilt(data, [default_convert(value) for value in data])
    return data


def _rebuilt(like: Any, values: Any) -> Any:
    """`values` (a list or a dict) in the type of `like`; as they are where it cannot take them."""
    if isinstance(like, tuple):
        return type(like)(*values) if _is_named(like) else values
    make: Callable[[Any], Any] = type(like)
    try:
        if isinstance(like, MutableMapping):  # a copy keeps what a subclass added
            clone = copy.copy(like)
            clone.update(values)
            return clone
        if isinstance(like, MutableSequence):
            filled = copy.copy(like)
            for i, value in enumerate(values):
                filled[i] = value
            return filled
        return make(values)
    except (TypeError, ValueError):  # ValueError: a bytearray or array.array holds no Tensors
        return values


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _cannot_collate(kind: Any) -> TypeError:
    return TypeError(
        "default_collate: batch must contain tensors, numpy arrays, numbers, "
        f"dicts or lists; found {kind}"
    )
