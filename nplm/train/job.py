"""A whole training run, from a text to a run folder: what `nplm train` does.

Read loop.py before. The pieces are the library's own; this file only puts them in order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nplm import files, random
from nplm.errors import CheckpointError, NonFiniteError
from nplm.generation import generate
from nplm.nn.module import Module
from nplm.train import report
from nplm.train.checkpoint import (
    checkpoint_steps,
    mark_best,
    put_best_right,
    rotate,
    save_checkpoint,
)
from nplm.train.config import TrainConfig
from nplm.train.interruption import Interruption
from nplm.train.loop import evaluate, fit
from nplm.train.parts import by_validation
from nplm.train.preparation import Job, arithmetic, prepare
from nplm.train.resume import Progress, load_states, newest_good
from nplm.train.run import RunFolder, blas_in_words
from nplm.train.step import StepRecord

__all__ = ["Job", "Result", "arithmetic", "prepare", "run"]

MOST_SKIPPED = 100  # updates in a row that are not finite, after which a run ends all the same
SAMPLE_TEMPERATURE = 0.6  # of the samples that a run prints: below 1, small models spell better
EVAL_EVERY = 500  # updates, where neither eval_every nor epochs are given

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: RunFolder
    best_step: int | None  # None: it ended before its first validation
    best_loss: float  # over the whole validation part
    stopped: str | None  # why it ended early, or None
    signal: int | None = None  # what interrupted it, or None
    resumed_at: int = 0  # updates that were made before
    step: int = 0  # updates that are made in all


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
    copies = 3 + (job.average is not None)
    needed = (1 if resume else 2) * copies * job.model.num_parameters() * job.config.itemsize
    files.require_free(resume.path if resume else job.config.out, needed)
    folder = resume or _new_folder(job)
    with files.lock(folder.path), arithmetic(job.config), Interruption() as interruption:
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
        interruption.received, resumed_at, state.step,
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
    pace, skipped, last = report.Pace(state.step, job.total), 0, None
    records = fit(
        job.model, job.optimizer, job.batches, accumulate=dict(c.window_schedule.sizes),
        scheduler_unit=c.schedule.unit, clip_norm=c.clip_norm, epochs=c.epochs, steps=job.total,
        first_step=state.step, first_epoch=state.epoch, on_nonfinite=c.on_nonfinite,
        normalise=c.normalise,
    )  # fmt: skip
    missed = False  # an epoch ended with a skipped update: the next one is validated
    for record in progress(records):
        state.step, state.epoch = record.step, record.epoch + record.epoch_ended
        state.seconds += record.seconds
        _move_rate(job, record)
        skipped = 0 if record.updated else skipped + 1
        if skipped:
            _note_skipped(state, skipped, say)
            missed |= _is_due(c, record) and record.epoch_ended
            if interruption.received is None:
                continue
            if record.step not in checkpoint_steps(folder):
                _save(job, folder, state)
            break
        pace.note(record.n_targets, record.seconds)
        if job.average is not None and job.average.takes(record):
            job.average.update(job.model)
        metrics, sample, last = _metrics(record), None, record
        spike = job.spikes and job.spikes.update(record.loss, record.grad_norm)
        evaluated, missed = record.step == job.total or missed or _is_due(c, record), False
        if evaluated:
            sample = _validate(job, state, metrics)
        folder.log_metrics(metrics)
        if sample is not None:
            folder.log_sample(record.step, job.tokenizer.opening, sample)
        over = _is_over(job, state) or interruption.received is not None
        every = c.checkpoint_every
        if evaluated or over or (every is not None and record.step % every == 0):
            _save(job, folder, state, metrics)  # before anything is printed, which may fail
        if evaluated or record.step % c.log_every == 0:
            say(report.line(metrics, *pace.take()))
        if "validation_loss_trained" in metrics:
            say(f"           that of the average; trained {metrics['validation_loss_trained']:.4f}")
        if spike:
            say(f"spike      step {record.step}: {spike}")
        if evaluated and stopper is not None and stopper.best_call != stopper.calls:
            say(f"           not improved: {stopper.counter} of {stopper.patience}")
        if sample is not None:
            say(report.quoted(record.step, sample))
        if over:
            break
    else:
        _end_of_epochs(job, folder, state, last, say)


def _move_rate(job: Job, record: StepRecord) -> None:
    """Let the schedule move, after an update or an epoch: SWALR takes over from it."""
    if record.epoch_ended if job.config.schedule.unit == "epoch" else record.updated:
        if job.swa_scheduler is not None and _swa_leads(job, record.step):
            job.swa_scheduler.step()
        elif not by_validation(job.scheduler):
            job.scheduler.step()


def _swa_leads(job: Job, step: int) -> bool:
    """Whether SWALR moves the rate after this update, and not the schedule any more."""
    average = job.average
    return job.swa_scheduler is not None and average is not None and step > average.start


def _note_skipped(state: Progress, in_a_row: int, say: Say) -> None:
    """One update fewer; NonFiniteError if none is finite any more."""
    state.skipped += 1
    if in_a_row > MOST_SKIPPED:
        raise NonFiniteError(
            f"{in_a_row} updates in a row after step {state.step} had no finite loss and gradient "
            "and were skipped: lower the learning rate (--lr); checkpoints are kept"
        )
    if in_a_row in (1, 10, MOST_SKIPPED):
        times = "" if in_a_row == 1 else f", {in_a_row} times now"
        say(f"skipped    the update after step {state.step}: loss or gradient not finite{times}")


def _end_of_epochs(
    job: Job, folder: RunFolder, state: Progress, last: StepRecord | None, say: Say
) -> None:
    """What is left to do when the epochs ended with a skipped update: validate, and save.

    The update has its line of metrics; its validation is in the checkpoint.
    """
    if last is not None and last.step not in checkpoint_steps(folder):
        metrics = _metrics(last)
        sample = _validate(job, state, metrics)
        _save(job, folder, state, metrics)
        say(f"step {last.step:5d}  validation {metrics['validation_loss']:.4f}")
        say(report.quoted(last.step, sample))


def _validate(job: Job, state: Progress, metrics: dict[str, Any]) -> str:
    """Judge the weights, those averaged if there are any: the loss, what it leads to, a sample."""
    step = metrics["step"]
    loss = _validation_loss(job.model, job, step)
    judged: Module = job.model
    if job.average is not None and job.average.updates:
        metrics["validation_loss_trained"] = loss
        judged = job.average.model.module
        loss = _validation_loss(judged, job, step)
    metrics["validation_loss"] = loss
    if loss < state.best_loss:
        state.best_step, state.best_loss = step, loss
    if job.stopper is not None:
        job.stopper(loss, step=step)
    if by_validation(job.scheduler) and not _swa_leads(job, step):
        job.scheduler.step(loss)
    return _sample(job, judged)


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
        "stopper": job.stopper, "loader": job.batches, "average": job.average,
        "swa_scheduler": job.swa_scheduler, "spikes": job.spikes,
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
    epochs = job.config.epochs
    return stopped or state.step >= job.total or (epochs is not None and state.epoch >= epochs)


def _validation_loss(model: Module, job: Job, step: int) -> float:
    loss = evaluate(model, job.validation).loss
    judged = job.stopper is not None and job.stopper.semantics != "pytorchtools"
    if not math.isfinite(loss) and not judged:  # other rules say themselves what it means
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


def _sample(job: Job, model: Module) -> str:
    """A text from a stream of its own: sampling never draws from the training stream."""
    generator = random.Generator().manual_seed(job.config.seed)
    ids = generate(
        model, list(job.tokenizer.encode(job.tokenizer.opening)), job.config.sample_length,
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
        stopper=job.stopper, loader=job.batches, average=job.average, spikes=job.spikes,
        swa_scheduler=job.swa_scheduler, generators={"default": random.default_generator},
        tokenizer=job.tokenizer, metrics=metrics, progress=dataclasses.asdict(state),
    )  # fmt: skip
    if state.best_step == state.step and metrics is not None:
        mark_best(folder, state.step, metrics)
    rotate(folder, job.config.keep, state.best_step)
