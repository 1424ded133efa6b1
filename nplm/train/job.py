"""A whole training run, from a text to a run folder: what `nplm train` does.

Read loop.py before. The pieces are the library's own; this file only puts them in order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from nplm import backend, files, random
from nplm.data.dataloader import DataLoader
from nplm.data.loader import RandomWindows, SequentialWindows, TokenWindows, collate_windows
from nplm.data.text import Corpus, default_corpus, read_corpus, split_tokens
from nplm.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from nplm.errors import CheckpointError, ConfigError, NonFiniteError, NplmError
from nplm.generation import generate
from nplm.models.config import DecoderConfig, preset
from nplm.models.decoder import Decoder
from nplm.optim.adam import AdamW
from nplm.optim.groups import decay_groups
from nplm.optim.lr_scheduler import LRScheduler, StepLR
from nplm.optim.optimizer import Optimizer
from nplm.optim.schedules import warmup_constant, warmup_cosine
from nplm.train import report
from nplm.train.checkpoint import mark_best, put_best_right, rotate, save_checkpoint
from nplm.train.config import DEFAULT_STEPS, TrainConfig
from nplm.train.early_stopping import EarlyStopping
from nplm.train.interruption import Interruption
from nplm.train.loop import evaluate, fit
from nplm.train.resume import Progress, load_states, newest_good
from nplm.train.run import RunFolder, blas_in_words
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
    stopper: EarlyStopping | None
    batches: RandomWindows | DataLoader[Any]
    validation: SequentialWindows
    total: int  # updates, if nothing stops it before
    n_train: int  # tokens of the training part

    def plan(self) -> str:
        """What is going to happen, in a few lines."""
        c, n, context = self.config, self.model.num_parameters(), self.model.config.context
        fixed = report.parameter_bytes(n, c.itemsize)
        activations = report.activation_bytes(self.model.config, c.batch_size, c.itemsize)
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
    signal: int | None = None  # what interrupted it, or None
    resumed_at: int = 0  # updates that were made before


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
    model = Decoder(model_config).to(config.device, config.dtype)
    optimizer = AdamW(
        decay_groups(model, config.weight_decay), lr=config.lr, betas=(config.beta1, config.beta2)
    )
    stopper = None  # it only judges: the best weights are in the best checkpoint
    if config.stop.patience is not None:
        stopper = EarlyStopping(config.stop.patience, delta=config.stop.delta or 0, path=None)
    return Job(
        config, corpus, tokenizer, model, optimizer, _scheduler(config, optimizer, total),
        stopper, batches, SequentialWindows(validation, context, 4 * config.batch_size),
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
    *,
    resume: RunFolder | None = None,
) -> Result:
    """Train, validate, sample and save; `say` gets each line, `progress` may wrap the records.

    The run folder gets metrics.jsonl, samples.jsonl and checkpoints; `resume` goes on in the folder
    of a run that was begun with the job's settings. SIGINT and SIGTERM end it after an update, with
    a checkpoint. Raises RunInUseError if another process trains in the folder.
    """
    # Weights and two moments; an old checkpoint and a new one are there together.
    needed = (1 if resume else 2) * 3 * job.model.num_parameters() * job.config.itemsize
    files.require_free(resume.path if resume else job.config.out, needed)
    folder = resume or _new_folder(job)
    with files.lock(folder.path), blas_threads(job.config.threads), Interruption() as interruption:
        if resume is None:
            state = Progress()
            folder.begin_attempt(1, 0, 0, 0, job.config.device)
        else:
            state = _restored(job, folder, say)
        state.blas = blas_in_words()
        if resume is None:
            _save(job, folder, state)  # from here on there is something to resume
        resumed_at = state.step
        if not _is_over(job, state):
            _train(job, folder, state, say, progress, interruption)
    return Result(
        folder, state.best_step, state.best_loss, job.stopper.reason if job.stopper else None,
        interruption.received, resumed_at,
    )  # fmt: skip


def _train(
    job: Job,
    folder: RunFolder,
    state: Progress,
    say: Say,
    progress: Callable[[Iterator[StepRecord]], Iterator[StepRecord]],
    interruption: Interruption,
) -> None:
    """The loop: everything that a strategy decides is a statement in it."""
    c, stopper = job.config, job.stopper
    pace = report.Pace(state.step, job.total)
    records = fit(
        job.model, job.optimizer, job.batches, accumulate=c.accumulate, scheduler=job.scheduler,
        scheduler_unit=c.schedule.unit, clip_norm=c.clip_norm, epochs=c.epochs, steps=job.total,
        first_step=state.step, first_epoch=state.epoch,
    )  # fmt: skip
    for record in progress(records):
        pace.note(record.n_targets, record.seconds)
        state.step, state.epoch = record.step, record.epoch + record.epoch_ended
        state.seconds += record.seconds
        metrics, sample = _metrics(record), None
        evaluated = record.step == job.total or _is_due(c, record)
        if evaluated:
            loss = metrics["validation_loss"] = _validation_loss(job, record.step)
            if loss < state.best_loss:
                state.best_step, state.best_loss = record.step, loss
            if stopper is not None:
                stopper(loss, step=record.step)
            sample = _sample(job)
        folder.log_metrics(metrics)
        if sample is not None:
            folder.log_sample(record.step, job.tokenizer.opening, sample)
        over = _is_over(job, state) or interruption.received is not None
        every = c.checkpoint_every
        if evaluated or over or (every is not None and record.step % every == 0):
            _save(job, folder, state, metrics)  # before anything is printed, which may fail
        if evaluated or record.step % c.log_every == 0:
            say(report.line(metrics, *pace.take()))
        if stopper is not None and evaluated and stopper.counter:
            say(f"           not improved: {stopper.counter} of {stopper.patience}")
        if sample is not None:
            say(report.quoted(record.step, sample))
        if over:
            break


def _new_folder(job: Job) -> RunFolder:
    c = job.config
    paths = tuple(path.absolute() for path in c.data)  # whatever folder a resumption starts in
    return RunFolder.create(
        c.out, c.name or c.preset, dataclasses.asdict(dataclasses.replace(c, data=paths)),
        seed=c.seed, corpus=job.corpus, tokenizer=job.tokenizer,
    )  # fmt: skip


def _restored(job: Job, folder: RunFolder, say: Say) -> Progress:
    """Put the newest good checkpoint's state into the job's parts, and the folder back to it.

    Everything is checked before anything in the folder changes.
    """
    checkpoint, state, rejected = newest_good(folder, say)
    if checkpoint.tokenizer != job.tokenizer.to_dict():
        raise CheckpointError(f"{checkpoint.path}: its tokenizer is not that of this run's text")
    load_states(checkpoint, {
        "model": job.model, "optimizer": job.optimizer, "scheduler": job.scheduler,
        "stopper": job.stopper, "loader": job.batches,
    })  # fmt: skip
    files.sweep(folder.checkpoints)  # what a kill left behind
    if _is_over(job, state):  # the stopper has its state back
        put_best_right(folder, state.best_step)
        return state
    state.attempt = folder.attempts() + 1
    folder.begin_attempt(
        state.attempt, state.step, state.metrics_bytes, state.samples_bytes, job.config.device
    )
    for step in rejected:
        files.set_aside(folder.checkpoint(step))
    put_best_right(folder, state.best_step)
    if state.blas != blas_in_words():
        before = files.shown(state.blas) if state.blas else "unknown"
        say(f"note       another BLAS than before, so bits may differ: {before}")
    say(f"resumed    after step {state.step}, attempt {state.attempt}")
    return state


def _is_over(job: Job, state: Progress) -> bool:
    stopped = job.stopper is not None and job.stopper.early_stop
    return stopped or state.step >= job.total


def _validation_loss(job: Job, step: int) -> float:
    loss = evaluate(job.model, job.validation).loss
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the validation loss is {loss} after step {step}: the last update broke the weights, "
            "earlier checkpoints are kept; lower the learning rate"
        )
    return loss


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


def _sample(job: Job) -> str:
    """A text from a stream of its own: sampling never draws from the training stream."""
    generator = random.Generator().manual_seed(job.config.seed)
    ids = generate(
        job.model, list(job.tokenizer.encode(job.tokenizer.opening)), job.config.sample_length,
        temperature=SAMPLE_TEMPERATURE, generator=generator,
    )  # fmt: skip
    return job.tokenizer.decode(list(ids))


def _save(
    job: Job, folder: RunFolder, state: Progress, metrics: dict[str, Any] | None = None
) -> None:
    """Keep everything that the next update depends on: the next window begins here."""
    state.metrics_bytes, state.samples_bytes = folder.synced_bytes()
    save_checkpoint(
        folder, state.step, model=job.model, optimizer=job.optimizer, scheduler=job.scheduler,
        stopper=job.stopper, loader=job.batches, generators={"default": random.default_generator},
        tokenizer=job.tokenizer, metrics=metrics, progress=dataclasses.asdict(state),
    )  # fmt: skip
    if state.best_step == state.step and metrics is not None:
        mark_best(folder, state.step, metrics)
    rotate(folder, job.config.keep, state.best_step)


def blas_threads(n: int | None) -> AbstractContextManager[Any]:
    """The BLAS takes `n` threads while this lasts; None leaves it alone.  Raises NplmError."""
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
