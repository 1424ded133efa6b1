"""Which attention kernel runs where: an order by device, and what each kernel has refused."""

from __future__ import annotations

import torch

NAMES = ("cpu", "cudnn", "flash", "efficient")
HALVES = (torch.bfloat16, torch.float16)
_preferred: list[str] = []
refusals: dict[tuple[object, ...], str] = {}  # (kernel, shapes ...) -> what it said


def prefer_attention(name: str | None) -> None:
    """Ask kernel `name` ("cudnn", "flash" or "efficient") first, where there are several.

    None: the built-in order again. It is for measurements: a kernel that refuses is passed over as
    ever. Raises ValueError for another name.
    """
    if name is not None and name not in NAMES:
        raise ValueError(
            f"prefer_attention: expected one of {', '.join(NAMES)} or None, got {name!r}"
        )
    _preferred[:] = [] if name is None else [name]


def order(device: str, dtype: torch.dtype, D: int, hopper: bool) -> list[tuple[str, str]]:
    """(kernel, why) in the order in which they are asked; none: the reference runs.

    device      "cpu" or "cuda"
    D           head size
    hopper      compute capability 9.0 or more
    """
    if device == "cpu":
        return [("cpu", "torch's one fused kernel for CPUs")]
    if dtype in HALVES:
        found = [("flash", "FlashAttention-2 takes bfloat16 heads of up to 256")]
        if D % 8 == 0 and D <= 128:
            place = 0 if hopper else 1
            why = "cuDNN is the fastest on Hopper" if hopper else "cuDNN is fast on Hopper only"
            found.insert(place, ("cudnn", why))
        found = found if D % 8 == 0 and D <= 256 else []
        return [*found, ("efficient", "memory-efficient attention takes what the others do not")]
    if dtype == torch.float32:
        return [("efficient", "the one fused kernel for float32 on CUDA")]
    return []


def _key(name: str, q: torch.Tensor, k: torch.Tensor, causal: bool) -> tuple[object, ...]:
    return name, q.device, q.dtype, tuple(q.shape), tuple(k.shape), causal


def candidates(q: torch.Tensor, k: torch.Tensor, causal: bool) -> list[str]:
    """The kernels to try for these inputs, first choice first."""
    device = q.device.type
    hopper = device == "cuda" and since_hopper(q.device)
    names = [name for name, _ in order(device, q.dtype, q.shape[-1], hopper)]
    names = [*(n for n in _preferred if n in names), *(n for n in names if n not in _preferred)]
    return [n for n in names if not refusals or _key(n, q, k, causal) not in refusals]


def since_hopper(device: torch.device) -> bool:
    """Whether a card has compute capability 9.0 or more; False without any card."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (9, 0)


def remember(
    name: str, q: torch.Tensor, k: torch.Tensor, causal: bool, error: RuntimeError
) -> None:
    """A kernel refused these shapes: do not ask it again.  Too little memory is no refusal."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    refusals[_key(name, q, k, causal)] = str(error).partition("\n")[0]
