"""Shards on threads: the gradient is that of one thread and of the large batch."""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm.autograd.graph import flags
from nplm.backend import threads
from nplm.data import SequentialWindows
from nplm.data.loader import Batch, Window
from nplm.errors import DataError
from nplm.models import Decoder, preset
from nplm.nn import functional as F
from nplm.parity.tolerances import EXACT, THEOREM_64, assert_close, assert_close_at_scale
from nplm.train import accumulate, evaluate, shards

pytestmark = pytest.mark.step
SMALL = {"context": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
LLAMA = {"norm": "rms", "positions": "rope", "activation": "swiglu", "n_kv_head": 1, "n_hidden": 24}


@pytest.fixture(autouse=True)
def every_model_is_worth_it(monkeypatch):
    """Divide the smallest models too; `divided` says how often that happened."""
    monkeypatch.setattr(shards, "WORTHWHILE", 0)
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def model_of(vocab_size=11, dtype="float64", **changes):
    nplm.manual_seed(3)
    model = Decoder(preset("char", vocab_size=vocab_size, **SMALL | changes))
    return model.double() if dtype == "float64" else model


def window_of(rows, vocab_size=11, seed=0, ignored=0.2):
    rng = np.random.default_rng(seed)
    batches = []
    for B in rows:
        targets = rng.integers(0, vocab_size, (B, 8))
        targets[rng.random((B, 8)) < ignored] = -100
        batches.append(Batch(rng.integers(0, vocab_size, (B, 8)), targets))
    return Window(batches)


def outcome(model, window, n, divided=True, **options):
    """(loss, gradients, the random stream afterwards) of a window on `n` threads."""
    threads.set_num_threads(n)
    model.zero_grad()
    nplm.manual_seed(5)
    own, model.row_independent = model.row_independent, divided
    result = accumulate(window, model, **options)
    model.row_independent = own
    gradients = {k: np.array(p.grad.numpy()) for k, p in model.named_parameters()}
    return float(result.loss), gradients, nplm.random.default_generator.to_torch_state()


def assert_equal(one, two, tolerance=THEOREM_64):
    assert_close(np.float64(one[0]), np.float64(two[0]), tolerance, "loss")
    for name, expected in two[1].items():
        if "qkv.bias" in name:  # a third of it is rounding alone
            assert_close_at_scale(one[1][name], expected, tolerance, 1e-2, name)
        else:
            assert_close_at_scale(one[1][name], expected, tolerance, 0.0, name)
    np.testing.assert_array_equal(one[2], two[2])


# ---- the theorem ---------------------------------------------------------------------------------
@given(
    rows=st.lists(st.integers(1, 7), min_size=1, max_size=3), n=st.integers(1, 4),
    seed=st.integers(0, 99), dropout=st.sampled_from([0.0, 0.3]),
    normalise=st.sampled_from(["token", "microbatch"]), fused=st.booleans(), large=st.booleans(),
    reference=st.booleans(), apart=st.booleans(),
    changes=st.sampled_from([{}, LLAMA, {"tied": False, "bias": True}]),
)  # fmt: skip
def test_any_number_of_threads_has_the_gradient_of_one(
    rows, n, seed, dropout, normalise, fused, large, reference, apart, changes
):
    model = model_of(dropout=dropout, **changes)
    window = window_of(rows, seed=seed)
    options = {"normalise": normalise}
    if not fused:
        options["loss_fn"] = lambda logits, targets: F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        )
    limit = 4 if large else 1 << 12
    with pytest.MonkeyPatch.context() as patch, nplm.reference() if reference else nullcontext():
        patch.setattr("nplm.train.buffers.APART", 1 << 22 if apart else 0)
        patch.setattr(shards, "LARGE_TABLE", limit)
        patch.setattr("nplm.autograd.sinks.LARGE_TABLE", limit)
        expected = outcome(model, window, 1, divided=False, **options)
        assert_equal(outcome(model, window, n, **options), expected)


def test_a_divided_batch_runs_on_as_many_threads_as_it_has_shards(monkeypatch):
    seen = []
    features = Decoder.features

    def watched(self, ids):
        seen.append((threads.team(), ids.shape[0]))
        return features(self, ids)

    monkeypatch.setattr(Decoder, "features", watched)
    for n, rows, parts in [
        (2, 6, [(1, 3)] * 2), (3, 7, [(1, 2), (1, 2), (1, 3)]), (1, 6, [(1, 6)]),
        (2, 1, [(2, 1)]),  # one row: the kernels divide their own
        (4, 5, [(4, 5)]),  # 5 rows on 4 threads would leave them idle for 3 of 8
        (2, 3, [(1, 1), (1, 2)]),
    ]:  # fmt: skip
        seen.clear()
        outcome(model_of(), window_of([rows]), n)
        assert sorted(seen) == parts


def test_the_same_number_of_threads_gives_the_same_bits(monkeypatch):
    model = model_of(dtype="float32", dropout=0.2)
    window = window_of([6, 5])
    for n, apart in [(1, 0), (2, 0), (3, 0), (2, 1 << 22), (3, 1 << 22)]:
        monkeypatch.setattr("nplm.train.buffers.APART", apart)
        first = outcome(model, window, n)
        for _ in range(5):
            assert_equal(outcome(model, window, n), first, EXACT)


def test_masks_are_those_of_the_whole_batch(monkeypatch):
    """Every mask that the shards use is a part of the one that one thread draws."""
    for n in (1, 2, 4):
        drawn = []
        original = nplm.Generator.dropout_mask

        def dropout_mask(self, size, p=0.5, drawn=drawn, original=original):
            drawn.append(original(self, size, p))
            return drawn[-1]

        monkeypatch.setattr(nplm.Generator, "dropout_mask", dropout_mask)
        outcome(model_of(dropout=0.5), window_of([4, 8]), n)
        monkeypatch.undo()
        monkeypatch.setattr(shards, "WORTHWHILE", 0)
        if n == 1:
            expected = drawn
        assert [m.shape for m in drawn] == [m.shape for m in expected]
        assert all((a == b).all() for a, b in zip(drawn, expected))


def test_gradients_are_added_up_over_a_window_and_start_anew_after_it():
    model = model_of()
    one, two = window_of([4], seed=1), window_of([4], seed=2)
    first = outcome(model, one, 2)
    outcome(model, two, 2)
    assert_equal(outcome(model, one, 2), first, EXACT)


def test_a_gradient_that_is_there_already_is_added_to():
    model, window = model_of(), window_of([4])
    once = outcome(model, window, 2)
    threads.set_num_threads(2)
    accumulate(window, model)
    for name, p in model.named_parameters():
        assert_close_at_scale(p.grad, 2 * once[1][name], THEOREM_64, 1e-2, name)


def test_frozen_parameters_get_no_gradient():
    model = model_of()
    model.wte.weight.requires_grad_(False)
    model.blocks[0].mlp.fc.weight.requires_grad_(False)
    threads.set_num_threads(2)
    accumulate(window_of([4]), model)
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["wte.weight", "blocks.0.mlp.fc.weight"]


def test_a_model_that_was_converted_gets_new_buffers():
    model = model_of(dtype="float32")
    outcome(model, window_of([4]), 2)
    model.double()
    wide = outcome(model, window_of([4]), 2)
    assert {g.dtype for g in wide[1].values()} == {np.dtype("float64")}
    assert_equal(wide, outcome(model, window_of([4]), 2, divided=False))


@pytest.mark.parametrize("keep", [0, 1 << 27])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_tiles_of_the_vocabulary_are_one_softmax(monkeypatch, reduction, keep):
    """Kept, or computed again in the backward; on one thread and on three."""
    monkeypatch.setattr("nplm.backend.numpy_kernels.head.TILE", 3)
    monkeypatch.setattr("nplm.backend.numpy_kernels.head.KEEP", keep)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(5, 4)), 9 * rng.normal(size=(20, 4))]
    targets = nplm.tensor(np.array([3, 19, -100, 0, 11]))

    def once():
        x, weight = (nplm.tensor(a, requires_grad=True) for a in arrays)
        loss = F.linear_cross_entropy(x, weight, targets, reduction=reduction)
        (loss * loss).sum().backward()
        return loss.detach(), x.grad, weight.grad

    with nplm.reference():
        expected = once()
    for n in (1, 3):
        threads.set_num_threads(n)
        with threads.one_blas_thread():
            for a, b in zip(once(), expected):
                assert_close_at_scale(a, b, THEOREM_64, 0.0, f"{n} threads")


# ---- who is not divided --------------------------------------------------------------------------
def test_small_or_watched_models_run_on_one_thread(monkeypatch):
    called = []
    inner = shards.number_of_shards
    monkeypatch.setattr(shards, "number_of_shards", lambda r: called.append(r) or inner(r))
    threads.set_num_threads(2)
    model, window = model_of(), window_of([4])
    accumulate(window, model)
    assert called
    called.clear()

    class Own(Decoder):
        row_independent = False

    accumulate(window, Own(model.config))
    accumulate(window, model, into={})
    accumulate(window_of([2], ignored=1.0), model)  # no target
    handle = []
    model.wte.weight.register_post_accumulate_grad_hook(handle.append)
    accumulate(window, model)
    assert len(handle) == 1
    monkeypatch.setattr(shards, "WORTHWHILE", 10**9)
    accumulate(window, model_of())
    assert not called


def test_without_threadpoolctl_everything_runs_on_one_thread(monkeypatch):
    monkeypatch.setattr(threads, "_blas", False)
    model = model_of()
    assert not shards.worthwhile(model, list(model.parameters()), window_of([4]))


class Capped(Decoder):
    """A decoder whose author has written `forward` alone."""

    def forward(self, ids):
        return super().forward(ids).tanh() * 2


def test_a_forward_of_ones_own_is_the_one_that_is_trained_and_judged():
    biased = model_of(tied=False)
    biased.head = nplm.nn.Linear(16, 11, bias=True).double()
    for model in (Capped(model_of().config).double(), biased):
        window = window_of([4])
        assert_equal(outcome(model, window, 2), outcome(model, window, 2, divided=False))
        batches = SequentialWindows(np.arange(60) % 11, 8, 4)
        found = evaluate(model, batches).loss
        model.row_independent = False
        assert_close(np.float64(found), np.float64(evaluate(model, batches).loss), THEOREM_64)


def test_a_parameter_of_the_loss_function_gets_its_gradient_too():
    model, window = model_of(), window_of([4, 4])
    heat = nplm.nn.Parameter(nplm.tensor(0.7).double())

    def loss_fn(logits, targets):
        rows = (logits * heat).flatten(0, 1)
        return F.cross_entropy(rows, targets.flatten(), reduction="sum")

    got = []
    for divided in (True, False):
        heat.grad = None
        outcome(model, window, 2, divided, loss_fn=loss_fn)
        got.append(heat.grad.item())
    assert_close(np.float64(got[0]), np.float64(got[1]), THEOREM_64)


def test_all_but_a_large_head_may_be_frozen(monkeypatch):
    monkeypatch.setattr(shards, "LARGE_TABLE", 4)
    model = model_of(tied=False)
    model.requires_grad_(False)
    model.head.weight.requires_grad_(True)
    threads.set_num_threads(2)
    accumulate(window_of([4]), model)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]


def test_a_new_parameter_on_old_memory_gets_the_gradient():
    model, window = model_of(), window_of([4])
    outcome(model, window, 2)
    fc = model.blocks[0].mlp.fc
    fc.weight = nplm.nn.Parameter(fc.weight.detach())
    assert_equal(outcome(model, window, 2), outcome(model, window, 2, divided=False))


# ---- errors --------------------------------------------------------------------------------------
def test_an_error_in_a_shard_comes_out_in_the_caller():
    model = model_of()
    bad = window_of([4])
    bad[0].inputs[3, 5] = 99  # in the second shard
    threads.set_num_threads(2)
    with pytest.raises(DataError, match=r"ids must be integers in \[0, 11\), got 99 at \(1, 5\)"):
        accumulate(bad, model)
    assert flags.sinks is None
    assert not threads.blas_is_held()
    good = window_of([4])
    assert_equal(outcome(model, good, 2), outcome(model, good, 2, divided=False))


def test_a_mask_that_cannot_be_divided_says_what_to_do():
    model = model_of(dropout=0.5)
    inner = model.dropout.forward
    model.dropout.forward = lambda x: inner(x.transpose(0, 1).clone()).transpose(0, 1)
    threads.set_num_threads(2)
    with pytest.raises(RuntimeError, match=r"set model\.row_independent = False"):
        accumulate(window_of([6]), model)


# ---- evaluation ----------------------------------------------------------------------------------
def test_evaluation_is_the_same_on_any_number_of_threads():
    model = model_of()
    batches = SequentialWindows(np.random.default_rng(0).integers(0, 11, 200), 8, 5)
    model.row_independent = False
    expected = evaluate(model, batches)
    model.row_independent = True
    for n in (1, 2, 3):
        threads.set_num_threads(n)
        found = evaluate(model, batches)
        assert found.n_targets == expected.n_targets
        assert_close(np.float64(found.loss), np.float64(expected.loss), THEOREM_64)
    assert model.training
