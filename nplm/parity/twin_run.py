"""A training run in torch alone: the reference that lockstep.py holds nplm against.

Written only from torch.nn, torch.optim, torch.utils.data and swa_utils, as a user of torch would.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim import swa_utils
from torch.utils.data import DataLoader, Dataset

from nplm.parity.recorder import record
from nplm.parity.twin import TorchDecoder

if TYPE_CHECKING:
    from nplm.parity.lockstep import Scenario

IGNORE = -100  # torch's default ignore_index


class Windows(Dataset):
    """(inputs, targets), both (T,): every target once; some are ignored, the last row is padded."""

    def __init__(self, tokens: np.ndarray, ignored: np.ndarray, context: int) -> None:
        self.tokens, self.ignored, self.context = tokens, ignored, context

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, T = i * self.context, self.context
        row = torch.from_numpy(self.tokens[first : first + T + 1])
        ignored = torch.from_numpy(self.ignored[first : first + len(row) - 1])
        targets = row[1:].masked_fill(ignored, IGNORE)
        short = T - len(targets)
        return F.pad(row[:-1], (0, short)), F.pad(targets, (0, short), value=IGNORE)


class Stopper:
    """early-stopping-pytorch's rule: a loss improves if it is below the best one minus delta."""

    def __init__(self, patience: int, delta: float) -> None:
        self.patience, self.delta = patience, delta
        self.counter, self.best, self.stop = 0, math.inf, False

    def __call__(self, loss: float) -> None:
        """Judge one validation loss; NaN is ignored."""
        if loss < self.best - self.delta:
            self.best, self.counter = loss, 0
        elif not math.isnan(loss):
            self.counter += 1
            self.stop = self.stop or self.counter >= self.patience


class TorchRun:
    """A run of a Scenario from the weights given.  It is never interrupted, whatever nplm's is."""

    def __init__(self, s: Scenario, weights: dict[str, np.ndarray]) -> None:
        self.s = s
        self.model = TorchDecoder(s.model).to(getattr(torch, s.dtype))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(torch.from_numpy(weights[name]))
        self.optimizer = getattr(torch.optim, s.optimizer)(self.groups(), **s.arguments())
        self.scheduler = self.schedule()
        self.generator = torch.Generator().manual_seed(s.seed + 1)
        train, held_out = s.data()
        self.held_out = Windows(*held_out, s.model.context)
        self.loader = DataLoader(
            Windows(*train, s.model.context), s.batch_size, shuffle=True, generator=self.generator
        )
        self.stopper = None if s.patience is None else Stopper(s.patience, s.delta)
        self.average = None
        if s.average is not None:
            mean = swa_utils.get_ema_multi_avg_fn(s.decay) if s.average == "ema" else None
            self.average = swa_utils.AveragedModel(self.model, multi_avg_fn=mean)
        torch.manual_seed(s.seed)
        self.recorder = record(self.model, self.optimizer)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups: all alike, without decay on vectors, or a rate for each depth."""
        s, named = self.s, list(self.model.named_parameters())
        if s.optimizer == "Muon":  # the matrices of the blocks, which are what it is for
            hidden = [p for name, p in named if name.startswith("blocks.") and p.ndim == 2]
            for _, p in named:  # the others are frozen: nobody would zero their gradients
                p.requires_grad_(any(p is h for h in hidden))
            return [{"params": hidden, **s.decays(True)}]
        if s.groups == "one":
            return [{"params": [p for _, p in named], **s.decays(True)}]
        depths = [(0, named)]
        if s.groups == "layers":
            n = s.model.n_layer
            depth = {name: _depth(name, n) for name, _ in named}
            depths = [(d, [x for x in named if depth[x[0]] == d]) for d in range(n + 1, -1, -1)]
        groups = []
        for d, some in depths:
            lr = {"lr": s.lr * s.falls ** (s.model.n_layer + 1 - d)} if s.groups == "layers" else {}
            for matrix in (True, False):
                params = [p for _, p in some if (p.ndim >= 2) == matrix]
                if params:
                    groups.append({"params": params, **s.decays(matrix), **lr})
        return groups

    def schedule(self) -> Any:
        """The scheduler of the settings, or None."""
        if self.s.schedule is None:
            return None
        schedulers = torch.optim.lr_scheduler
        options = dict(self.s.schedule_options)
        if self.s.schedule == "SWALR":
            return swa_utils.SWALR(self.optimizer, **options)
        parts = [
            getattr(schedulers, name)(self.optimizer, **settings)
            for name, settings in options.pop("schedulers", ())
        ]
        if self.s.schedule == "ChainedScheduler":
            return schedulers.ChainedScheduler(parts, self.optimizer)
        if self.s.schedule == "SequentialLR":
            return schedulers.SequentialLR(self.optimizer, parts, **options)
        return getattr(schedulers, self.s.schedule)(self.optimizer, **options)

    def steps(self) -> Generator[int, None, None]:
        """Train; the number of every update that was made."""
        s, done, epoch = self.s, 0, 0
        with self.recorder as recorder:
            recorder.random()
            while True:
                size = s.window(epoch)
                batches = iter(self.loader)
                left = len(self.loader)
                while window := list(islice(batches, size)):  # asked past its end, as by a `for`
                    left -= len(window)
                    done += 1
                    self.update(recorder, window, ended=left == 0)
                    yield done
                    if done == s.steps or (self.stopper is not None and self.stopper.stop):
                        return
                epoch += 1

    def update(self, recorder: Any, window: list[Any], ended: bool) -> None:
        """One optimizer step on a window of micro-batches, and what follows it."""
        s, model = self.s, self.model
        self.optimizer.zero_grad()
        counts = [int((targets != IGNORE).sum()) for _, targets in window]
        loss = torch.zeros((), dtype=getattr(torch, s.dtype))
        for k, ((inputs, targets), count) in enumerate(zip(window, counts), 1):
            recorder.note("batch", "inputs", inputs, micro=k)
            recorder.note("batch", "targets", targets, micro=k)
            logits = model(inputs)
            summed = F.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE
            )
            recorder.note("loss", "sum", summed.detach(), count)
            share = 1 / sum(counts) if s.normalise == "token" else 1 / (count * len(window))
            (summed * share).backward()
            loss = loss + summed.detach() * share
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = math.inf if s.clip_norm is None else s.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(params, limit)
        recorder.note("loss", "window", loss, sum(counts), micro=0, step=recorder.done + 1)
        recorder.note("norm", "total", norm, sum(p.numel() for p in params), step=recorder.done + 1)
        self.optimizer.step()
        by_loss = s.schedule == "ReduceLROnPlateau"
        if self.scheduler is not None and not by_loss and (ended or s.schedule_unit == "step"):
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(model)
            for name, value in self.average.module.named_parameters():
                recorder.note("average", name, value)
        if recorder.done % s.eval_every == 0:
            self.validate(recorder)
        recorder.scheduled()
        recorder.random()
        recorder.note("random", "loader", self.generator.get_state())

    def validate(self, recorder: Any) -> None:
        """The loss over the held-out tokens, and what early stopping makes of it."""
        model, total, count = self.model, 0.0, 0
        model.eval()
        with torch.no_grad():
            for inputs, targets in DataLoader(self.held_out, 4, generator=torch.Generator()):
                losses = F.cross_entropy(
                    model(inputs).flatten(0, 1), targets.flatten(), reduction="none"
                )
                total += float(losses.double().sum())
                count += int((targets != IGNORE).sum())
        model.train()
        recorder.note("validation", "loss", total / count, count)
        if self.s.schedule == "ReduceLROnPlateau":
            self.scheduler.step(total / count)
        if self.stopper is not None:
            self.stopper(total / count)
            for name in ("counter", "best", "stop"):
                recorder.note("stopper", name, getattr(self.stopper, name))


def _depth(name: str, n: int) -> int:
    """0: before the blocks; 1 ... n: a block; n + 1: after them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("wte", "wpe")) else n + 1
