"""`nplm parity`: 0 on a healthy build, 1 with a fault, at every level; and its reports."""

import json
import subprocess
import sys
from functools import cache

import pytest

pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from tiny_runs import WITHOUT_TORCH
from tiny_runs import nplm as run

from nplm.autograd.op import OPS, OVERRIDES, override
from nplm.cli import main, parity
from nplm.parity import layers, ops
from nplm.parity.faults import FAULTS

pytestmark = pytest.mark.cli

TABLES, RUNS = ["ops", "layers"], ["model", "step", "run"]
SHORT = ["--steps", 4, "--family", "gpt2"]
FAULT = "adam-mean-not-corrected"
RUN_OPS, RUN_LAYERS = cache(ops.run_ops), cache(layers.run_layers)


@pytest.fixture
def judged_once(monkeypatch):
    """A healthy table is the same for every test: the first one that asks has it judged."""
    monkeypatch.setattr(ops, "run_ops", RUN_OPS)
    monkeypatch.setattr(layers, "run_layers", RUN_LAYERS)


@pytest.fixture
def broken():
    """Every product is a thousandth too large, until the test ends."""
    before = {key: list(entries) for key, entries in OVERRIDES.items()}

    def body(xp, *arrays, **options):
        y, backward = OPS["linear"].raw(xp, *arrays, **options)
        return y * 1.001, backward

    override("linear", backend="numpy")(body)
    yield
    OVERRIDES.clear()
    OVERRIDES.update(before)


def outcome(capsys, *words):
    """(exit code, standard output); standard error is empty, and what is equal fits 80 columns."""
    code = main(["parity", *map(str, words)])
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line for line in out.splitlines() if not line.startswith("written: ")]
    assert code or max(map(len, lines)) <= 80
    return code, out


# ---- the exit code -------------------------------------------------------------------------------
# All ops take ten seconds; test_parity_ops.py runs them in an everyday run.
LEVELS = [pytest.param(level, marks=[pytest.mark.slow] * (level == "ops")) for level in
          (*TABLES, *RUNS)]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.usefixtures("judged_once")
def test_every_level_is_equal_on_a_healthy_build(capsys, level):
    code, out = outcome(capsys, level, *SHORT)
    assert code == 0
    assert "equal: " in out.splitlines()[-1]
    assert out.count("equal: ") == 1


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_sees_a_wrong_op(capsys, level, broken):
    code, out = outcome(capsys, level, *SHORT)
    assert code == 1
    if level in RUNS:
        assert "diverged: " in out
        first = "the first is step 1, micro-batch 1, forward of blocks.0.attn.qkv"
        assert first in " ".join(out.split())
    else:
        assert f"{level}: diverged: " in out


def test_without_a_level_it_is_a_run_and_both_families(capsys):
    code, out = outcome(capsys, "--steps", 2)
    assert code == 0
    assert out.startswith("run of gpt2 and llama\nnplm against torch, float64, free\n")
    assert "equal: 2 steps" in out


@pytest.mark.parametrize(("words", "says"), [
    (["--dtype", "float32"], "float32, isolated"),
    (["--dtype", "float32", "--mode", "free"], "float32, free"),
    (["--mode", "isolated"], "float64, isolated"),
    (["--dropout", 0, "--seed", 5], "float64, free"),
    (["--device", "torch:cpu"], "float64, free"),
])  # fmt: skip
def test_settings_reach_the_run(capsys, words, says):
    code, out = outcome(capsys, "run", "--steps", 3, "--family", "llama", *words)
    assert (code, says in out) == (0, True), out


def test_a_seed_and_a_dropout_make_another_run(tmp_path, capsys):
    found = []
    for i, words in enumerate((["--seed", 1], ["--seed", 2], ["--seed", 1, "--dropout", 0.5])):
        path = tmp_path / f"{i}.json"
        assert outcome(capsys, "step", *SHORT, *words, "--report", path)[0] == 0
        found.append(json.loads(path.read_text())["measured"])
    assert found[0] != found[1] != found[2] != found[0]


def test_a_preset_is_compared_instead_of_the_small_models(capsys):
    code, out = outcome(capsys, "model", "--preset", "char")
    assert code == 0
    assert out.startswith("model of char\n")


# ---- reports -------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["html", "json", "txt"])
def test_a_run_writes_its_report(capsys, tmp_path, suffix):
    path = tmp_path / f"report.{suffix}"
    code, out = outcome(capsys, "step", *SHORT, "--report", path)
    assert code == 0
    written = path.read_text(encoding="utf-8")
    assert out.replace("\n", "").endswith(f"written: {path}")
    if suffix == "html":
        assert written.startswith("<!DOCTYPE html>")
        assert "equal" in written
    elif suffix == "json":
        found = json.loads(written)
        assert (found["verdict"], found["equal"], found["steps"]) == ("equal", True, 1)
    else:
        assert "equal: 1 step" in written


@pytest.mark.parametrize("level", TABLES)
@pytest.mark.parametrize("suffix", ["json", "txt"])
@pytest.mark.usefixtures("judged_once")
def test_a_table_writes_its_report(capsys, tmp_path, suffix, level):
    path = tmp_path / f"report.{suffix}"
    code, out = outcome(capsys, level, "--report", path)
    assert code == 0
    written = path.read_text(encoding="utf-8")
    if suffix == "json":
        assert json.loads(written)["equal"] is True
    else:  # the file is what was printed
        assert out.startswith(written)


def test_a_report_of_a_run_that_diverged_says_so(capsys, tmp_path, broken):
    path = tmp_path / "report.json"
    assert outcome(capsys, "step", *SHORT, "--report", path)[0] == 1
    found = json.loads(path.read_text())
    assert found["verdict"] == "diverged"
    assert found["first"]["place"] == {
        "step": 1, "micro": 1, "phase": "forward", "name": "blocks.0.attn.qkv",
    }  # fmt: skip


# ---- planted faults ------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["isolated", "free"])
def test_a_planted_fault_is_found_where_it_was_planted(capsys, mode):
    code, out = outcome(capsys, "--fault", FAULT, "--mode", mode)
    assert code == 1
    assert "diverged: " in out
    assert "found, where it was planted" in out.splitlines()[-1]
    assert outcome(capsys, *SHORT)[0] == 0  # it is gone afterwards


def test_all_faults_are_listed(capsys):
    code = main(["parity", "--list-faults"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[: len(FAULTS)]] == list(FAULTS)
    assert f"{len(FAULTS)} faults" in out


# ---- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("words", "expected", "says"), [
    (["ruun"], 2, "unknown level 'ruun': expected one of ops, layers, model, step, run; did you"),
    (["--steps", "0"], 2, "steps: expected at least 1"),
    (["--steps", "1000001"], 2, "at most 1,000,000"),
    (["--dropout", "1"], 2, "dropout: expected a probability in [0, 1)"),
    (["--seed", "-1"], 2, "seed: expected 0 to"),
    (["--steps", "0", "--seed", "-1"], 2, "got 0; seed: expected"),
    (["--preset", "tiny-lama"], 2, "did you mean 'tiny-llama'?"),
    (["--dtype", "float16"], 2, "expected 'float64' or 'float32', got 'float16'"),
    (["--mode", "loose"], 2, "expected 'free' or 'isolated'"),
    (["--family", "bert"], 2, "expected 'gpt2' or 'llama' or 'both', got 'bert'"),
    (["--fault", "adam-mean"], 2, "unknown fault 'adam-mean': did you mean 'adam-"),
    (["ops", "--fault", FAULT], 2, "it is planted in a short run, so expected no 'ops'"),
    (["--report", "x.pdf"], 2, "expected a file that ends in .html, .json or .txt, got 'x.pdf'"),
    (["ops", "--report", "x.html"], 2, "ops are a table, so expected .json or .txt"),
    (["--device", "tpu"], 1, "unknown device 'tpu'"),
    (["run", "model"], 2, "unexpected argument 'model'"),
    (["--stepps", "3"], 2, "did you mean --steps?"),
])  # fmt: skip
def test_bad_input_is_one_sentence_before_any_work(capsys, monkeypatch, words, expected, says):
    def never(*args):
        raise AssertionError("it began")

    for name in ("_rows", "_lockstep", "_with_fault" if says[:7] != "unknown" else "_rows"):
        monkeypatch.setattr(parity, name, never)
    code, out, err = run(capsys, "parity", *words)
    assert (code, out) == (expected, "")
    assert says in err


def test_a_folder_that_cannot_be_written_is_a_storage_error(capsys, tmp_path):
    path = tmp_path / "missing" / "x.txt"
    assert main(["parity", "model", "--family", "gpt2", "--report", str(path)]) == 5
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["ops"], ["--list-faults"]])
def test_without_torch_it_says_so_in_one_sentence(words):
    code = f"{WITHOUT_TORCH}from nplm.cli import main\nsys.exit(main(['parity', *{words!r}]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (out.returncode, out.stdout) == (2, "")
    assert "run `pip install torch`" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1
