"""`nplm generate RUN`: the best checkpoint of a run writes text."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from nplm import backend
from nplm.cli.arguments import parse
from nplm.data.tokenizer import Tokenizer, tokenizer_from_dict
from nplm.errors import CheckpointError, ConfigError, DataError
from nplm.generation import generate
from nplm.models.config import DecoderConfig
from nplm.models.decoder import Decoder
from nplm.random import Generator
from nplm.train.checkpoint import Checkpoint, best_checkpoint, latest_checkpoint, load_checkpoint
from nplm.train.config import LARGEST, SEEDS
from nplm.train.run import RunFolder


@dataclass(frozen=True)
class GenerateConfig:
    """Let a trained model write."""

    run: Path  # the run's folder
    prompt: str | None = None  # text to go on from; None: a new line
    length: int = 500  # tokens
    temperature: float = 0.8  # 0: always the likeliest; 1: as trained; more: wilder
    top_k: int | None = None  # draw among the k likeliest only; None: among all
    seed: int = 1337  # of the draws
    weights: Literal["average", "trained"] | None = None  # None: the run's average if it has one
    device: str = "cpu"  # cpu (NumPy), torch:cpu or cuda

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        problems = []
        if not 1 <= self.length <= LARGEST:
            problems.append(f"length: expected at least 1, at most {LARGEST:,}, got {self.length}")
        if not (self.temperature == 0 or 1e-6 <= self.temperature <= 1e6):
            problems.append(
                f"temperature: expected 0 or a number from 1e-6 to 1e6, got {self.temperature}; "
                "use 0 for greedy, which always takes the likeliest token"
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k: expected at least 1, got {self.top_k}")
        if self.seed not in SEEDS:
            problems.append(f"seed: expected -2^63 to 2^64 - 1, got {self.seed}")
        if problems:
            raise ConfigError("; ".join(problems))


def main(arguments: list[str]) -> int:
    """Print the prompt and what the model makes of it, as soon as a character is whole."""
    config = parse(GenerateConfig, arguments, "nplm generate")
    backend.require_device(config.device)
    model, tokenizer = load(config.run, config.weights)
    model.to(config.device)
    prompt = tokenizer.opening if config.prompt is None else config.prompt
    ids = generate(
        model, list(tokenizer.encode(prompt)), config.length,
        temperature=config.temperature, top_k=config.top_k,
        generator=Generator().manual_seed(config.seed),
    )  # fmt: skip
    sys.stdout.write(prompt)
    decoder = tokenizer.decoder()
    for token in ids:
        sys.stdout.write(decoder.feed([token]))
        sys.stdout.flush()
    print(decoder.flush())
    return 0


def load(path: Path, weights: str | None = None) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a run's best checkpoint, or of its last one.

    weights: "average", "trained", or None for the average if there is one.
    """
    run = RunFolder.open(path)
    try:
        newest = best_checkpoint(run) or latest_checkpoint(run)
    except CheckpointError as error:  # the best one was removed
        print(f"nplm generate: {error}; taking the newest", file=sys.stderr)
        newest = latest_checkpoint(run)
    if newest is None:
        raise CheckpointError(f"{path}: expected a checkpoint, found none; train it to the end")
    checkpoint = load_checkpoint(newest)
    if checkpoint.tokenizer is None or checkpoint.state["config"] is None:
        raise CheckpointError(f"{newest}: it holds no tokenizer or no model config")
    try:
        tokenizer = tokenizer_from_dict(checkpoint.tokenizer)
    except DataError as error:
        raise CheckpointError(f"{newest / 'tokenizer.json'}: {error}") from None
    if weights != "trained":
        checkpoint = _averaged(checkpoint, weights == "average")
    return _model(checkpoint, tokenizer.vocab_size), tokenizer


def _averaged(checkpoint: Checkpoint, needed: bool) -> Checkpoint:
    """The checkpoint with the average of its weights in their place, if there is one."""
    average = checkpoint.average or {}
    if not average.get("updates"):
        if needed:
            raise CheckpointError(
                f"{checkpoint.path}: it has no average of its weights, or one that has not begun; "
                "leave --weights out"
            )
        return checkpoint
    found = average.get("weights")
    names = checkpoint.state["ties"]
    if not isinstance(found, dict) or checkpoint.model.keys() != found.keys() | names.keys():
        raise CheckpointError(f"{checkpoint.path}: its average is not one of its weights")
    return replace(checkpoint, model=found | {name: found[owner] for name, owner in names.items()})


# ---- a config is compared with the weights before anything of its size is allocated --------------
def _model(checkpoint: Checkpoint, vocab_size: int) -> Decoder:
    """The model that the config describes, if its tokenizer and its weights say the same."""
    try:
        config = _config(checkpoint.state["config"])
        if config.vocab_size != vocab_size:
            raise ConfigError(f"vocab_size: {config.vocab_size}, the tokenizer has {vocab_size}")
        blocks = {n.split(".")[1] for n in checkpoint.model if n.startswith("blocks.")}
        if config.n_layer != len(blocks):
            raise ConfigError(f"n_layer: {config.n_layer}, the weights have {len(blocks)} blocks")
        for name, shape in _shapes(config):
            there = checkpoint.model[name].shape if name in checkpoint.model else None
            if there != shape:
                raise ConfigError(f"{name}: expected the shape {shape}, got {there}")
        model = Decoder(config).to(dtype=checkpoint.model["wte.weight"].dtype)
        model.load_state_dict(checkpoint.model)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        said = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise CheckpointError(
            f"{checkpoint.path / 'state.json'}: its config does not fit this checkpoint: {said}; "
            "take an unchanged copy, or train again"
        ) from error
    return model


def _config(stored: Any) -> DecoderConfig:
    if not isinstance(stored, dict):
        raise ConfigError(f"expected a mapping, got {type(stored).__name__}")
    known = [field.name for field in fields(DecoderConfig)]
    if wrong := [repr(name) for name in known if name not in stored]:
        raise ConfigError(f"{', '.join(wrong)} missing")
    if wrong := [repr(name) for name in stored if name not in known]:
        raise ConfigError(f"{', '.join(wrong)} unknown")
    return DecoderConfig(**stored)


def _shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The weights whose shapes bound those of all others."""
    C = config.n_embd
    yield "wte.weight", (config.vocab_size, C)
    if config.positions == "learned":
        yield "wpe.weight", (config.context, C)
    for i in range(config.n_layer):
        yield f"blocks.{i}.attn.proj.weight", (C, C)
        yield f"blocks.{i}.mlp.proj.weight", (C, config.hidden)
