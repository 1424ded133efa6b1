"""What a run says of itself: its needs of memory, a line now and then, numbers for people."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from nplm.models.config import DecoderConfig

# Channels of the MLP that its activation keeps for the backward pass, per hidden channel.
_KEPT_BY = {"gelu": 2, "gelu_tanh": 2, "swiglu": 3}


def parameter_bytes(n_parameters: int, itemsize: int) -> int:
    """Bytes of the weights, their gradients and AdamW's two moments."""
    return 4 * n_parameters * itemsize


def activation_bytes(
    config: DecoderConfig, batch_size: int, itemsize: int, recompute: bool = False
) -> int:
    """About how much one micro-batch (B, context) needs at once, forward and backward.

    Counted from the arrays that the ops keep, of one block if blocks are computed again: a test
    holds it against what NumPy allocates.
    """
    C, hidden, T, V = config.n_embd, config.hidden, config.context, config.vocab_size
    kv = config.kv_heads * (C // config.n_head)
    # Attention's weights of a token in all heads, without the blocks of 64 that causality masks.
    looks = config.n_head * (T + min(T, 64)) // 2
    block = 6 * C + 2 * kv + looks + _KEPT_BY[config.activation] * hidden
    if config.positions == "rope":
        block += C + kv
    if config.dropout:
        block += 2 * C + looks // 2
    if recompute:
        masks = (2 * C + config.n_head * T) // (8 * itemsize) if config.dropout else 0  # bits
        at_work = block + (_KEPT_BY[config.activation] - 1) * hidden
        numbers = config.n_layer * (C + masks) + max(at_work, 3 * V // 2) + 4 * C
    else:  # all that the blocks keep, and the one block or head at work
        numbers = config.n_layer * block + max(2 * hidden, 2 * V) + 4 * C
    return batch_size * T * itemsize * numbers


def line(metrics: dict[str, Any], tokens_per_second: float, seconds_left: float) -> str:
    """One update's figures in fewer than 100 columns."""
    validation = metrics.get("validation_loss")
    return (
        f"step {metrics['step']:5d}  loss {metrics['loss']:.4f}  "
        + (f"validation {validation:.4f}  " if validation is not None else " " * 19)
        + f"lr {metrics['lr']:.2e}  norm {metrics['grad_norm']:.2f}  "
        + f"{tokens_per_second:6,.0f} tok/s  left {clock(seconds_left)}"
    )


class Pace:
    """Tokens per second since the last line, and the time that is left."""

    def __init__(self, step: int, total: int) -> None:
        self._first, self._step, self._total = step, step, total
        self._began = perf_counter()
        self._tokens, self._seconds = 0, 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """One more update, of so many tokens in so many seconds."""
        self._step += 1
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds

    def take(self) -> tuple[float, float]:
        """(tokens per second since the last call, seconds left, validations included)"""
        rate = self._tokens / self._seconds
        self._tokens, self._seconds = 0, 0.0
        done = self._step - self._first
        return rate, (perf_counter() - self._began) / done * (self._total - self._step)


def quoted(step: int, sample: str) -> str:
    """A sample, indented below its step."""
    return "\n".join(
        [f"sample at step {step}:", *("    " + row for row in sample.strip().splitlines())]
    )


def counted(n: int, what: str) -> str:
    """1, "validation" -> "1 validation"; 2 -> "2 validations"."""
    return f"{n} {what}" + "s" * (n != 1)


def clock(seconds: float) -> str:
    """3725 -> "1:02:05", 65 -> "1:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def amount(n_bytes: int) -> str:
    """3_100_000 -> "3 MB", 2_500_000_000 -> "2.5 GB"."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{max(n_bytes / 1e6, 1):,.0f} MB"
