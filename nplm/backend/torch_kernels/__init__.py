"""Faster versions of ops on torch: forward and backward by torch's own kernels, no autograd.

Loaded on the first op that runs on a torch tensor; a file a family, precision.py first.
"""

from nplm.backend.memory import keep_freed_memory
from nplm.backend.torch_kernels import (
    activation,
    attention,
    dropout,
    head,
    linear,
    loss,
    norm,
    shape,
    updates,
)
from nplm.backend.torch_kernels.attention_choice import prefer_attention
from nplm.backend.torch_kernels.report import chosen

__all__ = ["chosen", "prefer_attention"]

keep_freed_memory()
