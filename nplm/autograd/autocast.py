"""autocast: products in bfloat16 on torch devices, everything that is kept in float32.

What each op does then is written in its kernel, backend/torch_kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nplm.autograd.graph import flags
from nplm.backend.dtypes import bfloat16
from nplm.errors import BackendError


@contextmanager
def autocast(device: str, dtype: Any = bfloat16, enabled: bool = True) -> Iterator[None]:
    """Run ops on float32 parameters in bfloat16 inside the block.  Twin: torch.autocast.

    Parameters, their gradients, optimizer moments, the statistics of norms and the loss stay
    float32; activations are bfloat16, and so are the copies of weights that products read, made
    once an update. Needs no loss scaling: bfloat16 has float32's exponents. Reference ops know
    nothing of it: under `nplm.reference()` everything is float32.
    Raises BackendError for "cpu", which is NumPy, and TypeError for another dtype.
    """
    if dtype is not bfloat16:
        raise TypeError(f"autocast: expected nplm.bfloat16, got {dtype}")
    if enabled and device == "cpu":
        raise BackendError(
            "autocast: device 'cpu' is NumPy, which has no bfloat16; use 'torch:cpu' or 'cuda'"
        )
    before, flags.autocast = flags.autocast, enabled
    try:
        yield
    finally:
        flags.autocast = before
