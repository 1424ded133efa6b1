"""A whole run as `nplm train` makes it: epochs, schedules, early stopping, tokenizers, memory."""

import json
import math
import shlex
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from nplm.cli import main
from nplm.data import Batch
from nplm.models import Decoder, preset
from nplm.parity.tolerances import ESTIMATE, FORMULA_64, assert_close
from nplm.train import accumulate, evaluate, report
from nplm.train.checkpoint import best_checkpoint, load_checkpoint
from nplm.train.config import ScheduleConfig, StopConfig, TrainConfig
from nplm.train.job import prepare, run

pytestmark = pytest.mark.cli

LINES = [f"{word} {other} {word}." for word in ("cat", "dog", "fox") for other in ("saw", "ran")]
TEXT = "\n".join(LINES * 8) + "\n"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return TrainConfig(
        data=(tmp_path / "text.txt",), context=8, batch_size=4, sample_length=5, log_every=1,
        out=tmp_path / "runs", dropout=0.1,
    )  # fmt: skip


def metrics_of(result):
    lines = (result.folder.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def run_quietly(config):
    said = []
    return run(prepare(config), said.append), said


def test_epochs_train_on_every_token_once_an_epoch_and_end_with_a_validation(config):
    result, _ = run_quietly(replace(config, epochs=3, accumulate=5))
    metrics = metrics_of(result)
    job = prepare(config)
    per_epoch = math.ceil(math.ceil((job.n_train - 1) / 8) / 4 / 5)
    assert len(metrics) == 3 * per_epoch
    for epoch in range(3):
        of_epoch = [m for m in metrics if m["epoch"] == epoch]
        assert sum(m["tokens"] for m in of_epoch) == job.n_train - 1
        assert ["validation_loss" in m for m in of_epoch] == [False] * (per_epoch - 1) + [True]


def test_steps_cap_the_epochs(config):
    result, _ = run_quietly(replace(config, epochs=3, steps=7))
    assert [m["step"] for m in metrics_of(result)] == list(range(1, 8))


def test_epochs_are_shuffled_anew_and_repeatable(config):
    def batches():
        loader = prepare(replace(config, epochs=2)).batches
        return [b"".join(b.inputs.tobytes() for b in loader) for _ in range(2)]

    first, second = batches()
    assert first != second
    assert [first, second] == batches()


def test_a_step_schedule_drops_after_epochs(config):
    schedule = ScheduleConfig("StepLR", ("step_size=2", "gamma=0.5"), "epoch")
    result, _ = run_quietly(replace(config, epochs=5, accumulate=5, lr=0.01, schedule=schedule))
    lrs = {(m["epoch"], m["lr"]) for m in metrics_of(result)}
    assert lrs == {(0, 0.01), (1, 0.01), (2, 0.005), (3, 0.005), (4, 0.0025)}


@pytest.mark.parametrize(("unit", "end", "warmup"), [("step", 72, 7), ("epoch", 4, 0)])
def test_the_cosine_falls_over_the_whole_run_after_a_tenth_of_warm_up(config, unit, end, warmup):
    schedule = ScheduleConfig("nanogpt", unit=unit)
    result, _ = run_quietly(replace(config, epochs=4, lr=0.01, schedule=schedule))
    lrs = [m["lr"] for m in metrics_of(result)]
    steps = lrs if unit == "step" else lrs[:: len(lrs) // 4]
    assert len(steps) == end
    rise = [0.01 * ((i + 1) / (warmup + 1)) for i in range(warmup)]
    fall = [0.001 + 0.0045 * (1 + math.cos(math.pi * i / (end - warmup)))
            for i in range(end - warmup)]  # fmt: skip
    assert_close(steps, rise + fall, FORMULA_64, "lr")
    assert unit == "epoch" or 0.001 < steps[-1] < 0.00101


def test_early_stopping_ends_the_run_says_why_and_keeps_the_best(config):
    config = replace(
        config, steps=400, eval_every=5, lr=0.05, stop=StopConfig(patience=3),
        schedule=ScheduleConfig("warmup_constant"),
    )  # fmt: skip
    result, said = run_quietly(config)
    losses = {m["step"]: m["validation_loss"] for m in metrics_of(result) if "validation_loss" in m}
    best = min(losses, key=losses.get)
    last = max(losses)
    assert last == best + 15 < 400
    assert (result.best_step, result.best_loss) == (best, losses[best])
    assert f"(step {best})" in result.stopped
    assert f"step {last}" in result.stopped
    assert "           not improved: 3 of 3" in said
    assert best_checkpoint(result.folder).name == f"step-{best:08d}"
    job = prepare(config)
    job.model.load_state_dict(load_checkpoint(best_checkpoint(result.folder)).model)
    assert evaluate(job.model, job.validation).loss == losses[best]


def test_without_patience_a_run_goes_on_to_its_end(config):
    result, _ = run_quietly(
        replace(config, steps=40, eval_every=5, lr=0.05, schedule=ScheduleConfig("warmup_constant"))
    )
    assert metrics_of(result)[-1]["step"] == 40
    assert result.stopped is None


def test_a_byte_model_trains_and_writes(config, capsys, tmp_path):
    (tmp_path / "text.txt").write_text("naïve café \N{FOX FACE}\n" * 40, encoding="utf-8")
    flags = shlex.split(
        "--tokenizer byte --steps 3 --context 8 --batch-size 2 --sample-length 4 --out"
    )
    assert main(["train", "--data", str(tmp_path), *flags, str(tmp_path / "runs")]) == 0
    assert "256 different ones" in capsys.readouterr().out
    folder = next((tmp_path / "runs").iterdir())
    assert json.loads((folder / "run.json").read_text())["tokenizer"]["kind"] == "byte"
    assert main(["generate", str(folder), "--prompt", "\N{FOX FACE} café", "--length", "40"]) == 0
    assert capsys.readouterr().out.startswith("\N{FOX FACE} café")


@pytest.mark.parametrize("changes", [
    {}, {"n_layer": 7}, {"n_head": 8}, {"context": 128}, {"dropout": 0.1}, {"vocab_size": 2000},
    {"n_embd": 192}, {"n_hidden": 900}, {"activation": "gelu_tanh"}, {"bias": True},
    {"activation": "swiglu"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["char", "tiny-llama"])
def test_the_plans_memory_is_what_a_step_allocates(name, changes):
    model_config = preset(name, **changes)
    model, rows, T = Decoder(model_config), 4, model_config.context
    ids = np.random.default_rng(0).integers(0, model_config.vocab_size, (2, rows, T))
    window = [Batch(*ids)]
    accumulate(window, model)  # the gradients' buffers exist from here on
    tracemalloc.start()
    try:
        accumulate(window, model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    estimate = report.activation_bytes(model_config, rows, itemsize=4)
    assert_close(float(estimate), float(peak), ESTIMATE, "bytes")


def test_the_plan_names_the_parts_of_the_memory(config):
    plan = prepare(config).plan()
    assert "memory     about 1" in plan
    assert "MB for weights, gradients and moments" in plan
    assert "stopping" not in plan
    assert f"2,000 updates of 32 tokens ({2000 * 32 / 561:.1f} times the text)" in plan
    assert "54 updates of 32 tokens (18 an epoch)" in prepare(replace(config, epochs=3)).plan()
    assert "stopping   after 3 validations" in prepare(replace(config, stop=StopConfig(3))).plan()


@pytest.mark.parametrize(("seconds", "says"), [(0, "0:00"), (65.4, "1:05"), (3725, "1:02:05")])
def test_a_clock_is_minutes_or_hours(seconds, says):
    assert report.clock(seconds) == says
