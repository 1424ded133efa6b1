"""What torch says of a CUDA card and of its own precision: `nplm doctor` prints it."""

from __future__ import annotations

from typing import Any

import torch


def card(device: str) -> dict[str, Any]:
    """A card's memory in bytes, its compute capability, CUDA's version, and what it can do:
    bfloat16, flash attention, cuDNN attention.

    Raises RuntimeError or AssertionError, torch's own, for a card that cannot be used.
    """
    properties = torch.cuda.get_device_properties(device)
    q = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16, device=device)  # (B, H, T, D)
    asked = torch.backends.cuda.SDPAParams(q, q, q, None, 0.0, True, False)
    return {
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "bfloat16": properties.major >= 8,  # older ones emulate it
        "flash_attention": torch.backends.cuda.can_use_flash_attention(asked),
        "cudnn_attention": torch.backends.cuda.can_use_cudnn_attention(asked),
    }


def tf32() -> bool:
    """Whether float32 products may be rounded to TF32, with 10 of their 23 binary digits."""
    return bool(torch.get_float32_matmul_precision() != "highest")
