"""Files of named arrays in the safetensors format: written by its library, read with NumPy alone.

safetensors 0.8.0 accepts what it should not (a name that stands twice, a shape (0, 999999999999)),
does not know BF16 under NumPy, and reads a file by its path. Read before: single.py.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nplm.errors import CheckpointError, NplmError
from nplm.files.failures import shown
from nplm.files.single import JSON_LIMIT, opened, parse_json, read_bytes, read_up_to, write_bytes

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_READABLE = _DTYPES | {"BF16": "<u2"}  # widened to float32
_WRITABLE = {np.dtype(code) for code in _DTYPES.values()}
_LENGTH = 8  # bytes that say how long the header is
_NAME_LIMIT = 1000  # characters
_EMPTY_LIMIT = 2**31  # elements that an empty tensor may have beside its 0: (0, 50257), not 10^12


class _Entry(NamedTuple):
    """A tensor in a file: its bytes are the data's [begin, end)."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int


def require_safetensors() -> ModuleType:
    """The package, or an NplmError that says how to install it."""
    try:
        import safetensors.numpy
    except ImportError:
        raise NplmError(
            "files of tensors need safetensors, which is not installed: pip install safetensors"
        ) from None
    return safetensors


# ---- writing -------------------------------------------------------------------------------------


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays of any layout and byte order as a safetensors file (whole or not at all).

    Raises StorageError; ValueError for a dtype that the format lacks (objects, text, complex), or
    a name that `load_tensors` would refuse.
    """
    library = require_safetensors()
    plain = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    write_bytes(path, library.numpy.save(plain, dict(metadata) if metadata else None))


def _storable(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # safetensors 0.8.0 writes the raw buffer of whatever it gets: wrong numbers unless contiguous.
    # Not `ascontiguousarray`, which turns shape () into (1,).
    if reason := _bad_name(name):
        raise ValueError(f"save_tensors: tensor {shown(name)}: {reason}")
    array = np.asarray(tensor)
    little = array.dtype.newbyteorder("<")
    if little not in _WRITABLE:
        raise ValueError(
            f"save_tensors: tensor {shown(name)} has dtype {array.dtype}, not storable"
        )
    return np.asarray(array, dtype=little, order="C")


def _bad_name(name: str) -> str | None:
    """Why a name is refused: it may be shown, and others may make a path of it."""
    if len(name) > _NAME_LIMIT:
        return f"its name has {len(name)} characters, expected at most {_NAME_LIMIT}"
    if not name.isprintable():
        return "its name holds characters that cannot be printed"
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
        return "its name is a path that leads elsewhere"
    return None


# ---- reading -------------------------------------------------------------------------------------


def load_tensors(path: Path | str) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file into arrays that may be written to; BF16 is widened to float32.

    Raises CheckpointError naming the path, and the tensor or the reason.
    """
    with opened(path) as (handle, size):  # the header first: no memory for what is refused
        start = read_up_to(handle, _LENGTH)
        start += read_up_to(handle, _header_length(start, size, path))
        _layout(start, size, path)
    return parse_tensors(read_bytes(path), path)


def parse_tensors(data: bytes, where: Path | str) -> dict[str, npt.NDArray[Any]]:
    """Read the bytes of a safetensors file as `load_tensors` does; errors begin with `where`."""
    entries = _layout(data, len(data), where)
    body = memoryview(data)[_LENGTH + _header_length(data, len(data), where) :]
    return {entry.name: _array(entry, body, where) for entry in entries}


def _refusal(where: Path | str, reason: str) -> CheckpointError:
    return CheckpointError(f"{where}: damaged or not a safetensors file: {reason}")


def _header_length(data: bytes, size: int, where: Path | str) -> int:
    """The length that the first 8 bytes give, for a file of `size` bytes."""
    if size < _LENGTH or len(data) < _LENGTH:
        raise _refusal(where, f"{size} bytes, expected at least {_LENGTH}")
    length = int.from_bytes(data[:_LENGTH], "little")
    if length > min(size - _LENGTH, JSON_LIMIT):
        raise _refusal(
            where,
            f"a header of {length} bytes, expected at most {min(size - _LENGTH, JSON_LIMIT)}",
        )
    return length


def _layout(data: bytes, size: int, where: Path | str) -> list[_Entry]:
    """Check the header at the start of `data` for a file of `size` bytes; tensors by place."""
    length = _header_length(data, size, where)
    header = data[_LENGTH : _LENGTH + length]
    if not header.startswith(b"{"):
        raise _refusal(where, "its header does not begin with {")
    content = parse_json(header, f"{where}: damaged or not a safetensors file: its header")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _refusal(where, "its metadata are not texts")
    entries = [_entry(name, item, where) for name, item in content.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    place = 0
    for entry in entries:
        if entry.begin != place:
            raise _refusal(
                where,
                f"tensor {shown(entry.name)} begins at byte {entry.begin}, expected {place}: "
                "a gap or an overlap",
            )
        place = entry.end
    if place != size - _LENGTH - length:
        raise _refusal(
            where, f"{size - _LENGTH - length} bytes of data, expected {place} by its header"
        )
    return entries


def _entry(name: str, item: Any, where: Path | str) -> _Entry:
    tensor = f"tensor {shown(name)}"
    if reason := _bad_name(name):
        raise _refusal(where, f"{tensor}: {reason}")
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refusal(where, f"{tensor} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _READABLE:
        known = ", ".join(_READABLE)
        raise CheckpointError(
            f"{where}: {tensor} has dtype {shown(dtype)}, expected one of {known}"
        )
    if not _sizes(shape) or len(shape) > 64:  # NumPy has no more dimensions
        raise _refusal(where, f"{tensor} has an impossible shape: {shown(shape)}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _refusal(where, f"{tensor} has impossible data_offsets: {shown(offsets)}")
    begin, end = offsets
    if end - begin != math.prod(shape) * np.dtype(_READABLE[dtype]).itemsize:
        raise _refusal(
            where, f"{tensor} has {end - begin} bytes, which is not {dtype} of {shown(shape)}"
        )
    if begin == end and math.prod(n or 1 for n in shape) > _EMPTY_LIMIT:
        raise _refusal(where, f"{tensor} is empty, but has an impossible shape: {shown(shape)}")
    return _Entry(name, dtype, shape, begin, end)


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _array(entry: _Entry, body: memoryview, where: Path | str) -> npt.NDArray[Any]:
    words = np.frombuffer(body[entry.begin : entry.end], _READABLE[entry.dtype])
    array: npt.NDArray[Any]
    if entry.dtype == "BOOL" and words.view(np.uint8).max(initial=0) > 1:
        raise _refusal(where, f"tensor {shown(entry.name)} is BOOL and holds other than 0 and 1")
    if entry.dtype == "BF16":  # the upper half of a float32
        array = (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        array = words.astype(words.dtype.newbyteorder("="))  # a copy: the bytes are read-only
    return array.reshape(entry.shape)
