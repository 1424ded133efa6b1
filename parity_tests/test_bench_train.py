"""The benchmark of the torch path: both engines agree, and what is wrong is refused.

How long anything takes is no test.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from house import ROOT

from benchmarks import __main__ as benchmarks
from benchmarks import tables, training
from nplm.bench.rounds import BenchError
from nplm.bench.settings import Setting
from nplm.models import Decoder, DecoderConfig, preset

torch = pytest.importorskip(
    "torch", reason="the benchmark compares with PyTorch: pip install torch"
)

from nplm.backend import capture as compiler  # noqa: E402
from nplm.bench import rates, torch_turns  # noqa: E402
from nplm.bench.torch_path import How, InWorker, Ours, TimedDecoder  # noqa: E402
from nplm.bench.torch_turns import Found, Local, judge  # noqa: E402

pytestmark = pytest.mark.cli

GPT2 = Setting(
    DecoderConfig(
        vocab_size=65, context=16, n_layer=2, n_head=2, n_embd=32, activation="gelu_tanh"
    ),
    batch_size=4,
)
LLAMA = replace(
    GPT2,
    model=DecoderConfig(
        vocab_size=65, context=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=24,
        norm="rms", positions="rope", activation="swiglu", bias=False, tied=False,
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def how(engine="nplm", dtype="float32", **more):
    return How(engine, "cpu", dtype, **more)


# ---- what is counted -----------------------------------------------------------------------------
@pytest.mark.parametrize("setting", [GPT2, LLAMA])
def test_nanogpts_parameters_are_the_models_without_its_positions(setting):
    model = Decoder(setting.model)
    positions = model.wpe.weight.numel() if hasattr(model, "wpe") else 0
    assert rates.parameters_of(setting.model) == model.num_parameters() - positions


def test_nanogpts_operations_of_a_token_are_those_of_its_own_formula():
    # nanoGPT's GPT-2 124M: 124,439,808 parameters, 786,432 of them positions
    expected = 6 * (124_439_808 - 786_432) + 12 * 12 * 12 * 64 * 1024
    assert rates.flops_per_token(preset("gpt2")) == expected
    for name, millions in (("gpt2", 123.7), ("llama", 123.6)):
        assert rates.parameters_of(training.MODELS[name]) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_device_has_a_rate_of_products_on_its_threads(monkeypatch):
    monkeypatch.setitem(rates.SQUARES, "cpu", (32, 64))
    before = torch.get_num_threads()
    found = rates.matrix_rate("cpu", "bfloat16", 1)
    assert found["flops_per_second"] == max(found["sides"].values()) > 0
    assert torch.get_num_threads() == before


# ---- agreement -----------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", [GPT2, LLAMA])
def test_the_timed_twin_and_nplm_have_equal_gradients_and_take_turns(setting):
    crew = [Local(setting, how()), Local(setting, how("torch"))]
    found = torch_turns.measure_here(crew, rounds=2, steps=1)
    assert list(found) == ["nplm off", "torch"]
    assert found["nplm off"]["gradient_off"] < 2e-6
    assert found["torch"]["ratio"]["median"] > 0
    assert "flash" in found["torch"]["versions"]["attention"]
    assert found["torch"]["compile_seconds"] is None


def test_the_truth_in_slices_is_the_gradient_of_the_whole_batch():
    twin = Local(GPT2, how("torch")).path
    loss, whole = twin.gradients()
    whole = {name: g.clone() for name, g in whole.items()}
    sliced, slices = twin.truth(GPT2, rows=1)
    assert float(loss.detach()) == pytest.approx(float(sliced), rel=1e-6)
    assert max(torch_turns.distance(whole[n], slices[n]) for n in whole) < 1e-6
    assert len(twin.batches) == 1  # as it was


def found_of(**apart):
    return {name: Found(2.0, {"a": a, "b": b}) for name, (a, b) in apart.items()}


def test_a_gradient_out_of_the_budget_is_named_and_nothing_is_timed():
    judge(found_of(nplm=(1e-6, 1e-5), torch=(0, 0)), 2.0, "float32")
    with pytest.raises(BenchError, match=r"nplm: the gradient of b is 1\.0e-04 .* nothing was"):
        judge(found_of(nplm=(1e-6, 1e-4), torch=(0, 0)), 2.0, "float32")
    with pytest.raises(BenchError, match="nplm: the gradient of a is nan"):
        judge(found_of(nplm=(float("nan"), 0), torch=(0, 0)), 2.0, "float32")
    with pytest.raises(BenchError, match=r"expected the loss 2\.1 .* nothing was timed"):
        judge(found_of(nplm=(0, 0), torch=(0, 0)), 2.1, "float32")


def test_bfloat16_may_be_twice_as_far_off_as_torchs_and_must_be_bfloat16():
    judge(found_of(nplm=(0.019, 0.019), torch=(0.01, 0.01)), 2.0, "bfloat16")
    with pytest.raises(BenchError, match=r"the gradient of a is 2\.1e-02 .* at most 2\.0e-02"):
        judge(found_of(nplm=(0.021, 0.01), torch=(0.01, 0.01)), 2.0, "bfloat16")
    with pytest.raises(BenchError, match="asked for bfloat16, but its gradients are float32's"):
        judge(found_of(nplm=(1e-6, 1e-6), torch=(0.01, 0.01)), 2.0, "bfloat16")


class Spoilt(Ours):
    """One gradient is a little wrong."""

    def gradients(self):
        loss, found = super().gradients()
        found["blocks.0.attn.qkv.weight"] *= 1.001
        return loss, found


def test_a_spoilt_engine_is_found_before_anything_is_timed(monkeypatch):
    crew = [Local(GPT2, how()), Local(GPT2, how("torch"))]
    monkeypatch.setattr(crew[0].path, "__class__", Spoilt)
    with pytest.raises(BenchError, match=r"nplm off: the gradient of blocks\.0\.attn\.qkv\.weight"):
        torch_turns.measure_here(crew, rounds=2, steps=1)


@pytest.fixture
def uncompilable(monkeypatch):
    """A torch that compiles nothing, and engines of `train` in this process."""

    def refuse(*args, **options):
        raise compiler.CaptureError("capture: compiling failed: no compiler today")

    def measure(setting, hows, threads, rounds, steps):
        return torch_turns.measure_here([Local(setting, h) for h in hows], rounds, steps)

    monkeypatch.setattr(compiler, "compile_pair", refuse)
    monkeypatch.setattr(torch_turns, "measure_apart", measure)


@pytest.mark.parametrize("level", ["region", "graph"])
def test_a_level_of_capture_that_falls_back_fails_the_benchmark_and_says_why(uncompilable, level):
    crew = [Local(GPT2, how(capture=level)), Local(GPT2, how("torch"))]
    says = f"nplm {level}: asked for capture {level}, got off: .*no compiler today"
    with pytest.raises(BenchError, match=says):
        torch_turns.measure_here(crew, rounds=2, steps=1)


def test_another_attention_kernel_than_the_one_asked_for_fails_the_benchmark():
    said = {"level": "off", "attention": "flash_attention_for_cpu"}
    assert torch_turns.checked(how(attention="flash"), said) is said
    with pytest.raises(BenchError, match="asked for attention by cudnn, got flash_attention"):
        torch_turns.checked(how(attention="cudnn"), said)


def test_a_worker_says_what_it_runs(monkeypatch):
    for name, value in how(dtype="bfloat16").environment():
        monkeypatch.setenv(name, value)
    engine = InWorker(GPT2, 1)
    loss, gradients = engine.gradients()
    assert np.isfinite([loss, engine.step()]).all()
    assert [n for n, _ in gradients] == [n for n, _ in engine.weights()]
    assert engine.versions()["level"] == "off"
    assert gradients[0][1].dtype == np.float32


@pytest.mark.parametrize(("engine", "ours"), [("nplm", True), ("torch", False)])
def test_a_twins_process_has_malloc_as_a_user_of_torch_has_it(engine, ours):
    """Our setting (backend/memory.py) comes with our kernels; it makes torch faster too."""
    script = """
from nplm.backend import memory
from nplm.bench.settings import Setting
from nplm.bench.torch_path import InWorker
from nplm.models import preset
worker = InWorker(Setting(preset("tiny-llama"), 2), 1)
worker.gradients(), worker.step()
print(memory._kept)
"""
    environment = dict(how(engine).environment())
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, **environment},
                         capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert run.stdout.strip() == ("True" if ours else "None"), run.stderr


def test_both_engines_start_from_the_twins_weights():
    torch.manual_seed(training.CONFIGS["a"].batch_size)  # the engines seed for themselves
    ours, theirs = (Local(GPT2, how(engine)).path.parameters() for engine in ("nplm", "torch"))
    assert list(ours) == list(theirs) == [n for n, _ in TimedDecoder(GPT2.model).named_parameters()]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
# ---- python -m benchmarks train ------------------------------------------------------------------
def test_train_measures_in_processes_into_a_file_that_tables_are_made_of(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setitem(training.MODELS, "a", GPT2.model)
    monkeypatch.setitem(rates.SQUARES, "cpu", (64,))
    path = tmp_path / "results.json"
    words = ["--model", "a", "--batch", "2", "--against", "torch", "--threads", "1", "--rounds"]
    code = benchmarks.main(["train", *words, "2", "--steps", "1", "--json", str(path)])
    assert code == 0, capsys.readouterr().err
    held = json.loads(path.read_text())
    assert list(held) == ["train a cpu float32 B2"]
    page = "".join(f"<!-- benchmark: {n} -->\n<!-- end -->\n" for n in tables.PIECES)
    filled = tables.filled(page, held)
    assert "| a: L2 H2 C32 T16 B2 V65, float32, 1 thread | nplm off |" in filled
    assert "float32 products of side 64" in filled
    assert tables.filled(filled, held) == filled


def test_train_fails_with_code_1_where_a_capture_falls_back(monkeypatch, capsys, uncompilable):
    monkeypatch.setitem(training.MODELS, "a", GPT2.model)
    monkeypatch.setitem(rates.SQUARES, "cpu", (64,))
    words = ["--model", "a", "--against", "torch", "--capture", "region", "--threads", "1"]
    code, err = benchmarks.main(["train", *words]), capsys.readouterr().err
    assert (code, "asked for capture region, got off" in err, len(err.splitlines())) == (
        1,
        True,
        1,
    ), err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "gtp2"], "did you mean 'gpt2'?"),
        (["--batch", "0", "--rounds", "0"], "batch: expected at least 1"),
        (["--dtype", "float16"], "unknown dtype 'float16'"),
        (["--attention"], "attention"),
        (["--capture", "graphs"], "unknown capture 'graphs'"),
        (["--device", "cuda"], "device 'cuda': this torch sees no CUDA device"),
    ],
)
def test_bad_input_of_train_is_one_sentence(words, says, capsys):
    if torch.cuda.is_available() and "cuda" in words:
        pytest.skip("there is a CUDA device")
    code, err = benchmarks.main(["train", *words]), capsys.readouterr().err
    assert (code != 0, says in err, len(err.splitlines())) == (True, True, 1), err


def result_of(batch, ours, theirs):
    """A result as a card would give it: seconds of an update."""
    engines = {
        name: {"median": s, "peak_bytes": 10**9, "versions": {"torch": "2", "blas": "MKL"},
               "gradient_off": 0.01, "gradient_worst": "wte.weight"}
        for name, s in (("nplm region", ours), ("torch.compile", theirs))
    }  # fmt: skip
    machine = {"card": "NVIDIA H200, 139 GiB", "cpu": "x", "cores": 16, "python": "3.12",
               "numpy": "2", "blas": "unknown", "environment": {}}  # fmt: skip
    return {
        "subject": "train", "config": "gpt2", "sizes": "L12", "device": "cuda", "dtype": "bfloat16",
        "batch": batch, "tokens": 1024 * batch, "rounds": 5, "threads": 1, "engines": engines,
        "flops_per_token": 855e6, "date": "2026-12-01", "command": "python -m benchmarks.gpu",
        "matrix_rate": {"flops_per_second": 790e12, "side": 8192}, "machine": machine,
    }  # fmt: skip


def test_the_best_batch_of_each_engine_is_compared_and_the_card_named():
    held = {"a": result_of(16, 0.030, 0.032), "b": result_of(32, 0.064, 0.062)}
    page = "".join(f"<!-- benchmark: {n} -->\n<!-- end -->\n" for n in tables.PIECES)
    filled = tables.filled(page, held)
    assert "546,133 (nplm region, B16) | 528,516 (torch.compile, B32) |  | 1.03 |" in filled
    assert f"{546_133 * 855e6 / 790e12:.1%}" in filled
    assert "NVIDIA H200, 139 GiB; x, 16 cores" in filled


def test_results_of_a_card_are_added_to_the_file_before_tables_are_made(tmp_path, monkeypatch):
    for name, held in (("docs", {"a": 1, "b": 2}), ("card", {"b": 3})):
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
    monkeypatch.setattr(tables, "PAGES", ())
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    tables.write(tmp_path / "docs.json", [tmp_path / "card.json"])
    assert json.loads((tmp_path / "docs.json").read_text()) == {"a": 1, "b": 3}
