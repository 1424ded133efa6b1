"""EarlyStopping: end training when the validation loss no longer falls, and keep the best weights.

It stands alone: call it in any loop after a validation, and leave the loop at `.early_stop`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from nplm import files
from nplm.errors import CheckpointError, ConfigError
from nplm.nn.module import Module
from nplm.train.stopping_rules import (
    DEFAULT,
    NAN_CAN_BE_BEST,
    PATIENCE,
    Options,
    Rule,
    Verdict,
    make_rule,
    options_of,
)


class EarlyStopping:
    """Call it as `early_stopping(val_loss, model)`.  Twin: early-stopping-pytorch 1.0.10

    patience     calls in a row without improvement after which `early_stop` is set, for good
    verbose      tell `trace_func` what every call was judged to be; else it is silent
    delta        a loss improves if it is below the best one minus delta (a tie is no improvement)
    path         the file of the best weights: safetensors, whatever its suffix, replaced whole or
                 not at all; None keeps a copy in memory
    semantics    whose rule: "pytorchtools" is the one here; "pytorchtools-2020", "keras",
                 "lightning", "plateau", "transformers" and their options are in stopping_rules.py

    The first loss that is not NaN is the first best; NaN is ignored: it neither improves nor
    counts. To be read, besides the arguments: `early_stop`, `counter` (calls since the best),
    `best_val_loss` (the loss to improve on; None at first), `val_loss_min` (that of the best
    weights; +inf at first), `calls`, `best_call` (from 1), `best_step`, and `reason`: one sentence
    once stopped. Raises ConfigError for a patience below 1, a delta that is negative or NaN, or an
    option that the semantics has not; other semantics take a patience of 0 and a negative delta.
    """

    def __init__(
        self,
        patience: int = 7,
        verbose: bool = False,
        delta: float = 0,
        path: str | os.PathLike[str] | None = "checkpoint.pt",
        trace_func: Callable[[str], Any] = print,
        *,
        semantics: str = DEFAULT,
        **options: Unpack[Options],
    ) -> None:
        self.rule = make_rule(semantics, options)  # None: _judge, below
        self.semantics = semantics
        self.delta = _real(delta, "delta")
        _check_settings(semantics, patience, self.delta)
        self.patience = int(patience)
        if path is not None and not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"EarlyStopping: expected the path of a file or None, got {type(path).__name__}"
            )
        self.verbose = verbose
        self.path = path
        self.trace_func = trace_func
        self.counter = 0
        self.early_stop = False
        self.best_val_loss: float | None = None
        self.val_loss_min = math.inf if self.rule is None else self.rule.worst
        self.calls = 0
        self.best_call: int | None = None
        self.best_step: int | None = None
        self.reason: str | None = None
        self.kept = False  # whether the best call's weights are in memory or in the file
        self.kept_at: str | None = None  # that file, and what the best call wrote to it
        self.sha256: str | None = None
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
        if model is not None:
            _require_module(model, "__call__")
        verdict = self._judge(loss) if self.rule is None else self.rule(loss, self)
        if verdict.keep:
            self._keep(model)  # first: if it fails, the best is still what was kept
        message = self._message(loss, verdict)
        if verdict.keep:
            self.val_loss_min = loss
            self.best_call, self.best_step = self.calls + 1, step
        self.best_val_loss, self.counter = verdict.best, verdict.counter
        if verdict.stop is not None and not self.early_stop:
            self.early_stop = True
            self.reason = self._reason(verdict.stop, step)
        self.calls += 1
        if self.verbose:  # last: if this fails, the call has been made all the same
            self.trace_func(f"EarlyStopping: validation loss {message}")

    def _judge(self, loss: float) -> Verdict:
        if math.isnan(loss):
            return Verdict(self.best_val_loss, self.counter, ignored="is NaN: ignored")
        if self.best_val_loss is None or loss < self.best_val_loss - self.delta:
            return Verdict(loss, 0, keep=True)
        counter = self.counter + 1
        stop = PATIENCE if counter >= self.patience else None
        return Verdict(self.best_val_loss, counter, stop=stop)

    def _message(self, loss: float, verdict: Verdict) -> str:
        if verdict.ignored is not None:
            return verdict.ignored
        if verdict.stop is not None and verdict.stop != PATIENCE:
            return verdict.stop
        count = f"{verdict.counter} of {self.patience}"
        if verdict.keep:
            where = f"weights in {self.path or 'memory'}" if self.kept else "no model to keep"
            short = f"; not enough: {count}" if verdict.counter else ""
            return f"improved, {self.val_loss_min:.6f} to {loss:.6f}: {where}{short}"
        best = self.val_loss_min if self.best_val_loss is None else self.best_val_loss
        return f"{loss:.6f} does not improve on {best:.6f}: {count}"

    def _keep(self, model: Module | None) -> None:
        weights = kept_at = sha256 = None
        if model is not None:
            weights = {name: value.numpy() for name, value in model.state_dict().items()}
            if self.path is not None:
                kept_at = str(Path(self.path).absolute())
                files.save_tensors(Path(kept_at), weights)
                weights, sha256 = None, files.sha256_of(Path(kept_at))
            else:  # a real copy: training goes on in place
                weights = {name: np.array(value) for name, value in weights.items()}
        self.kept, self.weights = model is not None, weights
        self.kept_at, self.sha256 = kept_at, sha256

    def _reason(self, stop: str, step: int | None) -> str:
        if stop != PATIENCE:
            return f"validation loss {stop}" + ("" if step is None else f", at step {step}")
        calls = f"{self.counter} call" + "s" * (self.counter != 1)
        end = "" if step is None else f", up to step {step}"
        least = f" of more than {self.delta:g}" if self.delta else ""
        if self.rule is not None:
            least = self.rule.least(self.delta)
        best = "" if self.best_val_loss is None else f" on {self.best_val_loss:.4f}"
        if self.best_call is not None:
            at = f"call {self.best_call}" if self.best_step is None else f"step {self.best_step}"
            best += f" ({at})"
        return f"no improvement{least}{best} in {calls}{end}"

    def restore_best(self, model: Module) -> None:
        """Copy the best call's weights into the model.

        Raises CheckpointError if none were kept, the file is gone, damaged, or not the one that the
        best call wrote, or the weights are those of another model; then the model is as it was.
        """
        _require_module(model, "restore_best")
        if not self.kept:
            raise CheckpointError(
                "EarlyStopping.restore_best: no weights were kept: the best call needs a model"
            )
        weights, where = self.weights, "the weights in memory"
        if weights is None:
            where = str(self.path)
            weights = self._read_file()
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{where}: not the weights of this model: {error}") from error

    def _read_file(self) -> dict[str, npt.NDArray[Any]]:
        if self.path is None:
            raise CheckpointError(
                f"EarlyStopping.restore_best: the best weights are in the file {self.kept_at}, and "
                "this one has path=None; make it with path= that file"
            )
        weights = files.load_tensors(Path(self.path))
        if files.sha256_of(Path(self.path)) != self.sha256:
            raise CheckpointError(
                f"{self.path}: expected what the best call wrote to {self.kept_at}, got something "
                "else; give each EarlyStopping a path of its own, and keep its file"
            )
        return weights

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the semantics, with its value."""
        return options_of(self.rule)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, with a copy of the best weights if they are in memory.

        Where to write the next weights (`path`) and who is told belong to the process, not to it.
        """
        state = {key: getattr(self, key) for key in _STATE}
        if self.weights is not None:
            state["weights"] = {name: value.copy() for name, value in self.weights.items()}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken, with its patience, delta, semantics and options.

        Weights in a file are looked for at this one's own `path`. Raises CheckpointError, before
        anything changes, for what is no such state.
        """
        self.__dict__.update(_checked(state_dict))


def _check_settings(semantics: str, patience: Any, delta: float) -> None:
    least = 1 if semantics == DEFAULT else 0
    if not _whole(patience, least):
        raise ConfigError(f"EarlyStopping: expected a whole patience >= {least}, got {patience!r}")
    if semantics == DEFAULT and not delta >= 0:
        raise ConfigError(f"EarlyStopping: expected a delta >= 0, got {delta!r}")
    if math.isnan(delta):
        raise ConfigError("EarlyStopping: expected a delta that is a number, got NaN")


def _checked(state: Any) -> dict[str, Any]:
    """What `state_dict()` made, with its own copies and its rule; CheckpointError for else."""
    where = "EarlyStopping.load_state_dict"
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{where}: expected a state_dict(), got {type(state).__name__}")
    state = {"semantics": DEFAULT, "options": {}, **state}  # older states: there was one rule
    if missing := [key for key in _STATE if key not in state]:
        raise CheckpointError(f"{where}: the state lacks {', '.join(missing)}")
    found = {key: state[key] for key in _STATE}
    for key, good in _STATE.items():
        if not good(found[key]):
            raise CheckpointError(
                f"{where}: expected {key} as state_dict() wrote it, got a "
                f"{type(found[key]).__name__} that it cannot be; take an undamaged state"
            )
    found["rule"] = _checked_rule(found, where)
    given = [key for key in ("weights", "kept_at", "sha256") if found[key] is not None]
    if given not in ([["weights"], ["kept_at", "sha256"]] if found["kept"] else [[]]):
        raise CheckpointError(
            f"{where}: expected weights, or kept_at and sha256 of their file, just if kept, got "
            f"{given} with kept={found['kept']}; take an undamaged state"
        )
    if found["weights"] is not None:
        found["weights"] = {name: np.array(value) for name, value in found["weights"].items()}
    return found


def _checked_rule(found: dict[str, Any], where: str) -> Rule | None:
    semantics, options = found["semantics"], found.pop("options")
    try:
        rule = make_rule(semantics, options)
        _check_settings(semantics, found["patience"], found["delta"])
    except (ConfigError, TypeError) as error:
        raise CheckpointError(
            f"{where}: expected settings as state_dict() wrote them, got others: {error}"
        ) from error
    if options_of(rule) != options:
        raise CheckpointError(
            f"{where}: expected every option of semantics {semantics!r}, got {sorted(options)}; "
            "take an undamaged state"
        )
    if semantics not in NAN_CAN_BE_BEST and (
        found["best_val_loss"] != found["best_val_loss"] or math.isnan(found["val_loss_min"])
    ):
        raise CheckpointError(
            f"{where}: expected a best loss that is not NaN, as semantics {semantics!r} has it; "
            "take an undamaged state"
        )
    return rule


def _require_module(model: Any, what: str) -> None:
    if not isinstance(model, Module):
        raise TypeError(
            f"EarlyStopping.{what}: expected the model, an nplm.nn.Module, got "
            f"{type(model).__name__}"
        )


def _real(value: Any, name: str) -> float:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if getattr(value, "shape", None) == () and hasattr(value, "item") and kind not in ("m", "M"):
        value = value.item()
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, Real):
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise TypeError(
            f"EarlyStopping: expected {name} as a real number or a Tensor of shape (), got "
            f"{type(value).__name__}{shape}"
        )
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(
            f"EarlyStopping: expected {name} within float64's range, up to 1.8e308, got one of "
            f"type {type(value).__name__} beyond it"
        ) from None


def _whole(value: Any, least: int = 0) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)
    return whole and bool(value >= least)


def _number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _arrays(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(array, np.ndarray) and array.dtype != object for array in value.values())
    )


# What a state holds, and what each of it may be.
_STATE: dict[str, Callable[[Any], bool]] = {
    "patience": _whole,
    "delta": _number,
    "counter": _whole,
    "best_val_loss": lambda value: value is None or _number(value),
    "val_loss_min": _number,
    "early_stop": _flag,
    "calls": _whole,
    "best_call": lambda value: value is None or _whole(value, 1),
    "best_step": lambda value: value is None or _number(value) or _whole(value),
    "reason": _text,
    "kept": _flag,
    "kept_at": _text,
    "sha256": _text,
    "weights": _arrays,
    "semantics": lambda value: isinstance(value, str),
    "options": lambda value: isinstance(value, Mapping),
}
