"""A training run with nplm, recorded: the side of a lockstep that is judged.

Only the library's own pieces: DataLoader, `fit`, optimizers, schedulers, early stopping, averages.
Its twin, object by object, is twin_run.py.
"""

from __future__ import annotations

from collections.abc import Generator as Updates
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import nplm
from nplm import optim
from nplm.autograd.tensor import Tensor
from nplm.data.dataloader import DataLoader
from nplm.data.loader import IGNORE_INDEX, Batch, TokenWindows, collate_windows
from nplm.models.decoder import Decoder
from nplm.optim import lr_scheduler
from nplm.optim.groups import decay_groups, layer_groups
from nplm.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from nplm.parity.recorder import Recorder, record
from nplm.parity.trace import Trace
from nplm.random import Generator, default_generator
from nplm.train import accumulation
from nplm.train.early_stopping import EarlyStopping
from nplm.train.loop import evaluate, fit
from nplm.train.step import StepRecord

if TYPE_CHECKING:
    from nplm.parity.lockstep import Scenario


class NplmRun:
    """The run of a Scenario with nplm."""

    def __init__(self, s: Scenario, device: str = "cpu") -> None:
        self.s, self.device = s, device
        nplm.manual_seed(s.seed)
        self._train, held_out = s.data()
        T = s.model.context
        rows = Rowed(*held_out, T)
        self.held_out = [
            collate_windows([rows[i] for i in range(first, min(first + 4, len(rows)))])
            for first in range(0, len(rows), 4)
        ]
        self.build()
        nplm.manual_seed(s.seed)

    def build(self) -> None:
        """Every object of the run, new."""
        s = self.s
        self.model = Decoder(s.model).to(self.device, s.dtype)
        self.model.train()
        self.optimizer = getattr(optim, s.optimizer)(self.groups(), **s.arguments())
        self.scheduler: Any = None
        if s.schedule is not None:
            self.scheduler = self.schedule(s.schedule, dict(s.schedule_options))
        self.generator = Generator().manual_seed(s.seed + 1)
        self.loader = DataLoader(
            Rowed(*self._train, s.model.context), s.batch_size, shuffle=True,
            generator=self.generator, collate_fn=collate_windows,
        )  # fmt: skip
        self.stopper = None
        if s.patience is not None:
            self.stopper = EarlyStopping(s.patience, delta=s.delta, path=None)
        self.average = None
        if s.average is not None:
            mean = get_ema_multi_avg_fn(s.decay) if s.average == "ema" else None
            self.average = AveragedModel(self.model, multi_avg_fn=mean)

    def schedule(self, name: str, options: dict[str, Any]) -> Any:
        """A scheduler by its class's name; `schedulers` are those that it combines."""
        parts = [self.schedule(*part) for part in options.pop("schedulers", ())]
        kind = getattr(lr_scheduler, name)
        if name == "ChainedScheduler":
            return kind(parts, self.optimizer)
        return kind(self.optimizer, *([parts] if parts else []), **options)

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the settings."""
        s, model = self.s, self.model
        if s.optimizer == "Muon":
            named = list(model.named_parameters())
            hidden = [p for name, p in named if name.startswith("blocks.") and p.ndim == 2]
            for _, p in named:
                p.requires_grad_(any(p is h for h in hidden))
            return [{"params": hidden, **s.decays(True)}]
        if s.groups == "one":
            return [{"params": list(model.parameters()), **s.decays(True)}]
        if s.groups == "layers":
            groups = layer_groups(model, s.lr, s.falls, s.weight_decay)
        else:
            groups = decay_groups(model, s.weight_decay)
        if not s.decays(True):
            groups = [{k: v for k, v in g.items() if k != "weight_decay"} for g in groups]
        return groups

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by name, as NumPy arrays of their own."""
        return {name: np.array(value.numpy()) for name, value in self.model.state_dict().items()}

    def watch(self, like: Trace | None) -> None:
        """Record from here on; `like` is torch's trace in isolated mode."""
        self.recorder: Recorder = record(self.model, self.optimizer, like=like)

    @property
    def trace(self) -> Trace:
        """What was recorded."""
        return self.recorder.trace

    def steps(self) -> Updates[int, None, None]:
        """Train; the number of every update that was made."""
        s, epoch = self.s, 0
        with self.recorder:
            self.recorder.random()
            for record_ in self.fit(0, 0):
                self.note(record_)
                epoch = record_.epoch + record_.epoch_ended
                yield record_.step
                if self.over or record_.step == s.resume_at:
                    break
        if self.over or self.recorder.done == s.steps:
            return
        self.resume()
        try:
            for record_ in self.fit(self.recorder.done, epoch):
                self.note(record_)
                yield record_.step
                if self.over:
                    break
        finally:
            self.recorder.__exit__(None, None, None)

    @property
    def over(self) -> bool:
        """Whether early stopping ended it."""
        return self.stopper is not None and self.stopper.early_stop

    def fit(self, first_step: int, first_epoch: int) -> Iterator[StepRecord]:
        """The library's own loop."""
        s = self.s
        by_loss = s.schedule == "ReduceLROnPlateau"
        accumulate = dict(s.accumulate) if isinstance(s.accumulate, Mapping) else s.accumulate
        return fit(
            self.model, self.optimizer, Noted(self.loader, self), accumulate=accumulate,
            scheduler=None if by_loss else self.scheduler, scheduler_unit=s.schedule_unit,
            clip_norm=s.clip_norm, epochs=10**6, steps=s.steps, normalise=s.normalise,
            loss_fn=self.loss, first_step=first_step, first_epoch=first_epoch,
        )  # fmt: skip

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum that `fit` takes the gradient of, noted."""
        summed = accumulation.summed_cross_entropy(logits, targets)
        counted = int((np.asarray(targets) != IGNORE_INDEX).sum())
        self.recorder.note("loss", "sum", summed, counted, step=self.recorder.done + 1)
        return summed

    def note(self, made: StepRecord) -> None:
        """What happens after an update, in the caller's loop, and what it gives."""
        s, recorder = self.s, self.recorder
        step = recorder.done
        sizes = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
        recorder.note("loss", "window", made.loss, made.n_targets, micro=0, step=step)
        recorder.note("norm", "total", made.grad_norm, sizes, step=step)
        if self.average is not None:
            self.average.update_parameters(self.model)
            for name, value in self.average.module.named_parameters():
                recorder.write(value, recorder.note("average", name, value))
        if step % s.eval_every == 0:
            self.validate()
        recorder.scheduled()
        recorder.random()
        recorder.note("random", "loader", self.generator.to_torch_state())

    def validate(self) -> None:
        """The loss over the held-out tokens, and what early stopping makes of it."""
        found = evaluate(self.model, self.held_out)
        loss = float(self.recorder.note("validation", "loss", found.loss, found.n_targets))
        if self.s.schedule == "ReduceLROnPlateau":
            self.scheduler.step(loss)
        if self.stopper is not None:
            self.stopper(loss)
            best = self.stopper.best_val_loss
            self.recorder.note("stopper", "counter", self.stopper.counter)
            self.recorder.note("stopper", "best", np.inf if best is None else best)
            self.recorder.note("stopper", "stop", self.stopper.early_stop)

    def resume(self) -> None:
        """New objects, which load the states of the old ones; nothing else is carried over."""
        parts = ("model", "optimizer", "scheduler", "loader", "stopper", "average")
        states = {
            name: part.state_dict() for name in parts if (part := getattr(self, name)) is not None
        }
        streams = default_generator.get_state()
        old = self.recorder
        self.build()
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)
        default_generator.set_state(streams)
        self.watch(None)
        self.recorder.__enter__()  # what it sees before the first update was seen at the start
        self.recorder.trace, self.recorder.done, self.recorder.like = old.trace, old.done, old.like


class Rowed(TokenWindows):
    """Windows in which some targets do not count."""

    def __init__(self, tokens: np.ndarray, ignored: np.ndarray, context: int) -> None:
        super().__init__(tokens, context)
        self.ignored = ignored

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        inputs, targets = super().__getitem__(index)
        first = index * self.context
        mask = self.ignored[first : first + min(self.context, len(self.tokens) - 1 - first)]
        targets[: len(mask)][mask] = IGNORE_INDEX
        return inputs, targets


class Noted:
    """A loader whose batches are noted: what the reference read goes on in isolated mode."""

    def __init__(self, loader: DataLoader[Any], run: NplmRun) -> None:
        self.loader, self.run = loader, run

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def batches_left(self) -> int | None:
        """The batches that this epoch has left, as the loader says."""
        return self.loader.batches_left

    def __iter__(self) -> Iterator[Batch]:
        step, micro = -1, 0
        for batch in self.loader:
            recorder = self.run.recorder
            micro = micro + 1 if step == recorder.done else 1
            step = recorder.done
            inputs, targets = (
                recorder.note("batch", name, getattr(batch, name), micro=micro)
                for name in ("inputs", "targets")
            )
            yield Batch(inputs, targets)
