"""A DataLoader without torch: epochs of a text, and the same batches when it is resumed."""

import json

import numpy as np
import pytest

import nplm
from nplm.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TokenWindows,
    collate_windows,
)
from nplm.data.loader import marked_windows
from nplm.errors import ConfigError
from nplm.random import Generator

pytestmark = pytest.mark.cli


def test_an_epoch_of_shuffled_windows_holds_every_target_once():
    windows = TokenWindows(np.arange(100), 8)
    loader = DataLoader(windows, 3, True, generator=seeded(1), collate_fn=collate_windows)
    first, second = list(loader), list(loader)
    for epoch in (first, second):
        assert len(epoch) == len(loader) == 5
        targets = np.concatenate([batch.targets[batch.targets >= 0] for batch in epoch])
        np.testing.assert_array_equal(np.sort(targets), np.arange(1, 100))
    assert not np.array_equal(first[0].inputs, second[0].inputs)


def seeded(seed):
    return Generator().manual_seed(seed)


class Counted:
    """Samples that are their index; remembers which were read."""

    def __init__(self, n):
        self.n, self.read = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.read.append(index)
        return index


class Eager:
    """A sampler that draws as soon as it is asked for an iterator."""

    def __init__(self, n, generator=None):
        self.n, self.generator = n, generator

    def __iter__(self):
        return iter((self.generator or nplm.random.default_generator).randperm(self.n).tolist())

    def __len__(self):
        return self.n


LOADERS = {
    "in order": lambda: {"batch_size": 3},
    "shuffled by a generator": lambda: {"batch_size": 3, "shuffle": True, "generator": seeded(4)},
    "shuffled, no short batch": lambda: {"batch_size": 5, "shuffle": True, "generator": seeded(4)},
    "shuffled, short batch dropped": lambda: {
        "batch_size": 3, "shuffle": True, "generator": seeded(4), "drop_last": True
    },
    "shuffled by the default stream": lambda: {"batch_size": 3, "shuffle": True},
    "the default stream, by name": lambda: {
        "batch_size": 5, "shuffle": True, "generator": nplm.random.default_generator
    },
    "with replacement": lambda: {
        "batch_size": 7,
        "sampler": RandomSampler(range(10), True, 80, seeded(5)),
        "generator": seeded(6),
    },
    "a batch sampler": lambda: {
        "batch_sampler": BatchSampler(SubsetRandomSampler(range(1, 9), seeded(7)), 3, False)
    },
    "single samples": lambda: {"batch_size": None, "sampler": Eager(10)},
    "single samples by a generator": lambda: {"batch_size": None, "sampler": Eager(10, seeded(8))},
}  # fmt: skip


def batches_and_states(loader, epochs, resumed=False):
    """All batches by epoch; and the loader's and the default stream's state at every moment."""
    moments, read = [], []

    def remember(epoch):
        state = json.dumps([loader.state_dict(), nplm.random.get_rng_state()])
        moments.append((state, epoch, len(read[epoch]) if epoch < len(read) else 0))

    remember(0)
    for epoch in range(epochs):
        read.append([])
        iterator = iter(loader)
        if not (resumed and epoch == 0):
            nplm.rand(1)  # others draw from the default stream: here, and in every update
            remember(epoch)
        for batch in iterator:
            nplm.rand(1)
            read[-1].append(batch)
            remember(epoch)
        remember(epoch + 1)
    return read, moments


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_resumed_at_any_batch_of_three_epochs_reads_on_as_if_never_stopped(name):
    whole = DataLoader(Counted(10), collate_fn=as_it_is, **LOADERS[name]())
    expected, moments = batches_and_states(whole, 3)
    after = [[g.get_state() for g in whole._streams.own], nplm.random.get_rng_state()]
    for moment, epoch, k in moments[:-2]:  # the last two have nothing left to read
        state, default_stream = json.loads(moment)
        other = DataLoader(dataset := Counted(10), collate_fn=as_it_is, **LOADERS[name]())
        elsewhere = nplm.manual_seed(99).get_state()
        other.load_state_dict(state)
        assert nplm.random.get_rng_state() == elsewhere  # the default stream is the caller's
        assert other.state_dict() == state
        nplm.random.set_rng_state(default_stream)
        rest = [batches for batches in [expected[epoch][k:], *expected[epoch + 1 :]] if batches]
        assert other.batches_left == len(rest[0])
        begun = state["epoch"] is not None and k < len(expected[epoch])
        assert batches_and_states(other, len(rest), resumed=begun)[0] == rest
        assert dataset.read == flat(rest)
        assert [[g.get_state() for g in other._streams.own], nplm.random.get_rng_state()] == after


def as_it_is(samples):
    return samples


def flat(epochs):
    batches = [batch for epoch in epochs for batch in epoch]
    return [i for batch in batches for i in (batch if isinstance(batch, list) else [batch])]


def test_a_loader_is_put_back_in_the_middle_of_another_epoch():
    loader = DataLoader(Counted(10), 2, True, generator=seeded(1), collate_fn=as_it_is)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    expected = list(iterator)
    next(iter(loader))
    loader.load_state_dict(state)
    assert list(loader) == expected
    loader.load_state_dict(state)
    assert next(iter(loader)) == expected[0]
    assert loader.batches_left == len(loader) == 5
    assert len(list(loader)) == 5  # a pass that is left is not gone on with


def as_tokens(samples):
    return np.array([samples]), np.array([samples])


def test_an_epoch_resumed_marks_its_last_window():
    loader = DataLoader(Counted(10), 2, collate_fn=as_tokens)
    iterator = iter(loader)
    next(iterator), next(iterator)
    loader.load_state_dict(loader.state_dict())
    rest = list(marked_windows(loader, 2, False))
    assert [ended for _, ended in rest] == [False, True]
    assert [[batch.inputs.tolist() for batch in window] for window, _ in rest] == [
        [[[4, 5]], [[6, 7]]], [[[8, 9]]]
    ]  # fmt: skip
    again = list(marked_windows(loader, 2, False))
    assert [ended for _, ended in again] == [False, False, True]


def test_the_last_window_of_a_loader_without_len_is_known_by_reading_ahead():
    loader = DataLoader(Counted(4), sampler=iter(range(4)), collate_fn=as_tokens)
    assert loader.batches_left is None
    assert [ended for _, ended in marked_windows(loader, 3, True)] == [False, True]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"batch_size": 4}, "loader with batches=5, this one has 3; make the loader as it was"),
        ({"batch_size": 2, "drop_last": True}, "drop_last=False, this one has True"),
        ({"shuffle": False}, "sampler='RandomSampler', this one has 'SequentialSampler'"),
        ({"dataset": Counted(9)}, "samples=10, this one has 9"),
        ({"generator": None}, "generators=1, this one has 0"),
    ],
)
def test_the_state_of_a_loader_with_other_settings_is_refused(changed, sentence):
    settings = {"dataset": Counted(10), "batch_size": 2, "shuffle": True, "generator": seeded(1)}
    state = DataLoader(**settings).state_dict()
    other = DataLoader(**(settings | {"generator": seeded(2)} | changed))
    before = other.state_dict()
    with pytest.raises(ConfigError, match=sentence):
        other.load_state_dict(state)
    assert other.state_dict() == before


@pytest.mark.parametrize("state", [None, {}, {"epoch": 3}])
def test_what_is_no_state_of_a_loader_is_refused(state):
    with pytest.raises(ConfigError, match=r"expected what state_dict\(\) made, .* got"):
        DataLoader([1]).load_state_dict(state)


def test_a_loader_of_an_iterable_dataset_has_no_place_to_save():
    loader = DataLoader(IterableDataset())
    for action in (loader.state_dict, lambda: loader.load_state_dict({})):
        with pytest.raises(ConfigError, match="read by index, got the IterableDataset Iter"):
            action()


@pytest.mark.parametrize(
    "option",
    [
        {"num_workers": 4}, {"pin_memory": True}, {"timeout": 1.0}, {"worker_init_fn": print},
        {"num_workers": 2, "prefetch_factor": 2}, {"num_workers": 2, "persistent_workers": True},
        {"pin_memory_device": "cuda"}, {"in_order": False},
    ],
    ids=str,
)  # fmt: skip
def test_what_steers_torchs_workers_has_no_effect_and_says_so(option):
    with pytest.warns(UserWarning, match=rf"{next(iter(option))}=.* has no effect"):
        loader = DataLoader([1, 2, 3], **option)
    assert [batch.tolist() for batch in loader] == [[1], [2], [3]]


class Flaky(Counted):
    """Cannot read one sample the first time."""

    def __init__(self, n, bad):
        super().__init__(n)
        self.bad = bad

    def __getitem__(self, index):
        if index == self.bad:
            self.bad = None
            raise OSError(f"sample {index} could not be read")
        return super().__getitem__(index)


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_a_loader_resumed_after_a_dataset_raised_reads_what_the_first_one_reads(bad):
    whole = DataLoader(Flaky(10, bad), 2, collate_fn=as_it_is)
    iterator, read = iter(whole), []
    while len(read) < 5:
        try:
            read.append(next(iterator, "end"))
        except OSError:
            break
    state = json.loads(json.dumps(whole.state_dict()))
    other = DataLoader(Counted(10), 2, collate_fn=as_it_is)
    other.load_state_dict(state)
    assert list(other) == (list(iterator) or list(whole))


GARBAGE = {
    "the state": lambda s: [None, 3, [], {}, {1: 2, "a": 3}],
    "settings": lambda s: [s | {"settings": v} for v in (None, [], {}, {"samples": np.zeros(2)})],
    "a setting": lambda s: [
        s | {"settings": s["settings"] | {k: v}}
        for k in s["settings"] for v in (np.zeros(2), "x", [1])
    ],
    "generators": lambda s: [s | {"generators": v} for v in (None, 1, [], [None], [{"key": 1}])],
    "epoch": lambda s: [s | {"epoch": v} for v in (3, [], {}, "x", False)],
    "batches": lambda s: [
        s | {"epoch": s["epoch"] | {"batches": v}} for v in (-1, 6, 99, "2", 1.0, None, True)
    ],
    "the first batch": lambda s: [
        s | {"epoch": s["epoch"] | {"at_first_batch": v}} for v in (None, 3, {}, [])
    ],
    "the streams": lambda s: [
        s | {"epoch": s["epoch"] | {at: s["epoch"][at] | {name: v}}}
        for at in ("at_iter", "at_first_batch")
        for name, values in (
            ("own", (None, [], [None], s["epoch"]["at_iter"]["own"] * 2, {"a": 1}, "x")),
            ("default", (None, 3, {}, [], {"seed": 1})),
        )
        for v in values
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_a_state_with_garbage_is_refused_and_moves_nothing(name):
    loader = DataLoader(Counted(10), 2, True, generator=seeded(1), collate_fn=as_it_is)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    expected = list(iterator)
    loader.load_state_dict(state)
    before = nplm.random.get_rng_state()
    for garbage in GARBAGE[name](state):
        with pytest.raises(ConfigError):
            loader.load_state_dict(garbage)
        assert loader.state_dict() == state
        assert nplm.random.get_rng_state() == before
        assert loader.batches_left == 4
    assert list(loader) == expected
