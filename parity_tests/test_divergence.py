"""Comparisons of traces: a planted fault is named, healthy runs are within their budgets."""

import dataclasses
import math

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip(
    "torch", reason="the judge of these tests is PyTorch: pip install torch"
)

from recorded_runs import (  # noqa: E402
    FAMILIES,
    batches,
    decoders,
    trace_of_nplm,
    trace_of_torch,
    train_nplm,
    train_torch,
)

import nplm  # noqa: E402
from nplm import optim  # noqa: E402
from nplm.autograd.graph import Node  # noqa: E402
from nplm.autograd.op import wrap  # noqa: E402
from nplm.nn.module import Parameter  # noqa: E402
from nplm.parity import compare, record  # noqa: E402
from nplm.parity.tolerances import EPS, NOISE_SHARE, budget_for  # noqa: E402
from nplm.parity.trace import PHASES, Place, Trace  # noqa: E402

pytestmark = pytest.mark.run

MODES = ["free", "isolated"]
OFF = 1 + 1e-6


# ---- whole runs ----------------------------------------------------------------------------------
def both(settings, dtype, mode, seed=0, **shape):
    config, ours, theirs = decoders(settings, dtype)
    windows = batches(config, seed=seed, **shape)
    expected = trace_of_torch(theirs, windows)
    actual = trace_of_nplm(ours, windows, expected if mode == "isolated" else None)
    return compare(actual, expected, mode=mode)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_have_the_same_places_and_every_value_is_within_budget(family, mode, dtype):
    comparison = both(FAMILIES[family], dtype, mode)
    assert comparison.equal, comparison.first.sentence()
    assert comparison.steps == 2
    assert {m.place.micro for m in comparison.measured} == {0, 1, 2, 3}
    seen = {m.place.phase for m in comparison.measured}
    assert seen == set(PHASES) - {"scheduler", "average", "validation", "stopper"}
    assert max(comparison.by_phase().values()) > 0  # two engines: not the same bits throughout
    for m in comparison.measured:
        if m.place.phase in ("batch", "lr", "random"):
            assert m.worst == 0


shapes = st.fixed_dictionaries(
    {
        "context": st.integers(1, 6), "n_layer": st.integers(1, 2), "n_hidden": st.integers(1, 9),
        "norm": st.sampled_from(["layer", "rms"]), "tied": st.booleans(), "bias": st.booleans(),
        "positions": st.sampled_from(["learned", "rope"]), "vocab_size": st.integers(2, 9),
        "activation": st.sampled_from(["gelu", "gelu_tanh", "swiglu"]),
        "dropout": st.sampled_from([0.0, 0.2]),
    }
)  # fmt: skip


@examples(25)
@given(
    shapes, st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]), st.sampled_from([4, 6]),
    st.sampled_from(MODES), st.sampled_from(["float64", "float32"]), st.integers(1, 3),
    st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_no_healthy_setting_raises_a_false_alarm(
    config, heads, head_size, mode, dtype, micros, rows, seed
):
    heads = {"n_head": heads[0], "n_kv_head": heads[1], "n_embd": heads[0] * head_size}
    comparison = both(config | heads, dtype, mode, seed, micros=micros, rows=rows)
    assert comparison.equal, comparison.first.sentence()


# ---- planted faults ------------------------------------------------------------------------------
def wrong_norm(model):
    norm = model.blocks[1].norm2
    inner = norm.forward

    def forward(x):  # the value alone is wrong
        y = inner(x)
        return wrap(y.array * OFF, Node("fault", ((y.node, y.output),), lambda dy: (dy,)))

    norm.forward = forward
    return "forward", "blocks.1.norm2"


def wrong_backward(model):
    fc = model.blocks[0].mlp.fc
    inner = fc.forward

    def forward(x):  # the gradient of fc's input alone is wrong
        node = Node("fault", ((x.node, x.output),), lambda dy: (dy * OFF,))
        return inner(wrap(x.array, node))

    fc.forward = forward
    return "backward", "blocks.0.norm2"


def wrong_sum(model, patch):
    target, inner = model.blocks[1].attn.proj.weight, Parameter.accumulate

    def accumulate(self, gradient, into=None):
        again = self.grad is not None
        inner(self, gradient, into)
        if self is target and again:
            self.grad.array *= OFF

    patch.setattr(Parameter, "accumulate", accumulate)
    return "accumulated", "blocks.1.attn.proj.weight"


FAULTS = {"norm": wrong_norm, "backward": wrong_backward, "sum": wrong_sum}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_planted_fault_is_the_first_in_a_free_run_and_the_only_one_when_isolated(
    family, fault, monkeypatch
):
    config, ours, theirs = decoders(FAMILIES[family])
    windows = batches(config)
    expected = trace_of_torch(theirs, windows)
    for mode in MODES:
        _, ours, _ = decoders(FAMILIES[family])
        with monkeypatch.context() as patch:
            plant = FAULTS[fault]
            phase, name = plant(ours, patch) if fault == "sum" else plant(ours)
            actual = trace_of_nplm(ours, windows, expected if mode == "isolated" else None)
        comparison = compare(actual, expected, mode=mode)
        first = 2 if fault == "sum" else 1
        assert comparison.first.place == Place(1, first, phase, name), mode
        assert comparison.first is comparison.divergences[0]
        assert comparison.first.kind == "value"
        places = [d.place for d in comparison.divergences]
        alone = [Place(s, m, phase, name) for s in (1, 2) for m in range(first, 4)]
        assert (places == alone) if mode == "isolated" else (len(places) > len(alone))


@pytest.mark.fault
def test_an_epsilon_of_the_optimizer_makes_only_parameters_wrong():
    config, ours, theirs = decoders(FAMILIES["gpt2"])
    windows = batches(config)
    expected = trace_of_torch(theirs, windows)
    comparison = compare(
        trace_of_nplm(ours, windows, expected, eps=2e-8), expected, mode="isolated"
    )
    assert {d.place.phase for d in comparison.divergences} == {"parameter"}
    assert comparison.first.place == Place(1, 0, "parameter", "wte.weight")
    assert {d.place.step for d in comparison.divergences} == {1, 2}
    _, ours, _ = decoders(FAMILIES["gpt2"])
    comparison = compare(trace_of_nplm(ours, windows, eps=2e-8), expected)
    assert comparison.first.place == Place(1, 0, "parameter", "wte.weight")


@pytest.mark.fault
@pytest.mark.parametrize("lr", [math.nextafter(1e-2, 1), 1.5e-2])
def test_a_learning_rate_that_is_off_by_a_bit_or_more_is_named_and_put_right_when_isolated(lr):
    config, ours, theirs = decoders(FAMILIES["gpt2"])
    windows = batches(config, steps=1)
    expected = trace_of_torch(theirs, windows)
    comparison = compare(trace_of_nplm(ours, windows, expected, lr=lr), expected, mode="isolated")
    assert [d.place for d in comparison.divergences] == [Place(1, 0, "lr", "lr.0")]


@pytest.mark.fault
def test_swapped_betas_are_named_before_any_moment():
    config, _, theirs = decoders(FAMILIES["gpt2"])
    windows = batches(config, steps=1)
    expected = trace_of_torch(theirs, windows)
    _, _, theirs = decoders(FAMILIES["gpt2"])
    comparison = compare(trace_of_torch(theirs, windows, betas=(0.99, 0.9)), expected)
    assert comparison.first.place == Place(1, 0, "lr", "betas.0")
    assert [d.place.phase for d in comparison.divergences].count("lr") == 1


# ---- single values -------------------------------------------------------------------------------
def trace(values, dtype="float64", **meta):
    made = Trace({"engine": "x", "dtype": dtype} | meta)
    for place, value in values:
        made.add(place, value)
    return made


def one(value, phase="forward", dtype="float64"):
    return trace([(Place(1, 1, phase, "fc"), value)], dtype)


@pytest.mark.parametrize(
    ("actual", "expected", "kind", "index", "sentence"),
    [
        ([1.0, 2.0], [1.0, 3.0], "value", (1,), "at [1]: expected 3.0, got 2.0\n  off by 1, allow"),
        ([1.0, math.nan], [1.0, 3.0], "nan", (1,), "at [1]: expected 3.0, got nan"),
        ([math.nan, 1.0], [1.0, math.nan], "nan", (0,), "at [0]: expected 1.0, got nan"),
        ([math.inf], [-math.inf], "value", (0,), "expected -inf, got inf"),
        ([1.0], [math.inf], "value", (0,), "expected inf, got 1.0"),
        (1.0, 2.0, "value", (), "of fc: expected 2.0, got 1.0"),
        ([[1.0]], [1.0], "shape", None, "expected shape (1,), got (1, 1)"),
        (np.float32([1]), [1.0], "dtype", None, "expected dtype float64, got float32"),
        ([3, 4], [3, 5], "value", (1,), "expected 5, got 4"),
        (np.uint8([0, 255]), np.uint8([0, 1]), "value", (1,), "expected 1, got 255"),
        ([True], [False], "value", (0,), "expected False, got True"),
        ([1 + 2j], [1 + 3j], "value", (0,), "expected (1+3j), got (1+2j)"),
    ],
)
def test_each_kind_of_divergence_is_named_in_a_sentence(actual, expected, kind, index, sentence):
    found = compare(one(np.array(actual)), one(np.array(expected))).first
    assert (found.kind, found.index) == (kind, index)
    assert found.sentence().startswith("step 1, micro-batch 1, forward of fc")
    assert sentence in found.sentence()


@pytest.mark.parametrize("value", [[math.nan, 1.0], [math.inf, -math.inf], [], 0.0, [2**63 - 1]])
def test_equal_values_are_equal_also_where_they_are_no_numbers(value):
    comparison = compare(one(np.array(value)), one(np.array(value)))
    assert comparison.equal
    assert comparison.measured[0].error == 0


def test_what_one_side_lacks_is_a_divergence_at_its_place_in_causal_order():
    places = [Place(1, 1, "forward", "a"), Place(1, 1, "backward", "a"), Place(1, 0, "norm", "n")]
    extra = Place(1, 1, "loss", "l")
    expected = trace([(p, 1.0) for p in reversed(places)])
    actual = trace([(p, 1.0) for p in (*places[:1], extra, places[2])])
    comparison = compare(actual, expected)
    assert [(d.place, d.kind) for d in comparison.divergences] == [
        (extra, "extra"), (places[1], "missing"),
    ]  # fmt: skip
    assert "only the reference has it" in comparison.divergences[1].sentence()
    assert "the reference has nothing there" in comparison.first.sentence()
    assert comparison.by_phase() == {
        "forward": 0.0, "loss": math.inf, "backward": math.inf, "norm": 0.0,
    }  # fmt: skip
    assert comparison.grid()["backward", 1] == math.inf


values = st.lists(st.floats(1, 8), min_size=2, max_size=6)


@given(values, st.data(), st.sampled_from(sorted(EPS)), st.sampled_from(MODES))
def test_a_difference_just_over_the_budget_is_found_at_its_index_and_one_under_it_is_not(
    given, data, dtype, mode
):
    expected = np.array(given)
    where = data.draw(st.integers(0, len(given) - 1))
    expected[where] = 2.0**-30  # where adding the difference does not round it
    allowed = budget_for(dtype, "backward", mode).allowed(expected.max(), 1, 0.0, 0.0, 1)
    for factor in (0.9, 1.1):
        actual = expected.copy()
        actual[where] += factor * allowed
        traces = [one(value, "backward", dtype) for value in (actual, expected)]
        comparison = compare(*traces, mode=mode)
        assert comparison.equal == (factor < 1)
        assert comparison.measured[0].error == pytest.approx(factor, rel=1e-3)
        if factor > 1:
            assert comparison.first.index == (where,)
            assert comparison.first.budget == pytest.approx(allowed)


def test_every_phase_has_a_budget_with_a_reason_and_float64_is_tight():
    for phase in PHASES:
        for mode in MODES:
            for dtype in EPS:
                assert len(budget_for(dtype, phase, mode).reason) > 20
            exact = budget_for("float64", phase, mode)
            assert exact.allowed(1.0, 1, 0.0, 0.0, 200) <= 2e-9
            assert exact.allowed(1.0, 1, 0.0, 0.0, 1) < 1e-13
            if phase in ("batch", "lr", "random", "scheduler"):
                assert exact.allowed(1.0, 1, 0.0, 1.0, 200) == 0
    assert budget_for("float64", "gradient", "isolated").allowed(1.0, 10**6, 0.0, 0.0, 1) < 1e-10


def adam_like(gradient, parameter, lr=0.1, step=1):
    """One step as a trace: a clipped gradient, an lr, a parameter."""
    return trace(
        [
            (Place(step, 0, "clipped", "w"), np.array(gradient)),
            (Place(step, 0, "lr", "lr.0"), lr),
            (Place(step, 0, "state", "w.exp_avg"), np.array(gradient)),
            (Place(step, 0, "parameter", "w"), np.array(parameter)),
        ]
    )


def test_a_parameter_whose_gradient_is_rounding_is_reported_and_not_judged_in_free_runs_alone():
    floor = NOISE_SHARE * budget_for("float64", "clipped", "free").allowed(1.0, 1, 0.0, 0.0, 1)
    expected = adam_like([1.0, floor / 2, 0.0, 2 * floor], [1.0, 0.1, 0.5, 0.5])
    noisy = adam_like([1.0, -floor / 2, 0.0, 2 * floor], [1.0, -0.1, 0.5, 0.5])
    comparison = compare(noisy, expected)
    assert comparison.equal
    assert "first gradient" not in comparison.notes[0]
    assert "1 of 4 elements" in comparison.notes[0]
    assert "up to 0.2 apart (2 lr)" in comparison.notes[0]
    assert not compare(noisy, expected, mode="isolated").equal
    for index, value in ((2, 0.6), (3, 5.0)):  # exactly 0 on both sides; above the floor
        wrong = [1.0, 0.1, 0.5, 0.5]
        wrong[index] = value
        found = compare(adam_like([1.0, -floor / 2, 0.0, 2 * floor], wrong), expected).first
        assert (found.place.phase, found.index) == ("parameter", (index,))


def test_an_element_that_had_a_real_gradient_before_stays_judged():
    first, expected = adam_like([1.0, 0.5], [1.0, 1.0]), adam_like([1.0, 1e-20], [1.0, 1.0], step=2)
    comparison = compare(first, first)
    wrong = adam_like([1.0, -1e-20], [1.0, 1.1], step=2)
    assert not compare(wrong, expected, into=comparison).equal
    assert comparison.first.index == (1,)


def test_step_by_step_comparison_equals_that_of_the_whole_run():
    config, ours, theirs = decoders(FAMILIES["gpt2"], "float32")
    windows = batches(config, steps=3)
    expected, actual = trace_of_torch(theirs, windows), trace_of_nplm(ours, windows)
    whole, pieces = compare(actual, expected), None
    for step in expected.steps():
        parts = []
        for t in (actual, expected):
            part = Trace(t.meta)
            for e in t.of_step(step):
                part.add(e.place, e.value, e.terms, e.scale)
            parts.append(part)
        pieces = compare(*parts, into=pieces)
    assert pieces.measured == whole.measured
    assert (pieces.steps, pieces.notes) == (whole.steps, whole.notes)
    assert pieces.meta["actual"]["engine"] == "nplm"
    assert pieces.meta["expected"]["engine"] == "torch"


def test_another_table_of_budgets_can_be_given():
    strict = lambda *key: dataclasses.replace(budget_for(*key), ulps=0, lr_ulps=0)  # noqa: E731
    a, b = one(np.array([1.0])), one(np.array([1 + 2.0**-52]))
    assert compare(a, b).equal
    assert not compare(a, b, budgets=strict).equal


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "Adam": {"amsgrad": True, "lr": 1e-2},
    "RMSprop": {"momentum": 0.9, "centered": True}, "Rprop": {}, "Adagrad": {}, "Adadelta": {},
    "NAdam": {}, "RAdam": {}, "Adamax": {}, "ASGD": {}, "Adafactor": {}, "Muon": {},
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_within_budget_key_biases_and_bfloat16_included(name, mode):
    config, _, theirs = decoders(FAMILIES["gpt2"])
    windows, made = batches(config, steps=4, micros=1), {}
    for engine, train in (("torch", train_torch), ("nplm", train_nplm)):
        _, ours, theirs = decoders(FAMILIES["gpt2"])
        model, library = (ours, optim) if engine == "nplm" else (theirs, torch.optim)
        trained = [p for p in model.parameters() if name != "Muon" or len(p.shape) == 2]
        optimizer = getattr(library, name)(trained, **OPTIMIZERS[name])
        nplm.manual_seed(7)
        torch.manual_seed(7)
        like = made.get("torch") if mode == "isolated" else None
        with record(model, optimizer, like=like) as recorder:
            train(model, windows, recorder, optimizer)
        made[engine] = recorder.trace
    comparison = compare(made["nplm"], made["torch"], mode=mode)
    assert comparison.equal, comparison.first.sentence()
