"""A whole training run, from a text to a run folder: what `nplm train` does.

Read loop.py before. The pieces are the library's own; this file only puts them in order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from nplm import backend, files, random
from nplm.data.dataloader import DataLoader
from nplm.data.loader import RandomWindows, SequentialWindows, TokenWindows, collate_windows
from nplm.data.text import Corpus, default_corpus, read_corpus, split_tokens
from nplm.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from nplm.errors import ConfigError, NonFiniteError, NplmError
from nplm.generation import generate
from nplm.models.config import DecoderConfig, preset
from nplm.models.decoder import Decoder
from nplm.optim.adam import AdamW
from nplm.optim.groups import decay_groups
from nplm.optim.lr_scheduler import LRScheduler, StepLR
from nplm.optim.optimizer import Optimizer
from nplm.optim.schedules import warmup_constant, warmup_cosine
from nplm.train import report
from nplm.train.checkpoint import mark_best, save_checkpoint
from nplm.train.config import DEFAULT_STEPS, TrainConfig
from nplm.train.early_stopping import EarlyStopping
from nplm.train.loop import evaluate, fit
from nplm.train.run import RunFolder
from nplm.train.step import StepRecord

SAMPLE_TEMPERATURE = 0.6  # of the samples that a run prints: below 1, small models spell better
EVAL_EVERY = 500  # updates, where neither eval_every nor epochs are given

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """Everything that a run is made of, built and not yet started."""

    config: TrainConfig
    corpus: Corpus
    tokenizer: Tokenizer
    model: Decoder
    optimizer: Optimizer
    scheduler: LRScheduler
    generator: random.Generator  # draws the training batches
    batches: RandomWindows | DataLoader[Any]
    validation: SequentialWindows
    total: int  # updates, if nothing stops it before
    n_train: int  # tokens of the training part

    def plan(self) -> str:
        """What is going to happen, in a few lines."""
        c, n, context = self.config, self.model.num_parameters(), self.model.config.context
        itemsize = 8 if c.dtype == "float64" else 4
        fixed = report.parameter_bytes(n, itemsize)
        activations = report.activation_bytes(self.model.config, c.batch_size, itemsize)
        tokens = c.batch_size * c.accumulate * context
        passes = f"{self.total * tokens / self.n_train:,.1f} times the text"
        if isinstance(self.batches, DataLoader):
            passes = f"{math.ceil(len(self.batches) / c.accumulate):,} an epoch"
        lines = [
            f"corpus     {self.corpus.name}: {len(self.corpus.text):,} characters, "
            f"{self.n_train:,} tokens to train on, {self.tokenizer.vocab_size} different ones",
            f"model      {c.preset}: {n:,} parameters, context {context}",
            f"training   {self.total:,} updates of {tokens:,} tokens "
            f"({passes}), on {c.device} in {c.dtype}",
            f"memory     about {report.amount(fixed + activations)}: {report.amount(fixed)} for "
            f"weights, gradients and moments, {report.amount(activations)} for activations",
        ]
        if c.stop.patience is not None:
            often = report.counted(c.stop.patience, "validation")
            least = f" of more than {c.stop.delta:g}" if c.stop.delta else ""
            lines.append(f"stopping   after {often} in a row without an improvement{least}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: RunFolder
    best_step: int | None  # None: every validation loss was NaN
    best_loss: float  # over the whole validation part
    stopped: str | None  # why it ended early, or None


def prepare(config: TrainConfig) -> Job:
    """Check the settings, read the text and build the model.  Nothing is written yet."""
    config.check()
    # What is missing is said before any work: the device, what writes checkpoints, the threads.
    backend.require_device(config.device)
    files.require_safetensors()
    if config.threads is not None:
        _threadpool_limits()
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
    model = Decoder(model_config).to(config.device, config.dtype)
    optimizer = AdamW(
        decay_groups(model, config.weight_decay), lr=config.lr, betas=(config.beta1, config.beta2)
    )
    return Job(
        config, corpus, tokenizer, model, optimizer, _scheduler(config, optimizer, total),
        generator, batches, SequentialWindows(validation, context, 4 * config.batch_size),
        total, len(train),
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
    total = config.epochs * math.ceil(len(loader) / config.accumulate)
    return loader, total if config.steps is None else min(total, config.steps)


def _scheduler(config: TrainConfig, optimizer: Optimizer, total: int) -> LRScheduler:
    schedule = config.schedule
    if schedule.name == "step":
        gamma = 0.1 if schedule.gamma is None else schedule.gamma
        return StepLR(optimizer, schedule.step_size or 30, gamma)
    end = config.epochs if schedule.unit == "epoch" and config.epochs else total
    warmup = min(100, end // 10) if schedule.warmup_steps is None else schedule.warmup_steps
    if warmup >= end:
        raise ConfigError(
            f"schedule.warmup_steps: expected fewer than the {end} {schedule.unit}s of this run, "
            f"got {warmup}"
        )
    if schedule.name == "constant":
        return warmup_constant(optimizer, warmup)
    floor = 0.1 if schedule.min_lr is None else schedule.min_lr / config.lr
    return warmup_cosine(optimizer, warmup, end, floor)


def run(
    job: Job,
    say: Say = print,
    progress: Callable[[Iterator[StepRecord]], Iterator[StepRecord]] = iter,
) -> Result:
    """Train, validate, sample and save; `say` gets each line, `progress` may wrap the records.

    The run folder gets metrics.jsonl, samples.jsonl, and a checkpoint of the best and of the last
    step.
    """
    c = job.config
    folder = RunFolder.create(
        c.out, c.name or c.preset, dataclasses.asdict(c), seed=c.seed, corpus=job.corpus,
        tokenizer=job.tokenizer,
    )  # fmt: skip
    stopper = None  # it only judges: the best weights are in the best checkpoint
    if c.stop.patience is not None:
        stopper = EarlyStopping(c.stop.patience, delta=c.stop.delta or 0, path=None)
    best_step, best_loss, loss = None, math.inf, math.nan
    began, since, tokens = perf_counter(), 0.0, 0
    with _threads(c.threads):
        records = fit(
            job.model, job.optimizer, job.batches, accumulate=c.accumulate,
            scheduler=job.scheduler, scheduler_unit=c.schedule.unit, clip_norm=c.clip_norm,
            epochs=c.epochs, steps=job.total,
        )  # fmt: skip
        for record in progress(records):
            since, tokens = since + record.seconds, tokens + record.n_targets
            metrics = _metrics(record)
            last = record.step == job.total
            evaluated = last or _is_due(c, record)
            if evaluated:
                loss = metrics["validation_loss"] = evaluate(job.model, job.validation).loss
                if not math.isfinite(loss):
                    raise NonFiniteError(
                        f"the validation loss is {loss} after step {record.step}: the last update "
                        "broke the weights, earlier checkpoints are kept; lower the learning rate"
                    )
                if stopper is not None:
                    stopper(loss, step=record.step)
                    last = last or stopper.early_stop
            folder.log_metrics(metrics)
            if evaluated:  # saved before anything is printed, which may fail
                if loss < best_loss or last:
                    _save(job, folder, record.step, metrics, loss < best_loss)
                if loss < best_loss:
                    best_step, best_loss = record.step, loss
            if evaluated or record.step % c.log_every == 0:
                left = (perf_counter() - began) / record.step * (job.total - record.step)
                say(report.line(metrics, tokens / since, left))
                since, tokens = 0.0, 0
            if evaluated:
                if stopper is not None and stopper.counter:
                    say(f"           not improved: {stopper.counter} of {stopper.patience}")
                _sample(job, folder, record.step, say)
            if last:
                break
    return Result(folder, best_step, best_loss, stopper.reason if stopper else None)


def _is_due(config: TrainConfig, record: StepRecord) -> bool:
    """Whether a validation follows this update."""
    if config.eval_every is None and config.epochs is not None:
        return record.epoch_ended
    return record.step % (config.eval_every or EVAL_EVERY) == 0


def _metrics(record: StepRecord) -> dict[str, Any]:
    return {
        "step": record.step, "epoch": record.epoch, "loss": float(record.loss),
        "grad_norm": float(record.grad_norm), "lr": record.lr, "tokens": record.n_targets,
        "seconds": record.seconds,
    }  # fmt: skip


def _sample(job: Job, folder: RunFolder, step: int, say: Say) -> None:
    """A text from a stream of its own: sampling never draws from the training stream."""
    prompt = job.tokenizer.opening
    generator = random.Generator().manual_seed(job.config.seed)
    ids = generate(
        job.model, list(job.tokenizer.encode(prompt)), job.config.sample_length,
        temperature=SAMPLE_TEMPERATURE, generator=generator,
    )  # fmt: skip
    text = job.tokenizer.decode(list(ids))
    folder.log_sample(step, prompt, text)
    say(
        "\n".join(
            [f"sample at step {step}:", *("    " + line for line in text.strip().splitlines())]
        )
    )


def _save(job: Job, folder: RunFolder, step: int, metrics: dict[str, Any], best: bool) -> None:
    save_checkpoint(
        folder, step, model=job.model, optimizer=job.optimizer, scheduler=job.scheduler,
        generators={"default": random.default_generator, "batches": job.generator},
        tokenizer=job.tokenizer, metrics=metrics,
    )  # fmt: skip
    if best:
        mark_best(folder, step, metrics)


def _threads(n: int | None) -> AbstractContextManager[Any]:
    if n is None:
        return nullcontext()
    limits: AbstractContextManager[Any] = _threadpool_limits()(n, user_api="blas")
    return limits


def _threadpool_limits() -> Callable[..., Any]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise NplmError(
            "--threads needs threadpoolctl, which is not installed: run "
            "`pip install threadpoolctl`, or leave --threads out"
        ) from None
    return threadpool_limits  # type: ignore[no-any-return]
