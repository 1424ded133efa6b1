"""Benchmarks: what they count, and that they refuse to time what disagrees.

How long anything takes is no test.
"""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from examples import examples
from house import ROOT
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as benchmarks
from benchmarks import scaling, tables
from nplm.backend import threads
from nplm.bench import machine, rounds
from nplm.bench.flops import attention_share, forward_flops, step_flops
from nplm.bench.settings import CONFIGS, Setting, in_words
from nplm.bench.trainer import Trainer
from nplm.cli import VERBS, main
from nplm.errors import ConfigError
from nplm.models import Decoder, DecoderConfig
from nplm.nn import Linear

pytestmark = pytest.mark.cli

TINY = Setting(
    DecoderConfig(vocab_size=11, context=8, n_layer=2, n_head=2, n_embd=8, activation="gelu_tanh"),
    batch_size=2,
)
LLAMA = replace(
    TINY,
    model=DecoderConfig(
        vocab_size=11, context=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=24,
        norm="rms", positions="rope", activation="swiglu", bias=False, tied=False,
    ),
)  # fmt: skip


def engine(name, threads=1):
    return rounds.Engine.parse(name, threads)


@pytest.fixture(autouse=True)
def same_threads():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


# ---- operations ----------------------------------------------------------------------------------
sizes = st.integers(1, 3)


@examples(20)
@given(sizes, sizes, sizes, sizes, st.integers(1, 9), sizes, sizes, st.booleans())
def test_counted_operations_are_those_of_a_brute_count(L, group, G, half, T, B, K, llama):
    H, C = group * G, 2 * half * group * G
    more = {"norm": "rms", "positions": "rope", "activation": "swiglu", "n_hidden": 7}
    config = DecoderConfig(
        vocab_size=13, context=T, n_layer=L, n_head=H, n_kv_head=G, n_embd=C,
        **(more if llama else {}),
    )  # fmt: skip
    setting = Setting(config, B, K)
    linear = {"linear": 0, "head": 0}
    for name, module in Decoder(config).named_modules():
        if isinstance(module, Linear):
            pairs = B * K * T * module.weight.numel()  # every token meets every weight
            linear["head" if name == "head" else "linear"] += 2 * pairs
    attention = 0
    for _ in range(L * B * K * H):
        for t in range(T):
            for _ in range(t + 1):
                attention += 2 * (C // H) + 2 * (C // H)  # a score, and a value that is weighted
    assert forward_flops(setting) == {**linear, "attention": attention}
    assert step_flops(setting) == {k: 3 * n for k, n in forward_flops(setting).items()}
    assert attention_share(setting) == attention / (attention + sum(linear.values()))


def test_slopes_are_those_of_powers():
    xs = [1, 2, 4, 8]
    assert scaling.slope(xs, [3 * x for x in xs]) == pytest.approx(1.0)
    assert scaling.slope(xs, [x**2 for x in xs]) == pytest.approx(2.0)
    for axis, points in scaling.points(CONFIGS["a"]).items():
        assert len(points) >= 4, axis
        assert len({in_words(setting) for _, setting in points}) == len(points), axis


def test_a_setting_survives_json_and_gives_the_same_batches():
    for setting in CONFIGS.values():
        again = Setting.from_json(json.loads(json.dumps(setting.to_json())))
        assert again == setting
    first, second = (replace(TINY, accumulate=2).batches() for _ in range(2))
    assert len(first) == 2
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.inputs[:, 1:], a.targets[:, :-1])


# ---- workers -------------------------------------------------------------------------------------
def test_engines_agree_take_turns_and_are_divided_round_by_round():
    found = rounds.measure(TINY, [engine("nplm"), engine("reference")], rounds=3, steps=2)
    ours, theirs = found["nplm"], found["reference"]
    assert len(ours["rounds"]) == len(theirs["rounds"]) == 3
    assert theirs["gradient_off"] <= rounds.GRADIENT_32.atol
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=rounds.LOSS_32.rtol)
    quotients = [a / b for a, b in zip(ours["rounds"], theirs["rounds"])]
    assert theirs["ratio"] == rounds.spread(quotients)
    assert theirs["peak_ratio"] == ours["peak_bytes"] / theirs["peak_bytes"]
    assert 10e6 < ours["peak_bytes"] < 150e6  # NumPy and little else: torch is not in the process


@pytest.mark.parametrize("setting", [TINY, LLAMA, replace(TINY, part="block")])
def test_torch_agrees_and_its_caches_make_the_same_tokens(setting):
    pytest.importorskip("torch", reason="an engine of its own: pip install torch")
    from nplm.bench.torch_trainer import TorchBlockTrainer, TorchTrainer
    from nplm.bench.trainer import BlockTrainer

    kinds = (
        (BlockTrainer, TorchBlockTrainer) if setting.part == "block" else (Trainer, TorchTrainer)
    )
    ours, theirs = (kind(setting, 1) for kind in kinds)
    for (name, ours_), (same, theirs_) in zip(ours.weights(), theirs.weights(), strict=True):
        assert name == same
        theirs_[...] = ours_
    (loss, gradients), (their_loss, their_gradients) = ours.gradients(), theirs.gradients()
    assert abs(loss - their_loss) <= rounds.LOSS_32.rtol * abs(loss)
    for (name, a), (_, b) in zip(gradients, their_gradients, strict=True):
        off = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert off <= rounds.GRADIENT_32.atol, name
    if setting.part == "model":
        assert ours.generate(7)[0] == theirs.generate(7)[0]
        for _ in range(5):
            assert ours.step() == pytest.approx(theirs.step(), rel=rounds.LOSS_32.rtol)
        for (name, a), (_, b) in zip(ours.weights(), theirs.weights()):
            assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=1e-4, abs=1e-3), name


class Spoilt(Trainer):
    """One element of one gradient is wrong."""

    def gradients(self):
        loss, arrays = super().gradients()
        arrays[3][1].reshape(-1)[1] *= 1.01
        return loss, arrays


class Lossy(Trainer):
    """The loss is wrong."""

    def gradients(self):
        loss, arrays = super().gradients()
        return loss * 1.0001, arrays


class Failing(Trainer):
    """It fails once it is asked."""

    def step(self):
        raise ValueError("no step today")


class Local:
    """A worker in this process: the protocol without a process."""

    def __init__(self, kind, name):
        from nplm.bench.worker import Measured

        self.measured = Measured.__new__(Measured)
        self.measured.engine = kind(TINY, 1)
        self.engine = rounds.Engine("nplm", 1, name)

    def ask(self, do, **keywords):
        return json.loads(json.dumps(getattr(self.measured, do)(**keywords)))


def test_a_spoilt_gradient_or_loss_is_named_and_nothing_is_timed():
    assert rounds.agree([Local(Trainer, "nplm"), Local(Trainer, "b")])["b"]["gradient_off"] == 0
    with pytest.raises(rounds.BenchError, match=r"b: the gradient of .* is .* nothing was timed"):
        rounds.agree([Local(Trainer, "nplm"), Local(Spoilt, "b")])
    with pytest.raises(rounds.BenchError, match=r"b: expected the loss .* nothing was timed"):
        rounds.agree([Local(Trainer, "nplm"), Local(Lossy, "b")])


def test_nan_is_the_worst_gradient(tmp_path):
    for name, values in (("a", [1, 1, 5]), ("b", [1, 2, float("nan")])):
        np.array(values, np.float32).tofile(tmp_path / name)
    shapes = [["first", [2]], ["second", [1]]]
    off, which = rounds._worst(str(tmp_path / "a"), str(tmp_path / "b"), shapes)
    assert np.isnan(off)
    assert which == "second"
    off, which = rounds._worst(str(tmp_path / "a"), str(tmp_path / "b"), shapes[:1])
    assert (off, which) == (pytest.approx(np.sqrt(1 / 2)), "first")


def test_what_a_worker_raises_or_dies_of_is_said_with_its_engine(monkeypatch):
    kinds = {"model": "test_bench:Failing"}
    monkeypatch.setitem(rounds.ENGINES, "failing", (kinds, {}, None))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'parity_tests'}")
    with rounds.workers([engine("failing")], TINY) as (worker,):
        with pytest.raises(rounds.BenchError, match="failing: ValueError: no step today"):
            worker.ask("steps", n=1)
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(rounds.BenchError, match="code -9; out of memory"):
            worker.ask("steps", n=1)


def test_engines_have_names_and_threads():
    assert engine("torch:3", 2) if rounds.installed("torch") else True
    assert engine("nplm", 2).threads == 2
    assert (engine("nplm:1", 2).threads, engine("nplm:1", 2).name) == (1, "nplm:1")
    for text, says in (
        ("numpyx", "unknown engine"),
        ("nplm:0", "1 to 1024"),
        ("nplm:x", "got 'x'"),
    ):
        with pytest.raises(ConfigError, match=says):
            engine(text)


def test_a_machine_says_what_holds_its_libraries(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert machine.facts()["environment"]["OPENBLAS_CORETYPE"] == "Haswell"
    assert machine.resident_bytes() <= machine.peak_bytes()


# ---- commands and pages --------------------------------------------------------------------------
FLAGS = ["--context", "8", "--batch-size", "2", "--steps", "1", "--threads", "1"]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(VERBS, "bench", VERBS.get("bench", "time the updates of a model"))


def test_nplm_bench_prints_times_memory_and_the_share_of_every_op(registered, capsys):
    assert main(["bench", *FLAGS, "--against", "none"]) == 0
    out = capsys.readouterr().out
    for line in (
        "model      char: ",
        "update     16 tokens",
        "time       ",
        "memory     ",
        "linear ",
    ):
        assert line in out
    assert max(map(len, out.splitlines())) <= 120


def test_nplm_bench_as_json_is_json(registered, capsys):
    assert main(["bench", *FLAGS, "--against", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engines"]["nplm"]["median"] > 0
    assert sum(row["share"] for row in found["profile"]["rows"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "chra"], "unknown preset 'chra'"),
        (["--steps", "0"], "steps: expected at least 1, at most 1,000,000, got 0"),
        (["--vocab-size", "-1"], "vocab_size: expected at least 1"),
        (["--threads", "0", "--dropout", "1"], "threads: expected at least 1, at most 1024"),
        (["--against", "jax"], "--against: expected 'torch' or 'none' or None, got 'jax'"),
        (["--stepz", "3"], "did you mean --steps?"),
    ],
)
def test_bad_input_of_nplm_bench_is_one_sentence(registered, capsys, words, says):
    code, err = main(["bench", *words]), capsys.readouterr().err
    assert (code, says in err, len(err.splitlines())) == (2, True, 1), err


def test_nplm_bench_against_a_torch_that_is_not_there_says_how_to_install_it(
    registered, capsys, monkeypatch
):
    monkeypatch.setattr(rounds, "find_spec", lambda name: None)
    code, err = main(["bench", "--against", "torch"]), capsys.readouterr().err
    assert (code, "run `pip install torch`" in err) == (2, True), err


def test_the_benchmarks_refuse_in_one_sentence_and_measure_into_a_file(
    capsys, monkeypatch, tmp_path
):
    for words, says in (
        (["stpe"], "did you mean 'step'?"),
        (["step", "--config", "z", "--rounds", "0"], "rounds: expected at least 1"),
        (["step", "--against", "torsh"], "unknown engine 'torsh'"),
        ([], "unknown subject ''"),
    ):
        code, err = benchmarks.main(words), capsys.readouterr().err
        assert (code, says in err, len(err.splitlines())) == (2, True, 1), err
    monkeypatch.setitem(CONFIGS, "a", TINY)
    path = tmp_path / "results.json"
    words = [
        "--config",
        "a",
        "--rounds",
        "2",
        "--steps",
        "1",
        "--threads",
        "1",
        "--json",
        str(path),
    ]
    assert benchmarks.main(["step", *words, "--against", "reference"]) == 0, capsys.readouterr().err
    assert benchmarks.main(["generate", *words]) == 0, capsys.readouterr().err
    held = json.loads(path.read_text())
    assert list(held) == ["step a 1", "generate a 1"]
    page = "".join(f"<!-- benchmark: {n} -->\n<!-- end -->\n" for n in tables.PIECES)
    filled = tables.filled(page, held)
    assert "| a: L2 H2 C8 T8 B2 V11, 1 thread | nplm |" in filled
    assert tables.by_spread(held["step a 1"]["engines"]["reference"]["ratio"]) in filled
    assert tables.WAITING in filled  # of subjects that were not measured
    assert tables.filled(filled, held) == filled


def test_the_tables_of_the_pages_are_what_the_json_says():
    held = json.loads(tables.RESULTS.read_text())
    for page in tables.PAGES:
        assert tables.filled(page.read_text(), held) == page.read_text(), (
            f"{page.name}: run python -m benchmarks tables"
        )


def test_a_subject_fails_with_code_1_where_an_engine_is_wrong(monkeypatch, capsys):
    kinds = {"model": "test_bench:Spoilt"}
    monkeypatch.setitem(rounds.ENGINES, "spoilt", (kinds, {}, None))
    monkeypatch.setitem(CONFIGS, "a", TINY)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'parity_tests'}")
    code = benchmarks.main(["step", "--config", "a", "--against", "spoilt", "--threads", "1"])
    assert (code, "nothing was timed" in capsys.readouterr().err) == (1, True)


def test_the_peers_run_the_block_that_nplm_runs():
    for name in ("autograd", "mygrad"):
        pytest.importorskip(name, reason=f"a library to compare with: pip install {name}")
    small = replace(TINY, part="block")
    names = [engine(name) for name in ("nplm", "autograd", "mygrad")]
    with rounds.workers(names, small) as crew:
        agreement = rounds.agree(crew)
    assert set(agreement) == {"nplm", "autograd", "mygrad"}


def test_the_benchmarks_have_help():
    command = [sys.executable, "-m", "benchmarks", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--against" in result.stdout
