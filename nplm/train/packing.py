"""Nested state (optimizers, schedulers, generators) as JSON plus named tensors, and back, exactly.

JSON alone would turn tuples into lists, integer keys into text, and refuse infinity.
"""

import base64
import math
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.errors import CheckpointError
from nplm.files import shown

Tensors = MutableMapping[str, npt.NDArray[Any]]

_NOT_FINITE = {str(value): value for value in (math.inf, -math.inf, math.nan)}
_NUMERIC = re.compile(r"[<>|=][biuf][0-9]{1,2}")
_MAX_DIMENSIONS = 64  # NumPy's own limit


def pack(value: Any, path: str, tensors: Tensors | None = None) -> Any:
    """Return `value` as JSON can hold it; its arrays go to `tensors` under names like state.3.m.

    Without `tensors` arrays are written into the JSON (base64): for the few and small ones. Kept
    exactly: None, bool, int, float with NaN and infinity, str, list, tuple, dict with str or int
    keys, arrays. An nplm or torch tensor becomes an array, a subclass of dict a dict. Raises
    ValueError naming `path` for anything else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if hasattr(value, "numpy"):
        value = host_array(value)
    if isinstance(value, np.ndarray):
        if tensors is None:
            return _inline(value, path)
        if path in tensors:
            raise ValueError(f"{path}: two arrays have this name; rename one")
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, list):
        return [pack(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [pack(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        return _pack_mapping(value, path, tensors)
    raise ValueError(f"{path}: a {type(value).__name__} cannot be stored in a checkpoint")


def host_array(tensor: Any) -> npt.NDArray[Any]:
    """Return the values of an nplm or torch tensor, wherever it lives, as a NumPy array."""
    for step in ("detach", "cpu"):
        if hasattr(tensor, step):
            tensor = getattr(tensor, step)()
    return np.asarray(tensor.numpy())  # of shape () it may be a NumPy scalar


def _pack_mapping(value: Mapping[Any, Any], path: str, tensors: Tensors | None) -> Any:
    whole = bool(value) and all(type(key) is int for key in value)
    for key in value:
        if not whole and (not isinstance(key, str) or key.startswith("$")):
            raise ValueError(
                f"{path}: key {key!r} cannot be stored; use text or integers, not $..."
            )
    packed = {
        str(key): pack(item, f"{path}.{key}" if path else str(key), tensors)
        for key, item in value.items()
    }
    return {"$int_keys": packed} if whole else packed


def unpack(packed: Any, where: str, tensors: Mapping[str, npt.NDArray[Any]] | None = None) -> Any:
    """Undo `pack`.

    Raises CheckpointError, which begins with `where`, for a tensor that is missing, a mark ($...)
    that is damaged or not known to this version, and for what is nested too deeply.
    """
    try:
        return _unpack(packed, where, tensors or {})
    except RecursionError:
        raise CheckpointError(f"{where}: nested too deeply to be a state") from None


def _unpack(packed: Any, where: str, tensors: Mapping[str, npt.NDArray[Any]]) -> Any:
    if isinstance(packed, list):
        return [_unpack(item, where, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    mark = next(iter(packed), "")
    if not mark.startswith("$"):
        return {key: _unpack(item, where, tensors) for key, item in packed.items()}
    try:
        (content,) = packed.values()
        if mark == "$tensor":
            if content not in tensors:
                raise CheckpointError(
                    f"{where}: tensor {shown(content)} is missing from the checkpoint"
                )
            return tensors[content]
        if mark == "$float":
            return _NOT_FINITE[content]
        if mark == "$tuple":
            if not isinstance(content, list):
                raise TypeError(f"expected a list, got {shown(content)}")
            return tuple(_unpack(item, where, tensors) for item in content)
        if mark == "$int_keys":
            return {_whole(key): _unpack(item, where, tensors) for key, item in content.items()}
        if mark == "$array":
            return _outline(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: damaged {mark}: {str(error)[:200]}") from None
    raise CheckpointError(
        f"{where}: {shown(mark)} is not known to this version of nplm; update nplm"
    )


def _whole(key: str) -> int:
    number = int(key)
    if str(number) != key:  # "01" would take the place of "1"
        raise ValueError(f"{shown(key)} is not how a whole number is written")
    return number


def _inline(array: npt.NDArray[Any], path: str) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: an array of {array.dtype} cannot be stored in a checkpoint")
    data = base64.b64encode(array.tobytes()).decode("ascii")  # in C order, whatever the layout
    return {"$array": {"dtype": array.dtype.str, "shape": list(array.shape), "base64": data}}


def _outline(content: Mapping[str, Any]) -> npt.NDArray[Any]:
    dtype, shape = content["dtype"], content["shape"]
    if not _NUMERIC.fullmatch(dtype):  # NumPy would read much more as a dtype, objects too
        raise ValueError(f"{shown(dtype)} is not a dtype of numbers")
    if not all(type(n) is int and 0 <= n < 2**31 for n in shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{shown(shape)} is not a shape")
    data = base64.b64decode(content["base64"], validate=True)
    array = np.frombuffer(data, np.dtype(dtype)).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))  # a copy: the buffer is read-only
