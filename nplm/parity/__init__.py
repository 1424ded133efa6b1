"""The judge: tolerances with their reasons, traces of runs, and the torch twin of every model."""

from importlib import import_module
from typing import Any

_HOME = {
    "Trace": "trace", "Place": "trace", "Entry": "trace", "PHASES": "trace",
    "record": "recorder", "Recorder": "recorder",
    "compare": "divergence", "Comparison": "divergence", "Divergence": "divergence",
}  # fmt: skip
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name where it is first used; torch only when a torch model is recorded."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
