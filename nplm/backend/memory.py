"""Memory that is freed stays ours: a step needs the same again, and fresh pages are slow."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h. By default arrays above 128 KB go back to the system when they are freed,
# and the next one costs a page fault for every 4 KB: a tenth of a small model's step.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ALWAYS = (1 << 31) - 1
_LARGEST = 1 << 25  # bytes; above, as for weights, an array is mapped and given back by itself
_kept: bool | None = None


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, for this whole process; False where malloc is not glibc's.

    The peak of the memory in use stays what it was; after it, less goes back to the system.
    """
    global _kept
    if _kept is None:
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
            _kept = False
        else:
            _kept = bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST))
            _kept = bool(mallopt(_M_TRIM_THRESHOLD, _ALWAYS)) and _kept
    return _kept
