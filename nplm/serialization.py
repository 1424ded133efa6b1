"""`nplm.save` and `nplm.load`: named tensors, such as a state_dict, as one safetensors file.

Nothing is pickled: a file holds numbers and their names. Whole runs: nplm/train/checkpoint.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nplm import files
from nplm.autograd.factory import as_tensor
from nplm.autograd.tensor import Tensor
from nplm.errors import CheckpointError

_RESERVED = "__metadata__"  # safetensors keeps this name for itself
_ADVICE = (
    "use nplm.save(model.state_dict(), path), or nplm.train.checkpoint for a whole run with its "
    "optimizer"
)


def _path(name: str, f: Any) -> Path:
    if not isinstance(f, str | os.PathLike):
        raise TypeError(f"{name}: expected the path of a file, got {type(f).__name__}")
    return Path(f)


def save(obj: Mapping[str, Tensor], f: str | os.PathLike[str]) -> None:
    """Write named tensors, whole or not at all: `save(model.state_dict(), path)`.  Twin: torch.save

    A tied weight is stored under each of its names; `load_state_dict` into a model that ties them
    ties them again.  Raises StorageError.
    """
    path = _path("save", f)
    if not isinstance(obj, Mapping):
        raise TypeError(
            f"save: expected a mapping of names to Tensors, got {type(obj).__name__}: {_ADVICE}"
        )
    for name, value in obj.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(
                "save: expected a mapping of names to Tensors, got "
                f"{type(value).__name__} under {name!r}: {_ADVICE}"
            )
    if _RESERVED in obj:
        raise ValueError(f"save: safetensors keeps the name {_RESERVED!r} for itself: rename it")
    files.save_tensors(path, {name: value.detach().numpy() for name, value in obj.items()})


def load(
    f: str | os.PathLike[str], map_location: str | None = None, *, weights_only: bool = True
) -> dict[str, Tensor]:
    """What `save` wrote, or any safetensors file, by name.  Twin: torch.load

    On the device `map_location` ("cpu" without it).  Raises CheckpointError.
    """
    path = _path("load", f)
    if not weights_only:
        raise NotImplementedError("load: weights_only=False is not supported: nothing is unpickled")
    tensors: dict[str, Tensor] = {}
    for name, array in files.load_tensors(path).items():
        try:
            tensors[name] = as_tensor(array, device=map_location or "cpu")
        except TypeError as error:  # a dtype that the format has and nplm has not
            raise CheckpointError(f"{path}: tensor {name!r}: {error}") from None
    return tensors
