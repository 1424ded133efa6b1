"""States, manifests and pickles that someone made to do harm: only our own errors come of them."""

import hashlib
import json
import pickle
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stored import new_run, save_example
from test_hostile_files import NUMBERS, hostile, outcome

import nplm
from nplm import files
from nplm.errors import CheckpointError
from nplm.files import system
from nplm.models.config import DecoderConfig
from nplm.models.decoder import Decoder
from nplm.optim.optimizer import convert_state
from nplm.train import parts
from nplm.train.checkpoint import best_checkpoint, load_checkpoint
from nplm.train.config import OptimizerConfig, TrainConfig
from nplm.train.packing import unpack
from nplm.train.resume import load_states
from nplm.train.run import RunFolder

pytestmark = pytest.mark.cli

# ---- JSON and states ------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=3)
    | st.sampled_from([10**400, 2**63, -1, "1", "01", "inf", "<f8", "O", "(9,)f8", "AAAA", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["$tensor", "$float", "$tuple", "$int_keys", "$array", "$new", "dtype",
                         "shape", "base64", "1", "01", "a", "w", "../x"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
ARRAYS = st.fixed_dictionaries({"$array": st.fixed_dictionaries({
    "dtype": st.sampled_from(["<f8", "|b1", ">i2", "O", "|O", "V8", "<U9", "<f3", "f8,f8", 1, None,
                              "(99999999,)f8", "<m8[s]", "|i1", "<f16", "<c8", "{'a': 'f8'}"]),
    "shape": st.lists(NUMBERS, max_size=3) | VALUES,
    "base64": st.sampled_from(["", "AAAAAAAAAAA=", "AA==", "A", "\xe9", "AA\n=="]) | VALUES,
})})  # fmt: skip


@hostile(1500)
@given(VALUES | ARRAYS | st.lists(ARRAYS, max_size=2))
@example({"$float": 10**400})
@example({"$float": "x" * 5000})
@example({"$int_keys": {"1": 1, "01": 2}})
@example({"$int_keys": {"x" * 5000: 1}})
@example({"$tensor": ["w"]})
@example({"$tensor": "\u202e" * 5000})
@example({"$array": {"dtype": "|O", "shape": [1], "base64": "AAAAAAAAAAA="}})
@example({"$array": {"dtype": "<f8", "shape": [0, 10**30], "base64": ""}})
def test_a_made_up_state_unpacks_or_is_our_error(packed):
    state = outcome(unpack, packed, "state.json", {"w": np.zeros(1)})
    if isinstance(state, np.ndarray):
        assert state.dtype.kind in "biuf"
        assert state.ndim <= 64


def array(dtype="<f8", shape=(1,), base64="AAAAAAAAAAA="):
    return {"$array": {"dtype": dtype, "shape": list(shape), "base64": base64}}


@pytest.mark.parametrize(("packed", "sentence"), [
    ({"$float": "1e5"}, r"damaged \$float: '1e5'"),
    ({"$float": "inf", "more": 1}, r"damaged \$float: too many values"),
    ({"$tuple": "ab"}, r"damaged \$tuple: expected a list, got 'ab'"),
    ({"$int_keys": {"01": 1}}, r"damaged \$int_keys: '01' is not how a whole number is written"),
    (array(shape=[-1]), r"damaged \$array: \[-1\] is not a shape"),
    (array(shape=[True]), r"damaged \$array: \[True\] is not a shape"),
    (array(shape=[1] * 65), r"damaged \$array: \[1, 1, .* is not a shape"),
    (array(shape=[0, 2**31], base64=""), r"damaged \$array: \[0, 2147483648\] is not a shape"),
    (array("f8,f8"), r"damaged \$array: 'f8,f8' is not a dtype of numbers"),
    (array("|O"), r"damaged \$array: '|O' is not a dtype of numbers"),
])  # fmt: skip
def test_a_mark_that_is_damaged_is_refused_with_the_reason(packed, sentence):
    with pytest.raises(CheckpointError, match=rf"^here: {sentence}"):
        unpack(packed, "here")


def test_json_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    limit = files.single.JSON_LIMIT
    sentence = rf"x\.json: .*{limit + 1} bytes, expected at most {limit}"
    with pytest.raises(CheckpointError, match=sentence):
        files.parse_json(bytes(limit + 1), "x.json")
    (tmp_path / "x.json").write_bytes(bytes(limit + 1))
    monkeypatch.setattr(system, "read", pytest.fail)
    with pytest.raises(CheckpointError, match=sentence):
        files.read_json(tmp_path / "x.json")


def test_a_state_that_is_nested_too_deeply_is_our_error():
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(CheckpointError, match=r"^here: nested too deeply to be a state"):
        unpack(deep, "here")


@hostile(500)
@given(st.binary(max_size=20) | VALUES.map(lambda v: json.dumps(v).encode()))
@example(b'{"a": 1, "a": 2}')
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"9" * 5000)
@example(b"[1e999, -0, 1E-999]")
def test_any_bytes_are_json_or_our_error(data):
    outcome(files.parse_json, data, "x.json")


# ---- checkpoints whose manifest fits -------------------------------------------------------------


def seal(folder, entries, **changes):
    """Write a manifest as the format demands it, whatever it says."""
    body = {"format_version": 2, "files": entries} | changes
    digest = hashlib.sha256(json.dumps(body, indent=2).encode()).hexdigest()
    text = json.dumps(body | {"sha256": digest}, indent=2) + "\n"
    (folder / files.MANIFEST).write_text(text)


def described(folder):
    return {
        p.name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for p in sorted(folder.iterdir())
        if p.name != files.MANIFEST and (data := p.read_bytes()) is not None
    }


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A checkpoint to make worse, and what it holds."""
    path = save_example(new_run(tmp_path_factory.mktemp("hostile")))
    content = {p.name: p.read_bytes() for p in path.iterdir()}
    seal(path, described(path))
    load_checkpoint(path)  # our seal is the one that it expects
    return path, content


FILE_NAMES = st.text(max_size=4) | st.sampled_from(
    ["../x", "/etc/passwd", "a/b", "CON", "nul.txt", ".hidden", "a\0", files.MANIFEST, "state.json"]
)
MANIFEST_ENTRIES = VALUES | st.fixed_dictionaries({
    "bytes": NUMBERS, "sha256": st.sampled_from(["", "0" * 64, "g" * 64, "0" * 63, None]),
})  # fmt: skip


@hostile(400)
@given(st.dictionaries(FILE_NAMES, MANIFEST_ENTRIES, max_size=3), st.booleans(), VALUES)
@example({}, False, 10**4000)
def test_a_manifest_that_says_something_else_is_our_error(sound, names, whole, version):
    path, content = sound
    entries = described(path) if whole else {}
    for changes in ({}, {"format_version": version}, {"files": version}, {"more": version}):
        seal(path, entries | names, **changes)
        if (entries | names != described(path) or changes) and changes != {"format_version": 2}:
            assert outcome(files.verify_directory, path) is None
            assert outcome(files.load_verified, path) is None
    (path / files.MANIFEST).write_bytes(content[files.MANIFEST])


@hostile(500)
@given(st.data())
def test_a_state_that_says_something_else_loads_or_is_our_error(sound, data):
    path, content = sound
    state = json.loads(content["state.json"])
    for _ in range(data.draw(st.integers(1, 2))):
        state[data.draw(st.sampled_from(sorted(state)))] = data.draw(VALUES | ARRAYS)
    (path / "state.json").write_text(json.dumps(state).replace("NaN", "1").replace("Infinity", "1"))
    (path / "tokenizer.json").write_text(json.dumps(data.draw(VALUES)).replace("NaN", "1"))
    seal(path, described(path))
    loaded = outcome(load_checkpoint, path)
    if loaded is not None:
        assert type(loaded.step) is int
        assert 0 <= loaded.step < 10**8
        for part in ("optimizer", "scheduler", "generators", "tokenizer"):
            assert isinstance(getattr(loaded, part), dict | None), part
    for name in ("state.json", "tokenizer.json", files.MANIFEST):
        (path / name).write_bytes(content[name])


@hostile(200)
@given(VALUES)
def test_a_run_that_says_something_else_opens_or_is_our_error(sound, value):
    run = RunFolder(sound[0].parent.parent)
    for path, act in (
        (run.path / "run.json", lambda: RunFolder.open(run.path)),
        (run.checkpoints / "best.json", lambda: best_checkpoint(run)),
    ):
        for content in (value, {"format_version": value}, {"step": value, "metrics": value}):
            path.write_text(json.dumps(content))
            outcome(act)
    (run.checkpoints / "best.json").unlink()


# ---- pickles -------------------------------------------------------------------------------------


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_is_ever_run(tmp_path, sound):
    canary = tmp_path / "canary"
    path, content = sound
    arrays = tmp_path / "arrays.npy"
    np.save(arrays, np.array([Canary(canary)]), allow_pickle=True)
    for data in (pickle.dumps(Canary(canary)), arrays.read_bytes()):
        for name in ("w.pt", "w.safetensors", "w.npy"):
            (tmp_path / name).write_bytes(data)
            assert outcome(nplm.load, tmp_path / name) is None
        for name in (*content, "best.json"):
            (path / name).write_bytes(data)
            if name != files.MANIFEST:
                seal(path, described(path))
            assert outcome(load_checkpoint, path) is None
            (path / name).unlink()
        for name, whole in content.items():
            (path / name).write_bytes(whole)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # it would have sung


# ---- the state of an optimizer, held against the optimizer ---------------------------------------
STEPPED = {
    "SGD": ["momentum=0.9"], "Adafactor": [], "Muon": [], "RMSprop": ["centered=true"],
    "Adam": ["amsgrad=true"], "ASGD": [], "NAdam": [],
}  # fmt: skip


def stepped(name, options=None):
    """An optimizer of a run after one update, and a copy of its state that may be spoiled."""
    nplm.manual_seed(1)
    model = Decoder(DecoderConfig(vocab_size=7, context=4, n_layer=1, n_head=2, n_embd=4))
    words = STEPPED[name] if options is None else options
    config = TrainConfig(optimizer=OptimizerConfig(name, tuple(words)))
    optimizer = parts.make_optimizer(config, model)
    for p in model.parameters():
        p.grad = nplm.ones(*p.shape)
    optimizer.step()
    return optimizer, deepcopy(convert_state(optimizer.state_dict(), np.copy))


def given_back(optimizer, state):
    stream = {"default": nplm.random.default_generator.get_state()}
    checkpoint = SimpleNamespace(path=Path("step-1"), optimizer=state, generators=stream)
    load_states(checkpoint, {"optimizer": optimizer})


def first_array(entry):
    return next(k for k, v in entry.items() if getattr(v, "ndim", 0) > 0)


def set_first(change):
    def spoil(state):
        entry = state["state"][max(state["state"])]
        name = first_array(entry)
        entry[name] = change(entry[name])

    return spoil


def set_option(change):
    return lambda state: change(state["param_groups"][-1])


SPOILT = {
    "an entry is missing": lambda s: s["state"][0].pop(first_array(s["state"][0])),
    "the last entry is missing": lambda s: s["state"][max(s["state"])].popitem(),
    "an entry more": lambda s: s["state"][0].update(more=np.zeros(1)),
    "an entry of another name": lambda s: s["state"][0].update(
        more=s["state"][0].pop(first_array(s["state"][0]))),
    "another shape": set_first(lambda x: np.zeros((*x.shape, 1), x.dtype)),
    "another length": set_first(lambda x: np.concatenate([x, x])),
    "whole numbers": set_first(lambda x: np.zeros(x.shape, np.int64)),
    "complex numbers": set_first(lambda x: np.zeros(x.shape, np.complex64)),
    "a number": set_first(lambda x: 0.5),
    "nothing": set_first(lambda x: None),
    "a list": set_first(lambda x: x.tolist()),
    "a text": set_first(lambda x: "0.5"),
    "a parameter is missing": lambda s: s["state"].pop(0),
    "the last parameter is missing": lambda s: s["state"].popitem(),
    "a parameter more": lambda s: s["state"].update({99: s["state"][0]}),
    "another order": lambda s: s.update(state=dict(reversed(s["state"].items()))),
    "no mapping of states": lambda s: s.update(state=[]),
    "no mapping of entries": lambda s: s["state"].update({0: []}),
    "no states": lambda s: s.pop("state"),
    "no groups": lambda s: s.pop("param_groups"),
    "a group fewer": lambda s: s["param_groups"].pop(),
    "a group more": lambda s: s["param_groups"].append(s["param_groups"][0]),
    "no group": lambda s: s.update(param_groups=[]),
    "a group that is none": lambda s: s.update(param_groups=[None] * len(s["param_groups"])),
    "an option is missing": set_option(lambda g: g.pop("weight_decay")),
    "an option more": set_option(lambda g: g.update(more=1)),
    "another option": set_option(lambda g: g.update(weight_decay=0.7)),
    "an option of another type": set_option(lambda g: g.update(weight_decay="0.0")),
    "a flag turned over": set_option(lambda g: g.update(
        {k: not v for k, v in g.items() if isinstance(v, bool)} or {"initial_lr": True})),
    "a rate that is none": set_option(lambda g: g.update(lr=float("nan"))),
    "a rate that is infinite": set_option(lambda g: g.update(lr=float("-inf"))),
    "a rate that is a text": set_option(lambda g: g.update(lr="0.1")),
    "a rate that is a list": set_option(lambda g: g.update(lr=[0.1])),
    "a parameter fewer in a group": set_option(lambda g: g["params"].pop()),
    "a parameter twice in a group": set_option(lambda g: g["params"].append(g["params"][0])),
    "parameters of other numbers": set_option(lambda g: g.update(params=[0] * len(g["params"]))),
    "parameters that are no numbers": set_option(lambda g: g.update(params=["a"])),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", STEPPED)
def test_a_state_that_is_not_that_of_this_optimizer_is_refused_and_changes_nothing(name, how):
    optimizer, good = stepped(name)
    state = deepcopy(good)
    SPOILT[how](state)
    before = plainly(optimizer)
    with pytest.raises(CheckpointError, match=r"^step-1: its state of the optimizer"):
        given_back(optimizer, state)
    assert plainly(optimizer) == before
    given_back(optimizer, good)
    assert plainly(optimizer) == before


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf"), 2e15])
def test_a_count_of_steps_that_cannot_be_is_refused(name, step):
    optimizer, state = stepped(name)
    counted = [entry for entry in state["state"].values() if "step" in entry]
    for entry in counted[-1:]:
        entry["step"] = np.float32(step).reshape(())
        with pytest.raises(CheckpointError, match="step: expected 1 or more"):
            given_back(optimizer, state)
    assert counted or name == "SGD"


@pytest.mark.parametrize("ours", STEPPED)
@pytest.mark.parametrize("theirs", STEPPED)
def test_no_optimizer_takes_the_state_of_another(ours, theirs):
    optimizer, _ = stepped(ours)
    _, state = stepped(theirs)
    if ours == theirs:
        return given_back(optimizer, state)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        given_back(optimizer, state)
    _, own = stepped(ours)
    own["state"] = state["state"]  # under this one's options
    with pytest.raises(CheckpointError, match="does not fit this run"):
        given_back(optimizer, own)


def plainly(optimizer):
    state = optimizer.state_dict()
    entries = {k: {n: np.asarray(v).tolist() for n, v in e.items()}
               for k, e in convert_state(state, np.copy)["state"].items()}  # fmt: skip
    return entries, state["param_groups"]
