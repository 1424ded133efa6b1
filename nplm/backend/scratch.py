"""Memory that kernels use again and again: fresh large arrays cost a page fault for every 4 KB.

A kernel names its buffers; each thread has its own. What a kernel returns or keeps for its backward
never lies here.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np


class _Buffers(threading.local):
    """By name and dtype: all of the memory, and the part of it that was asked for last."""

    def __init__(self) -> None:
        self.by_name: dict[tuple[str, Any], tuple[np.ndarray, np.ndarray]] = {}


_buffers = _Buffers()
_ones: dict[Any, np.ndarray] = {}  # by dtype


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array with whatever was in it, valid until this thread asks for `name` again."""
    held, last = _buffers.by_name.get((name, dtype), (None, None))
    if last is not None and last.shape == shape:
        return last
    n = math.prod(shape)
    if held is None or held.size < n:
        held = np.empty(n, dtype)
    part = held[:n].reshape(shape)
    _buffers.by_name[name, dtype] = held, part
    return part


def ones(n: int, dtype: Any) -> np.ndarray:
    """1, n times, which nobody can write to: a product with it is a sum.  For all threads."""
    held = _ones.get(dtype)
    if held is None or held.size < n:
        held = np.ones(max(n, 1024), dtype)
        held.flags.writeable = False
        _ones[dtype] = held
    return held[:n]
