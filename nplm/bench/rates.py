"""What a device multiplies at, measured, and how many operations nanoGPT counts for a token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from nplm.models.config import DecoderConfig

SQUARES = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048)}  # sides of the products
TIMES = {"cuda": 10, "cpu": 4}  # products a measurement


def parameters_of(config: DecoderConfig) -> int:
    """Trained numbers of a decoder without its table of positions; a tied head counts once."""
    C, D = config.n_embd, config.n_embd // config.n_head
    into = config.hidden * (2 if config.activation == "swiglu" else 1)
    qkv = (config.n_head + 2 * config.kv_heads) * D
    norm = C * (2 if config.norm == "layer" and config.bias else 1)
    block = C * qkv + C * C + C * into + config.hidden * C + 2 * norm
    block += (qkv + C + into + C) * config.bias
    tables = config.vocab_size * C * (1 if config.tied else 2)
    return config.n_layer * block + norm + tables


def flops_per_token(config: DecoderConfig) -> int:
    """Operations of a token, forward and backward, as nanoGPT counts them: 6 N + 12 L H Q T.

    N parameters without the table of positions, L layers, H heads of size Q, T context: attention
    counts all T x T pairs, though half of them are masked. (Chowdhery et al., 2022, arXiv
    2204.02311, appendix B; nanoGPT's `estimate_mfu`)
    """
    attention = 12 * config.n_layer * config.n_embd * config.context
    return 6 * parameters_of(config) + attention


def matrix_rate(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Operations a second of large square products on this device: the best of some sizes.

    {"flops_per_second", "side", "sides": {side: rate}}; each the median of a few measurements.
    threads: on the CPU.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sides = {side: _rate_of(side, device, dtype) for side in SQUARES[device]}
    finally:
        torch.set_num_threads(before)
    best = max(sides, key=lambda side: sides[side])
    return {"flops_per_second": sides[best], "side": best, "sides": sides}


def _rate_of(side: int, device: str, dtype: str) -> float:
    generator = torch.Generator(device).manual_seed(0)  # zeros would draw less power
    a, b = (
        torch.randn((side, side), generator=generator, device=device).to(getattr(torch, dtype))
        for _ in range(2)
    )
    out = torch.empty_like(a)

    def product() -> torch.Tensor:
        return torch.mm(a, b, out=out)

    seconds(product, TIMES[device], device)  # the clock of the card rises, and kernels are chosen
    taken = [statistics.median(seconds(product, TIMES[device], device)[0]) for _ in range(3)]
    return 2 * side**3 / statistics.median(taken)


def seconds(step: Callable[[], Any], n: int, device: str) -> tuple[list[float], Any]:
    """The seconds of each of n calls, and the last one's result; nothing waits between them.

    On CUDA they are the times between events on the device; else the host's.
    """
    result = None
    if device == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
        events[0].record()
        for event in events[1:]:
            result = step()
            event.record()
        events[-1].synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(events, events[1:])], result
    taken = []
    for _ in range(n):
        began = time.perf_counter()
        result = step()
        taken.append(time.perf_counter() - began)
    return taken, result


def wait(device: str) -> None:
    """Until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()
