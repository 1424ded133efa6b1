"""Samplers: the order in which samples are read, draw for draw torch.utils.data's."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Generic, TypeVar

from nplm import random
from nplm.random import Generator

_T_co = TypeVar("_T_co", covariant=True)
_CHUNK = 32  # indices that RandomSampler draws at a time, with replacement


class Sampler(Generic[_T_co]):
    """Indices in some order: a subclass has `__iter__`, and `__len__` where it is known."""

    def __iter__(self) -> Iterator[_T_co]:
        raise NotImplementedError("Subclasses of Sampler should implement __iter__.")


class SequentialSampler(Sampler[int]):
    """0, 1, ... len(data_source) - 1.  Twin: torch.utils.data.SequentialSampler."""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """Shuffled indices, or with `replacement` independent ones; as many as `num_samples`.

    Without a generator every pass draws the seed of one from the default stream. Raises TypeError
    for a `replacement` that is no bool, ValueError unless num_samples is a positive int, and as it
    is read RuntimeError if there is nothing to draw from.
    Twin: torch.utils.data.RandomSampler.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = require_generator(generator, "RandomSampler")
        if not isinstance(replacement, bool):
            raise TypeError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        _require_positive("num_samples", self.num_samples)

    @property
    def num_samples(self) -> int:
        """How many indices a pass gives: the data's present size unless it was set."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        n, generator = len(self.data_source), self.generator
        if generator is None:
            generator = Generator().manual_seed(random.default_generator.random_int63())
        if self.replacement and n == 0:
            raise RuntimeError("RandomSampler: expected data to draw from, got a dataset of none")
        if self.replacement:
            for _ in range(self.num_samples // _CHUNK):
                yield from generator.randint(0, n, (_CHUNK,)).tolist()
            yield from generator.randint(0, n, (self.num_samples % _CHUNK,)).tolist()
        else:
            for _ in range(self.num_samples // n):
                yield from generator.randperm(n).tolist()
            # torch draws this last one even where nothing of it is needed.
            yield from generator.randperm(n).tolist()[: self.num_samples % n]

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given indices, shuffled.  Twin: torch.utils.data.SubsetRandomSampler."""

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        self.indices = indices
        self.generator = require_generator(generator, "SubsetRandomSampler")

    def __iter__(self) -> Iterator[int]:
        for i in stream_of(self.generator).randperm(len(self.indices)).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class BatchSampler(Sampler[list[int]]):
    """Lists of `batch_size` indices of another sampler; the short, last one if not `drop_last`.

    Raises ValueError unless batch_size is a positive int and drop_last a bool.
    Twin: torch.utils.data.BatchSampler.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        _require_positive("batch_size", batch_size, or_bool=False)
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last should be a boolean value, but got drop_last={drop_last}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]  # TypeError if the sampler has none
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


def stream_of(generator: Generator | None) -> Generator:
    """The generator, or the default stream for None."""
    return random.default_generator if generator is None else generator


def require_generator(generator: Any, who: str) -> Generator | None:
    """The generator itself, or None; TypeError for one of another library."""
    if generator is not None and not isinstance(generator, Generator):
        kind = f"{type(generator).__module__}.{type(generator).__name__}"
        raise TypeError(
            f"{who}: expected the generator as an nplm.Generator, got {kind}; write "
            "generator=nplm.Generator().manual_seed(seed)"
        )
    return generator


def _require_positive(name: str, value: Any, *, or_bool: bool = True) -> None:
    good = isinstance(value, int) and value > 0 and (or_bool or not isinstance(value, bool))
    if not good:
        raise ValueError(f"{name} should be a positive integer value, but got {name}={value}")
