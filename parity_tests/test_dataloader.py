"""Datasets, samplers, collation and the DataLoader against torch.utils.data, draw for draw."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplm
import nplm.utils.data

torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from side_by_side import (  # noqa: E402
    LIBRARIES,
    assert_same,
    assert_same_outcome,
    assert_same_place_in_the_stream,
    outcome,
    seed_both,
)

pytestmark = pytest.mark.cli


class Letters:
    """Samples that tell their index, without torch's or nplm's Dataset."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return f"sample {i}"


def stream(library, n):
    """An IterableDataset of n numbers that draws as it begins."""

    class Stream(library.utils.data.IterableDataset):
        def __init__(self):
            self.drawn = []

        def __iter__(self):
            self.drawn.append(float(library.rand(1)))
            return iter(range(n))

        def __len__(self):
            return n

    return Stream()


def state_of(generator):
    return list(
        generator.to_torch_state() if isinstance(generator, nplm.Generator)
        else generator.get_state().numpy()
    )  # fmt: skip


def read(loader, library, stops):
    """Several epochs, each left after some batches; the default stream is used in between."""
    epochs = []
    for stop in stops:
        batches = []
        for batch in loader:
            batches.append(batch)
            if len(batches) == stop:
                break
        epochs.append((batches, float(library.rand(1))))
    return epochs


GENERATORS = st.booleans()
STOPS = st.lists(st.sampled_from([1, 2, 5, 10_000]), min_size=1, max_size=3)


# ---- the order, and what is drawn ---------------------------------------------------------------


@given(
    n=st.integers(1, 45),
    batch_size=st.none() | st.integers(1, 9),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    own_generator=GENERATORS,
    stops=STOPS,
    seed=st.integers(0, 2**31),
)
def test_the_loader_reads_in_torchs_order_and_leaves_the_streams_where_torch_does(
    n, batch_size, drop_last, shuffle, own_generator, stops, seed
):
    seed_both(seed)

    def action(library):
        generator = library.Generator().manual_seed(seed + 1) if own_generator else None
        loader = library.utils.data.DataLoader(
            Letters(n), batch_size, shuffle, generator=generator,
            drop_last=drop_last and batch_size is not None,
        )  # fmt: skip
        epochs = read(loader, library, stops)
        return len(loader), epochs, generator and state_of(generator)

    assert_same(action)
    assert_same_place_in_the_stream()


SAMPLERS = {
    "sequential": lambda data, n, k, g, replacement: data.SequentialSampler(range(n)),
    "random": lambda data, n, k, g, replacement: data.RandomSampler(range(n), replacement, k, g),
    "subset": lambda data, n, k, g, replacement: data.SubsetRandomSampler(range(0, n, 2), g),
}


@given(
    kind=st.sampled_from(sorted(SAMPLERS)),
    n=st.integers(1, 45),
    num_samples=st.none() | st.integers(1, 100),
    replacement=st.booleans(),
    generators=st.tuples(GENERATORS, GENERATORS),
    batch_size=st.integers(1, 9),
    drop_last=st.booleans(),
    in_batches=st.booleans(),
    stops=STOPS,
    seed=st.integers(0, 2**31),
)
def test_every_sampler_gives_torchs_indices_alone_and_in_a_loader(
    kind, n, num_samples, replacement, generators, batch_size, drop_last, in_batches, stops, seed
):
    seed_both(seed)

    def action(library):
        data = library.utils.data
        loaders, own = (
            library.Generator().manual_seed(seed + i) if wanted else None
            for i, wanted in enumerate(generators)
        )
        sampler = SAMPLERS[kind](data, n, num_samples, own, replacement)
        if in_batches:
            options = {"batch_sampler": data.BatchSampler(sampler, batch_size, drop_last)}
        else:
            options = {"sampler": sampler, "batch_size": batch_size, "drop_last": drop_last}
        loader = data.DataLoader(Letters(n), generator=loaders, **options)
        alone = [list(sampler), list(data.BatchSampler(sampler, batch_size, drop_last))]
        epochs = read(loader, library, stops)
        states = [g and state_of(g) for g in (loaders, own)]
        return len(sampler), len(loader), alone, epochs, states

    assert_same(action)
    assert_same_place_in_the_stream()


@given(
    n=st.integers(0, 20),
    batch_size=st.none() | st.integers(1, 6),
    drop_last=st.booleans(),
    stops=STOPS,
)
def test_an_iterable_dataset_is_read_as_torch_reads_it(n, batch_size, drop_last, stops):
    seed_both(3)

    def action(library):
        loader = library.utils.data.DataLoader(
            stream(library, n), batch_size, drop_last=drop_last and batch_size is not None,
            collate_fn=lambda samples: samples,
        )  # fmt: skip
        both = [list(pair) for pair in zip(loader, loader)]  # two passes side by side
        return len(loader), both, read(loader, library, stops), loader.dataset.drawn

    assert_same(action)
    assert_same_place_in_the_stream()


@given(
    st.integers(0, 50).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.integers(0, n), max_size=3).map(
                lambda cuts: list(np.diff([0, *sorted(cuts), n]).tolist())
            )
            | st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
                lambda parts: [part / sum(parts) for part in parts]
            ),
        )
    ),
    st.booleans(),
)
@pytest.mark.filterwarnings(
    "ignore:.*split at index:UserWarning", "ignore:random_split:UserWarning"
)
def test_random_split_cuts_as_torch_does(n_and_lengths, own_generator):
    n, lengths = n_and_lengths
    seed_both(n)

    def action(library):
        g = {"generator": library.Generator().manual_seed(5)} if own_generator else {}
        return [s.indices for s in library.utils.data.random_split(range(n), lengths, **g)]

    assert_same_outcome(action)
    assert_same_place_in_the_stream()


def test_an_empty_part_is_warned_of():
    with pytest.warns(UserWarning, match="part 1 has no samples, of 1"):
        nplm.utils.data.random_split(range(1), [0.5, 0.5])


# ---- datasets -----------------------------------------------------------------------------------


def test_datasets_of_datasets_hold_torchs_samples():
    def action(library):
        data = library.utils.data
        rows = data.TensorDataset(library.arange(12).reshape(6, 2), library.arange(6))
        even = data.Subset(rows, [0, 2, 4])
        both = rows + even + data.Subset(even, range(1, 3))
        one = [[x.tolist() for x in both[i]] for i in (*range(len(both)), -1, -len(both))]
        loader = data.DataLoader(both, 4)
        batches = [[x.tolist() for x in batch] for batch in loader]
        several = [x.tolist() for x in even[[0, 2]]]
        return len(both), both.cumulative_sizes, one, batches, several

    assert_same(action)


def test_a_dataset_that_reads_a_batch_at_once_is_asked_once_even_through_a_subset():
    class AtOnce(Letters):
        def __init__(self, n):
            super().__init__(n)
            self.asked = []

        def __getitems__(self, indices):
            self.asked.append(list(indices))
            return [self[i] for i in indices]

    def action(library):
        data = library.utils.data
        whole = AtOnce(6)
        for dataset in (whole, data.Subset(whole, [5, 3, 1])):
            list(data.DataLoader(dataset, 2))
        return whole.asked

    assert_same(action)


# ---- collation ----------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")
LEAVES = {
    "floats": [1.5, 2],
    "ints": [1, 2],
    "ints and floats": [1, 2.5],
    "bools": [True, False],
    "texts": ["a", "b"],
    "bytes": [b"a", b"b"],
    "float32 scalars": [np.float32(1), np.float32(2)],
    "float64 scalars": [np.float64(1), np.float64(2)],
    "mixed scalars": [np.float32(1), np.float64(2)],
    "NumPy bools": [np.bool_(True), np.bool_(False)],
    "int32 scalars": [np.int32(1), np.int32(2)],
    "arrays": [np.ones((2, 3)), np.zeros((2, 3))],
    "int arrays": [np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32)],
    "0-d arrays": [np.array(1.0), np.array(2.0)],
    "empty arrays": [np.ones((0, 2)), np.ones((0, 2))],
    "dicts": [{"a": 1, "b": [2, 3.0]}, {"b": [4, 5.0], "a": 6}],
    "ordered dicts": [OrderedDict(b=1, a=2), OrderedDict(b=3, a=4)],
    "named tuples": [Point(1, (2.0, "a")), Point(3, (4.0, "b"))],
    "tuples": [(1, "a"), (2, "b")],
    "lists": [[1, 2], [3, 4]],
    "ranges": [range(2), range(2)],
    "nothing": [None, None],
    "arrays of text": [np.array(["a"]), np.array(["b"])],
    "arrays of objects": [np.array([None]), np.array([None])],
    "lists of unequal length": [[1], [1, 2]],
    "sets": [{1}, {2}],
}


def described(value, library):
    """Types, dtypes, shapes and values of a nest, in words that both libraries share."""
    if isinstance(value, library.Tensor):
        dtype = str(value.dtype).rsplit(".", 1)[-1]
        return "tensor", dtype, tuple(value.shape), value.tolist()
    if isinstance(value, dict):
        return type(value).__name__, {k: described(v, library) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value).__name__, [described(v, library) for v in value]
    return type(value).__name__, str(value)


@pytest.mark.parametrize("name", LEAVES)
def test_collation_gives_torchs_forms_dtypes_and_values(name):
    samples = LEAVES[name]
    assert_same_outcome(lambda lib: described(lib.utils.data.default_collate(samples), lib))
    assert_same_outcome(
        lambda lib: [described(lib.utils.data.default_convert(s), lib) for s in samples]
    )
    assert_same_outcome(
        lambda lib: [
            [described(b, lib) for b in lib.utils.data.DataLoader(samples, size)]
            for size in (2, None)
        ]
    )


def test_tensors_are_stacked_and_unequal_ones_refused():
    def stacked(library):
        rows = [library.arange(3) + i for i in range(2)]
        return described(library.utils.data.default_collate([{"x": r} for r in rows]), library)

    assert_same(stacked)
    unequal = [
        outcome(lambda lib: lib.utils.data.default_collate([lib.ones(2), lib.ones(3)]), lib)[0]
        for lib in LIBRARIES
    ]
    assert unequal == [RuntimeError, RuntimeError]


# ---- refusals -----------------------------------------------------------------------------------

CONTRADICTIONS = {
    "sampler and shuffle": lambda d: d.DataLoader([1], sampler=[0], shuffle=True),
    "batch_sampler and batch_size": lambda d: d.DataLoader([1], 2, batch_sampler=[[0]]),
    "batch_sampler and shuffle": lambda d: d.DataLoader([1], shuffle=True, batch_sampler=[[0]]),
    "batch_sampler and sampler": lambda d: d.DataLoader([1], sampler=[0], batch_sampler=[[0]]),
    "batch_sampler and drop_last": lambda d: d.DataLoader([1], batch_sampler=[[0]], drop_last=True),
    "no batches and drop_last": lambda d: d.DataLoader([1], None, drop_last=True),
    "batch_size 0": lambda d: d.DataLoader([1], 0),
    "batch_size True": lambda d: d.DataLoader([1], True),
    "batch_size 2.0": lambda d: d.DataLoader([1], 2.0),
    "drop_last 1": lambda d: d.DataLoader([1], 2, drop_last=1),
    "shuffled nothing": lambda d: d.DataLoader([], shuffle=True),
    "num_samples 0": lambda d: d.RandomSampler([1], num_samples=0),
    "num_samples 1.5": lambda d: d.RandomSampler([1], num_samples=1.5),
    "replacement 1": lambda d: d.RandomSampler([1], replacement=1),
    "an attribute set later": lambda d: setattr(d.DataLoader([1]), "batch_size", 3),
    "no len": lambda d: len(d.DataLoader([1], sampler=iter([0]))),
    "no datasets": lambda d: d.ConcatDataset([]),
    "an index too far back": lambda d: d.ConcatDataset([[1], [2]])[-3],
    "lengths that do not add up": lambda d: d.random_split(range(3), [1, 1]),
    "a negative fraction": lambda d: d.random_split(range(3), [-0.5, 1.5]),
    "an abstract dataset": lambda d: d.Dataset()[0],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictory_arguments_raise_what_torch_raises(name):
    assert_same_outcome(lambda library: CONTRADICTIONS[name](library.utils.data))


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"sampler": [0]}, {"batch_sampler": [[0]]}, {"batch_size": 0}]
)
def test_options_that_order_an_iterable_dataset_raise_what_torch_raises(options):
    assert_same_outcome(
        lambda library: library.utils.data.DataLoader(stream(library, 3), **options)
    )


def test_wrong_datasets_raise_what_torch_raises():
    def mismatch(library):
        library.utils.data.TensorDataset(library.ones(2), library.ones(3))

    def concatenated_stream(library):
        library.utils.data.ConcatDataset([stream(library, 2)])

    def passed_by(library):
        class Half(library.utils.data.Subset):
            def __getitem__(self, index):
                return 0

        Half([1], [0])

    assert_same_outcome(mismatch)
    assert_same_outcome(concatenated_stream)
    kinds = [outcome(passed_by, library)[0] for library in LIBRARIES]
    assert kinds == [NotImplementedError, NotImplementedError]


@pytest.mark.parametrize(
    "option",
    [
        {"num_workers": -1}, {"prefetch_factor": 2}, {"persistent_workers": True},
        {"multiprocessing_context": "spawn"}, {"timeout": -1},
    ],
)  # fmt: skip
def test_worker_options_that_torch_refuses_too_are_value_errors(option):
    for library in LIBRARIES:
        with pytest.raises(ValueError, match=next(iter(option))):
            library.utils.data.DataLoader([1], **option)
