"""Text from a model: one token after the other, greedily or drawn from torch's random stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nplm import random
from nplm.autograd.factory import tensor
from nplm.autograd.grad_mode import no_grad
from nplm.autograd.tensor import Tensor
from nplm.errors import ConfigError, DataError, NonFiniteError
from nplm.nn.functional import softmax
from nplm.nn.utils import device_of
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
    """
    if len(prompt) == 0:
        raise DataError("generate: expected a prompt of at least one token, got none")
    if temperature < 0:
        raise ConfigError(f"generate: expected temperature >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"generate: expected top_k >= 1, got {top_k}")
    generator = generator or random.default_generator
    tokens = [int(token) for token in prompt]
    training = model.training
    model.eval()
    try:
        for _ in range(max_tokens):
            token = _next_token(model, tokens, temperature, top_k, generator)
            tokens.append(token)
            yield token
    finally:
        model.train(training)


def _next_token(
    model: Any, tokens: list[int], temperature: float, top_k: int | None, generator: Generator
) -> int:
    device = device_of(model)
    seen = np.array(tokens[-model.config.context :], np.int64)
    with no_grad():
        logits: Tensor = model(tensor(seen[None], device=device))[0, -1].to("cpu")  # (V,)
        if not np.isfinite(np.asarray(logits)).all():
            raise NonFiniteError(
                "generate: expected finite scores from the model, got NaN or infinity; its weights "
                "are broken: take an earlier checkpoint, or train with a lower learning rate"
            )
        if temperature == 0:
            return int(logits.argmax())
        logits = logits / temperature
        if top_k is not None and top_k < len(logits):
            kth = np.partition(np.asarray(logits), -top_k)[-top_k]
            logits = logits.masked_fill(logits < float(kth), float("-inf"))
        return int(generator.multinomial(np.asarray(softmax(logits, -1)), 1)[0])
