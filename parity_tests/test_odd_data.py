"""Odd data: datasets that lie about their length, settings and samples of other types."""

import array

import numpy as np
import pytest
from side_by_side import LIBRARIES, assert_same, outcome

import nplm
from nplm.data import (
    Batch,
    DataLoader,
    IterableDataset,
    RandomSampler,
    RandomWindows,
    SequentialWindows,
    SubsetRandomSampler,
    TokenWindows,
    collate_windows,
    random_split,
    windows_of,
)
from nplm.data.loader import as_batch, marked_windows
from nplm.errors import ConfigError, DataError
from nplm.optim import SGD
from nplm.train import fit

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

pytestmark = pytest.mark.cli
ROW = np.arange(4)


def stream(library, n, claimed=None):
    """An IterableDataset of n samples that says it has `claimed`, or does not say."""

    class Stream(library.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(ROW, ROW)] * n)

    if claimed is not None:
        Stream.__len__ = lambda self: claimed
    return Stream()


# ---- the end of an epoch -------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
@pytest.mark.parametrize("claimed", [None, 1, 4, 5, 6, 100])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_last_window_of_a_stream_is_its_last_whatever_length_it_claims(
    library, claimed, accumulate
):
    loader = library.utils.data.DataLoader(
        stream(library, 5, claimed), 1, collate_fn=collate_windows
    )
    ends = [ended for _, ended in marked_windows(loader, accumulate, True)]
    assert ends == [False] * (-(-5 // accumulate) - 1) + [True]


def test_a_loader_read_by_index_is_not_read_ahead():
    class Told(TokenWindows):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    dataset = Told(np.arange(21), 4)
    windows = marked_windows(DataLoader(dataset, 1, collate_fn=collate_windows), 2, True)
    assert [(next(windows)[1], dataset.read) for _ in range(3)] == [
        (False, 2), (False, 4), (True, 5)
    ]  # fmt: skip


def test_a_pass_that_has_begun_marks_its_last_window():
    loader = DataLoader(TokenWindows(np.arange(21), 4), 1, collate_fn=collate_windows)
    begun = iter(loader)
    next(begun), next(begun)
    assert (len(begun), begun.batches_left) == (5, 3)
    assert [ended for _, ended in marked_windows(begun, 2, False)] == [False, True]


def test_len_of_an_iterator_is_torchs():
    def lengths(library):
        data = library.utils.data
        loader = data.DataLoader(range(7), 2)
        iterator = iter(loader)
        next(iterator)
        unknown = data.DataLoader(stream(library, 5, 5), 2)
        return len(iterator), outcome(lambda _: len(iter(unknown)), library)[0]

    assert assert_same(lengths) == (4, TypeError)


# ---- what fit is given ---------------------------------------------------------------------------
def trained(loader, **settings):
    model = nplm.nn.Sequential(nplm.nn.Embedding(5, 3), nplm.nn.Linear(3, 5))
    return list(fit(model, SGD(model.parameters(), lr=0.1), loader, **settings))


@pytest.mark.parametrize("name", ["accumulate", "steps", "epochs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "2", True])
def test_a_count_that_is_no_whole_number_is_refused_before_a_batch_is_drawn(name, value):
    drawn = []
    loader = (drawn.append(1) for _ in range(3))
    with pytest.raises(ConfigError, match=rf"fit: {name} must be .*, got {value!r}"):
        trained(loader, **({"steps": 1} | {name: value}))
    assert drawn == []


def test_fit_takes_counts_of_numpy_and_says_when_there_was_no_batch():
    batch = Batch([[1, 2]], [[2, 3]])
    one = np.int64(1)
    assert len(trained([batch] * 3, accumulate=one, steps=one, epochs=one)) == 1
    with pytest.raises(DataError, match="without an update: the loader gave no batch"):
        trained([], epochs=1)
    with pytest.raises(DataError, match="without an update: no targets"):
        trained([Batch([[1]], [[-100]])], epochs=1)


@pytest.mark.parametrize("value", [0, 2.5, 2.0, "2", True, None])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda n: windows_of([], n), "accumulate"),
        (lambda n: TokenWindows(ROW, n), "context"),
        (lambda n: SequentialWindows(ROW, n, 1), "context"),
        (lambda n: SequentialWindows(ROW, 1, n), "batch_size"),
        (lambda n: RandomWindows(ROW, n, 1, nplm.Generator()), "context"),
        (lambda n: RandomWindows(ROW, 1, n, nplm.Generator()), "batch_size"),
    ],
)
def test_windows_of_no_whole_number_are_refused(make, name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be .*, got {value!r}"):
        make(value)


def test_tokens_that_int64_cannot_hold_are_refused():
    tokens = np.array([1, 2**63], np.uint64)
    for make in (
        lambda: TokenWindows(tokens, 1),
        lambda: RandomWindows(tokens, 1, 1, nplm.Generator()),
        lambda: Batch([[1, 2]], tokens[None]),
    ):
        with pytest.raises(DataError, match=f"got {2**63} at position 1"):
            make()


@pytest.mark.parametrize(
    "item",
    [
        [(ROW, ROW), (ROW, ROW)], [[[1, 2]], [[3, 4]]], ([[1], [1, 2]], [[1], [1, 2]]),
        [ROW, ROW], (ROW[None], [[1, 2, 3, 4]]), (1, 2), (np.ones((1, 4)), ROW[None]),
    ],
    ids=str,
)  # fmt: skip
def test_two_things_that_are_no_pair_of_token_arrays_are_no_batch(item):
    with pytest.raises(DataError):
        as_batch(item)


@pytest.mark.parametrize(
    "samples",
    [[], [1, 2], [(ROW, ROW), (ROW[:2], ROW[:2])], [(ROW,)], [(ROW, ROW), (ROW, ROW, ROW)], 3],
    ids=str,
)
def test_samples_that_are_no_windows_are_not_collated(samples):
    with pytest.raises(DataError, match=r"expected at least one sample \(inputs, targets\)"):
        collate_windows(samples)


def test_rows_of_unequal_length_are_no_batch_and_no_tokens():
    for make in (
        lambda: Batch([[1], [1, 2]], [[1], [1, 2]]),
        lambda: TokenWindows([[1], [2, 3]], 1),
    ):
        with pytest.raises(DataError, match="must be one array"):
            make()


@pytest.mark.parametrize("state", [None, {}, [], {"generator": None}, {"generator": {"seed": 1}}])
def test_what_is_no_state_of_random_windows_is_refused(state):
    windows = RandomWindows(ROW, 1, 1, nplm.Generator())
    before = windows.state_dict()
    with pytest.raises(ConfigError, match="expected "):
        windows.load_state_dict(state)
    assert windows.state_dict() == before


# ---- beside torch --------------------------------------------------------------------------------
@pytest.mark.parametrize("generator", [torch.Generator(), np.random.default_rng(0), 3, "cpu"])
@pytest.mark.parametrize(
    "make",
    [
        lambda g: DataLoader(ROW, generator=g),
        lambda g: DataLoader(IterableDataset(), generator=g),
        lambda g: RandomSampler(ROW, generator=g),
        lambda g: SubsetRandomSampler(ROW, generator=g),
        lambda g: random_split(ROW, [2, 2], g),
        lambda g: RandomWindows(ROW, 1, 1, g),
    ],
)
def test_a_generator_of_another_library_is_refused_where_it_is_given(make, generator):
    with pytest.raises(TypeError, match=r"nplm\.Generator, got .*; write .*manual_seed"):
        make(generator)


@pytest.mark.parametrize(
    "lengths",
    [
        [2.5, 7.5], [5.0, 5.0], [3, 7.0], [10.0], [3, 7], (3, 7), [0, 10], [-1, 11], [True] * 10,
        [np.int64(3), 7], [np.float64(3), 7], np.array([3, 7]), np.array([3.0, 7.0]), [3, 3], [],
        [0.5, 0.5], [0.3, 0.3], [1], [1.0], [1.5, -0.5], ["a"], [None], [float("nan")], 5,
    ],
    ids=str,
)  # fmt: skip
def test_lengths_of_a_split_are_taken_and_refused_as_torch_does(lengths):
    def sizes(library):
        result = outcome(lambda lib: lib.utils.data.random_split(range(10), lengths), library)
        return [len(part) for part in result] if isinstance(result, list) else result[0]

    assert_same(sizes)


@pytest.mark.parametrize(
    "samples",
    [
        lambda t: [t([1, 2]), 5], lambda t: [t([1, 2]), np.array([1, 2])], lambda t: [5.0, "a"],
        lambda t: [5, "a"], lambda t: [5.0, None], lambda t: [5.0, [1]], lambda t: [5, [1]],
        lambda t: [5, 2.0], lambda t: [5.0, t(1.0)], lambda t: [5, t(1)], lambda t: [True, 2.5],
        lambda t: [np.array([1]), 5], lambda t: [np.array([1]), t([1])], lambda t: ["a", 1],
        lambda t: [bytearray(b"ab"), bytearray(b"cd")], lambda t: [bytearray(b"ab")],
        lambda t: [array.array("i", [1, 2])] * 2, lambda t: [array.array("d", [1, 2])],
    ],
)  # fmt: skip
def test_samples_of_mixed_and_odd_types_are_collated_and_refused_as_torch_does(samples):
    def collated(library):
        def act(library):
            batch = library.utils.data.default_collate(samples(library.tensor))
            parts = batch if isinstance(batch, list) else [batch]
            return type(batch).__name__, [
                (str(p.dtype).removeprefix("torch."), p.tolist()) if hasattr(p, "dtype") else p
                for p in parts
            ]

        result = outcome(act, library)
        return result[0] if isinstance(result[0], type) else result

    assert_same(collated)


def test_a_collate_fn_that_is_false_fails_when_it_is_used():
    def used(library):
        loader = library.utils.data.DataLoader([1, 2], collate_fn=False)
        return loader.collate_fn, outcome(lambda _: next(iter(loader)), library)[0]

    assert assert_same(used) == (False, TypeError)


@pytest.mark.parametrize("n", [5, 32, 40])
def test_nothing_to_draw_from_is_what_it_is_in_torch(n):
    def drawn(library):
        sampler = library.utils.data.RandomSampler([], replacement=True, num_samples=n)
        return outcome(lambda _: list(sampler), library)[0]

    assert assert_same(drawn) is RuntimeError
