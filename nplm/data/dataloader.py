"""DataLoader: batches of a dataset in torch's order, draw for draw, and a place to resume from.

Read sampler.py and cursor.py before: the samplers draw, this file only says when.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice, repeat
from typing import Any, Generic, TypeVar

from nplm.data.collate import default_collate, default_convert
from nplm.data.cursor import Pass, Streams, check_state, length_of
from nplm.data.dataset import Dataset, IterableDataset, samples_at
from nplm.data.sampler import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    require_generator,
    stream_of,
)
from nplm.errors import ConfigError
from nplm.random import Generator

_T_co = TypeVar("_T_co", covariant=True)

_FIXED = {"batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"}
_NO_WORKERS = {  # what steers torch's worker processes, at its defaults
    "num_workers": 0,
    "pin_memory": False,
    "timeout": 0,
    "worker_init_fn": None,
    "multiprocessing_context": None,
    "prefetch_factor": None,
    "persistent_workers": False,
    "pin_memory_device": "",
    "in_order": True,
}


class DataLoader(Generic[_T_co]):
    """Batches of `dataset`, once each time it is iterated.  Twin: torch.utils.data.DataLoader.

    `shuffle` draws from `generator`, or from the default stream without one, exactly when and what
    torch draws. `batch_size=None` hands out single samples. `collate_fn` makes a batch from a list
    of samples (`default_collate`: Tensors). Samples are read in the process itself: what steers
    torch's worker processes has no effect, and a warning says so. Contradictory arguments raise
    ValueError, as in torch; a generator of another library TypeError.
    """

    _ready = False

    def __init__(
        self,
        dataset: Dataset[_T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        steering = {
            "num_workers": num_workers, "pin_memory": pin_memory, "timeout": timeout,
            "worker_init_fn": worker_init_fn, "multiprocessing_context": multiprocessing_context,
            "prefetch_factor": prefetch_factor, "persistent_workers": persistent_workers,
            "pin_memory_device": pin_memory_device, "in_order": in_order,
        }  # fmt: skip
        require_generator(generator, "DataLoader")
        _check_workers(steering)
        self.__dict__.update(steering)
        if isinstance(dataset, IterableDataset):
            _check_iterable(shuffle, sampler, batch_sampler)
        _check_contradictions(batch_size, shuffle, sampler, batch_sampler, drop_last)
        if sampler is None:
            sampler = _default_sampler(dataset, shuffle, generator)
        if batch_sampler is not None:
            batch_size = None  # the sampler decides
        elif batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.generator = generator
        single = batch_sampler is None
        if collate_fn is None:
            collate_fn = default_convert if single else default_collate
        self.collate_fn: Callable[[Any], Any] = collate_fn
        self._pass: Pass | None = None  # the one that began last
        self._resumed = False  # whether it waits for the next `iter`
        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self._ready and name in _FIXED:
            raise ValueError(
                f"{name} attribute should not be set after {type(self).__name__} is initialized"
            )
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Any]:
        if self._pass is not None and self._resumed:
            self._resumed = False
            if self._pass.drawn != length_of(self):
                return self._pass
            next(self._pass.indices, None)  # draws what an epoch draws at its end
        self._pass = Pass(self._order, self._streams)
        stream_of(self.generator).random_int63()  # torch's seed for its workers
        self._pass.read = self._reader()
        return self._pass

    def __len__(self) -> int:
        """The number of batches; TypeError where the sampler, or the dataset, has no length."""
        if not isinstance(self.dataset, IterableDataset):
            return len(self._order)  # type: ignore[arg-type]
        n, size = len(self.dataset), self.batch_size or 1  # type: ignore[arg-type]
        return n // size if self.drop_last else -(-n // size)

    @property
    def batches_left(self) -> int | None:
        """How many batches the next `iter` gives, fewer than `len` in a resumed epoch.

        None where nobody knows: an IterableDataset's `len` is only what it claims.
        """
        n = None if isinstance(self.dataset, IterableDataset) else length_of(self)
        if n is None or self._pass is None or not self._resumed:
            return n
        return n - self._pass.drawn or n

    # ---- what a pass is made of ------------------------------------------------------------------

    @property
    def _order(self) -> Iterable[Any]:
        """The indices, or the lists of them, that make one batch each."""
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    @property
    def _streams(self) -> Streams:
        inner = getattr(self.batch_sampler, "sampler", None)
        return Streams(self, self.sampler, self.batch_sampler, inner)

    def _reader(self) -> Callable[[Any], Any]:
        """What makes a batch from an index, or from a list of them, in one pass."""
        if isinstance(self.dataset, IterableDataset):
            return partial(self._read_next, iter(self.dataset))
        return self._read_at

    def _read_at(self, index: Any) -> Any:
        if self.batch_sampler is None:
            return self.collate_fn(self.dataset[index])
        return self.collate_fn(samples_at(self.dataset, index))

    def _read_next(self, samples: Iterator[Any], index: Any) -> Any:
        if self.batch_sampler is None:
            return self.collate_fn(next(samples))
        batch = list(islice(samples, len(index)))
        if not batch or (self.drop_last and len(batch) < len(index)):
            raise StopIteration
        return self.collate_fn(batch)

    # ---- the place to resume from ----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as plain values ready for JSON; at any batch, or between epochs.

        Stored are the settings that the order depends on; the states of the generators that the
        loader and its samplers were given; and within an epoch the number of batches handed out,
        with all streams as it began. The order is not stored: it is drawn again.

        The default stream is not the loader's own (weights and dropout draw from it): whoever wants
        the epochs to come to shuffle alike saves it too, with `nplm.random.get_rng_state()`. The
        epoch that has begun needs no such care. A sampler of your own has to give the same order
        from the same streams. Raises ConfigError for an IterableDataset, which orders itself.
        """
        self._refuse_iterable("state_dict")
        began = self._pass
        return {
            "settings": self._settings(),
            "generators": self._streams.own_states(),
            "epoch": None if began is None or began.ended else began.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `iter` go on where `state_dict()` was taken.

        It gives the batches that were not handed out yet, and reads no sample of the others; where
        none is left it begins the next epoch. Sets the loader's generators, and leaves the default
        stream where it is. Raises ConfigError, before anything changes, for the state of a loader
        with other settings, and for what is no state.
        """
        self._refuse_iterable("load_state_dict")
        streams = self._streams
        check_state(state, self._settings(), len(streams.own))
        begun = None
        if state["epoch"] is not None:
            begun = Pass.replayed(self._order, streams, state["epoch"])
            begun.read = self._reader()
        self._pass, self._resumed = begun, begun is not None
        streams.set_own(state["generators"])

    def _settings(self) -> dict[str, Any]:
        return {
            "samples": length_of(self.dataset),
            "batches": length_of(self),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "sampler": type(self.sampler).__name__,
        }

    def _refuse_iterable(self, what: str) -> None:
        if isinstance(self.dataset, IterableDataset):
            raise ConfigError(
                f"DataLoader.{what}: expected a dataset that is read by index, got the "
                f"IterableDataset {type(self.dataset).__name__}; only that knows its own place"
            )


def _check_workers(steering: Mapping[str, Any]) -> None:
    """Refuse what torch refuses, and warn of what has no effect here."""
    if steering["num_workers"] < 0 or steering["timeout"] < 0:
        raise ValueError("num_workers and timeout options should be non-negative")
    if steering["num_workers"] == 0:
        for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
            if steering[name]:
                raise ValueError(f"{name} option needs num_workers > 0")
    idle = [f"{name}={value!r}" for name, value in steering.items() if value != _NO_WORKERS[name]]
    if idle:
        warnings.warn(
            f"DataLoader: {', '.join(idle)} has no effect: nplm reads samples in the process "
            "itself, in order",
            UserWarning,
            stacklevel=3,
        )


def _check_iterable(shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
    """An IterableDataset orders itself."""
    for name, value in (
        ("shuffle", shuffle),
        ("sampler", sampler),
        ("batch_sampler", batch_sampler),
    ):
        if value is not None and value is not False:
            raise ValueError(
                f"DataLoader with IterableDataset: expected unspecified {name} option, "
                f"but got {name}={value}"
            )


def _check_contradictions(
    batch_size: Any, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: Any
) -> None:
    if sampler is not None and shuffle:
        raise ValueError("sampler option is mutually exclusive with shuffle")
    if batch_sampler is not None:
        if batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise ValueError(
                "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, "
                "and drop_last"
            )
    elif batch_size is None and drop_last:
        raise ValueError(
            "batch_size=None option disables auto-batching and is mutually exclusive with drop_last"
        )


def _default_sampler(
    dataset: Any, shuffle: bool | None, generator: Generator | None
) -> Iterable[Any]:
    if isinstance(dataset, IterableDataset):
        return repeat(None)  # says only: one more
    if shuffle:
        return RandomSampler(dataset, generator=generator)
    return SequentialSampler(dataset)
