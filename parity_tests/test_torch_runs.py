"""Runs on torch in bfloat16, and runs that are captured: what `nplm train` makes of its flags."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_runs import begin, end_of, go_on, metrics_of, small_config, small_presets
from tiny_runs import TEXT, TINY, nplm

from nplm.autograd.graph import flags
from nplm.cli.generate import load
from nplm.errors import ConfigError
from nplm.train import job as training
from nplm.train import preparation
from nplm.train.checkpoint import latest_checkpoint, load_checkpoint
from nplm.train.config import TrainConfig

torch = pytest.importorskip("torch", reason="the devices are PyTorch's: pip install torch")
pytestmark = pytest.mark.run

LOWERED = {"device": "torch:cpu", "dtype": "bfloat16"}


def losses(folder):
    return np.array([m["loss"] for m in metrics_of(folder)])


def test_a_run_in_bfloat16_is_near_that_in_float32_and_keeps_float32(tmp_path):
    """Its losses are off by bfloat16's 8 bits: by more than float32 rounds, by less than 2^-5."""
    folders = {}
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        config = small_config(tmp_path / dtype, device="torch:cpu", dtype=dtype)
        folders[dtype] = begin(config).folder
    a, b = losses(folders["bfloat16"])[:10], losses(folders["float32"])[:10]
    assert 1e-5 < np.abs(a - b).max() < 2**-5
    checkpoint = load_checkpoint(latest_checkpoint(folders["bfloat16"]))
    assert {x.dtype.name for x in checkpoint.model.values()} == {"float32"}
    assert folders["bfloat16"].info()["config"]["dtype"] == "bfloat16"
    model, _ = load(folders["bfloat16"].path)  # as `nplm generate` does, on NumPy
    assert {(p.device, p.dtype.name) for p in model.parameters()} == {("cpu", "float32")}


def test_a_run_in_bfloat16_that_is_stopped_and_resumed_is_the_whole_run(tmp_path):
    ends = []
    for name, stop_at in (("whole", None), ("parted", 7)):
        (tmp_path / name).mkdir()
        folder = begin(small_config(tmp_path / name, **LOWERED), stop_at).folder
        if stop_at is not None:
            go_on(folder)
        ends.append(end_of(folder))
    assert ends[0] == ends[1]


def test_all_of_a_run_is_in_bfloat16_and_nothing_after_it(tmp_path, monkeypatch):
    seen = {}
    for name in ("fit", "evaluate", "generate"):
        real = getattr(training, name)
        monkeypatch.setattr(
            training, name,
            lambda *a, n=name, f=real, **k: seen.setdefault(n, flags.autocast) and f(*a, **k),
        )  # fmt: skip
    begin(small_config(tmp_path, **LOWERED))
    assert seen == {"fit": True, "evaluate": True, "generate": True}
    assert not flags.autocast


@pytest.mark.parametrize(("device", "asked", "level"), [
    ("cpu", None, "off"), ("torch:cpu", None, "off"), ("cuda", None, "region"),
    ("cuda:1", None, "region"), ("torch:cpu", "region", "region"), ("cuda", "off", "off"),
])  # fmt: skip
def test_region_is_the_default_on_cuda_alone(device, asked, level):
    assert TrainConfig(device=device, compile=asked).capture_level == level


def test_the_level_is_installed_on_the_flat_model(tmp_path, monkeypatch):
    captured = []

    def capture(model, level, optimizer):
        arrays = [p.array for p in model.parameters()]
        flat = isinstance(arrays[0], np.ndarray) and all(x.base.nbytes > x.nbytes for x in arrays)
        captured.append((level, flat))  # torch's parameters are not flattened

    monkeypatch.setattr(preparation, "capture", capture)
    with small_presets():
        for changes in ({}, {"device": "torch:cpu", "compile": "region"}):
            plan = preparation.prepare(small_config(tmp_path, **changes)).plan()
            assert ("compile region" in plan) == bool(changes)
    assert captured == [("off", True), ("region", False)]


def test_what_numpy_has_not_is_refused_by_name():
    for changes, says in (
        ({"dtype": "bfloat16"}, "dtype: expected a torch device, as in --device torch:cpu or cuda"),
        ({"compile": "graph"}, "compile: expected a torch device"),
    ):
        with pytest.raises(ConfigError, match=says):
            TrainConfig(**changes).check()
        replace(TrainConfig(**changes), device="torch:cpu").check()
    TrainConfig(compile="off").check()


def test_a_bfloat16_run_does_not_go_on_in_numpy(tmp_path):
    folder = begin(small_config(tmp_path, **LOWERED), 7).folder
    with pytest.raises(ConfigError, match="got bfloat16 on cpu, which is NumPy"):
        go_on(folder, device="cpu")


def test_the_plan_counts_two_bytes_for_an_activation_and_four_for_a_weight():
    config = TrainConfig(**LOWERED)
    assert (config.itemsize, config.activation_itemsize, config.weight_dtype) == (4, 2, "float32")
    config = TrainConfig(dtype="float64")
    assert (config.itemsize, config.activation_itemsize, config.weight_dtype) == (8, 8, "float64")


@pytest.mark.parametrize("words", [
    "--recompute", "--no-recompute", "--config on.toml --no-recompute", "--config on.toml",
    "--config on.toml --recompute",
])  # fmt: skip
def test_recompute_is_a_flag_that_stands_alone_or_a_setting_of_the_file(
    capsys, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "on.toml").write_text("recompute = true\n")
    code, out, _ = nplm(
        capsys, "train", "--data", "text.txt", "--steps", "2", *TINY, *shlex.split(words)
    )
    on = "--no" not in words
    assert (code, "for activations (recomputed)" in out) == (0, on)
    (record,) = tmp_path.glob("runs/*/run.json")
    assert json.loads(record.read_text())["config"]["recompute"] is on


def test_recompute_takes_no_value(capsys):
    for words, says in (
        (["--recompute", "3"], "--recompute: expected no value, got '3'; write --recompute alone"),
        (["--recompute=True"], "--recompute: expected no value, got 'True'"),
        (["--no-recompute=1", "--lr", "0"], "got '1'; write --no-recompute alone; lr: expected a"),
        (["--resume", "newest", "--no-recompute"], "so leave out --no-recompute"),
    ):
        code, _, err = nplm(capsys, "train", *words)
        assert (code, says in err) == (2, True), err


def test_a_level_that_cannot_be_had_is_told_in_one_sentence(tmp_path):
    words = ["--dropout", "0.1", "--device", "torch:cpu", "--compile", "graph", "--steps", "2"]
    command = [sys.executable, "-c", "import sys; from nplm.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "train", *TINY, *words, "--out", str(tmp_path)], capture_output=True, text=True
    )
    said = done.stderr.splitlines()
    assert done.returncode == 0
    assert len(said) == 1
    assert said[0].startswith("nplm train: capture: graph falls back to region: a graph would drop")
