"""What runs on a device in a step of GPT-2 or Llama, and why: `nplm doctor` prints it."""

from __future__ import annotations

import torch

from nplm.backend.torch_kernels.attention_choice import order, since_hopper
from nplm.backend.torch_kernels.linear import widens

Choice = tuple[str, str, str]  # op, kernel, why


def chosen(device: str, dtype: torch.dtype | str = "float32") -> list[Choice]:
    """(op, kernel, why) for every op with a choice, at head sizes of 64.

    device      "torch:cpu", "cuda" or "cuda:1"
    dtype       "float32" or "bfloat16" (as under autocast), a name or a dtype of either library
    """
    low = str(dtype).endswith("bfloat16")
    on = torch.device("cpu" if device == "torch:cpu" else device)
    kind = on.type
    cuda = kind == "cuda"
    names = order(kind, torch.bfloat16 if low else torch.float32, 64, cuda and since_hopper(on))
    attention, why = names[0]
    rest = ", then " + ", ".join(name for name, _ in names[1:]) if names[1:] else ""
    found = [("attention", f"aten {attention}", f"{why}{rest}; masks and dropout: the reference")]
    if low and widens(on):
        linear = "float32 weight gradients are written by the product"
    elif low:
        linear = "weight gradients are rounded to bfloat16 once: no product here writes float32"
    else:
        linear = "the bias is in the product"
    found.append(("linear", "addmm, mm in bfloat16" if low else "addmm, mm", linear))
    affine = "; its parameters are cast to bfloat16" if cuda and low else ""
    found.append(("layer_norm", "aten native_layer_norm", f"statistics in float32{affine}"))
    if cuda and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        found.append(("rms_norm", "aten _fused_rms_norm", f"statistics in float32{affine}"))
    else:
        found.append(("rms_norm", "own formula", "aten has no backward of its fused kernel here"))
    loss = "log-probabilities in float32, the gradient in place; large ones in chunks of rows"
    found.append(("linear_cross_entropy", "mm, aten _log_softmax", loss))
    found.append(("adam_update", "aten _fused_adamw_", "one launch for many parameters"))
    return found
