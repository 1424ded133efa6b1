"""Accumulation, one step, the loop and evaluation."""

import math

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm.data import Batch, RandomWindows, SequentialWindows
from nplm.errors import ConfigError, DataError, NonFiniteError
from nplm.models import Decoder, DecoderConfig
from nplm.optim import LBFGS, SGD, AdamW
from nplm.optim.lr_scheduler import StepLR
from nplm.parity.tolerances import EXACT, THEOREM_64, assert_close
from nplm.train import accumulate, evaluate, fit, train_step

pytestmark = pytest.mark.step

V, T = 11, 6


def small_decoder(device="cpu", seed=3):
    nplm.manual_seed(seed)
    config = DecoderConfig(vocab_size=V, context=T, n_layer=1, n_head=2, n_embd=8)
    return Decoder(config).to(device, nplm.float64)


def ragged_batch(rng, rows, time=T, none=False):
    """A batch whose rows end early: the rest of the targets is ignored."""
    inputs = rng.integers(0, V, (rows, time))
    targets = rng.integers(0, V, (rows, time))
    lengths = np.zeros(rows, int) if none else rng.integers(0, time + 1, rows)
    targets[np.arange(time) >= lengths[:, None]] = -100
    return Batch(inputs, targets)


def joined(batches):
    return Batch(
        np.concatenate([b.inputs for b in batches]), np.concatenate([b.targets for b in batches])
    )


def gradients(model):
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**31), st.booleans())
@examples(30)
@pytest.mark.parametrize("where", ["cpu", "torch:cpu"])
def test_accumulated_gradients_equal_the_large_batch(where, rows, seed, with_empty):
    if where != "cpu":
        pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
    rng = np.random.default_rng(seed)
    window = [ragged_batch(rng, n) for n in rows]
    window += [ragged_batch(rng, 2, none=True)] if with_empty else []
    large = joined(window)
    if large.n_targets() == 0:
        return
    model = small_decoder(where)
    result = accumulate(window, model)
    accumulated = gradients(model)
    model.zero_grad()
    logits = model(nplm.tensor(large.inputs, device=where)).view(-1, V)
    loss = nplm.nn.functional.cross_entropy(
        logits, nplm.tensor(large.targets, device=where).view(-1)
    )
    loss.backward()
    assert result.n_targets == large.n_targets()
    assert result.n_micro == len(window)
    assert_close(result.loss, loss.detach(), THEOREM_64, "loss")
    for name, gradient in gradients(model).items():
        scale = np.abs(gradient).max()  # relative to the tensor: single elements cancel to nothing
        assert_close(accumulated[name] / scale, gradient / scale, THEOREM_64, name)


def test_the_mean_of_means_is_not_the_large_batch_on_ragged_windows():
    rng = np.random.default_rng(1)
    window = [ragged_batch(rng, 3) for _ in range(4)]
    model = small_decoder()
    token = accumulate(window, model)
    exact = gradients(model)
    model.zero_grad()
    micro = accumulate(window, model, normalise="microbatch")
    assert abs(float(token.loss) - float(micro.loss)) > 1e-4
    apart = max(np.abs(g - exact[name]).max() for name, g in gradients(model).items())
    assert apart > 1e-4


def test_microbatch_normalisation_equals_the_tutorials_division():
    rng = np.random.default_rng(2)
    window = [ragged_batch(rng, 3) for _ in range(4)]
    model = small_decoder()
    accumulate(window, model, normalise="microbatch")
    ours = gradients(model)
    model.zero_grad()
    for batch in window:
        logits = model(nplm.tensor(batch.inputs)).view(-1, V)
        loss = nplm.nn.functional.cross_entropy(logits, nplm.tensor(batch.targets).view(-1))
        (loss / len(window)).backward()
    for name, gradient in gradients(model).items():
        assert_close(ours[name], gradient, THEOREM_64, name)


def test_accumulate_into_a_dict_leaves_grad_alone():
    window = [ragged_batch(np.random.default_rng(3), 2) for _ in range(3)]
    model = small_decoder()
    into = {}
    accumulate(window, model, into=into)
    assert all(p.grad is None for p in model.parameters())
    accumulate(window, model)
    for p in model.parameters():
        assert_close(into[p], p.grad, EXACT)


def test_a_window_without_targets_makes_no_update(monkeypatch):
    model = small_decoder()
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    scheduler = StepLR(optimizer, step_size=1)
    for p in model.parameters():
        p.grad = nplm.zeros_like(p)  # what an optimizer would decay the weights on
    monkeypatch.setattr(optimizer, "zero_grad", lambda: None)
    before = [p.numpy().copy() for p in model.state_dict().values()]
    window = [ragged_batch(np.random.default_rng(0), 2, none=True)]
    record = train_step(model, optimizer, window)
    assert not record.updated
    assert record.n_targets == 0
    assert np.isnan(float(record.loss))
    for old, new in zip(before, model.state_dict().values()):
        assert_close(new, old, EXACT)
    full = ragged_batch(np.random.default_rng(1), 2)
    loader = [*window, full, *window]
    records = list(fit(model, optimizer, loader, scheduler=scheduler, epochs=1))
    assert [r.updated for r in records] == [False, True, False]
    assert [r.lr for r in records] == [0.1, 0.1, 0.1 * 0.1]


@pytest.mark.parametrize("name", ["token ", "mean"])
def test_an_unknown_normalisation_is_refused(name):
    with pytest.raises(ValueError, match="expected normalise 'token' or 'microbatch'"):
        accumulate([], small_decoder(), normalise=name)


def poisoned(model):
    with nplm.no_grad():
        model.head.weight[0, 0] = float("nan")
    return model


def test_a_non_finite_step_stops_before_the_update():
    model = poisoned(small_decoder())
    optimizer = AdamW(model.parameters())
    before = {name: p.numpy().copy() for name, p in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match="nothing was updated"):
        train_step(model, optimizer, [ragged_batch(np.random.default_rng(1), 3)], clip_norm=1.0)
    assert not optimizer.state
    for name, p in model.state_dict().items():
        assert_close(p, before[name], EXACT, name)


def test_a_non_finite_step_can_be_skipped():
    model = poisoned(small_decoder())
    optimizer = AdamW(model.parameters())
    window = [ragged_batch(np.random.default_rng(1), 3)]
    record = train_step(model, optimizer, window, on_nonfinite="skip")
    assert not record.updated
    assert not optimizer.state


# ---- fit -----------------------------------------------------------------------------------------
def sequential(n_tokens=100, batch_size=2):
    return SequentialWindows(np.random.default_rng(0).integers(0, V, n_tokens), T, batch_size)


def test_fit_counts_steps_epochs_and_the_last_short_window():
    loader = sequential()  # 17 windows: 9 batches, so windows of 4, 4 and 1 batches
    model = small_decoder()
    records = list(fit(model, SGD(model.parameters(), lr=0.1), loader, accumulate=4, epochs=2))
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r.epoch for r in records] == [0, 0, 0, 1, 1, 1]
    assert [r.epoch_ended for r in records] == [False, False, True] * 2
    assert [r.n_micro for r in records] == [4, 4, 1] * 2
    assert sum(r.n_targets for r in records) == 2 * 99


def test_fit_reads_an_iterator_without_len_to_its_end():
    model = small_decoder()
    optimizer = SGD(model.parameters(), lr=0.1)
    records = list(fit(model, optimizer, iter(list(sequential())), accumulate=4, epochs=1))
    assert [r.epoch_ended for r in records] == [False, False, True]
    records = list(fit(model, optimizer, iter(list(sequential())), accumulate=4, steps=50))
    assert len(records) == 3


def test_the_scheduler_moves_per_update_or_per_epoch():
    for unit, lrs in (("step", [1.0, 0.5, 0.25, 0.125]), ("epoch", [1.0, 1.0, 0.5, 0.5])):
        model = small_decoder()
        optimizer = SGD(model.parameters(), lr=1.0)
        scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
        records = fit(
            model, optimizer, sequential(30), accumulate=2, epochs=2, scheduler=scheduler,
            scheduler_unit=unit,
        )  # fmt: skip
        assert [r.lr for r in records] == lrs


def test_fit_draws_no_batch_beyond_the_last_update():
    tokens = np.arange(50) % V
    counted = nplm.Generator().manual_seed(5)
    loader = RandomWindows(tokens, T, 2, counted)
    model = small_decoder()
    list(fit(model, SGD(model.parameters(), lr=0.1), loader, accumulate=3, steps=4))
    other = nplm.Generator().manual_seed(5)
    for _ in range(12):
        other.randint(0, len(tokens) - T, (2,))
    assert counted.get_state() == other.get_state()


def test_fit_and_evaluate_take_pairs_of_inputs_and_targets():
    batches = list(sequential())
    pairs = [(nplm.tensor(b.inputs), nplm.tensor(b.targets)) for b in batches]
    ends = []
    for loader in (batches, pairs, [list(pair) for pair in pairs]):
        model = small_decoder()
        records = list(fit(model, SGD(model.parameters(), lr=0.1), loader, accumulate=2, epochs=1))
        ends.append((evaluate(model, loader).loss, [r.n_targets for r in records]))
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("batch", [3, "ab", (1,), (1, 2, 3), {"inputs": 1}, None])
def test_what_is_no_batch_is_refused_with_what_makes_one(batch):
    model = small_decoder()
    for use in (
        lambda: list(fit(model, SGD(model.parameters()), [batch], epochs=1)),
        lambda: evaluate(model, [batch]),
        lambda: accumulate([batch], model),
    ):
        with pytest.raises(DataError, match="collate_windows"):
            use()


def test_an_endless_loader_has_no_epochs():
    loader = RandomWindows(np.arange(50) % V, T, 2, nplm.Generator())
    model = small_decoder()
    optimizer = SGD(model.parameters(), lr=0.1)
    for options in ({"epochs": 1}, {"steps": 3, "scheduler_unit": "epoch"}):
        with pytest.raises(ConfigError, match="RandomWindows has no end, so it has no epochs"):
            next(fit(model, optimizer, loader, **options))


def test_fit_refuses_an_optimizer_that_needs_a_closure():
    model = small_decoder()
    with pytest.raises(ConfigError, match="LBFGS steps by closure only"):
        next(fit(model, LBFGS(model.parameters()), sequential(), steps=1))


def test_fit_needs_an_end_and_targets():
    model = small_decoder()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="epochs or steps"):
        next(fit(model, optimizer, sequential()))
    with pytest.raises(ConfigError, match="'step' or 'epoch', got 'batch'"):
        next(fit(model, optimizer, sequential(), steps=1, scheduler_unit="batch"))
    with pytest.raises(DataError, match="an epoch ended without an update"):
        list(fit(model, optimizer, [], epochs=2))
    empty = [ragged_batch(np.random.default_rng(0), 2, none=True)]
    with pytest.raises(DataError, match="an epoch ended without an update"):
        list(fit(model, optimizer, empty, steps=5))


def test_the_validation_loss_is_the_same_for_every_batch_size():
    model = small_decoder()
    losses = [evaluate(model, sequential(200, size)).loss for size in (1, 2, 3, 7, 34, 100)]
    for loss in losses:
        assert_close(np.array(loss), np.array(losses[0]), THEOREM_64)


def test_evaluation_keeps_the_mode_and_draws_nothing():
    model = small_decoder()
    model.dropout.p = 0.5
    for training in (True, False):
        model.train(training)
        before = nplm.get_rng_state()
        result = evaluate(model, sequential())
        assert nplm.get_rng_state() == before
        assert all(m.training == training for m in model.modules())
        assert result.n_targets == 99
        assert result.perplexity == math.exp(result.loss)
    with pytest.raises(DataError, match="at least one target"):
        evaluate(model, [])


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_a_clip_norm_that_is_not_positive_is_refused(norm):
    model = small_decoder()
    with pytest.raises(ValueError, match="expected a positive clip_norm or None"):
        train_step(model, SGD(model.parameters()), [ragged_batch(np.random.default_rng(1), 2)],
                   clip_norm=norm)  # fmt: skip
