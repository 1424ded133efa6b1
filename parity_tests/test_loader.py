"""Batches and windows: nanoGPT's get_batch draw for draw as torch, and every target once."""

from collections import Counter

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from nplm.data import (
    IGNORE_INDEX,
    Batch,
    RandomWindows,
    SequentialWindows,
    TokenWindows,
    Window,
    windows_of,
)
from nplm.errors import ConfigError, DataError
from nplm.random import Generator

pytestmark = pytest.mark.cli


class Offsets(Generator):
    """Stands in for a Generator: hands out the offsets it is told, and remembers the questions."""

    def __init__(self, *draws):
        self.draws, self.asked = list(draws), []

    def randint(self, low, high, size):
        self.asked.append((low, high, size))
        return np.asarray(self.draws.pop(0), np.int64)

    def get_state(self):
        return {"left": [list(d) for d in self.draws]}

    def set_state(self, state):
        self.draws = [list(d) for d in state["left"]]


def test_a_batch_counts_its_targets_and_keeps_int64():
    batch = Batch(np.zeros((2, 3), np.int32), np.array([[1, -100, 2], [-100, -100, 0]], np.int16))
    assert batch.n_targets() == 3
    assert batch.n_targets(ignore_index=0) == 5
    assert (batch.inputs.dtype, batch.targets.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize(
    ("inputs", "targets", "sentence"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), int), "inputs must be integers, got float64"),
        (np.zeros((2, 3), int), np.zeros((2, 3), bool), "targets must be integers, got bool"),
        (np.zeros(3, int), np.zeros(3, int), r"shape \(B, T\), both at least 1, got \(3,\)"),
        (np.zeros((0, 3), int), np.zeros((0, 3), int), r"got \(0, 3\)"),
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"got \(2, 3\) and \(3, 2\)"),
    ],
)
def test_a_batch_of_wrong_shape_or_dtype_is_refused(inputs, targets, sentence):
    with pytest.raises(DataError, match=sentence):
        Batch(inputs, targets)


def test_random_windows_are_nanogpts_get_batch_for_every_legal_offset():
    data = np.arange(100, 120, dtype=np.uint16)
    windows = RandomWindows(data, context=8, batch_size=3, generator=(o := Offsets([0, 5, 11])))
    batch = next(windows)
    assert o.asked == [(0, 12, (3,))]  # torch.randint(len(data) - block_size, (batch_size,))
    np.testing.assert_array_equal(batch.inputs, [data[i : i + 8] for i in (0, 5, 11)])
    np.testing.assert_array_equal(batch.targets, [data[i + 1 : i + 9] for i in (0, 5, 11)])
    assert batch.inputs.dtype == np.int64


@examples(25)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 6), st.integers(1, 300))
def test_random_windows_draw_what_torch_draws_for_the_same_seed(seed, context, batch_size, extra):
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
    data = np.arange(context + extra)
    generator = Generator()
    generator.manual_seed(seed)
    windows = RandomWindows(data, context, batch_size, generator)
    torch.manual_seed(seed)
    for _ in range(3):
        ix = torch.randint(len(data) - context, (batch_size,))  # nanoGPT, train.py, get_batch
        x = torch.stack([torch.from_numpy(data[i : i + context]) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + context]) for i in ix])
        batch = next(windows)
        np.testing.assert_array_equal(batch.inputs, x.numpy())
        np.testing.assert_array_equal(batch.targets, y.numpy())


def test_random_windows_go_on_where_their_state_was_taken():
    windows = RandomWindows(np.arange(50), 4, 2, Offsets([1, 2], [3, 4], [5, 6]))
    next(windows)
    state = windows.state_dict()
    expected = [next(windows).inputs, next(windows).inputs]
    other = RandomWindows(np.arange(50), 4, 2, Offsets())
    other.load_state_dict(state)
    np.testing.assert_array_equal([next(other).inputs, next(other).inputs], expected)


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 7))
def test_sequential_windows_hold_every_target_once_after_its_own_input(n, context, batch_size):
    tokens = np.arange(7, 7 + n)  # all different, so a position can be told from its value
    windows = SequentialWindows(tokens, context, batch_size)
    batches = list(windows)
    assert len(batches) == len(windows)
    seen: Counter[int] = Counter()
    for batch in batches:
        assert batch.inputs.shape[1] == context
        assert batch.inputs.shape[0] <= batch_size
        real = batch.targets != IGNORE_INDEX
        np.testing.assert_array_equal(batch.inputs[real] + 1, batch.targets[real])
        assert not batch.inputs[~real].any()
        seen.update(batch.targets[real].tolist())
    assert seen == Counter(tokens[1:].tolist())
    assert sum(b.n_targets() for b in batches) == n - 1
    assert all(b.inputs.shape[0] == batch_size for b in batches[:-1])
    again = list(windows)
    assert all(np.array_equal(a.targets, b.targets) for a, b in zip(again, batches, strict=True))


@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 7))
def test_token_windows_are_the_rows_of_sequential_windows(n, context, batch_size):
    tokens = np.arange(7, 7 + n)
    windows = TokenWindows(tokens, context)
    rows = [row for batch in SequentialWindows(tokens, context, batch_size) for row in batch.inputs]
    assert len(windows) == len(rows) == -(-(n - 1) // context)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(windows[i][0], row)
        np.testing.assert_array_equal(windows[i - len(windows)][1], windows[i][1])
    for outside in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=rf"expected an index in .*, got {outside}"):
            windows[outside]


@settings(deadline=None)
@given(st.lists(st.integers(), max_size=30), st.integers(1, 8))
def test_accumulation_windows_hold_every_batch_in_order_and_only_the_last_is_short(items, k):
    windows = list(windows_of(iter(items), k))
    assert [x for window in windows for x in window] == items
    assert all(len(window) == k for window in windows[:-1])
    assert all(1 <= len(window) <= k for window in windows)


def test_accumulation_reads_no_batch_ahead():
    read = []
    windows = windows_of((read.append(i) or i for i in range(10)), 3)
    assert next(windows) == (0, 1, 2)
    assert read == [0, 1, 2]


def test_an_accumulation_window_counts_its_targets_once(monkeypatch):
    batches = list(SequentialWindows(np.arange(11), 4, 1))  # 4, 4 and 2 targets
    counted = []
    count = Batch.n_targets
    monkeypatch.setattr(Batch, "n_targets", lambda batch: counted.append(batch) or count(batch))
    whole, rest = windows_of(batches, 2)
    assert isinstance(whole, Window)
    assert counted == []
    assert (whole.counts, whole.n_targets, whole.n_targets) == ([4, 4], 8, 8)
    assert (rest.counts, rest.n_targets) == ([2], 2)
    assert counted == batches


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda: RandomWindows(np.arange(8), 8, 1, Offsets()),
            DataError,
            r"needs at least 9 tokens \(context \+ 1\), has 8; use --context 7",
        ),
        (
            lambda: RandomWindows(np.arange(9), 2, 1, Offsets(), vocab_size=8),
            DataError,
            r"must be in \[0, 8\), got 8 at position 8; encode the text",
        ),
        (
            lambda: SequentialWindows(np.array([1, -3, 1]), 2, 1),
            DataError,
            r"must be at least 0, got -3 at position 1",
        ),
        (lambda: SequentialWindows(np.array([1]), 2, 1), DataError, "at least 2 tokens"),
        (lambda: SequentialWindows(np.ones(9), 2, 1), DataError, r"integers \(N,\), got float64"),
        (lambda: SequentialWindows(np.ones((3, 3), int), 2, 1), DataError, r"shape \(3, 3\)"),
        (lambda: TokenWindows(np.array([1]), 2), DataError, "TokenWindows needs at least 2 tokens"),
        (lambda: TokenWindows(np.arange(9), 2, 8), DataError, "got 8 at position 8"),
        (lambda: SequentialWindows(np.arange(9), 0, 1), ConfigError, "context must be at least 1"),
        (
            lambda: RandomWindows(np.arange(9), 0, 1, Offsets()),
            ConfigError,
            "context must be at least 1",
        ),
        (lambda: SequentialWindows(np.arange(9), 2, 0), ConfigError, "batch_size must be at least"),
        (lambda: windows_of([], 0), ConfigError, "accumulate must be at least 1, got 0"),
    ],
)
def test_windows_that_cannot_be_made_are_refused_with_the_reason(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()
