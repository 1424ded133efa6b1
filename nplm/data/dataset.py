"""Datasets: samples by index, or one after the other, in torch.utils.data's shape."""

import bisect
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nplm.data.sampler import require_generator
from nplm.random import Generator, default_generator

if TYPE_CHECKING:
    from nplm.autograd.tensor import Tensor

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Dataset(Generic[_T_co]):
    """Samples by index: a subclass has `__getitem__`, and `__len__` where the size is known.

    It may have `__getitems__(indices) -> list` too, which is then asked for a whole batch.
    Twin: torch.utils.data.Dataset.
    """

    def __getitem__(self, index: Any) -> _T_co:
        raise NotImplementedError("Subclasses of Dataset should implement __getitem__.")

    def __add__(self, other: "Dataset[Any]") -> "ConcatDataset[Any]":
        return ConcatDataset([self, other])


class IterableDataset(Dataset[_T_co], Iterable[_T_co]):
    """Samples one after the other: a subclass has `__iter__`.

    Twin: torch.utils.data.IterableDataset.
    """

    def __iter__(self) -> Iterator[_T_co]:
        raise NotImplementedError("Subclasses of IterableDataset should implement __iter__.")


class TensorDataset(Dataset["tuple[Tensor, ...]"]):
    """Sample i is row i of every tensor (N, ...); AssertionError unless all have the same N.

    Twin: torch.utils.data.TensorDataset.
    """

    def __init__(self, *tensors: "Tensor") -> None:
        if any(tensor.shape[0] != tensors[0].shape[0] for tensor in tensors):
            raise AssertionError("Size mismatch between tensors")
        self.tensors = tensors

    def __getitem__(self, index: Any) -> "tuple[Tensor, ...]":
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])


class ConcatDataset(Dataset[_T_co]):
    """Several datasets one behind the other; AssertionError for none, or an IterableDataset.

    Twin: torch.utils.data.ConcatDataset.
    """

    def __init__(self, datasets: Iterable[Dataset[_T_co]]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise AssertionError("datasets should not be an empty iterable")
        if any(isinstance(dataset, IterableDataset) for dataset in self.datasets):
            raise AssertionError("ConcatDataset does not support IterableDataset")
        self.cumulative_sizes = list(itertools.accumulate(map(_size, self.datasets)))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, idx: int) -> _T_co:
        if idx < -len(self):
            raise ValueError("absolute value of index should not exceed dataset length")
        idx = idx + len(self) if idx < 0 else idx
        part = bisect.bisect_right(self.cumulative_sizes, idx)
        return self.datasets[part][idx - (self.cumulative_sizes[part - 1] if part else 0)]


class Subset(Dataset[_T_co]):
    """The samples of `dataset` at `indices`.  Twin: torch.utils.data.Subset.

    A subclass with a `__getitem__` of its own needs its own `__getitems__`, or a DataLoader would
    pass it by: NotImplementedError.
    """

    def __init__(self, dataset: Dataset[_T_co], indices: Sequence[int]) -> None:
        own, kind = Subset, type(self)
        if kind.__getitem__ is not own.__getitem__ and kind.__getitems__ is own.__getitems__:
            raise NotImplementedError(
                f"{kind.__name__} overrides __getitem__ but not __getitems__; a DataLoader asks "
                "the second, so let it return [self[i] for i in indices]"
            )
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, idx: Any) -> Any:
        if isinstance(idx, list):
            return self.dataset[[self.indices[i] for i in idx]]
        return self.dataset[self.indices[idx]]

    def __getitems__(self, indices: Sequence[int]) -> list[_T_co]:
        """The samples of a whole batch."""
        return samples_at(self.dataset, [self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


def random_split(
    dataset: Dataset[_T],
    lengths: Sequence[int | float],
    generator: Generator | None = default_generator,
) -> list[Subset[_T]]:
    """Cut a shuffled dataset into parts of `lengths`, or of fractions whose sum is 1.

    What is left after rounding the fractions down goes to the first parts, one sample each.
    Draws `randperm(len(dataset))`. Raises ValueError for lengths that do not add up, TypeError for
    those that are neither whole nor fractions, warns of an empty part.
    Twin: torch.utils.data.random_split.
    """
    generator = require_generator(generator, "random_split")
    n = _size(dataset)
    if math.isclose(sum(lengths), 1) and sum(lengths) <= 1:
        lengths = _from_fractions(lengths, n)
    if sum(lengths) != n:
        raise ValueError("Sum of input lengths does not equal the length of the input dataset!")
    if not hasattr(sum(lengths), "__index__"):
        raise TypeError(
            "random_split: expected whole lengths, or fractions whose sum is 1, got "
            f"{list(lengths)}; write the lengths as int"
        )
    sizes = [int(length) for length in lengths]
    order = (default_generator if generator is None else generator).randperm(n).tolist()
    ends = itertools.accumulate(sizes)
    return [Subset(dataset, order[end - size : end]) for end, size in zip(ends, sizes)]


def _from_fractions(fractions: Sequence[int | float], n: int) -> list[int]:
    for i, fraction in enumerate(fractions):
        if not 0 <= fraction <= 1:
            raise ValueError(f"Fraction at index {i} is not between 0 and 1")
    sizes = [math.floor(n * fraction) for fraction in fractions]
    for i in range(n - sum(sizes)):
        sizes[i % len(sizes)] += 1
    for i, size in enumerate(sizes):
        if size == 0:
            warnings.warn(f"random_split: part {i} has no samples, of {n}", stacklevel=3)
    return sizes


def samples_at(dataset: Dataset[_T], indices: Sequence[Any]) -> list[_T]:
    """The samples at `indices`, in one question if the dataset has `__getitems__`."""
    at_once = getattr(dataset, "__getitems__", None)
    return at_once(indices) if at_once else [dataset[index] for index in indices]


def _size(dataset: Any) -> int:
    return len(dataset)
