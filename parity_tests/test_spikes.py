"""What stands out or is not finite: the spike detector, skipped updates; windows by epoch."""

import json
import math

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm.data import Batch, RandomWindows
from nplm.errors import ConfigError
from nplm.models import Decoder, DecoderConfig
from nplm.optim import AdamW
from nplm.optim.lr_scheduler import StepLR
from nplm.optim.optimizer import convert_state
from nplm.parity.tolerances import FORMULA_64, assert_close
from nplm.train import fit
from nplm.train.spikes import SpikeDetector
from nplm.train.window_schedule import WindowSchedule

pytestmark = pytest.mark.step

NAN, INF = float("nan"), float("inf")
figures = st.lists(st.floats(0.01, 100), min_size=1, max_size=60)


def outlier_detector(values, window):
    """The scores of llm.c's OutlierDetector: running sums over a ring of values."""
    ring, total, squares, scores = [], 0.0, 0.0, []
    for value in values:
        total, squares = total + value, squares + value * value
        ring.append(value)
        if len(ring) <= window:
            scores.append(NAN)
            continue
        old = ring.pop(0)
        total, squares = total - old, squares - old * old
        mean = total / window
        deviation = math.sqrt(max(squares / window - mean * mean, 0))
        scores.append((value - mean) / deviation if deviation else 0.0)
    return scores


@examples(60)
@given(values=figures, window=st.integers(2, 16), seed=st.integers(0, 99))
def test_the_scores_are_those_of_llm_c(values, window, seed):
    norms = np.random.default_rng(seed).permutation(values) * 3
    detector, scores = SpikeDetector(window=window), []
    for loss, norm in zip(values, norms):
        detector.update(nplm.tensor(loss, nplm.float64), norm)
        scores.append([detector.scores["loss"], detector.scores["grad_norm"]])
    theirs = np.array([outlier_detector(v, window) for v in (values, norms)]).T
    clear = ~(np.ptp(values) < 1e-3)  # else its running sums are mostly rounding
    if clear:
        near = np.isnan(theirs) | (np.abs(theirs) > 1e-6)
        assert_close(np.round(np.array(scores), 4)[near], np.round(theirs, 4)[near], FORMULA_64)


def noise(n, seed=0):
    return (2 + 0.1 * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_nothing_is_said_until_a_window_is_full_and_then_of_spikes_alone():
    detector = SpikeDetector()
    assert detector.update(1e9, 1e9) is None  # the first one
    for value in noise(127):
        assert detector.update(value, value) is None
        assert math.isnan(detector.scores["loss"])
    for value in noise(200, 1):
        assert detector.update(value, value) is None
    said = detector.update(9.0, 2.0)
    assert said.startswith("loss 9 is ")
    assert "gradient" not in said
    assert detector.scores["loss"] > 6 > abs(detector.scores["grad_norm"])
    assert detector.update(2.0, 50.0).startswith("gradient norm 50 is ")
    assert detector.update(-9.0, 2.0) is None  # a fall is no spike


def test_a_huge_value_leaves_no_trace_when_it_has_left_the_window():
    clean, after = SpikeDetector(window=8), SpikeDetector(window=8)
    after.update(1e200, 1e12)
    for value in noise(12):
        clean.update(value, value)
        after.update(value, value)
    assert clean.scores == after.scores
    assert math.isfinite(clean.scores["loss"])


def test_what_is_not_finite_enters_no_window():
    clean, other = SpikeDetector(window=4), SpikeDetector(window=4)
    for value in noise(9):
        for odd in (NAN, INF, -INF):
            assert other.update(odd, odd) is None
            assert math.isnan(other.scores["loss"])
        clean.update(value, value)
        other.update(value, value)
    assert clean.state_dict() == other.state_dict()
    assert clean.scores == other.scores


def test_equal_values_have_the_score_zero():
    detector = SpikeDetector(window=3)
    for _ in range(5):
        detector.update(0.0, 1.7)
    assert detector.scores == {"loss": 0.0, "grad_norm": 0.0}


@pytest.mark.parametrize("stop", [0, 5, 8, 20])
def test_a_detector_goes_on_from_its_state(stop):
    values = noise(40)
    whole, first = SpikeDetector(1.5, window=8), SpikeDetector(1.5, window=8)
    expected = [whole.update(v, v * 2) for v in values]
    said = [first.update(v, v * 2) for v in values[:stop]]
    second = SpikeDetector(1.5, window=8)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    said += [second.update(v, v * 2) for v in values[stop:]]
    assert said == expected
    assert any(expected)


@pytest.mark.parametrize("state", [
    {}, None, {"loss": [1.0]}, {"loss": [1.0], "grad_norm": [NAN]}, {"loss": 3, "grad_norm": []},
    {"loss": [1.0] * 5, "grad_norm": []}, {"loss": ["1"], "grad_norm": []},
    {"loss": [], "grad_norm": [], "more": []},
])  # fmt: skip
def test_what_is_no_state_is_refused_and_changes_nothing(state):
    detector = SpikeDetector(window=4)
    detector.update(1.0, 2.0)
    with pytest.raises(ConfigError, match="expected what state_dict"):
        detector.load_state_dict(state)
    assert detector.state_dict() == {"loss": [1.0], "grad_norm": [2.0]}


def test_odd_settings_of_a_detector_are_refused():
    with pytest.raises(ConfigError, match="window of 2 values or more, got 1"):
        SpikeDetector(window=1)
    for threshold in (0.0, -1.0, NAN):
        with pytest.raises(ConfigError, match="positive threshold"):
            SpikeDetector(threshold)


# ---- the rule for an update that is not finite -------------------------------------------------
def everything(model, optimizer, scheduler):
    """Weights, optimizer and scheduler as bytes."""
    state = convert_state(optimizer.state_dict(), lambda array: array.tobytes())
    weights = {name: p.numpy().tobytes() for name, p in model.state_dict().items()}
    return repr((weights, state, scheduler.state_dict()))


def small(n_layer=1):
    nplm.manual_seed(3)
    sizes = {"vocab_size": 11, "context": 6, "n_head": 2, "n_embd": 8}
    return Decoder(DecoderConfig(n_layer=n_layer, **sizes))


def batches(n):
    rng = np.random.default_rng(0)
    return [Batch(rng.integers(0, 11, (2, 6)), rng.integers(0, 11, (2, 6))) for _ in range(n)]


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_skipped_update_changes_nothing_and_is_counted(bad, where):
    model, calls = small(), []
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)

    def loss_fn(logits, targets):
        calls.append(1)
        loss = nplm.nn.functional.cross_entropy(
            logits.reshape(-1, 11), targets.reshape(-1), reduction="sum"
        )
        if len(calls) in (3, 4):
            loss = loss * bad if where == "loss" else loss + (logits.mean() * 0).sqrt() * 0
        return loss

    states, records = [everything(model, optimizer, scheduler)], []
    with np.errstate(all="ignore"):
        for record in fit(
            model, optimizer, batches(6), scheduler=scheduler, clip_norm=1.0, epochs=1,
            on_nonfinite="skip", loss_fn=loss_fn,
        ):  # fmt: skip
            records.append(record)
            states.append(everything(model, optimizer, scheduler))
    assert [r.updated for r in records] == [True, True, False, False, True, True]
    assert [r.step for r in records] == [1, 2, 2, 2, 3, 4]
    assert [r.lr for r in records] == [0.1 * 0.5**i for i in (0, 1, 2, 2, 2, 3)]
    assert states[2] == states[3] == states[4]
    assert len(set(states)) == 5
    assert all(np.isfinite(p.numpy()).all() for p in model.state_dict().values())


# ---- windows by epoch ----------------------------------------------------------------------------
def test_a_window_schedule_holds_from_its_epochs_on():
    schedule = WindowSchedule.of({4: 8, 0: 1})
    assert [schedule.size(e) for e in (0, 3, 4, 100)] == [1, 1, 8, 8]
    assert [WindowSchedule.of({2: 3}).size(e) for e in range(4)] == [1, 1, 3, 3]
    assert [WindowSchedule.of({0: 5, 1: 2}).size(e) for e in range(3)] == [5, 2, 2]
    assert [WindowSchedule.of(7).size(e) for e in (0, 9)] == [7, 7]
    assert schedule.changes
    assert not WindowSchedule.of(7).changes
    assert WindowSchedule.parse(["0:1", "4:8"]) == schedule


@given(
    sizes=st.dictionaries(st.integers(0, 9), st.integers(1, 9), min_size=1),
    n=st.integers(1, 30),
    epochs=st.integers(1, 12),
)
def test_the_updates_are_those_of_all_epochs_together(sizes, n, epochs):
    schedule = WindowSchedule.of(sizes)
    held, expected = 1, 0
    for epoch in range(epochs):
        held = sizes.get(epoch, held)
        assert schedule.size(epoch) == held
        expected += math.ceil(n / held)
    assert schedule.updates(n, epochs) == expected


@pytest.mark.parametrize(("sizes", "says"), [
    ({}, "must have an epoch"), ({-1: 2}, "whole epochs from 0 on as keys, got -1"),
    ({"4": 2}, "got '4'"), ({True: 2}, "got True"), ({1.0: 2}, "got 1.0"),
    ({0: 0}, "at least 1, got 0"), ({0: 1, 4: 2.5}, "from epoch 4 on: accumulate must be a whole"),
    (0, "at least 1, got 0"), ("2", "a whole number, got '2'"), (None, "a whole number, got None"),
])  # fmt: skip
def test_odd_window_schedules_are_refused(sizes, says):
    with pytest.raises(ConfigError, match=says):
        WindowSchedule.of(sizes)


@pytest.mark.parametrize(("words", "says"), [
    ([], "must have an epoch"), (["4"], "EPOCH:SIZE, such as 4:8, got '4'"),
    (["-1:2"], "got '-1:2'"), (["1:x"], "got '1:x'"), (["1:2", "01:3"], "epoch 1 is given twice"),
    (["0:0"], "at least 1, got 0"), (["²:2"], "EPOCH:SIZE"),
])  # fmt: skip
def test_odd_words_of_a_window_schedule_are_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        WindowSchedule.parse(words)


def test_random_windows_are_a_loader_that_never_ends():
    assert RandomWindows.endless  # so `fit` refuses a schedule by epochs over it
