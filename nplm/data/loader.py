"""Batches: from a long row of tokens to inputs and targets, and to windows of batches.

A row of `context` tokens is cut out of the text; B rows are a batch; the batches of one update are
an accumulation window. Values are checked here, on the host: ops never look at them.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from nplm.data.cursor import length_of
from nplm.data.dataset import Dataset
from nplm.data.sampler import require_generator
from nplm.data.text import require_window
from nplm.data.tokenizer import check_tokens
from nplm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nplm.random import Generator

IGNORE_INDEX = -100  # a target with this value counts in no loss, as in torch
_T = TypeVar("_T")
_Row = npt.NDArray[np.int64]  # (T,)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model reads and what it should answer, one position later.

    Raises DataError unless both are integer arrays of the same shape (B, T), with B and T >= 1.
    """

    inputs: npt.NDArray[np.int64]  # (B, T)
    targets: npt.NDArray[np.int64]  # (B, T); IGNORE_INDEX = no target at this position

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            array = _array(getattr(self, name), f"Batch: {name}")
            if array.dtype.kind not in "iu":
                raise DataError(f"Batch: {name} must be integers, got {array.dtype}")
            if array.ndim != 2 or array.size == 0:
                raise DataError(
                    f"Batch: {name} must have shape (B, T), both at least 1, got {array.shape}"
                )
            if array.dtype == np.uint64:
                check_tokens(array.reshape(-1), None, f"Batch: {name}")
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
    few of them, ConfigError for a context or a batch_size below 1, TypeError for a generator of
    another library.
    """

    endless = True

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        context: int,
        batch_size: int,
        generator: "Generator",
        vocab_size: int | None = None,
    ) -> None:
        require_counts("RandomWindows", context=context, batch_size=batch_size)
        require_generator(generator, "RandomWindows")
        self.tokens = _checked(tokens, context, vocab_size, "RandomWindows")
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
        if not isinstance(state, Mapping) or "generator" not in state:
            raise ConfigError(
                "RandomWindows.load_state_dict: expected what state_dict() made, a dict with "
                f"'generator', got {type(state).__name__}"
            )
        self.generator.set_state(state["generator"])


class TokenWindows(Dataset[tuple[_Row, _Row]]):
    """Every target of `tokens` exactly once, in windows that do not overlap: epochs of a text.

    tokens (N,) give N - 1 targets; item i is (inputs, targets), both (context,). The last window
    may be short: it is padded with input 0 and target IGNORE_INDEX. Raises DataError for fewer than
    two tokens or tokens outside [0, vocab_size), ConfigError for a context below 1.
    """

    def __init__(
        self, tokens: npt.NDArray[Any], context: int, vocab_size: int | None = None
    ) -> None:
        require_counts("TokenWindows", context=context)
        self.tokens = _checked(tokens, 1, vocab_size, "TokenWindows")
        self.context = context

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context)

    def __getitem__(self, index: int) -> tuple[_Row, _Row]:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"TokenWindows: expected an index in [{-n}, {n}), got {index}")
        begin = index % n * self.context
        chunk = self.tokens[begin : begin + self.context + 1]  # one more token: the last target
        inputs = np.zeros(self.context, np.int64)
        targets = np.full(self.context, IGNORE_INDEX, np.int64)
        inputs[: len(chunk) - 1] = chunk[:-1]
        targets[: len(chunk) - 1] = chunk[1:]
        return inputs, targets


def collate_windows(samples: Sequence[tuple[_Row, _Row]]) -> Batch:
    """B samples (inputs, targets), each (T,) -> a Batch (B, T): a DataLoader's `collate_fn`.

    Raises DataError for samples that are no such pairs, or not all of one length.
    """
    try:
        inputs, targets = (np.stack(rows) for rows in zip(*samples, strict=True))
    except (TypeError, ValueError) as error:
        raise DataError(
            "collate_windows: expected at least one sample (inputs, targets), each a row (T,) of "
            f"one length for all, as TokenWindows gives them: {error}"
        ) from None
    return Batch(inputs, targets)


class SequentialWindows:
    """The windows of TokenWindows in order, `batch_size` at a time: for evaluation.

    The last batch may have fewer rows. Can be iterated again; `len()` is the number of batches.
    Raises what TokenWindows raises, and ConfigError for a batch_size below 1.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        context: int,
        batch_size: int,
        vocab_size: int | None = None,
    ) -> None:
        require_counts("SequentialWindows", context=context, batch_size=batch_size)
        self.windows = TokenWindows(tokens, context, vocab_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        n = len(self.windows)
        for first in range(0, n, self.batch_size):
            rows = range(first, min(first + self.batch_size, n))
            yield collate_windows([self.windows[i] for i in rows])


def as_batch(item: Any) -> Batch:
    """A Batch as it is, and a pair (inputs, targets) of arrays or Tensors (B, T) as one.

    Raises DataError for anything else.
    """
    if isinstance(item, Batch):
        return item
    got = type(item).__name__
    if isinstance(item, Sequence) and len(item) == 2 and not isinstance(item, str):
        if all(hasattr(part, "dtype") and hasattr(part, "shape") for part in item):
            return Batch(*(np.asarray(part) for part in item))
        got += f" of {' and '.join(type(part).__name__ for part in item)}"
    raise DataError(
        f"expected a Batch or a pair (inputs, targets) of arrays or Tensors of token ids (B, T), "
        f"got {got}; a DataLoader makes them with collate_fn=collate_windows"
    )


class Window(tuple[_T, ...]):
    """The micro-batches of one update, all read before its first backward."""

    @cached_property
    def counts(self: "Window[Batch]") -> list[int]:
        """The targets of each micro-batch that a loss counts, counted once on the host."""
        return [batch.n_targets() for batch in self]

    @property
    def n_targets(self: "Window[Batch]") -> int:
        """The targets of the whole update: what every gradient is divided by."""
        return sum(self.counts)


def windows_of(batches: Iterable[_T], accumulate: int) -> Iterator[Window[_T]]:
    """Group batches into accumulation windows of `accumulate`; the last, short one is kept.

    Nothing is read ahead of the window that is handed out, so the cursor of an endless loader stays
    at a window's end. Raises ConfigError for accumulate below 1.
    """
    require_counts("windows_of", accumulate=accumulate)
    return _windows_of(batches, accumulate)


def _windows_of(batches: Iterable[_T], accumulate: int) -> Iterator[Window[_T]]:
    batches = iter(batches)
    while window := Window(itertools.islice(batches, accumulate)):
        yield window


def marked_windows(
    loader: Iterable[Batch], accumulate: int, ahead: bool
) -> Iterator[tuple[Window[Batch], bool]]:
    """Windows of `accumulate` batches, each with whether it is the loader's last one.

    A loader says how many there are by `batches_left` (a DataLoader, which may have been resumed)
    or `len`; if it does not, or only claims it (`len` of an IterableDataset), the last window is
    known only by reading one ahead, if `ahead`. Raises ConfigError for an epoch's end of a loader
    without one.
    """
    if ahead and getattr(loader, "endless", False):
        raise ConfigError(
            f"{type(loader).__name__} has no end, so it has no epochs: say `steps`, with a "
            "schedule that counts steps, or read TokenWindows through a DataLoader"
        )
    n = _batches_left(loader)  # asked before `iter`, which begins the pass
    windows = windows_of(map(as_batch, loader), accumulate)
    if n is not None:
        last = -(-n // accumulate) - 1
        for i, window in enumerate(windows):
            yield window, i == last
    elif not ahead:
        for window in windows:
            yield window, False
    else:
        held: Window[Batch] | None = next(windows, None)
        while held is not None:
            following = next(windows, None)
            yield held, following is None
            held = following


def _batches_left(loader: Iterable[Any]) -> int | None:
    if hasattr(loader, "batches_left"):
        left: int | None = loader.batches_left
        return left
    # By name: torch's DataLoader over torch's IterableDataset is a loader too.
    kinds = (kind.__name__ for kind in type(getattr(loader, "dataset", None)).__mro__)
    claimed = "IterableDataset" in kinds or isinstance(loader, Iterator)  # begun: its len is old
    return None if claimed else length_of(loader)


def require_counts(who: str, or_none: bool = False, **counts: Any) -> None:
    """Raise ConfigError unless all are whole numbers from 1 on (or None, if `or_none`)."""
    for name, count in counts.items():
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not ((whole and count >= 1) or (or_none and count is None)):
            expected = "at least 1" if whole else "a whole number"
            raise ConfigError(f"{who}: {name} must be {expected}, got {count!r}")


def _array(values: Any, what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of unequal length
        raise DataError(f"{what} must be one array, {error}") from None


def _checked(
    tokens: npt.NDArray[Any], context: int, vocab_size: int | None, who: str
) -> npt.NDArray[Any]:
    array = _array(tokens, f"{who}: tokens")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{who}: tokens must be one row of integers (N,), got {array.dtype} of shape "
            f"{array.shape}"
        )
    require_window(array, context, who)
    check_tokens(array, vocab_size, who)
    return array
