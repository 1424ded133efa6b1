"""EarlyStopping: end training when the validation loss no longer falls, and keep the best weights.

It stands alone: call it in any loop after a validation, and leave the loop at `.early_stop`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm import files
from nplm.errors import CheckpointError, ConfigError
from nplm.nn.module import Module

_STATE = (
    "patience", "delta", "counter", "best_val_loss", "val_loss_min", "early_stop", "calls",
    "best_call", "best_step", "reason", "kept", "weights",
)  # fmt: skip


class EarlyStopping:
    """Call it as `early_stopping(val_loss, model)`.  Twin: early-stopping-pytorch 1.0.10

    patience     calls in a row without improvement after which `early_stop` is set, for good
    verbose      tell `trace_func` what every call was judged to be; else it is silent
    delta        a loss improves if it is below the best one minus delta (a tie is no improvement)
    path         the file of the best weights: safetensors, whatever its suffix, replaced whole or
                 not at all; None keeps a copy in memory

    The first loss that is not NaN is the first best; NaN is ignored: it neither improves nor
    counts. To be read, besides the arguments: `early_stop`, `counter` (calls since the best),
    `best_val_loss` (None at first), `val_loss_min` (+inf at first), `calls`, `best_call` (from 1),
    `best_step`, and `reason`: one sentence once stopped. Raises ConfigError for a patience below 1
    or a delta that is negative or NaN.
    """

    def __init__(
        self,
        patience: int = 7,
        verbose: bool = False,
        delta: float = 0,
        path: str | os.PathLike[str] | None = "checkpoint.pt",
        trace_func: Callable[[str], Any] = print,
    ) -> None:
        if not isinstance(patience, int | np.integer) or patience < 1:
            raise ConfigError(f"EarlyStopping: expected a whole patience >= 1, got {patience!r}")
        if not _real(delta, "delta") >= 0:
            raise ConfigError(f"EarlyStopping: expected a delta >= 0, got {delta!r}")
        if path is not None and not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"EarlyStopping: expected the path of a file or None, got {type(path).__name__}"
            )
        self.patience = int(patience)
        self.verbose = verbose
        self.delta = _real(delta, "delta")
        self.path = path
        self.trace_func = trace_func
        self.counter = 0
        self.early_stop = False
        self.best_val_loss: float | None = None
        self.val_loss_min = math.inf
        self.calls = 0
        self.best_call: int | None = None
        self.best_step: int | None = None
        self.reason: str | None = None
        self.kept = False  # whether the best call's weights are in memory or in the file
        self.weights: dict[str, npt.NDArray[Any]] | None = None

    def __call__(
        self, val_loss: Any, model: Module | None = None, *, step: int | None = None
    ) -> None:
        """Judge a loss and keep the model's weights if it is the best.

        val_loss: a real number, a NumPy scalar or a Tensor of shape (), else TypeError. Without a
        model it only judges. With `step`, the updates so far, `reason` speaks of steps. Raises
        StorageError if the weights cannot be written: then the call has changed nothing.
        """
        loss = _real(val_loss, "val_loss")
        if math.isnan(loss):
            self._say("validation loss is NaN: ignored")
        elif self.best_val_loss is None or loss < self.best_val_loss - self.delta:
            self._keep(model)  # first: if it fails, the best is still what was kept
            where = f"weights in {self.path or 'memory'}" if self.kept else "no model to keep"
            self._say(f"validation loss improved, {self.val_loss_min:.6f} to {loss:.6f}: {where}")
            self.best_val_loss = self.val_loss_min = loss
            self.best_call, self.best_step = self.calls + 1, step
            self.counter = 0
        else:
            self.counter += 1
            self._say(
                f"validation loss {loss:.6f} does not improve on {self.best_val_loss:.6f}: "
                f"{self.counter} of {self.patience}"
            )
            if self.counter >= self.patience and not self.early_stop:
                self.early_stop = True
                self.reason = self._reason(step)
        self.calls += 1

    def _keep(self, model: Module | None) -> None:
        weights = None
        if model is not None:
            weights = {name: value.numpy() for name, value in model.state_dict().items()}
            if self.path is not None:
                files.save_tensors(Path(self.path), weights)
                weights = None
            else:  # a real copy: training goes on in place
                weights = {name: np.array(value) for name, value in weights.items()}
        self.kept, self.weights = model is not None, weights

    def _reason(self, step: int | None) -> str:
        calls = f"{self.counter} call" + "s" * (self.counter > 1)
        best = f"call {self.best_call}" if self.best_step is None else f"step {self.best_step}"
        end = "" if step is None else f", up to step {step}"
        least = f" of more than {self.delta:g}" if self.delta else ""
        return f"no improvement{least} on {self.best_val_loss:.4f} ({best}) in {calls}{end}"

    def _say(self, message: str) -> None:
        if self.verbose:
            self.trace_func(f"EarlyStopping: {message}")

    def restore_best(self, model: Module) -> None:
        """Copy the best call's weights into the model.

        Raises CheckpointError if none were kept, the file is gone or damaged, or the weights are
        those of another model; then the model is as it was.
        """
        if not self.kept:
            raise CheckpointError(
                "EarlyStopping.restore_best: no weights were kept: the best call needs a model"
            )
        weights, where = self.weights, "the weights in memory"
        if weights is None:
            where = str(self.path)
            weights = files.load_tensors(where)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{where}: not the weights of this model: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, with the best weights if they are in memory.

        Where the weights are written (`path`) and who is told belong to the process, not to it.
        """
        return {key: getattr(self, key) for key in _STATE}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken, with its patience and delta, as torch's schedulers.

        Raises CheckpointError, before anything changes, for a state that lacks something.
        """
        if missing := [key for key in _STATE if key not in state_dict]:
            raise CheckpointError(
                f"EarlyStopping.load_state_dict: the state lacks {', '.join(missing)}"
            )
        self.__dict__.update({key: state_dict[key] for key in _STATE})
        if self.weights is not None:
            self.weights = {name: np.array(value) for name, value in self.weights.items()}
        elif self.path is None:
            self.kept = False  # they are in a file that this one does not know


def _real(value: Any, name: str) -> float:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise TypeError(
            f"EarlyStopping: expected {name} as a real number or a Tensor of shape (), got "
            f"{type(value).__name__}{shape}"
        )
    return float(value)
