"""Text from a model: one token after the other, greedily or drawn from torch's random stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nplm import random
from nplm.autograd.factory import tensor
from nplm.autograd.grad_mode import no_grad
from nplm.backend import numpy as xp
from nplm.errors import ConfigError, DataError, NonFiniteError
from nplm.models.cached import cached
from nplm.nn.utils import device_of
from nplm.ops.activation import softmax
from nplm.random import Generator


def generate(
    model: Any,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: Generator | None = None,
) -> Iterator[int]:
    """Yield up to `max_tokens` new tokens after `prompt` (at least one token).

    temperature 0 takes the likeliest token; otherwise logits are divided by it and, with `top_k`,
    only the k likeliest can be drawn. The model sees the last `context` tokens. Draws as
    `torch.multinomial(probs, 1)` does. Raises NonFiniteError for scores with NaN or infinity.

    A Decoder on NumPy keeps keys and values (models/cached.py): up to its `context` a token costs
    one row, past it a whole window. Every other model is called with the whole window, in eval
    mode, and put back into the mode it was in. Its weights must stay as they are until the end.
    """
    if len(prompt) == 0:
        raise DataError("generate: expected a prompt of at least one token, got none")
    if temperature < 0:
        raise ConfigError(f"generate: expected temperature >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"generate: expected top_k >= 1, got {top_k}")
    generator = generator or random.default_generator
    tokens = [int(token) for token in prompt]
    next_scores = cached(model) or _Uncached(model)
    for _ in range(max_tokens):
        token = next_token(next_scores(tokens), temperature, top_k, generator)
        tokens.append(token)
        yield token


class _Uncached:
    """The scores of the next token (V,) from any model that is called with a window (1, T)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tokens: list[int]) -> np.ndarray:
        model, training = self.model, self.model.training
        seen = np.array([tokens[-model.config.context :]], np.int64)  # (1, T)
        model.eval()
        try:
            with no_grad():
                logits = model(tensor(seen, device=device_of(model)))[0, -1]
        finally:
            model.train(training)
        return np.asarray(logits.to("cpu"))


def next_token(
    scores: np.ndarray, temperature: float, top_k: int | None, generator: Generator
) -> int:
    """The likeliest token at temperature 0, else one drawn by its scores (V,)."""
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            "generate: expected finite scores from the model, got NaN or infinity; its weights "
            "are broken: take an earlier checkpoint, or train with a lower learning rate"
        )
    if temperature == 0:
        return int(scores.argmax())
    with xp.quiet():
        scores = scores / float(temperature)
        if top_k is not None and top_k < len(scores):
            kth = np.partition(scores, -top_k)[-top_k]
            scores = np.where(scores < kth, scores.dtype.type(-np.inf), scores)
        probs, _ = softmax.raw(xp, scores, -1)
    return int(generator.multinomial(probs, 1)[0])
