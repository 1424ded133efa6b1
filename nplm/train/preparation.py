"""A training run before it begins: its settings, its text and its parts, built and not started.

Read parts.py before; job.py runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nplm import backend, files, random
from nplm.autograd.autocast import autocast
from nplm.backend import threads
from nplm.data.dataloader import DataLoader
from nplm.data.loader import RandomWindows, SequentialWindows, TokenWindows, collate_windows
from nplm.data.text import Corpus, default_corpus, read_corpus, split_tokens
from nplm.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from nplm.errors import ConfigError, NplmError
from nplm.models.config import DecoderConfig, preset
from nplm.models.decoder import Decoder
from nplm.optim.lr_scheduler import SWALR
from nplm.optim.optimizer import Optimizer
from nplm.train import parts, report
from nplm.train.averaging import Average
from nplm.train.capturing import capture
from nplm.train.config import DEFAULT_STEPS, TrainConfig
from nplm.train.early_stopping import EarlyStopping
from nplm.train.spikes import SpikeDetector


@dataclass(frozen=True)
class Job:
    """Everything that a run is made of, built and not yet started."""

    config: TrainConfig
    corpus: Corpus
    tokenizer: Tokenizer
    model: Decoder
    optimizer: Optimizer
    scheduler: Any  # one of torch.optim.lr_scheduler's kinds
    stopper: EarlyStopping | None
    average: Average | None
    swa_scheduler: SWALR | None  # moves the rate once the average has begun
    spikes: SpikeDetector | None
    batches: RandomWindows | DataLoader[Any]
    validation: SequentialWindows
    total: int  # updates, if nothing stops it before
    n_train: int  # tokens of the training part

    def plan(self) -> str:
        """What is going to happen, in a few lines."""
        c, n, context = self.config, self.model.num_parameters(), self.model.config.context
        fixed = report.parameter_bytes(n, c.itemsize)
        activations = report.activation_bytes(
            self.model.config, c.batch_size, c.activation_itemsize, c.recompute
        )
        windows, level = c.window_schedule, c.capture_level
        tokens = c.batch_size * windows.size(0) * context
        passes = f"{self.total * tokens / self.n_train:,.1f} times the text"
        if isinstance(self.batches, DataLoader):
            passes = f"{math.ceil(len(self.batches) / windows.size(0)):,} an epoch"
        if windows.changes:
            passes += ", other sizes later"
        lines = [
            f"corpus     {self.corpus.name}: {len(self.corpus.text):,} characters, "
            f"{self.n_train:,} tokens to train on, {self.tokenizer.vocab_size} different ones",
            f"model      {c.preset}: {n:,} parameters, context {context}",
            f"training   {self.total:,} updates of {tokens:,} tokens "
            f"({passes}), on {c.device} in {c.dtype}"
            + (f", compile {level}" if level != "off" else ""),
            f"memory     about {report.amount(fixed + activations)}: {report.amount(fixed)} for "
            f"weights, gradients and moments, {report.amount(activations)} for activations"
            + (" (recomputed)" if c.recompute else ""),
        ]
        if strategy := parts.in_words(c, self.average):
            lines.append(f"strategy   {strategy}")
        if self.stopper is not None:
            lines.append(f"stopping   {parts.stopping_in_words(self.stopper)}")
        return "\n".join(lines)


def prepare(config: TrainConfig, corpus: Corpus | None = None) -> Job:
    """Check the settings, read the text (or take `corpus`) and build the model.

    Nothing is written yet.
    """
    config.check()
    # What is missing is said before any work: the device, what writes checkpoints, the threads.
    backend.require_device(config.device)
    files.require_safetensors()
    if config.threads is not None:
        _threadpool_limits()
    files.require_filelock()
    if corpus is None:
        corpus = read_corpus(config.data) if config.data else default_corpus()
    tokenizer: Tokenizer = (
        ByteTokenizer() if config.tokenizer == "byte" else CharTokenizer.from_text(corpus.text)
    )
    changes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    for name in ("context", "dropout"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    model_config: DecoderConfig = preset(config.preset, **changes)
    context = model_config.context
    train, validation = split_tokens(tokenizer.encode(corpus.text), context=context)
    generator = random.Generator().manual_seed(config.seed)
    batches, total = _batches(config, train, context, generator)
    random.manual_seed(config.seed)
    model = Decoder(model_config).to(config.device, config.weight_dtype)
    model.recompute = config.recompute
    optimizer = parts.make_optimizer(config, model)
    optimizer.flatten()
    capture(model, config.capture_level, optimizer)
    schedule = config.schedule
    end = config.epochs if schedule.unit == "epoch" and config.epochs else total
    if (warmup := schedule.warmup_steps or 0) >= end:
        raise ConfigError(
            f"schedule.warmup_steps: expected fewer than the {end} {schedule.unit}s of this run, "
            f"got {warmup}"
        )
    scheduler = parts.make_scheduler(schedule, optimizer, config.lr, end)
    swa_scheduler = parts.make_swa_scheduler(config.average, optimizer)
    spikes = None if config.spike_threshold is None else SpikeDetector(config.spike_threshold)
    return Job(
        config, corpus, tokenizer, model, optimizer, scheduler, parts.make_stopper(config.stop),
        parts.make_average(config, model, total), swa_scheduler, spikes, batches,
        SequentialWindows(validation, context, 4 * config.batch_size), total, len(train),
    )  # fmt: skip


def _batches(
    config: TrainConfig, tokens: Any, context: int, generator: random.Generator
) -> tuple[RandomWindows | DataLoader[Any], int]:
    """What `fit` reads, and how many updates it makes of it."""
    if config.epochs is None:
        total = DEFAULT_STEPS if config.steps is None else config.steps
        return RandomWindows(tokens, context, config.batch_size, generator), total
    loader = DataLoader(
        TokenWindows(tokens, context), config.batch_size, shuffle=True, generator=generator,
        collate_fn=collate_windows,
    )  # fmt: skip
    total = config.window_schedule.updates(len(loader), config.epochs)
    return loader, total if config.steps is None else min(total, config.steps)


@contextmanager
def arithmetic(config: TrainConfig) -> Iterator[None]:
    """What a run computes with while this lasts: its threads, and bfloat16 if it asks for it.

    Raises NplmError without threadpoolctl where threads are given.
    """
    bfloat16 = config.dtype == "bfloat16"
    with blas_threads(config.threads), autocast(config.device, enabled=bfloat16):
        yield


@contextmanager
def blas_threads(n: int | None) -> Iterator[None]:
    """Training and the BLAS take `n` threads while this lasts; None leaves both alone.

    Raises NplmError without threadpoolctl.
    """
    if n is None:
        yield
        return
    before = threads.get_num_threads()
    with _threadpool_limits()(n, user_api="blas"):
        threads.set_num_threads(n)
        try:
            yield
        finally:
            threads.set_num_threads(before)


def _threadpool_limits() -> Callable[..., Any]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise NplmError(
            "--threads needs threadpoolctl, which is not installed: run "
            "`pip install threadpoolctl`, or leave --threads out"
        ) from None
    return threadpool_limits  # type: ignore[no-any-return]
