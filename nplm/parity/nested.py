"""Tensors inside of tuples, lists, dicts and dataclasses: named, and replaced one by one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

IsTensor = Callable[[Any], bool]
Replace = Callable[[Any, str], Any]  # (tensor, ".0.key") -> what is to stand there


def children(value: Any) -> list[tuple[str, Any]]:
    """(".key", child) of a container; nothing for whatever else."""
    if isinstance(value, Mapping):
        return [(f".{key}", child) for key, child in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", child) for name, child in zip(value._fields, value)]
    if isinstance(value, tuple | list):
        return [(f".{i}", child) for i, child in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    return []


def leaves(value: Any, is_tensor: IsTensor, where: str = "") -> Iterator[tuple[str, Any]]:
    """(".0.key", tensor) of every tensor inside."""
    if is_tensor(value):
        yield where, value
        return
    for key, child in children(value):
        yield from leaves(child, is_tensor, where + key)


def replaced(value: Any, look: Replace, is_tensor: IsTensor, where: str = "") -> Any:
    """`value` with every tensor replaced; the very same object if none of them changed."""
    if is_tensor(value):
        return look(value, where)
    old = children(value)
    new = [(key, replaced(child, look, is_tensor, where + key)) for key, child in old]
    if all(a is b for (_, a), (_, b) in zip(old, new)):
        return value
    items = [child for _, child in new]
    if isinstance(value, MutableMapping):
        result = copy.copy(value)
        for key, child in zip(value, items):
            result[key] = child
        return result
    if isinstance(value, Mapping):
        return dict(zip(value, items))
    if isinstance(value, tuple):
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return items
    fields = [field.name for field in dataclasses.fields(value)]
    return dataclasses.replace(value, **dict(zip(fields, items)))


def numbers(value: Any) -> Any:
    """A number, or a tuple of numbers, of Python; 0-d tensors become numbers."""
    if isinstance(value, tuple | list):
        return [numbers(item) for item in value]
    return float(value)


def state(
    value: Any, name: str, is_tensor: IsTensor, put: Callable[[Any], None] | None = None
) -> Iterator[tuple[str, Any, Callable[[Any], None] | None]]:
    """(dotted name, tensor or number, how to replace the number) of an optimizer's state."""
    if is_tensor(value) or isinstance(value, bool | int | float):
        yield name, value, put
        return
    for key, child in children(value):
        setter = None
        if isinstance(value, MutableMapping):
            setter = _setter(value, next(k for k in value if f".{k}" == key))
        elif isinstance(value, list):
            setter = _setter(value, int(key[1:]))
        yield from state(child, name + key, is_tensor, setter)


def _setter(container: Any, key: Any) -> Callable[[Any], None]:
    def put(new: Any) -> None:
        container[key] = new

    return put
