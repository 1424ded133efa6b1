"""Every planted fault is found, in every mode that is claimed, and at the place where it is."""

import dataclasses
import inspect
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="the judge of these tests is PyTorch: pip install torch"
)

import nplm  # noqa: E402
from nplm.autograd import overrides  # noqa: E402
from nplm.autograd.op import Op, Update  # noqa: E402
from nplm.errors import ConfigError  # noqa: E402
from nplm.nn.module import Parameter  # noqa: E402
from nplm.parity import faults, lockstep, nplm_run  # noqa: E402
from nplm.parity.faults import FAULTS, MODES, Fault, find, plant  # noqa: E402
from nplm.parity.faults.planting import BACKENDS, altered, planted, resolve  # noqa: E402
from nplm.parity.trace import PHASES, Place  # noqa: E402
from nplm.parity.twin_run import TorchRun  # noqa: E402

pytestmark = pytest.mark.fault

SEEDS = (0, 1, 2)
# One seed and one mode each by default, the two modes in turn; the rest is slow.
CLAIMED = [(name, mode) for name, fault in FAULTS.items() for mode in fault.modes]
QUICK = [(f.name, f.modes[i % len(f.modes)]) for i, f in enumerate(FAULTS.values())]
REST = [(n, m, s) for n, m in CLAIMED for s in SEEDS if s or (n, m) not in QUICK]
UNSEEN = [(n, m) for n, fault in FAULTS.items() for m in MODES if m not in fault.modes]


def scenarios(seed):
    """The distinct runs that the faults need, under the name of the first fault of each."""
    found = {}
    for name, fault in FAULTS.items():
        found.setdefault(repr(fault.scenario(faults.base(seed))), name)
    return list(found.values())


def found_in_its_place(name, mode, seed, device="cpu"):
    first, fault = find(name, mode, seed, device).first, FAULTS[name]
    assert first is not None, f"{name} was not found in {mode} mode"
    assert fault.expects(first.place), f"expected {fault.place}\n{first.sentence()}"


@pytest.mark.parametrize(("name", "mode"), QUICK)
def test_a_fault_is_found_where_it_was_planted(name, mode):
    found_in_its_place(name, mode, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode", "seed"), REST)
def test_a_fault_is_found_where_it_was_planted_with_every_seed(name, mode, seed):
    found_in_its_place(name, mode, seed)


ON_TORCH = [(name, mode) for name, mode in QUICK if not FAULTS[name].numpy_only]


@pytest.mark.parametrize(("name", "mode"), ON_TORCH[::8])
def test_a_fault_is_found_on_torch_tensors_too(name, mode):
    found_in_its_place(name, mode, 0, "torch:cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [x for i, x in enumerate(ON_TORCH) if i % 8])
def test_every_other_fault_is_found_on_torch_tensors_too(name, mode):
    found_in_its_place(name, mode, 0, "torch:cpu")


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.numpy_only])
def test_what_is_wrong_with_numpy_only_is_equal_on_torch(name):
    assert find(name, FAULTS[name].modes[0], 0, "torch:cpu").equal
    assert len(FAULTS[name].numpy_only.split()) > 5


@pytest.mark.parametrize(("name", "mode"), UNSEEN)
def test_a_mode_that_cannot_see_a_fault_sees_nothing(name, mode):
    for seed in SEEDS:
        assert find(name, mode, seed).equal
    assert len(FAULTS[name].unseen.split()) > 5


def equal_without_it(name, mode, seed):
    comparison = lockstep.lockstep(FAULTS[name].scenario(faults.base(seed)), mode=mode)
    assert comparison.equal, comparison.first.sentence()


@pytest.mark.parametrize(
    ("name", "mode"), [(name, MODES[i % 2]) for i, name in enumerate(scenarios(0))]
)
def test_without_the_fault_the_same_run_is_equal(name, mode):
    equal_without_it(name, mode, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", MODES)
def test_without_any_fault_all_these_runs_are_equal(mode, seed):
    for name in scenarios(seed):
        equal_without_it(name, mode, seed)


# ---- planting ------------------------------------------------------------------------------------
def planted_things():
    """Whatever a fault may touch: the override table, and the code of every target."""
    targets = [resolve(fault.target) for fault in FAULTS.values()]
    codes = [t.raw.__code__ if isinstance(t, Op | Update) else t.__code__ for t in targets]
    return {key: list(entries) for key, entries in overrides.OVERRIDES.items()}, codes


def test_a_fault_is_asked_before_every_kernel(monkeypatch):
    monkeypatch.setattr(overrides, "_kernels_loaded", set())
    with plant("softmax-gradient-without-sum"):
        assert overrides._kernels_loaded == set(BACKENDS)  # none is loaded on top of it
        for backend in BACKENDS:
            when, body = overrides.OVERRIDES["attention", backend][0]
            assert when is None
            assert body.__code__.co_filename == "<a planted fault>"


def test_planting_changes_something_and_puts_everything_back():
    with plant("softmax-gradient-without-sum"):
        pass  # both backends' kernels are loaded from here on
    before = planted_things()
    for name in FAULTS:
        with pytest.raises(KeyboardInterrupt), plant(name):  # noqa: PT012
            assert planted_things() != before, name
            raise KeyboardInterrupt
        assert planted_things() == before, name


def test_a_run_that_ends_with_an_error_is_compared_and_leaves_nothing_behind():
    steps, accumulate = nplm_run.NplmRun.steps, Parameter.accumulate
    state = nplm.random.get_rng_state()
    comparison = find("loss-not-shifted")
    assert "NonFiniteError" in comparison.notes[-1]
    assert nplm_run.NplmRun.steps is steps
    assert Parameter.accumulate is accumulate
    assert str(state) == str(nplm.random.get_rng_state())


def test_an_error_after_a_resumption_leaves_nothing_behind(monkeypatch):
    fault, accumulate = FAULTS["loss-not-shifted"], Parameter.accumulate
    needs = {**fault.needs, "resume_at": 1}
    monkeypatch.setitem(FAULTS, fault.name, dataclasses.replace(fault, needs=needs))
    comparison = find(fault.name)
    assert "NonFiniteError" in comparison.notes[-1]
    assert Parameter.accumulate is accumulate


def test_two_faults_can_be_planted_and_the_first_of_their_places_is_named():
    with plant("adam-eps-inside-root"):
        assert FAULTS["mask-left-out"].expects(find("mask-left-out").first.place)
        assert FAULTS["adam-eps-inside-root"].expects(find("scheduler-a-step-late").first.place)


def test_one_function_takes_one_fault_at_a_time():
    with plant("targets-are-inputs"), pytest.raises(ConfigError, match="has a fault already"):
        plant("targets-two-ahead").__enter__()


def torch_trace(scenario):
    with torch.random.fork_rng(devices=[]):
        run = TorchRun(scenario, nplm_run.NplmRun(scenario).weights())
        for _ in run.steps():
            pass
    return {entry.place: entry.value for entry in run.recorder.trace}


@pytest.mark.parametrize("name", list(FAULTS)[::8])
def test_a_fault_leaves_the_reference_as_it_is(name):
    scenario = FAULTS[name].scenario(faults.base(3))
    healthy = torch_trace(scenario)
    with plant(name):
        faulty = torch_trace(scenario)
    assert healthy.keys() == faulty.keys()
    for place, value in healthy.items():
        assert np.array_equal(value, faulty[place], equal_nan=value.dtype.kind == "f"), place


def test_a_text_that_is_not_there_once_is_an_error():
    function = resolve("nplm.train.loop.evaluate")
    assert altered(function, (("finally", "finally"),)).__code__ is not function.__code__
    for old in ("no such text", "model"):
        count = inspect.getsource(function).count(old)
        with pytest.raises(ConfigError, match=f"once in evaluate, found it {count} times"):
            altered(function, ((old, "x"),))
    with pytest.raises(ConfigError, match=r"there is no torch\.nowhere\.at_all"):
        resolve("torch.nowhere.at_all")
    with pytest.raises(ConfigError, match="did you mean 'mask-left-out'"):
        plant("mask-left-ou")


def test_an_override_cannot_be_planted_where_overrides_are_off():
    before = planted_things()
    with nplm.reference(), plant("rope-theta"):
        assert planted_things() != before  # a function's code, which needs no override
    with (
        nplm.reference(),
        pytest.raises(ConfigError, match="NPLM_REFERENCE"),
        plant("softmax-gradient-without-sum"),
    ):
        pass
    assert planted_things() == before


# ---- the table -----------------------------------------------------------------------------------
GOOD = {
    "name": "a-fault", "group": "norms", "sentence": "It is wrong.",
    "target": "nplm.train.loop.fit", "swaps": (("a", "b"),), "place": Place(1, 1, "forward", "wte"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"place": Place(1, 1, "forward", "*")}, "name of a tensor"),
        ({"place": Place(1, 1, "forward", "")}, "name of a tensor"),
        ({"place": Place(1, 1, "forwards", "wte")}, "place that a run has"),
        ({"place": Place(0, 1, "forward", "wte")}, "place that a run has"),
        ({"place": Place(1, 0, "forward", "wte")}, "place that a run has"),
        ({"place": Place(1, 1, "parameter", "wte.weight")}, "place that a run has"),
        ({"modes": ()}, "modes out of"),
        ({"modes": ("isolated", "loose")}, "modes out of"),
        ({"modes": ("isolated",)}, "reason"),
        ({"unseen": "a reason without a mode"}, "reason"),
        ({"sentence": ""}, "a sentence"),
        ({"swaps": ()}, "something to replace"),
    ],
)
def test_a_fault_that_names_no_place_cannot_be_in_the_table(change, words):
    assert Fault(**GOOD).place
    with pytest.raises(ConfigError, match=words):
        Fault(**{**GOOD, **change})


def test_the_place_is_compared_in_every_part():
    fault = Fault(**{**GOOD, "place": Place(2, 1, "gradient", "*.attn.qkv.bias")})
    right = Place(2, 1, "gradient", "blocks.0.attn.qkv.bias")
    assert fault.expects(right)
    for wrong in (
        Place(1, 1, right.phase, right.name), Place(2, 2, right.phase, right.name),
        Place(2, 1, "accumulated", right.name), Place(2, 1, right.phase, "attn.qkv.weight"),
    ):  # fmt: skip
        assert not fault.expects(wrong)


def test_the_table_is_large_and_covers_every_phase():
    assert len(FAULTS) >= 64
    assert {fault.place.phase for fault in FAULTS.values()} == set(PHASES)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name) for name in FAULTS)
    assert all(name == fault.name for name, fault in FAULTS.items())
    assert all(fault.sentence.endswith((".", '".')) for fault in FAULTS.values())
    assert len({(fault.target, fault.swaps) for fault in FAULTS.values()}) == len(FAULTS)
    assert min(Counter(fault.group for fault in FAULTS.values()).values()) >= 3


def test_the_localiser_knows_nothing_of_faults():
    folder = Path(lockstep.__file__).parent
    for name in ("lockstep", "nplm_run", "twin_run", "recorder", "steps", "divergence", "trace"):
        assert "parity.faults" not in (folder / f"{name}.py").read_text(encoding="utf-8")
    comparison = find("rope-theta")
    assert "theta" not in comparison.title + str(comparison.notes) + comparison.first.sentence()


def test_a_fault_can_be_planted_without_a_name():
    ours = Fault(
        **{**GOOD, "target": "nplm.ops.dropout.dropout_scale", "swaps": (("(1 - p) if", "p if"),)}
    )
    with planted(ours):
        assert nplm.nn.functional.dropout(nplm.ones(100), 0.2).max().item() == 5.0
    assert nplm.nn.functional.dropout(nplm.ones(100), 0.2).max().item() == 1.25


def test_the_table_fits_80_columns_and_marks_what_is_wrong():
    names = ["rope-theta", "attention-dropout-not-in-backward", "resume-weights-in-bfloat16"]
    results = [faults.look(name, mode) for name in names for mode in MODES]
    text = faults.table(results)
    assert max(map(len, text.splitlines())) == 80
    assert "!" not in text
    assert all(name in text for name in names)
    assert "free: 2 of 2 found where they were planted, 1 it cannot see\n" in text
    wrong = faults.Found("rope-theta", "free", 1, Place(1, 1, "forward", "wte"), "value", 3.0)
    assert "rope-theta                       !" in faults.table([wrong])
    assert "free: 0 of 1 found where they were planted, 1 WRONG" in faults.table([wrong])
    assert max(map(len, faults.table([wrong]).splitlines())) == 80
    seen = faults.Found(names[2], "free", 1, FAULTS[names[2]].place, "value", 3.0)
    assert f"{names[2]:<33}!" in faults.table([seen])
    assert "where they were planted, 1 it cannot see, 1 WRONG" in faults.table([seen])


def test_the_page_names_every_fault_and_what_a_mode_cannot_see():
    page = faults.markdown(
        faults.Found(name, mode, 0, fault.place, "value", 2e9)
        for name, fault in FAULTS.items()
        for mode in MODES
    )
    for name, fault in FAULTS.items():
        assert f"| **{name}**<br>{fault.sentence} | `{fault.target[5:]}` | {fault.place} |" in page
        assert not fault.unseen or f"* **{name}**, free: {fault.unseen}." in page
    assert "| 2e09 | 2e09 |" in page
