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
    def __init__(self) -> None:
        self.by_name: dict[tuple[str, np.dtype[Any]], np.ndarray] = {}


_buffers = _Buffers()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array with whatever was in it, valid until this thread asks for `name` again."""
    n, key = math.prod(shape), (name, np.dtype(dtype))
    held = _buffers.by_name.get(key)
    if held is None or held.size < n:
        held = _buffers.by_name[key] = np.empty(n, dtype)
    return held[:n].reshape(shape)
