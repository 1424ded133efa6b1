"""A small model's shards in processes: the bits of threads, and nothing that outlives the run."""

import os
import sys
import threading
import time

import numpy as np
import pytest

import nplm
from nplm.backend import threads
from nplm.data.loader import Batch, Window
from nplm.models import Decoder, preset
from nplm.nn import functional as F
from nplm.optim import AdamW
from nplm.train import accumulate, buffers, processes, shards, train_step

pytestmark = [
    pytest.mark.step,
    pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux alone"),
]
LLAMA = {"norm": "rms", "positions": "rope", "activation": "swiglu", "n_kv_head": 1, "n_hidden": 24}
PATIENT = 20  # seconds for what takes milliseconds


@pytest.fixture(autouse=True)
def forks_at_the_second_window(monkeypatch):
    """Of the smallest models too, on two threads; by then all kernels are loaded."""
    monkeypatch.setattr(shards, "WORTHWHILE", 0)
    monkeypatch.setattr(processes, "FIRST", 1)
    monkeypatch.setenv("NPLM_PROCESSES", "1")
    before = threads.get_num_threads()
    threads.set_num_threads(2)
    yield
    threads.set_num_threads(before)


def model_of(**changes):
    nplm.manual_seed(3)
    size = {"vocab_size": 11, "context": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return Decoder(preset("char", **size | changes))


def window_of(rows=(6, 5), seed=0, T=8):
    rng = np.random.default_rng(seed)
    return Window([
        Batch(rng.integers(0, 11, (B, T)), rng.integers(0, 11, (B, T))) for B in rows
    ])  # fmt: skip


def team_of(model):
    return processes._teams.get(buffers._buffers.get(model))


def wait_for(condition, what):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENT, what
        time.sleep(0.005)


def run(model, *windows):
    """Gradients of every window, from none."""
    for window in windows or [window_of()]:
        model.zero_grad()
        accumulate(window, model)


def start(model, window=None):
    """Windows until every worker is there; the team."""
    run(model, *[window or window_of()] * 2)
    team = team_of(model)
    wait_for(team.are_there, "no worker")
    return team


def outcome(model, window):
    """Whether workers did it, the loss, every gradient, the random stream after it."""
    nplm.manual_seed(5)
    model.zero_grad()
    done, inner = [], processes.Team.divide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.Team, "divide", lambda *a: done.append(inner(*a)) or done[-1])
        loss = float(accumulate(window, model).loss)
    gradients = {
        k: None if p.grad is None else np.array(p.grad.numpy())
        for k, p in model.named_parameters()
    }  # fmt: skip
    stream = nplm.random.default_generator.get_state()
    return bool(done) and done[0] is not None, loss, gradients, stream


def on_threads(model, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPLM_PROCESSES", "0")
        return outcome(model, window)


def assert_the_bits_of_threads(model, window, by_processes=True):
    expected, found = on_threads(model, window), outcome(model, window)
    assert not expected[0]
    assert found[0] == by_processes
    assert found[1] == expected[1]
    for name, gradient in expected[2].items():
        np.testing.assert_array_equal(found[2][name], gradient, name)
    assert found[3] == expected[3]


# ---- the same bits -------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [
    {}, {"dropout": 0.3}, LLAMA, {"tied": False}, {"dropout": 0.2, "vocab_size": 4200},
], ids=["plain", "dropout", "llama", "untied", "large table"])  # fmt: skip
@pytest.mark.parametrize("n", [2, 3])
def test_processes_have_the_bits_of_threads(changes, n, monkeypatch):
    monkeypatch.setattr(shards, "LARGE_TABLE", 1 << 20)
    threads.set_num_threads(n)
    model = model_of(**changes)
    start(model)
    for rows, seed, T in [((6, 5), 1, 8), ((3,), 2, 5), ((7, 5, 6), 3, 8)]:
        assert_the_bits_of_threads(model, window_of(rows, seed, T))


def test_frozen_parameters_get_no_gradient_from_processes():
    model = model_of()
    model.wte.weight.requires_grad_(False)
    model.blocks[0].mlp.fc.weight.requires_grad_(False)
    start(model)
    assert_the_bits_of_threads(model, window_of())
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["wte.weight", "blocks.0.mlp.fc.weight"]


def test_a_whole_run_is_the_same_with_processes():
    """Weights, moments and clipping move under the workers: every update sees the last one's."""

    def train(allowed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NPLM_PROCESSES", allowed)
            model = model_of(dropout=0.1)
            optimizer = AdamW(model.parameters(), lr=1e-2)
            optimizer.flatten()
            nplm.manual_seed(1)
            losses = []
            for step in range(12):
                losses.append(float(train_step(model, optimizer, window_of(seed=step)).loss))
                if allowed == "1" and step == 1:
                    start_is_over(model)
            return losses, model.state_dict()

    def start_is_over(model):
        wait_for(team_of(model).are_there, "no worker")

    (losses, weights), (expected, expected_weights) = train("1"), train("0")
    assert losses == expected
    for name, weight in expected_weights.items():
        np.testing.assert_array_equal(weights[name], weight, name)


def test_reference_mode_reaches_the_workers():
    model, window = model_of(), window_of()
    start(model)
    with nplm.reference():
        expected = on_threads(model, window)
        found = outcome(model, window)
    fast = outcome(model, window)
    assert found[0]
    assert fast[0]
    assert found[1] == expected[1]
    assert any((found[2][name] != fast[2][name]).any() for name in fast[2])


def test_a_thread_of_the_program_may_train():
    found = []

    def train():
        model = model_of()
        start(model)
        assert_the_bits_of_threads(model, window_of())
        found.append(True)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(PATIENT)
    assert found == [True]


# ---- who is forked, and when ---------------------------------------------------------------------
CHANGES = {
    "a rate": lambda m: setattr(m.dropout, "p", 0.5),
    "an epsilon": lambda m: setattr(m.norm, "eps", 0.1),
    "a setting of one block": lambda m: setattr(m.blocks[1].attn, "rope_theta", 100.0),
    "evaluation": lambda m: m.eval(),
    "a frozen weight": lambda m: m.blocks[0].mlp.fc.weight.requires_grad_(False),
    "recomputation": lambda m: setattr(m, "recompute", True),
    "a new layer": lambda m: setattr(m.blocks[0], "norm1", nplm.nn.RMSNorm(16)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_was_changed_is_forked_anew(name):
    """No worker answers for a model that it does not know; the next ones do."""
    model, window = model_of(dropout=0.1), window_of()
    start(model)
    assert outcome(model, window)[0]
    CHANGES[name](model)
    assert_the_bits_of_threads(model, window, by_processes=False)
    start(model)
    assert_the_bits_of_threads(model, window)


def test_an_override_that_comes_later_reaches_the_workers(monkeypatch):
    from nplm.autograd import overrides

    model, window = model_of(), window_of()
    start(model)
    plain = outcome(model, window)
    kernels = overrides.OVERRIDES["gelu", "numpy"]
    inner = kernels[0][1]

    def doubled(xp, x, approximate="none"):
        value, backward = inner(xp, x, approximate)
        return 2 * value, backward

    monkeypatch.setitem(overrides.OVERRIDES, ("gelu", "numpy"), [(None, doubled), *kernels])
    assert_the_bits_of_threads(model, window, by_processes=False)
    start(model)
    assert_the_bits_of_threads(model, window)
    assert outcome(model, window)[1] != plain[1]


class Own(Decoder):
    """Somebody's model: what it looks at besides its settings, nobody knows."""


def by_hand(model):
    inner = model.blocks[0].mlp.forward
    model.blocks[0].mlp.forward = lambda x: inner(x) * 2
    return model


@pytest.mark.parametrize("make", [
    lambda: Own(model_of().config),
    lambda: by_hand(model_of()),
    lambda: model_of(n_embd=512, n_head=8),
], ids=["another class", "another forward", "many parameters"])  # fmt: skip
def test_other_models_stay_on_threads(make, monkeypatch):
    model = make()
    for seed in range(3):
        assert_the_bits_of_threads(model, window_of(seed=seed), by_processes=False)
    assert not getattr(team_of(model), "workers", None)


def test_other_windows_stay_on_threads():
    """A loss function, another thread count, ops that somebody watches: workers know none of it."""
    model, window = model_of(), window_of()
    team = start(model)
    before = team.windows

    def loss_fn(logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    model.zero_grad()
    accumulate(window, model, loss_fn=loss_fn)
    threads.set_num_threads(1)
    run(model, window)
    assert team.windows == before


def test_a_profile_sees_every_op():
    from nplm.bench.profile import profile

    model, window = model_of(), window_of((6,))
    start(model, window)
    with profile() as found:
        run(model, window)
    (row,) = [r for r in found.rows() if (r.name, r.part) == ("gelu", "forward")]
    assert row.calls == 2 * 2  # layers, shards


def test_short_trainings_never_fork(monkeypatch):
    monkeypatch.setattr(processes, "FIRST", 8)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    model = model_of()
    run(model, *[window_of()] * 8)


def test_a_model_that_changes_all_the_time_stays_on_threads():
    model = model_of(dropout=0.1)
    pids = set()
    for k in range(2 * processes.FORKS):
        model.dropout.p = 0.01 * k
        run(model)
        pids |= {w.pid for w in team_of(model).workers}
    assert len(pids) <= processes.FORKS + 1
    assert_the_bits_of_threads(model, window_of(), by_processes=False)
