"""Run folders, and the nested state of checkpoints as JSON: exact, or a clear error."""

import json
import math
import os
import sys

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from stored import ARRAYS, alike, new_run

from nplm import files
from nplm.data import CharTokenizer, Corpus, default_corpus
from nplm.errors import CheckpointError, ConfigError
from nplm.train.packing import pack, unpack
from nplm.train.run import RunFolder

pytestmark = pytest.mark.cli

# ---- nested state ----------------------------------------------------------------------------


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None))
ODD = st.sampled_from([math.inf, -math.inf, math.nan, -0.0, "\ud800", 2**200])
STATES = st.recursive(
    PLAIN | ODD | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@examples(200)
@example([math.inf, (math.nan, -math.inf), {-1: -0.0}], False)
@given(STATES, st.booleans())
def test_nested_state_comes_back_through_json_with_types_and_bits(state, apart):
    tensors = {} if apart else None
    text = json.dumps(pack(state, "s", tensors), allow_nan=False)
    alike(unpack(json.loads(text), "state.json", tensors), state)


def test_what_cannot_be_stored_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"^s\.a\.1: a function cannot be stored"):
        pack({"a": [0, lambda: 0]}, "s")
    with pytest.raises(ValueError, match=r"^s: key '\$tensor' cannot be stored"):
        pack({"$tensor": 1}, "s")
    for key in ((1, 2), True, None, 1.5):
        with pytest.raises(ValueError, match=r"^s: key .* cannot be stored; use text or integers"):
            pack({key: 1}, "s")
    assert unpack(pack(np.arange(6).reshape(2, 3).T, "s"), "s").tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(ValueError, match=r"^s: an array of object cannot be stored"):
        pack(np.array([None]), "s")
    with pytest.raises(ValueError, match=r"a\.b: two arrays have this name"):
        pack({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)}, "", {})


def test_a_damaged_state_is_refused_with_its_place():
    with pytest.raises(CheckpointError, match=r"^here: tensor 'm' is missing"):
        unpack({"$tensor": "m"}, "here")
    with pytest.raises(CheckpointError, match=r"^here: '\$new' is not known to this version"):
        unpack([{"$new": 1}], "here")
    for bad in ({"$float": "x"}, {"$int_keys": {"x": 1}}, {"$array": {}}, {"$tuple": 3}):
        with pytest.raises(CheckpointError, match=r"^here: damaged \$"):
            unpack(bad, "here")


# ---- run folders -----------------------------------------------------------------------------


def test_a_run_says_how_it_was_made(tmp_path):
    corpus = Corpus.of("abc", "abcabc", "/somewhere/abc.txt")
    tokenizer = CharTokenizer("abc")
    run = new_run(
        tmp_path / "runs", command=["nplm", "train", "my file"], seed=7, corpus=corpus,
        tokenizer=tokenizer,
    )  # fmt: skip
    assert run.path == tmp_path / "runs" / "2025-11-24_tiny"
    info = RunFolder.open(run.path).info()
    assert info["config"]["model"] == {"n_layer": 2, "betas": [0.9, 0.95], "tied": True}
    assert info["command"] == "nplm train 'my file'"
    assert info["seed"] == 7
    assert info["created"] == "2025-11-24T09:30:00+00:00"
    assert info["corpus"]["sha256"] == corpus.sha256
    assert info["corpus"]["source"] == "/somewhere/abc.txt"
    assert info["tokenizer"] == tokenizer.to_dict()
    assert info["versions"]["numpy"] == np.__version__
    assert info["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert info["blas"]
    assert all(pool["num_threads"] >= 1 for pool in info["blas"])
    assert not (run.path / "corpus.txt").exists()


def test_two_runs_never_share_a_folder(tmp_path):
    names = [new_run(tmp_path).path.name for _ in range(3)]
    assert names == ["2025-11-24_tiny", "2025-11-24_tiny-2", "2025-11-24_tiny-3"]


def test_the_default_corpus_is_kept_with_the_run(tmp_path):
    corpus = default_corpus()
    run = new_run(tmp_path, corpus=corpus)
    kept = (run.path / "corpus.txt").read_bytes()
    assert files.sha256_of(kept) == corpus.sha256 == run.info()["corpus"]["sha256"]


def test_a_run_without_threadpoolctl_leaves_the_blas_open(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert new_run(tmp_path).info()["blas"] is None


def test_a_loss_that_still_has_its_graph_is_logged_as_a_number(tmp_path):
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
    run = new_run(tmp_path)
    run.log_metrics({"loss": torch.tensor(2.5, requires_grad=True)})
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"loss": 2.5}
    tensor = torch.tensor([1.5, 2.0], requires_grad=True)
    alike(unpack(pack(tensor, "s"), "s"), np.array([1.5, 2.0], np.float32))


def test_metrics_and_samples_are_lines_of_json_that_are_only_added(tmp_path):
    run = new_run(tmp_path)
    run.log_metrics({"step": 1, "loss": np.float32(2.5), "lr": np.array(0.125), "ok": True})
    run.log_metrics({"step": 2, "loss": math.nan, "norm": math.inf})
    run.log_sample(2, "The ", "The\nend \ud800")
    text = (run.path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert lines[0] == {"step": 1, "loss": 2.5, "lr": 0.125, "ok": True}
    assert math.isnan(float(lines[1]["loss"]))
    assert float(lines[1]["norm"]) == math.inf
    (sample,) = (run.path / "samples.jsonl").read_text().splitlines()
    assert json.loads(sample) == {"step": 2, "prompt": "The ", "text": "The\nend \ud800"}


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "a b", "é", "x" * 101])
def test_a_run_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"use 1 to 100 letters, digits"):
        RunFolder.create(tmp_path, name, {})


def test_a_config_that_json_cannot_hold_is_refused_with_its_place_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.a\.0: a function cannot be written as JSON"):
        RunFolder.create(tmp_path, "x", {"a": [len.__class__, new_run][1:]})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"run\.json: no such file"):
        RunFolder.open(tmp_path)
    files.write_json(tmp_path / "run.json", [])
    with pytest.raises(CheckpointError, match=r"not a description of a run"):
        RunFolder.open(tmp_path)
    files.write_json(tmp_path / "run.json", {"format_version": 99})
    with pytest.raises(CheckpointError, match=r"format version 99 was written by a newer nplm"):
        RunFolder.open(tmp_path)
