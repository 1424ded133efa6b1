"""A whole training run, from a text to a run folder: what `nplm train` does.

Read loop.py before. The pieces are the library's own; this file only puts them in order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from nplm import backend, files, random
from nplm.data.loader import RandomWindows, SequentialWindows
from nplm.data.text import Corpus, default_corpus, read_corpus, split_tokens
from nplm.data.tokenizer import CharTokenizer
from nplm.errors import ConfigError, NplmError
from nplm.generation import generate
from nplm.models.config import PRESETS, DecoderConfig, preset, unknown
from nplm.models.decoder import Decoder
from nplm.optim.adam import AdamW
from nplm.optim.groups import decay_groups
from nplm.optim.lr_scheduler import LRScheduler
from nplm.optim.optimizer import Optimizer
from nplm.optim.schedules import warmup_constant, warmup_cosine
from nplm.train.checkpoint import mark_best, save_checkpoint
from nplm.train.loop import evaluate, fit
from nplm.train.run import RUN_NAME, RunFolder
from nplm.train.step import StepRecord

LARGEST = 10**9  # of every count: what is larger is a slip of the finger
SEEDS = range(-(2**63), 2**64)
SAMPLE_TEMPERATURE = 0.6  # of the samples that a run prints: below 1, small models spell better

_RANGES: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    # settings of TrainConfig, what they should be, and whether a value is; None is always good
    (
        "batch_size accumulate eval_every log_every sample_length context",
        f"at least 1, at most {LARGEST:,}",
        lambda n: 1 <= n <= LARGEST,
    ),
    ("steps", "at least 1, fewer than 10^8", lambda n: 1 <= n < 10**8),  # a checkpoint's limit
    ("schedule.warmup_steps", f"at least 0, at most {LARGEST:,}", lambda n: 0 <= n <= LARGEST),
    ("lr clip_norm", "a positive number that is finite", lambda x: 0 < x < math.inf),
    ("schedule.min_lr weight_decay", "a finite number >= 0", lambda x: 0 <= x < math.inf),
    ("dropout", "a probability in [0, 1)", lambda p: 0 <= p < 1),
    ("beta1 beta2", "a number in [0, 1)", lambda x: 0 <= x < 1),
    ("threads", "at least 1, at most 1024", lambda n: 1 <= n <= 1024),
    ("seed", "-2^63 to 2^64 - 1", SEEDS.__contains__),
    (
        "name",
        "1 to 100 letters, digits, '.', '_' or '-', and no '.' or '-' at the start",
        RUN_NAME.fullmatch,
    ),
)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves."""

    name: Literal["cosine", "constant"] = "cosine"  # shape after the warm-up
    warmup_steps: int = 100  # updates until the full rate
    min_lr: float = 1e-4  # the cosine's floor


@dataclass(frozen=True)
class TrainConfig:
    """Train a decoder on text.  The defaults are nanoGPT's character model for a CPU."""

    preset: str = "char"  # model: char, tiny-llama or gpt2 (its vocabulary becomes the text's)
    data: tuple[Path, ...] = ()  # text files (UTF-8); none: Python's own language reference
    context: int | None = None  # positions a token sees; None: the preset's
    dropout: float | None = None  # probability; None: the preset's
    steps: int = 2000  # updates
    batch_size: int = 12  # rows in a micro-batch
    accumulate: int = 1  # micro-batches an update
    lr: float = 1e-3  # peak learning rate
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    beta1: float = 0.9  # AdamW's decay of the mean gradient
    beta2: float = 0.99  # AdamW's decay of the mean squared gradient
    weight_decay: float = 0.1  # on matrices only
    clip_norm: float | None = 1.0  # largest gradient norm; None: no clipping
    eval_every: int = 500  # updates between validations, samples and checkpoints
    log_every: int = 50  # updates between lines
    sample_length: int = 300  # characters
    seed: int = 1337  # of weights, batches, dropout and samples
    device: str = "cpu"  # cpu (NumPy), torch:cpu or cuda
    dtype: Literal["float32", "float64"] = "float32"  # of weights and arithmetic
    threads: int | None = None  # of the BLAS; None: as many as it takes by itself
    out: Path = Path("runs")  # folder that gets the run's folder
    name: str | None = None  # of the run; None: the preset's

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""
        problems = {
            name: f"{name}: expected {expected}, got {value!r}"
            for names, expected, good in _RANGES
            for name in names.split()
            if (value := attrgetter(name)(self)) is not None and not good(value)
        }
        if self.preset not in PRESETS:
            problems["preset"] = unknown("preset", self.preset, PRESETS)
        warmup, min_lr = self.schedule.warmup_steps, self.schedule.min_lr
        name = "schedule.warmup_steps"
        cosine = self.schedule.name == "cosine"
        if not {name, "steps"} & problems.keys() and cosine and warmup >= self.steps:
            problems[name] = f"{name}: expected fewer than steps={self.steps}, got {warmup}"
        name = "schedule.min_lr"
        if not {name, "lr"} & problems.keys() and min_lr > self.lr:
            problems[name] = f"{name}: expected 0 <= min_lr <= lr={self.lr}, got {min_lr}"
        if problems:
            raise ConfigError("; ".join(problems.values()))


@dataclass(frozen=True)
class Job:
    """Everything that a run is made of, built and not yet started."""

    config: TrainConfig
    corpus: Corpus
    tokenizer: CharTokenizer
    model: Decoder
    optimizer: Optimizer
    scheduler: LRScheduler
    train_windows: RandomWindows
    validation: SequentialWindows

    def plan(self) -> str:
        """What is going to happen, in a few lines."""
        c, n = self.config, self.model.num_parameters()
        tokens = c.batch_size * c.accumulate * self.model.config.context
        memory = 4 * n * (8 if c.dtype == "float64" else 4) / 1e6  # weight, gradient, two moments
        return (
            f"corpus     {self.corpus.name}: {len(self.corpus.text):,} characters, "
            f"{self.tokenizer.vocab_size} of them different\n"
            f"model      {c.preset}: {n:,} parameters, context {self.model.config.context}\n"
            f"training   {c.steps:,} updates of {tokens:,} tokens, on {c.device} in {c.dtype}\n"
            f"memory     {memory:,.0f} MB for weights, gradients and moments, and activations"
        )


def prepare(config: TrainConfig) -> Job:
    """Check the settings, read the text and build the model.  Nothing is written yet."""
    config.check()
    # What is missing is said before any work: the device, what writes checkpoints, the threads.
    backend.require_device(config.device)
    files.require_safetensors()
    if config.threads is not None:
        _threadpool_limits()
    corpus = read_corpus(config.data) if config.data else default_corpus()
    tokenizer = CharTokenizer.from_text(corpus.text)
    tokens = tokenizer.encode(corpus.text)
    changes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    for name in ("context", "dropout"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    model_config: DecoderConfig = preset(config.preset, **changes)
    context = model_config.context
    train_tokens, validation_tokens = split_tokens(tokens, context=context)
    random.manual_seed(config.seed)
    model = Decoder(model_config).to(config.device, config.dtype)
    optimizer = AdamW(
        decay_groups(model, config.weight_decay), lr=config.lr, betas=(config.beta1, config.beta2)
    )
    schedule = config.schedule
    if schedule.name == "cosine":
        scheduler = warmup_cosine(
            optimizer, schedule.warmup_steps, config.steps, schedule.min_lr / config.lr
        )
    else:
        scheduler = warmup_constant(optimizer, schedule.warmup_steps)
    batches = random.Generator().manual_seed(config.seed)
    return Job(
        config, corpus, tokenizer, model, optimizer, scheduler,
        RandomWindows(train_tokens, context, config.batch_size, batches),
        SequentialWindows(validation_tokens, context, 4 * config.batch_size),
    )  # fmt: skip


def run(
    job: Job,
    say: Callable[[str], None] = print,
    progress: Callable[[Iterator[StepRecord]], Iterator[StepRecord]] = iter,
) -> RunFolder:
    """Train, validate, sample and save; `say` gets each line, `progress` may wrap the records.

    Returns the run folder: metrics.jsonl, samples.jsonl, and a checkpoint of the best and of the
    last step.
    """
    c = job.config
    folder = RunFolder.create(
        c.out, c.name or c.preset, dataclasses.asdict(c), seed=c.seed, corpus=job.corpus,
        tokenizer=job.tokenizer,
    )  # fmt: skip
    best = float("inf")
    since, tokens = 0.0, 0
    with _threads(c.threads):
        records = fit(
            job.model, job.optimizer, job.train_windows, accumulate=c.accumulate,
            scheduler=job.scheduler, clip_norm=c.clip_norm, steps=c.steps,
        )  # fmt: skip
        for record in progress(records):
            since, tokens = since + record.seconds, tokens + record.n_targets
            last = record.step == c.steps
            metrics = _metrics(record)
            evaluated = record.step % c.eval_every == 0 or last
            if evaluated:
                loss = evaluate(job.model, job.validation).loss
                metrics["validation_loss"] = loss
            folder.log_metrics(metrics)
            if evaluated:  # saved before anything is printed, which may fail
                if loss < best or last:
                    _save(job, folder, record.step, metrics, loss < best)
                best = min(best, loss)
            if record.step % c.log_every == 0 or evaluated:
                say(_line(metrics, tokens / since))
                since, tokens = 0.0, 0
            if evaluated:
                _sample(job, folder, record.step, say)
    return folder


def _metrics(record: StepRecord) -> dict[str, Any]:
    return {
        "step": record.step, "loss": float(record.loss), "grad_norm": float(record.grad_norm),
        "lr": record.lr, "tokens": record.n_targets, "seconds": record.seconds,
    }  # fmt: skip


def _line(metrics: dict[str, Any], tokens_per_second: float) -> str:
    validation = metrics.get("validation_loss")
    return (
        f"step {metrics['step']:5d}  loss {metrics['loss']:.4f}  "
        + (f"validation {validation:.4f}  " if validation is not None else " " * 19)
        + f"lr {metrics['lr']:.2e}  norm {metrics['grad_norm']:.2f}  {tokens_per_second:,.0f} tok/s"
    )


def opening(tokenizer: CharTokenizer) -> str:
    """What a text starts with when nobody gave a prompt: a new line, or the first character."""
    return "\n" if "\n" in tokenizer.characters else tokenizer.characters[0]


def _sample(job: Job, folder: RunFolder, step: int, say: Callable[[str], None]) -> None:
    """A text from a stream of its own: sampling never draws from the training stream."""
    prompt = opening(job.tokenizer)
    generator = random.Generator().manual_seed(job.config.seed)
    ids = generate(
        job.model, list(job.tokenizer.encode(prompt)), job.config.sample_length,
        temperature=SAMPLE_TEMPERATURE, generator=generator,
    )  # fmt: skip
    text = job.tokenizer.decode(list(ids))
    folder.log_sample(step, prompt, text)
    say("\n".join(["", *("    " + line for line in text.strip().splitlines()), ""]))


def _save(job: Job, folder: RunFolder, step: int, metrics: dict[str, Any], best: bool) -> None:
    save_checkpoint(
        folder, step, model=job.model, optimizer=job.optimizer, scheduler=job.scheduler,
        generators={"default": random.default_generator, "batches": job.train_windows.generator},
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
