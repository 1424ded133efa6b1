"""Which namespace an array or a device belongs to.  torch is imported only when it is asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from nplm.backend import numpy as numpy_namespace
from nplm.errors import BackendError


def namespace_of(array: Any) -> ModuleType:
    """The namespace of an array: a torch tensor in hand means that torch is loaded already."""
    if isinstance(array, np.ndarray):
        return numpy_namespace
    if "torch" in sys.modules and isinstance(array, sys.modules["torch"].Tensor):
        return import_module("nplm.backend.torch")
    raise TypeError(f"expected a NumPy array or a torch tensor, got {type(array).__name__}")


def namespace_for(device: str) -> ModuleType:
    """The namespace of a device: "cpu" is NumPy, "torch:cpu" and "cuda" are torch."""
    if device == "cpu":
        return numpy_namespace
    if not isinstance(device, str) or device.split(":")[0] not in ("torch", "cuda"):
        raise BackendError(f"unknown device {device!r}: expected 'cpu', 'torch:cpu' or 'cuda'")
    try:
        return import_module("nplm.backend.torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendError(
            f"device '{device}' needs PyTorch, which is not installed: run "
            "`pip install torch`, or use the device 'cpu'"
        ) from None


def common_namespace(name: str, tensors: list[Any]) -> Any:
    """The one namespace of all tensors, or an error that says which devices met."""
    if not tensors:
        raise TypeError(
            f"{name}: expected at least one nplm.Tensor; make one with nplm.tensor(...)"
        )
    xp = tensors[0].xp
    if len(tensors) == 1 or (xp.name == "numpy" and all([t.xp is xp for t in tensors])):
        return xp  # a list, for a generator would cost more than the whole question
    devices = sorted({t.device for t in tensors})
    if len(devices) > 1:
        raise BackendError(
            f"{name}: expected all tensors on one device, got {' and '.join(devices)}; "
            "move one with .to(device)"
        )
    return xp


def require_device(device: str) -> None:
    """A BackendError unless arrays can be made on `device` now: ask it before any work."""
    namespace_for(device).asarray(0.0, device=device)


def devices() -> dict[str, str]:
    """Every device that arrays can be on now, and what it is: {"cpu": "NumPy 2.4.6", ...}.

    Without torch there is only "cpu"; a torch that does not load is a BackendError.
    """
    found = {"cpu": f"NumPy {np.__version__}"}
    try:
        torch = namespace_for("torch:cpu")
    except BackendError:
        return found
    except (ImportError, OSError) as error:
        raise BackendError(f"PyTorch does not load: {error}; install it again") from error
    return found | torch.devices()
