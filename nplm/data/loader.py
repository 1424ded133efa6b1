"""Batches: from a long row of tokens to inputs and targets, and to windows of batches.

A row of `context` tokens is cut out of the text; B rows are a batch; the batches of one update are
an accumulation window. Values are checked here, on the host: ops never look at them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from nplm.data.text import require_window
from nplm.data.tokenizer import check_tokens
from nplm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nplm.random import Generator

IGNORE_INDEX = -100  # a target with this value counts in no loss, as in torch
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model reads and what it should answer, one position later.

    Raises DataError unless both are integer arrays of the same shape (B, T), with B and T >= 1.
    """

    inputs: npt.NDArray[np.int64]  # (B, T)
    targets: npt.NDArray[np.int64]  # (B, T); IGNORE_INDEX = no target at this position

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            array = np.asarray(getattr(self, name))
            if array.dtype.kind not in "iu":
                raise DataError(f"Batch: {name} must be integers, got {array.dtype}")
            if array.ndim != 2 or array.size == 0:
                raise DataError(
                    f"Batch: {name} must have shape (B, T), both at least 1, got {array.shape}"
                )
            object.__setattr__(self, name, array.astype(np.int64, copy=False))
        if self.inputs.shape != self.targets.shape:
            raise DataError(
                "Batch: inputs and targets must have the same shape (B, T), "
                f"got {self.inputs.shape} and {self.targets.shape}"
            )

    def n_targets(self, ignore_index: int = IGNORE_INDEX) -> int:
        """Count the targets that a loss counts."""
        return int(np.count_nonzero(self.targets != ignore_index))


class RandomWindows:
    """Endless batches of windows at random offsets: nanoGPT's `get_batch`, draw for draw.

    tokens (N,), N >= context + 1. Every `next` draws `randint(0, N - context, batch_size)` from
    `generator` and nothing else does. Raises DataError for tokens outside [0, vocab_size) or too
    few of them, ConfigError for a context or a batch_size below 1.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        context: int,
        batch_size: int,
        generator: "Generator",
        vocab_size: int | None = None,
    ) -> None:
        self.tokens = _checked(tokens, context, batch_size, vocab_size, "RandomWindows")
        self.context = context
        self.batch_size = batch_size
        self.generator = generator

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Draw a batch: inputs and targets (batch_size, context)."""
        offsets = self.generator.randint(0, len(self.tokens) - self.context, (self.batch_size,))
        at = np.asarray(offsets)[:, None] + np.arange(self.context)  # (B, T)
        return Batch(self.tokens[at], self.tokens[at + 1])

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state: there is no other memory."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict()` was taken."""
        self.generator.set_state(state["generator"])


class SequentialWindows:
    """Every target of `tokens` exactly once, in order: for evaluation, or for epochs.

    tokens (N,) give N - 1 targets in windows that do not overlap. The last window may be short: it
    is padded with input 0 and target IGNORE_INDEX. The last batch may have fewer rows. Can be
    iterated again; `len()` is the number of batches. Raises DataError for fewer than two tokens or
    tokens outside [0, vocab_size), ConfigError for a context or a batch_size below 1.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        context: int,
        batch_size: int,
        vocab_size: int | None = None,
    ) -> None:
        if context < 1:
            raise ConfigError(f"context must be at least 1 token, got {context}")
        self.tokens = _checked(tokens, 1, batch_size, vocab_size, "SequentialWindows")
        self.context = context
        self.batch_size = batch_size
        self.n_windows = -(-(len(tokens) - 1) // context)

    def __len__(self) -> int:
        return -(-self.n_windows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.n_windows, self.batch_size):
            rows = min(self.batch_size, self.n_windows - first)
            size = rows * self.context
            begin = first * self.context
            chunk = self.tokens[begin : begin + size + 1]  # one more token: the last target
            inputs = np.zeros(size, np.int64)
            targets = np.full(size, IGNORE_INDEX, np.int64)
            inputs[: len(chunk) - 1] = chunk[:-1]
            targets[: len(chunk) - 1] = chunk[1:]
            shape = (rows, self.context)
            yield Batch(inputs.reshape(shape), targets.reshape(shape))


def windows_of(batches: Iterable[_T], accumulate: int) -> Iterator[list[_T]]:
    """Group batches into accumulation windows of `accumulate`; the last, short one is kept.

    Nothing is read ahead of the window that is handed out, so the cursor of an endless loader stays
    at a window's end. Raises ConfigError for accumulate below 1.
    """
    if accumulate < 1:
        raise ConfigError(f"windows_of: accumulate must be at least 1, got {accumulate}")
    return _windows_of(batches, accumulate)


def _windows_of(batches: Iterable[_T], accumulate: int) -> Iterator[list[_T]]:
    window: list[_T] = []
    for batch in batches:
        window.append(batch)
        if len(window) == accumulate:
            yield window
            window = []
    if window:
        yield window


def marked_windows(
    loader: Iterable[Batch], accumulate: int, ahead: bool
) -> Iterator[tuple[list[Batch], bool]]:
    """Windows of `accumulate` batches, each with whether it is the loader's last one.

    Without `len` the last one is known only by reading one window ahead, which `ahead` allows.
    """
    windows = windows_of(loader, accumulate)
    if isinstance(loader, Sized):
        last = -(-len(loader) // accumulate) - 1
        for i, window in enumerate(windows):
            yield window, i == last
    elif not ahead:
        for window in windows:
            yield window, False
    else:
        held: list[Batch] | None = next(windows, None)
        while held is not None:
            following = next(windows, None)
            yield held, following is None
            held = following


def _checked(
    tokens: npt.NDArray[Any], context: int, batch_size: int, vocab_size: int | None, who: str
) -> npt.NDArray[Any]:
    if batch_size < 1:
        raise ConfigError(f"{who}: batch_size must be at least 1, got {batch_size}")
    array = np.asarray(tokens)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{who}: tokens must be one row of integers (N,), got {array.dtype} of shape "
            f"{array.shape}"
        )
    require_window(array, context, who)
    check_tokens(array, vocab_size, who)
    return array
