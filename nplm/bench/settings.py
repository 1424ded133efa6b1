"""What is measured: a model, its batches and its update; the configurations that have a letter."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nplm.data.loader import Batch
from nplm.models.config import DecoderConfig, preset

# One update everywhere: AdamW, decay on matrices only, the gradient clipped.
LR, BETAS, WEIGHT_DECAY, CLIP_NORM = 3e-4, (0.9, 0.95), 0.1, 1.0
SEED = 1337


@dataclass(frozen=True)
class Setting:
    """One thing to measure."""

    model: DecoderConfig
    batch_size: int  # rows in a micro-batch
    accumulate: int = 1  # micro-batches an update
    part: str = "model"  # "model": whole updates; "block": one block, forward and backward

    @property
    def tokens(self) -> int:
        """Target tokens of an update."""
        return self.batch_size * self.accumulate * self.model.context

    def batches(self) -> list[Batch]:
        """The micro-batches of every update: the same random tokens in every process."""
        rng = np.random.default_rng(SEED)
        shape = (self.batch_size, self.model.context + 1)
        drawn = [rng.integers(0, self.model.vocab_size, shape) for _ in range(self.accumulate)]
        return [Batch(ids[:, :-1], ids[:, 1:]) for ids in drawn]

    def block_input(self) -> np.ndarray:
        """What a block is fed, (B, T, C) float32."""
        rng = np.random.default_rng(SEED)
        shape = (self.batch_size, self.model.context, self.model.n_embd)
        return rng.standard_normal(shape, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain data; `Setting.from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Setting:
        """The setting that `to_json` wrote."""
        return cls(**{**data, "model": DecoderConfig(**data["model"])})


def _gpt2(layers: int, heads: int, channels: int, context: int, rows: int, vocab: int) -> Setting:
    model = preset(
        "gpt2", n_layer=layers, n_head=heads, n_embd=channels, context=context, vocab_size=vocab,
        dropout=0.0,
    )  # fmt: skip
    return Setting(model, rows)


_B = _gpt2(6, 6, 384, 256, 4, 65)
CONFIGS = {
    "a": _gpt2(4, 4, 128, 64, 12, 65),
    "b": _B,
    "c": _gpt2(6, 6, 384, 256, 4, 50257),
    "c-padded": _gpt2(6, 6, 384, 256, 4, 50304),  # a multiple of 128: some BLAS prefer it
    "d": _gpt2(12, 12, 768, 256, 1, 50257),
    # b's sizes with Llama's parts; its MLP has 8/3 C channels, as many weights as GPT-2's 4 C
    "llama": Setting(
        preset(
            "tiny-llama", n_layer=6, n_head=6, n_kv_head=2, n_embd=384, n_hidden=1024, context=256
        ),
        4,
    ),
    "block": replace(_B, part="block"),
}


def in_words(setting: Setting) -> str:
    """The sizes by their letters: L6 H6 C384 T256 B4 V65."""
    m = setting.model
    heads = f"{m.n_head}/{m.kv_heads}" if m.kv_heads != m.n_head else f"{m.n_head}"
    more = f" x{setting.accumulate}" if setting.accumulate > 1 else ""
    if setting.part == "block":
        return f"one block, H{heads} C{m.n_embd} T{m.context} B{setting.batch_size}"
    return (
        f"L{m.n_layer} H{heads} C{m.n_embd} T{m.context} B{setting.batch_size}{more} "
        f"V{m.vocab_size}"
    )
