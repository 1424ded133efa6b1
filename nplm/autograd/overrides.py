"""The override table: on one backend a whole op or update may be replaced by a faster one.

Kernel modules fill it (`backend/*_kernels.py`); they are loaded on the first dispatch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from nplm.autograd.graph import flags

KNOWN: set[str] = set()  # the names of all ops and updates
OVERRIDES: dict[tuple[str, str], list[tuple[Callable[..., bool] | None, Callable[..., Any]]]] = {}
_kernels_loaded: set[str] = set()
_always_reference = os.environ.get("NPLM_REFERENCE", "0") not in ("", "0")


def choose(name: str, xp: ModuleType, arrays: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The backend's override of `name` that accepts these arguments, or None: the reference."""
    if flags.reference or _always_reference:
        return None
    backend = xp.name
    if backend not in _kernels_loaded:  # the first dispatch to a backend loads its kernels
        if find_spec(f"nplm.backend.{backend}_kernels"):
            import_module(f"nplm.backend.{backend}_kernels")  # another thread waits here for it
        _kernels_loaded.add(backend)
    for when, kernel in OVERRIDES.get((name, backend), ()):
        if when is None or when(*arrays, **options):
            return kernel
    return None


def override(name: str, *, backend: str, when: Callable[..., bool] | None = None) -> Any:
    """Replace a whole op or update on one backend: same signature, forward and backward together.

    `when(*arrays, **options)` may decline; later overrides are asked first.
    """

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        if name not in KNOWN:
            raise KeyError(f"override: there is no op or update named '{name}'")
        OVERRIDES.setdefault((name, backend), []).insert(0, (when, kernel))
        return kernel

    return register


@contextmanager
def reference() -> Iterator[None]:
    """Use only the readable reference ops on this thread; `NPLM_REFERENCE=1` does so everywhere."""
    before, flags.reference = flags.reference, True
    try:
        yield
    finally:
        flags.reference = before
