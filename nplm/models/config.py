"""DecoderConfig: every setting of the decoder, and the named presets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from nplm.errors import ConfigError, unknown

NORMS, POSITIONS = ("layer", "rms"), ("learned", "rope")
ACTIVATIONS = ("gelu", "gelu_tanh", "swiglu")

SIZES = ("vocab_size", "context", "n_layer", "n_head", "n_embd")
OPTIONAL_SIZES = ("n_kv_head", "n_hidden")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer.  The defaults are GPT-2's family; `tiny-llama` is the other."""

    vocab_size: int = 50257  # tokens
    context: int = 1024  # positions that a token can look back on, itself included
    n_layer: int = 12  # blocks
    n_head: int = 12  # query heads a block
    n_kv_head: int | None = None  # key and value heads a block; None: as many as query heads
    n_embd: int = 768  # channels
    n_hidden: int | None = None  # channels inside the MLP; None: 4 n_embd
    norm: str = "layer"  # "layer" (LayerNorm) or "rms" (RMSNorm)
    norm_eps: float = 1e-5  # added to the variance or mean square
    positions: str = "learned"  # "learned" (a table) or "rope" (rotary)
    rope_theta: float = 10000.0  # base of the rotary frequencies
    activation: str = "gelu"  # "gelu", "gelu_tanh" or "swiglu"
    bias: bool = True  # in Linear layers and LayerNorm
    tied: bool = True  # the head uses the token embedding's weight
    dropout: float = 0.0  # probability, in training

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigError("DecoderConfig: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name in (*SIZES, *OPTIONAL_SIZES):
            value = getattr(self, name)
            if not (value is None and name in OPTIONAL_SIZES) and (
                type(value) is not int or value < 1
            ):
                yield f"{name}: expected a positive integer, got {value!r}"
                return
        if self.n_embd % self.n_head:
            yield f"n_embd: expected a multiple of n_head={self.n_head}, got {self.n_embd}"
        elif self.positions == "rope" and self.n_embd // self.n_head % 2:
            yield f"n_embd: rope needs an even head size, got {self.n_embd // self.n_head}"
        if self.n_head % self.kv_heads:
            yield f"n_kv_head: expected a divisor of n_head={self.n_head}, got {self.n_kv_head}"
        for name, known in (("norm", NORMS), ("positions", POSITIONS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                yield f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
        for name in ("bias", "tied"):
            if type(getattr(self, name)) is not bool:
                yield f"{name}: expected True or False, got {getattr(self, name)!r}"
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            yield f"dropout: expected a probability in [0, 1), got {self.dropout!r}"
        for name in ("norm_eps", "rope_theta"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) > 0):
                yield f"{name}: expected a positive number, got {getattr(self, name)!r}"

    @property
    def kv_heads(self) -> int:
        """Key and value heads a block."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def hidden(self) -> int:
        """Channels inside the MLP."""
        return 4 * self.n_embd if self.n_hidden is None else self.n_hidden


PRESETS = {
    # nanoGPT's character model for a CPU
    "char": DecoderConfig(
        vocab_size=65, context=64, n_layer=4, n_head=4, n_embd=128, bias=False, dropout=0.0
    ),
    # Llama's settings (Touvron et al., 2023) with grouped heads, as small as `char`
    "tiny-llama": DecoderConfig(
        vocab_size=65, context=64, n_layer=4, n_head=4, n_kv_head=2, n_embd=128, n_hidden=344,
        norm="rms", positions="rope", activation="swiglu", bias=False, tied=False,
    ),
    # the 124M model of Radford et al., 2019
    "gpt2": DecoderConfig(activation="gelu_tanh", dropout=0.1),
}  # fmt: skip


def preset(name: str, **changes: Any) -> DecoderConfig:
    """A preset by name with some fields changed.  Raises ConfigError with the nearest name."""
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    known = [field.name for field in fields(DecoderConfig)]
    for key in changes:
        if key not in known:
            raise ConfigError(unknown("setting of DecoderConfig", key, known))
    return replace(PRESETS[name], **changes)
