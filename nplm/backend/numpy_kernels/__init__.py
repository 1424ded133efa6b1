"""Faster versions of ops on NumPy: each names its reference in nplm/ops and equals it.

Read the op first. Loaded on the first op that runs on a NumPy array; a file a family.
"""

from nplm.backend.numpy_kernels import (
    activation,
    attention,
    head,
    linear,
    loss,
    norm,
    shape,
    updates,
)
