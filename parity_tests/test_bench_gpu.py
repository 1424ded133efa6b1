"""The suite for a card, on the CPU: each check goes red where something is wrong, and units that
fail, break or hang end alone.
"""

import json
import os
import subprocess
import sys

import pytest
from house import ROOT

torch = pytest.importorskip("torch", reason="the suite compares with PyTorch: pip install torch")

from benchmarks.gpu import __main__ as gpu  # noqa: E402
from benchmarks.gpu import checks, modes, suite, units  # noqa: E402
from benchmarks.gpu.units import Ask, CheckError  # noqa: E402
from nplm.autograd.op import OPS, OVERRIDES  # noqa: E402
from nplm.backend import capture as compiler  # noqa: E402
from nplm.bench.torch_path import Ours  # noqa: E402

pytestmark = pytest.mark.cli

SMALL = Ask("cpu", small=True)


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- what its checks find -------------------------------------------------------------
@pytest.fixture
def table():
    """The override table, as it was before, afterwards."""
    before = {key: list(entries) for key, entries in OVERRIDES.items()}
    yield OVERRIDES
    OVERRIDES.clear()
    OVERRIDES.update(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel_with_a_wrong_gradient_is_named(table, monkeypatch, dtype):
    def wrong(xp, x, approximate="none"):
        y, backward = OPS["gelu"].raw(xp, x, approximate)
        return y, lambda dy: (backward(dy)[0] * 1.1,)

    monkeypatch.setattr(checks, "kernel_names", lambda: ["gelu"])
    assert "worst" in checks.check_kernels(SMALL, dtype)["says"]
    OVERRIDES["gelu", "torch"].append((None, wrong))
    with pytest.raises(CheckError, match=r"gelu by test_bench_gpu .*: off by 1\.\de-01|9\.\de-02"):
        checks.check_kernels(SMALL, dtype)


def test_updates_that_are_not_numpys_are_found(monkeypatch):
    assert "20 updates" in modes.numpy(SMALL)["says"]
    step = Ours.step
    monkeypatch.setattr(Ours, "step", lambda self: step(self) * 1.001)
    with pytest.raises(CheckError, match="gpt2: update 1: loss"):
        modes.numpy(SMALL)


def test_what_torchs_autograd_knows_of_is_found(monkeypatch):
    step = Ours.step
    monkeypatch.setattr(Ours, "step", lambda self: step(self).requires_grad_())
    with pytest.raises(CheckError, match="gpt2: 20 tensors of an update are torch autograd's"):
        modes.numpy(SMALL)


def test_updates_that_keep_something_are_found(monkeypatch):
    monkeypatch.setattr(modes, "levels", lambda ask: ("off",))
    assert "60 updates" in modes.memory_does_not_grow(SMALL)["says"]
    step, kept = Ours.step, []
    monkeypatch.setattr(Ours, "step", lambda self: kept.append(step(self)))
    with pytest.raises(CheckError, match="off: 160 bytes more after 60 updates than after 20"):
        modes.memory_does_not_grow(SMALL)


def test_recomputation_with_other_gradients_is_found(monkeypatch):
    assert "100% of gradients to the bit" in modes.recompute(SMALL)["says"]
    gradients = Ours.gradients

    def other(self):
        loss, found = gradients(self)
        if self.model.recompute:
            found["wte.weight"] *= 1.01
        return loss, found

    monkeypatch.setattr(Ours, "gradients", other)
    with pytest.raises(CheckError, match="other gradients"):
        modes.recompute(SMALL)


def test_whatever_is_compiled_is_counted(monkeypatch):
    monkeypatch.setattr(compiler, "compile_pair", lambda *a: "pair")
    with modes.counted() as none:
        pass
    with modes.counted() as one:
        assert compiler.compile_pair() == "pair"
    assert (none, one) == (modes.Compilations(), modes.Compilations(pairs=1))


def test_losses_that_part_are_found():
    assert modes.apart("x", [2.0, 1.9], [2.0, 1.9], "float32") == 0
    with pytest.raises(CheckError, match=r"x: update 2: loss 1\.9, expected 1\.8"):
        modes.apart("x", [2.0, 1.9], [2.0, 1.8], "float32")


# ---- its frame ------------------------------------------------------------------------
ODD_UNITS = """
import os, sys, time
from benchmarks.gpu import __main__ as gpu, units

@units.unit("fails", "odd", 60)
def fails(ask): raise ValueError("not today")
@units.unit("breaks", "odd", 60)
def breaks(ask): os._exit(7)
@units.unit("hangs", "odd", 1.5)
def hangs(ask): time.sleep(600)
@units.unit("works", "odd", 60)
def works(ask): return {"says": f"{ask.device} with time left: {ask.left() > 0}"}

if __name__ == "__main__":
    sys.exit(gpu.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_unit_that_fails_breaks_or_hangs_ends_alone(tmp_path, monkeypatch):
    (tmp_path / "odd_units.py").write_text(ODD_UNITS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    wanted = [
        units.Unit(name, "odd", limit, lambda ask: {})
        for name, limit in (("fails", 60), ("breaks", 60), ("hangs", 1.5), ("works", 60))
    ]
    told = {}
    suite.run(SMALL, wanted, 300, tmp_path, tmp_path / "log", told.__setitem__, "odd_units")
    assert list(told) == ["fails", "breaks", "hangs", "works"]
    assert told["fails"]["error"] == "ValueError: not today"
    assert told["breaks"]["error"] == "its process ended with code 7"
    assert (told["hangs"]["state"], told["hangs"]["error"]) == (
        "cut",
        "cut at the limit of 2 seconds",
    )
    assert told["works"]["found"]["says"] == "cpu with time left: True"
    assert "not today" in (tmp_path / "log").read_text()
    told.clear()
    suite.run(SMALL, wanted, 1, tmp_path, tmp_path / "log", told.__setitem__, "odd_units")
    assert {r["state"] for r in told.values()} == {"left out"}


def suite_for_a_card(out, *words, **more):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", *words]
    environment = {**os.environ, **more}
    return subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip


def test_the_suite_runs_on_numpy_and_torch_alone_and_writes_few_files(tmp_path):
    absent, out = tmp_path / "absent", tmp_path / "out"
    absent.mkdir()
    for name in ("tyro", "safetensors", "tqdm", "threadpoolctl", "hypothesis", "matplotlib"):
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('not here', name='{name}')")
    done = suite_for_a_card(out, "--only", "machine", "numpy", PYTHONPATH=str(absent))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 units passed" in done.stdout
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    assert sorted(files) == ["checks.json", "log.txt", "summary.txt", "timings.json"]
    assert max(files.values()) < 2**20
    assert json.loads((out / "checks.json").read_text())["numpy"]["state"] == "passed"


def test_the_suite_fails_where_a_unit_does_not_run_or_is_unknown(tmp_path, capsys):
    words = ["--device", "cpu", "--small", "--out", str(tmp_path), "--only"]
    assert gpu.main([*words, "machine", "--seconds", "1"]) == 1
    assert "left out" in capsys.readouterr().out
    assert gpu.main([*words, "nothing"]) == 2
    assert "no unit begins with nothing" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert gpu.main(["--out", str(tmp_path)]) == 1
        assert "sees no CUDA device; `--device cpu --small`" in capsys.readouterr().err


def test_every_unit_for_a_card_is_listed_with_its_limit(capsys):
    assert gpu.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for name in ("gpt2 B4", "gpt2 B64", "gpt2 B1 launches", "llama B32", "capture bfloat16"):
        assert f" s  {name}\n" in listed


@pytest.mark.slow
def test_the_whole_suite_passes_on_tiny_shapes(tmp_path):
    done = suite_for_a_card(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    held = json.loads((tmp_path / "timings.json").read_text())
    assert [r["device"] for r in held.values()] == ["cpu"]
    assert len(list(tmp_path.iterdir())) <= 8
