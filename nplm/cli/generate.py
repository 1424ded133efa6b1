"""`nplm generate RUN`: the best checkpoint of a run writes text."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from nplm.cli.arguments import parse
from nplm.data.tokenizer import CharTokenizer
from nplm.errors import CheckpointError, ConfigError
from nplm.generation import generate
from nplm.models.config import DecoderConfig
from nplm.models.decoder import Decoder
from nplm.random import Generator
from nplm.train.checkpoint import best_checkpoint, latest_checkpoint, load_checkpoint
from nplm.train.run import RunFolder


@dataclass(frozen=True)
class GenerateConfig:
    """Let a trained model write."""

    run: tyro.conf.Positional[Path]  # the run's folder
    prompt: str = "\n"  # text to go on from
    length: int = 500  # characters
    temperature: float = 0.8  # 0: always the likeliest; 1: as trained; more: wilder
    top_k: int | None = None  # draw among the k likeliest only; None: among all
    seed: int = 1337  # of the draws
    device: str = "cpu"  # cpu (NumPy), torch:cpu or cuda


def main(arguments: list[str]) -> int:
    """Print the prompt and what the model makes of it, character by character."""
    config = parse(GenerateConfig, arguments, "nplm generate")
    if config.length < 1:
        raise ConfigError(f"length: expected at least 1, got {config.length}")
    model, tokenizer = load(config.run)
    model.to(config.device)
    ids = generate(
        model, list(tokenizer.encode(config.prompt)), config.length,
        temperature=config.temperature, top_k=config.top_k,
        generator=Generator().manual_seed(config.seed),
    )  # fmt: skip
    sys.stdout.write(config.prompt)
    for token in ids:
        sys.stdout.write(tokenizer.decode([token]))
        sys.stdout.flush()
    print()
    return 0


def load(path: Path) -> tuple[Decoder, CharTokenizer]:
    """The model and tokenizer of a run's best checkpoint, or of its last one."""
    run = RunFolder.open(path)
    newest = best_checkpoint(run) or latest_checkpoint(run)
    if newest is None:
        raise CheckpointError(f"{path}: expected a checkpoint, found none; train it to the end")
    checkpoint = load_checkpoint(newest)
    if checkpoint.tokenizer is None or checkpoint.state["config"] is None:
        raise CheckpointError(f"{newest}: it holds no tokenizer or no model config")
    model = Decoder(DecoderConfig(**checkpoint.state["config"]))
    model.load_state_dict(checkpoint.model)
    return model, CharTokenizer.from_dict(checkpoint.tokenizer)
