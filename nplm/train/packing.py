"""Nested state (optimizers, schedulers, generators) as JSON plus named tensors, and back, exactly.

JSON alone would turn tuples into lists, integer keys into text, and refuse infinity.
"""

import base64
import math
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.errors import CheckpointError

Tensors = MutableMapping[str, npt.NDArray[Any]]


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

    Raises CheckpointError, which begins with `where`, for a tensor that is missing or a mark ($...)
    that this version does not know.
    """
    if isinstance(packed, list):
        return [unpack(item, where, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    mark = next(iter(packed), "")
    if not mark.startswith("$"):
        return {key: unpack(item, where, tensors) for key, item in packed.items()}
    content = packed[mark]
    try:
        if mark == "$tensor":
            if content not in (tensors or {}):
                raise CheckpointError(f"{where}: tensor {content!r} is missing from the checkpoint")
            return (tensors or {})[content]
        if mark == "$float":
            return float(content)
        if mark == "$tuple":
            return tuple(unpack(item, where, tensors) for item in content)
        if mark == "$int_keys":
            return {int(key): unpack(item, where, tensors) for key, item in content.items()}
        if mark == "$array":
            return _outline(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: damaged {mark}: {error}") from None
    raise CheckpointError(f"{where}: {mark!r} is not known to this version of nplm; update nplm")


def _inline(array: npt.NDArray[Any], path: str) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: an array of {array.dtype} cannot be stored in a checkpoint")
    data = base64.b64encode(array.tobytes()).decode("ascii")  # in C order, whatever the layout
    return {"$array": {"dtype": array.dtype.str, "shape": list(array.shape), "base64": data}}


def _outline(content: Mapping[str, Any]) -> npt.NDArray[Any]:
    data = base64.b64decode(content["base64"], validate=True)
    array = np.frombuffer(data, np.dtype(content["dtype"])).reshape(content["shape"])
    return array.astype(array.dtype.newbyteorder("="))  # a copy: the buffer is read-only
