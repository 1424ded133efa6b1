"""EarlyStopping where something goes wrong: foreign files, damaged states, odd losses."""

import math
from fractions import Fraction

import numpy as np
import pytest
from test_early_stopping import Net, assert_same_weights, bits, public, through_json
from test_stopping_rules import OPTIONS, each_semantics

from nplm.errors import CheckpointError, ConfigError
from nplm.train import EarlyStopping

pytestmark = pytest.mark.step


@pytest.mark.parametrize("huge", [10**400, Fraction(10**400)], ids=["int", "Fraction"])
def test_a_number_beyond_float64_is_refused(huge):
    stopper = EarlyStopping(path=None)
    for use in (lambda: stopper(huge), lambda: EarlyStopping(delta=huge)):
        with pytest.raises(ConfigError, match="within float64's range"):
            use()
    assert stopper.calls == 0


def test_what_is_no_module_is_refused_whether_the_loss_improves_or_not():
    stopper = EarlyStopping(path=None)
    stopper(1.0, Net())
    before = public(stopper)
    uses = (lambda: stopper(0.5, "net"), lambda: stopper(2, "net"), lambda: stopper.restore_best(3))
    for use in uses:
        with pytest.raises(TypeError, match=r"expected the model, an nplm\.nn\.Module, got "):
            use()
    assert public(stopper) == before


def test_a_trace_func_that_fails_leaves_a_whole_call_behind():
    def broken_pipe(message):
        raise BrokenPipeError(message)

    loud = EarlyStopping(1, verbose=True, path=None, trace_func=broken_pipe)
    quiet = EarlyStopping(1, path=None)
    for loss in (2.0, math.nan, 1.0, 3.0):
        with pytest.raises(BrokenPipeError):
            loud(loss, step=4)
        quiet(loss, step=4)
        assert loud.state_dict() == quiet.state_dict()


def test_weights_that_another_stopper_wrote_to_the_path_are_refused(tmp_path):
    ours, theirs, path = Net(), Net(), tmp_path / "best.pt"
    theirs.train_in_place()
    first, second = EarlyStopping(path=path), EarlyStopping(path=path)
    first(1.0, ours)
    second(1.0, theirs)
    before = bits(ours)
    with pytest.raises(CheckpointError, match=r"best\.pt: expected what the best call wrote"):
        first.restore_best(ours)
    assert_same_weights(ours, before)
    second.restore_best(ours)
    assert_same_weights(ours, bits(theirs))


def test_an_older_file_at_the_path_is_not_taken_for_the_best_of_a_loaded_state(tmp_path):
    model = Net()
    old = EarlyStopping(path=tmp_path / "old.pt")
    old(2.0, model)
    model.train_in_place()
    new = EarlyStopping(path=tmp_path / "new.pt")
    new(1.0, model)
    other = EarlyStopping(path=tmp_path / "old.pt")
    other.load_state_dict(through_json(new.state_dict()))
    with pytest.raises(CheckpointError, match=r"old\.pt: expected what .* wrote to .*new\.pt"):
        other.restore_best(model)


def test_a_state_shares_no_memory_with_its_stopper():
    model = Net()
    stopper = EarlyStopping(path=None)
    stopper(1.0, model)
    state, expected = stopper.state_dict(), bits(model)
    other = EarlyStopping(path=None)
    other.load_state_dict(state)
    for array in state["weights"].values():
        array[...] = 9
    for each in (stopper, other):
        each.restore_best(model)
        assert_same_weights(model, expected)


GARBAGE = {
    "patience": [0, True, 2.0, "3", None],
    "delta": [-1.0, math.nan, "0", None, True],
    "counter": [-1, 1.0, None],
    "best_val_loss": [math.nan, "1", True, np.zeros(2)],
    "val_loss_min": [math.nan, None],
    "early_stop": [0, None, "no"],
    "calls": [-1, 2.5],
    "best_call": [0, "1"],
    "best_step": ["9", [1]],
    "reason": [3],
    "kept": [1, None, False],
    "kept_at": [3, "best.pt"],
    "sha256": [b"", "abc"],
    "weights": [None, [1], {1: np.zeros(2)}, {"a": [1, 2]}, {"a": np.array([None])}],
    "semantics": [None, 3, "Keras", "keras", ""],
    "options": [None, [], {"mode": "min"}, {"a": 1}, {1: 2}],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in GARBAGE.items() for v in vs])
def test_a_state_with_garbage_is_refused_whole(name, value):
    stopper = EarlyStopping(path=None)
    stopper(1.0, Net())
    before = public(stopper)
    assert GARBAGE.keys() == stopper.state_dict().keys()
    with pytest.raises(CheckpointError, match=r"EarlyStopping\.load_state_dict: expected "):
        stopper.load_state_dict(stopper.state_dict() | {name: value})
    assert public(stopper) == before
    stopper.restore_best(Net())


@pytest.mark.parametrize(
    "change",
    [{"options": {}}, {"options": {"mode": "min", "baseline": None}}, {"patience": -1},
     {"options": {"mode": None, "baseline": None, "start_from_epoch": 0}}, {"delta": math.nan},
     {"options": {"mode": "min", "baseline": None, "start_from_epoch": -1}},
     {"options": {"mode": "min", "baseline": None, "start_from_epoch": 0, "more": 1}},
     {"semantics": "transformers"}, {"semantics": "lightning"}, {"semantics": "pytorchtools"}],
)  # fmt: skip
def test_a_state_of_another_tool_with_garbage_is_refused_whole(change):
    stopper = EarlyStopping(0, delta=-1, path=None, semantics="keras")
    stopper(math.nan, Net())
    before = repr(public(stopper))
    with pytest.raises(CheckpointError, match=r"EarlyStopping\.load_state_dict: expected "):
        stopper.load_state_dict(stopper.state_dict() | change)
    assert repr(public(stopper)) == before


def test_a_best_loss_of_nan_is_good_just_where_the_tool_has_one():
    for semantics in OPTIONS:
        stopper = EarlyStopping(path=None, semantics=semantics)
        stopper(1.0)
        for name in ("best_val_loss", "val_loss_min"):
            state = stopper.state_dict() | {name: math.nan}
            if semantics in ("keras", "pytorchtools-2020"):
                stopper.load_state_dict(state)
                assert math.isnan(getattr(stopper, name))
            else:
                with pytest.raises(CheckpointError, match="a best loss that is not NaN"):
                    stopper.load_state_dict(state)


def test_a_state_of_the_time_when_there_was_one_rule_is_of_that_rule():
    stopper = EarlyStopping(2, path=None)
    stopper(1.0)
    state = {k: v for k, v in stopper.state_dict().items() if k not in ("semantics", "options")}
    other = EarlyStopping(path=None, semantics="keras")
    other.load_state_dict(state)
    assert public(other) == public(stopper)
    assert other.rule is None


@pytest.mark.parametrize("state", [None, 3, "state", [], [("patience", 1)]])
def test_what_is_no_mapping_is_no_state(state):
    with pytest.raises(CheckpointError, match=r"expected a state_dict\(\), got "):
        EarlyStopping(path=None).load_state_dict(state)


# ---- the settings --------------------------------------------------------------------------------
def test_the_default_is_the_rule_of_today_and_has_no_options():
    assert EarlyStopping().semantics == EarlyStopping(semantics="pytorchtools").semantics
    assert EarlyStopping().options == {}


@pytest.mark.parametrize("semantics", ["Keras", "", None, 3])
def test_a_semantics_that_there_is_not_is_answered_with_those_that_there_are(semantics):
    with pytest.raises(ConfigError, match="semantics as one of pytorchtools, pytorchtools-2020, "):
        EarlyStopping(semantics=semantics)


@each_semantics
def test_an_option_that_a_semantics_has_not_is_refused_with_those_that_have_it(semantics):
    values = {name: value[-1] for options in OPTIONS.values() for name, value in options.items()}
    assert len(values) == 7
    for name, value in values.items():
        if name in OPTIONS[semantics]:
            rule = EarlyStopping(semantics=semantics, **{name: value})
            assert rule.options[name] == value
            continue
        having = ", ".join(other for other, options in OPTIONS.items() if name in options)
        with pytest.raises(ConfigError, match=f"'{semantics}' has no {name}, .*: {having}$"):
            EarlyStopping(semantics=semantics, **{name: value})
        EarlyStopping(semantics=semantics, **{name: None})  # as good as not given
    with pytest.raises(TypeError, match="no argument 'min_delta'"):
        EarlyStopping(semantics=semantics, min_delta=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mode", "auto"), ("mode", 1), ("check_finite", 1), ("check_finite", "no"),
     ("stopping_threshold", math.nan), ("divergence_threshold", "1"), ("stopping_threshold", True),
     ("stopping_threshold", 10**400), ("divergence_threshold", [1.0])],
)  # fmt: skip
def test_an_option_of_another_kind_is_answered_with_one_sentence(name, value):
    with pytest.raises(ConfigError, match=f"EarlyStopping: expected {name} as .*, got "):
        EarlyStopping(semantics="lightning", **{name: value})


@pytest.mark.parametrize(
    ("semantics", "name", "value"),
    [("keras", "start_from_epoch", -1), ("keras", "start_from_epoch", 1.0),
     ("keras", "start_from_epoch", True), ("keras", "baseline", math.nan),
     ("plateau", "threshold_mode", "relative")],
)  # fmt: skip
def test_so_is_one_of_another_tool(semantics, name, value):
    with pytest.raises(ConfigError, match=f"EarlyStopping: expected {name} as .*, got "):
        EarlyStopping(semantics=semantics, **{name: value})


@each_semantics
def test_patience_and_delta_may_be_what_the_tool_takes(semantics):
    default = semantics == "pytorchtools"
    for name, value in (("patience", 0), ("delta", -0.5)):
        if default:
            with pytest.raises(ConfigError, match=f"{name} >= "):
                EarlyStopping(semantics=semantics, **{name: value})
        else:
            assert getattr(EarlyStopping(semantics=semantics, **{name: value}), name) == value
    for name, value in (("patience", -1), ("delta", math.nan)):
        with pytest.raises(ConfigError, match=f"expected a .*{name}"):
            EarlyStopping(semantics=semantics, **{name: value})
