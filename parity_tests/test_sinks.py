"""Sinks that shards fill at once: the bits of one fixed order, whoever is fast.

Read autograd/sinks.py and test_shards.py before.
"""

import random
import threading
import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_shards import LLAMA, assert_equal, every_model_is_worth_it, model_of, outcome, window_of  # noqa: F401

import nplm
from nplm.autograd.sinks import ShardSink, SharedSink, Sink, SinkStore
from nplm.backend import threads
from nplm.backend.numpy_kernels import linear as kernels
from nplm.parity.tolerances import EXACT, assert_close
from nplm.train import accumulate, buffers, shards

pytestmark = pytest.mark.step


@pytest.fixture(autouse=True)
def small_models_share_a_buffer_too(monkeypatch):
    monkeypatch.setattr(buffers, "APART", 0)


# ---- the sink alone ------------------------------------------------------------------------------
KINDS = {2: ["array", "product", "parts", "rows"], 1: ["array", "sum"]}


def contribution(kind, shape, rng):
    """What arrives, as steps that each take a sink; others may come between two steps."""
    scale = 10.0 ** rng.integers(-3, 4)  # so that another order has other bits

    def drawn(*shape):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    if kind == "array":
        gradient = drawn(*shape)
        return [lambda sink: sink.add(gradient)]
    if kind == "sum":
        rows = drawn(7, *shape)
        return [lambda sink: sink.add_sum(rows)]
    if kind == "rows":
        ids, values = rng.integers(0, shape[0], 5), drawn(5, shape[1])
        return [lambda sink: sink.add_rows(ids, values)]
    a, b = drawn(shape[0], 6), drawn(6, shape[1])
    if kind == "product":
        return [lambda sink: sink.add_product(a, b), lambda sink: sink.complete()]
    return [
        lambda sink: sink.add_product(a[2:], b, 2),
        lambda sink: sink.add_product(a[:2], b),
        lambda sink: sink.complete(),
    ]


def carry_out(steps, sink):
    for step in steps:
        step(sink)


def in_memory(shape, n):
    """A shared sink on memory that holds nothing yet, and its shards."""
    shared = SharedSink(np.full(shape, np.nan, np.float32), n)
    return shared, [ShardSink(shared, i) for i in range(n)]


@given(
    data=st.data(), seed=st.integers(0, 2**31), n=st.integers(2, 4), n_axes=st.sampled_from([1, 2])
)
def test_any_order_of_arrival_has_the_bits_of_the_ordered_sum(data, seed, n, n_axes):
    """Twice, as over two windows; some shards have fewer contributions than others."""
    rng, shape = np.random.default_rng(seed), (3, 4)[:n_axes]
    shared, sides = in_memory(shape, n)
    for _ in range(2):
        counts = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
        made = [
            [contribution(rng.choice(KINDS[n_axes]), shape, rng) for _ in range(count)]
            for count in counts
        ]
        order = [i for i in range(n) for steps in made[i] for _ in steps]
        left = [iter([step for steps in made[i] for step in steps]) for i in range(n)]
        shared.empty(sides)
        for i in data.draw(st.permutations(order)):
            next(left[i])(sides[i])
        if len(set(counts)) == 1:
            assert shared.early == {}, "a gradient is kept although its turn has come"
        shared.settle(sides)
        alone = Sink(np.full(shape, np.nan, np.float32))
        for k in range(3):
            for i in range(n):
                if k < counts[i]:
                    carry_out(made[i][k], alone)
        assert shared.filled == alone.filled == any(counts)
        if any(counts):
            assert_close(shared.array, alone.array, EXACT)
        assert shared.early == {}
        assert all(side.array is shared.array for side in sides)


@given(data=st.data(), seed=st.integers(0, 2**31), rounds=st.integers(1, 3))
def test_rows_of_a_large_table_are_added_last_and_by_shard(data, seed, rounds):
    rng = np.random.default_rng(seed)
    n, shape = 3, (6, 2)
    shared, sides = in_memory(shape, n)
    alone = Sink(np.full(shape, np.nan, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nplm.autograd.sinks.LARGE_TABLE", 4)
        steps = [[contribution("rows", shape, rng) for _ in range(rounds)] for _ in range(n)]
        left = [iter(each) for each in steps]
        shared.empty(sides)
        for i in data.draw(st.permutations(list(range(n)) * rounds)):
            carry_out(next(left[i]), sides[i])
        assert not shared.filled
        shared.settle(sides)
        for each in steps:
            for one in each:
                carry_out(one, alone)
        alone.settle()
    assert_close(shared.array, alone.array, EXACT)


def test_memory_of_its_own_is_for_those_who_come_early():
    shared, (first, second) = in_memory((3, 4), 2)
    a, b = np.ones((3, 2), np.float32), np.ones((2, 4), np.float32)
    second.add_product(a, b)
    assert not np.shares_memory(second.array, shared.array)
    first.add_product(a, b)
    assert first.array is shared.array  # its turn: the product is written where it stays
    second.complete()
    assert not shared.filled  # the first one is still at work, and the second does not wait
    assert len(shared.early) == 1
    first.complete()
    assert_close(shared.array, np.full((3, 4), 4, np.float32), EXACT)
    assert shared.early == {}
    second.add_product(a, b)
    shared.empty([first, second])  # after an error, with a half of a contribution
    assert second.array is shared.array


def test_a_store_gives_shards_what_no_kernel_has_written():
    shared, sides = in_memory((2,), 2)
    stores = [SinkStore({"leaf": side}) for side in sides]
    gradient = np.array([1, 2], np.float32)
    for i in (1, 0, 0, 1):
        assert "leaf" not in stores[i]  # or `+=` would write to an array that others write to
        stores[i]["leaf"] = gradient
    assert_close(shared.array, 4 * gradient, EXACT)


# ---- shards on threads ---------------------------------------------------------------------------
VARIANTS = {
    "plain": {}, "dropout": {"dropout": 0.3}, "untied": {"tied": False, "bias": True},
    "llama": LLAMA,
}  # fmt: skip


def one_after_the_other(monkeypatch, order):
    """Each shard begins a window when the one before it in `order` has ended its own."""
    ended = [threading.Event() for _ in order]
    whole = shards._Shard.whole

    def gated(self, *args):
        at = order.index(self.i)
        if at > 0:
            assert ended[order[at - 1]].wait(10), "a shard waits for another one"
        try:
            whole(self, *args)
        finally:
            ended[self.i].set()

    monkeypatch.setattr(shards._Shard, "whole", gated)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_that_work_in_any_order_have_the_same_bits(variant, monkeypatch):
    """Even if one has ended before another begins: nobody waits for anybody."""
    model = model_of(dtype="float32", **VARIANTS[variant])
    window = window_of([6, 5, 3])
    expected = outcome(model, window, 3)
    for order in permutations(range(3)):
        with monkeypatch.context() as patch:
            one_after_the_other(patch, order)
            assert_equal(outcome(model, window, 3), expected, EXACT)
        for sink in buffers._buffers[model].sinks:
            assert sink.early == {}, "memory of a window outlives it"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_delays_in_kernels_change_no_bits(n, recompute, monkeypatch):
    model = model_of(dtype="float32", dropout=0.2)
    model.recompute = recompute
    window = window_of([8, 4])
    expected = outcome(model, window, n)
    delays = random.Random(n)
    for name in ("weight_gradient", "bias_gradient"):
        original = getattr(kernels, name)

        def slow(*args, original=original):
            time.sleep(delays.random() * 1e-3)
            result = original(*args)
            time.sleep(delays.random() * 1e-3)
            return result

        monkeypatch.setattr(kernels, name, slow)
    for _ in range(3):
        assert_equal(outcome(model, window, n), expected, EXACT)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("i", [0, 1])
def test_an_error_in_the_middle_of_a_contribution_leaves_the_next_window_right(
    i, order, monkeypatch
):
    model, window = model_of(dtype="float32"), window_of([6, 5])
    expected = outcome(model, window, 2)
    one_after_the_other(monkeypatch, order)
    complete = ShardSink.complete

    def broken(self):
        if self.place == 2 + i:  # its second contribution to some weight
            raise FloatingPointError("broken on purpose")
        complete(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardSink, "complete", broken)
        with pytest.raises(FloatingPointError, match="broken on purpose"):
            outcome(model, window, 2)
    one_after_the_other(monkeypatch, order)  # with events that nobody has set
    for _ in range(2):
        assert_equal(outcome(model, window, 2), expected, EXACT)


# ---- memory --------------------------------------------------------------------------------------
def test_all_shards_write_into_one_flat_buffer():
    model = model_of()
    for n in (1, 2, 4):
        outcome(model, window_of([8]), n)
        buffer = buffers._buffers[model]
        sides = buffer.sides if n > 1 else []  # one shard has the buffer's own sinks
        sinks = [*buffer.sinks, *(sink for side in sides for sink in side)]
        assert len({id(sink.array.base) for sink in sinks}) == 1
        assert len(sinks) == len(buffer.parameters) * (n + 1 if n > 1 else 1)
        assert sinks[0].array.base.size == sum(p.numel() for p in buffer.parameters)


@pytest.mark.parametrize("tied", [False, True])
def test_products_of_a_large_head_never_wait(tied, monkeypatch):
    """Its weight is as large as all else: every micro-batch writes them where they stay."""
    for where in (shards, nplm.autograd.sinks):
        monkeypatch.setattr(where, "LARGE_TABLE", 4)
    monkeypatch.setattr("nplm.backend.numpy_kernels.head.TILE", 3)
    model, calls = model_of(tied=tied), []
    for name in ("advance", "leave"):
        method = getattr(SharedSink, name)

        def watched(self, *args, name=name, method=method):
            if self.array.shape == model.head.weight.shape:
                calls.append(name)
            method(self, *args)

        monkeypatch.setattr(SharedSink, name, watched)
    threads.set_num_threads(2)
    accumulate(window_of([4, 4, 4]), model)
    assert calls == ["advance"] * 3
