"""The average of a run's weights: when it is taken, and its place in a checkpoint.

The arithmetic is optim/swa_utils.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nplm.autograd.grad_mode import no_grad
from nplm.errors import CheckpointError, ConfigError
from nplm.nn.module import Module
from nplm.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from nplm.train.step import StepRecord


class Average:
    """An exponential (EMA) or equally weighted (SWA) mean of the weights after updates.

    decay   the weight of the old mean in an EMA; None: SWA
    start   updates before the first one that counts: its weights are copied
    every   updates from one to the next that counts; None: an epoch's last one counts
    last    the run's last update, which then counts too; None: not known
    """

    def __init__(
        self, model: Module, decay: float | None, start: int, every: int | None,
        last: int | None = None,
    ) -> None:  # fmt: skip
        if start < 0 or (every is not None and every < 1):
            raise ConfigError(
                f"Average: expected start >= 0 and every >= 1 or None, got {start} and {every}"
            )
        mean = None if decay is None else get_ema_multi_avg_fn(decay)
        self.model = AveragedModel(model, multi_avg_fn=mean)
        self.decay, self.start, self.every, self.last = decay, start, every, last

    @property
    def updates(self) -> int:
        """How many updates are in it; 0: it has not begun."""
        return int(self.model.n_averaged)

    def takes(self, record: StepRecord) -> bool:
        """Whether the weights after this update count."""
        if not record.updated or record.step <= self.start:
            return False
        if self.every is None:
            return record.epoch_ended or record.step == self.last
        return (record.step - self.start - 1) % self.every == 0

    def update(self, model: Module) -> None:
        """Take the model's weights into the mean."""
        self.model.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        """How many updates are in it, and its weights by the model's names, each once."""
        module: Module = self.model.module
        named = [*module.named_parameters(), *module.named_buffers()]
        return {"updates": self.updates, "weights": {name: t.detach() for name, t in named}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken; raises CheckpointError for anything else."""
        own = self.state_dict()["weights"]
        weights, updates = state_dict.get("weights"), state_dict.get("updates")
        if type(updates) is not int or updates < 0 or not isinstance(weights, Mapping):
            raise CheckpointError("Average: expected updates and weights as state_dict() has them")
        for name in own.keys() | weights.keys():
            here, there = getattr(own.get(name), "shape", None), weights.get(name)
            if here is None or tuple(getattr(there, "shape", ())) != here or there is None:
                raise CheckpointError(f"Average: {name} is not a weight of this model, or missing")
        with no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
            self.model.n_averaged.copy_(np.asarray(updates))
