"""Averages, skipped updates, spikes and layers of a run: what a run makes of its settings, and that
one that was stopped and resumed is the run that was not.
"""

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from small_runs import (
    begin,
    by_steps,
    differing,
    end_of,
    go_on,
    metrics_of,
    parted,
    prepared,
    small_config,
)

from nplm.cli import generate, main
from nplm.errors import CheckpointError, ConfigError, NonFiniteError
from nplm.train import Evaluation, evaluate, step
from nplm.train import job as training
from nplm.train.checkpoint import (
    best_checkpoint,
    checkpoint_steps,
    latest_checkpoint,
    load_checkpoint,
)
from nplm.train.config import (
    AverageConfig,
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
    TrainConfig,
)

torch = pytest.importorskip("torch", reason="the judge of these tests: pip install torch")
pytestmark = pytest.mark.run


# ---- averages ------------------------------------------------------------------------------------
def averages_of(folder):
    """(step, trained weights, average) of every checkpoint."""
    for number in checkpoint_steps(folder):
        checkpoint = load_checkpoint(folder.checkpoint(number))
        yield number, checkpoint.model, checkpoint.average


@pytest.mark.parametrize("average", [
    AverageConfig("ema", decay=0.7), AverageConfig("ema", decay=0.5, start=10, every=3),
    AverageConfig("swa", start=12, every=2), AverageConfig("swa", start=8, every=1, swa_lr=0.01),
], ids=str)  # fmt: skip
def test_an_average_is_torchs_over_the_weights_of_its_updates(tmp_path, average):
    changes = {"checkpoint_every": 1, "keep": 99, "dtype": "float64"}
    result = begin(by_steps(tmp_path, average=average, **changes))
    utils = torch.optim.swa_utils
    mean = utils.get_ema_multi_avg_fn(average.decay) if average.name == "ema" else None
    first = average.start or 0
    theirs = None
    for number, weights, ours in averages_of(result.folder):
        own = {k: torch.from_numpy(v) for k, v in weights.items() if k != "head.weight"}
        module = torch.nn.ParameterDict({k.replace(".", "/"): v for k, v in own.items()})
        if number > first and (number - first - 1) % (average.every or 1) == 0:
            theirs = theirs or utils.AveragedModel(module, multi_avg_fn=mean)
            theirs.update_parameters(module)
        assert ours["updates"] == (int(theirs.n_averaged) if theirs else 0)
        for name, value in theirs.module.items() if theirs else ():
            np.testing.assert_array_equal(ours["weights"][name.replace("/", ".")], value.detach())


@pytest.mark.parametrize("average", [
    AverageConfig("ema", decay=0.7), AverageConfig("swa", start=6, swa_lr=0.001, anneal=4),
    AverageConfig("swa", start=4, every=3, swa_lr=0.001, anneal_strategy="linear"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("stop_at", [2, 12, 25])
def test_a_run_with_an_average_goes_on_the_same(tmp_path, average, stop_at):
    ends = parted(tmp_path, stop_at, average=average)
    assert not differing(*ends)
    assert ends[0]["average"]


def test_swalr_takes_the_rate_over_where_the_average_begins(tmp_path):
    average = AverageConfig("swa", start=10, every=2, swa_lr=0.001, anneal=4)
    result = begin(by_steps(tmp_path, schedule=ScheduleConfig("constant"), average=average))
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.03)
    torchs = torch.optim.swa_utils.SWALR(optimizer, 0.001, anneal_epochs=4)
    for m in metrics_of(result.folder):
        assert m["lr"] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        if m["step"] > 10:
            torchs.step()
    assert optimizer.param_groups[0]["lr"] == 0.001


def test_the_averaged_weights_are_judged_sampled_and_generated_from(tmp_path, capsys):
    result = begin(by_steps(tmp_path, average=AverageConfig("ema", decay=0.9)))
    job, folder = prepared(result.folder), result.folder
    for m in metrics_of(folder):
        if "validation_loss" in m:
            checkpoint = load_checkpoint(folder.checkpoint(m["step"]))
            for name, key in (("model", "validation_loss_trained"), ("average", "validation_loss")):
                weights = checkpoint.model
                if name == "average":
                    weights = weights | checkpoint.average["weights"]
                    weights["head.weight"] = weights["wte.weight"]
                job.model.load_state_dict(weights)
                assert evaluate(job.model, job.validation).loss == m[key]
            assert m["validation_loss"] != m["validation_loss_trained"]
    best = load_checkpoint(best_checkpoint(folder))
    for choice in (None, "average", "trained"):
        loaded = generate.load(folder.path, choice)[0].state_dict()
        expected = best.model | ({} if choice == "trained" else best.average["weights"])
        for name in best.average["weights"]:
            np.testing.assert_array_equal(loaded[name].numpy(), expected[name])
        command = ["generate", str(folder.path), "--length", "6", "--weights", str(choice)]
        assert main(command) == 0
        assert len(capsys.readouterr().out) > 6


def test_swa_of_epochs_counts_the_last_update_of_a_run_that_steps_cut(tmp_path):
    average = AverageConfig("swa", start=3)
    result = begin(small_config(tmp_path, steps=7, average=average, stop=StopConfig()))
    assert load_checkpoint(latest_checkpoint(result.folder)).average["updates"] == 1


def test_an_average_that_there_is_not_cannot_be_generated_from(tmp_path, capsys):
    folder = begin(by_steps(tmp_path, steps=2)).folder
    assert main(["generate", str(folder.path), "--weights", "average"]) == 3
    assert "it has no average of its weights" in capsys.readouterr().err


def test_a_state_that_is_no_average_is_refused(tmp_path):
    average = prepared(
        begin(by_steps(tmp_path, steps=2, average=AverageConfig("ema"))).folder
    ).average
    good = average.state_dict()
    missing = dict(list(good["weights"].items())[1:])
    for bad in (
        {}, {**good, "updates": -1}, {**good, "updates": True}, {**good, "weights": None},
        {**good, "weights": missing}, {**good, "weights": {**good["weights"], "more": np.ones(1)}},
        {**good, "weights": {**good["weights"], "wte.weight": np.ones(3)}},
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="Average"):
            average.load_state_dict(bad)


# ---- updates that are not finite -----------------------------------------------------------------
@pytest.fixture
def broken(monkeypatch):
    """A set of the calls (from 1) of accumulate whose loss is NaN, and the count of calls."""
    calls, real = set(), step.accumulate
    count = [0]

    def accumulate(*args, **kwargs):
        count[0] += 1
        result = real(*args, **kwargs)
        return replace(result, loss=result.loss * math.nan) if count[0] in calls else result

    monkeypatch.setattr(step, "accumulate", accumulate)
    return calls, count


SKIP = {"on_nonfinite": "skip", "stop": StopConfig(), "epochs": 2}


def test_a_skipped_update_leaves_everything_but_its_place_in_the_data(tmp_path, broken):
    calls, _ = broken
    calls |= {4, 5, 9}
    result = begin(small_config(tmp_path, **SKIP, schedule=ScheduleConfig("StepLR",
                                ("step_size=3",)), checkpoint_every=1))  # fmt: skip
    metrics = metrics_of(result.folder)
    n = math.ceil(math.ceil(1047 / 8 / 3) / 3)  # windows an epoch
    assert [m["step"] for m in metrics] == list(range(1, 2 * n - 3 + 1))
    assert [m["lr"] for m in metrics][:7] == pytest.approx([0.03] * 3 + [0.003] * 3 + [0.0003])
    last = load_checkpoint(latest_checkpoint(result.folder))
    assert last.progress["skipped"] == 3
    steps = {float(entry["step"]) for entry in last.optimizer["state"].values()}
    assert steps == {2 * n - 3}


@pytest.mark.parametrize("at", [1, 7, 12])
def test_a_run_that_skips_goes_on_the_same(tmp_path, broken, at):
    calls, count = broken
    calls |= {5, 6, 13}
    ends = []
    for name, stop_at in (("whole", None), ("parted", at)):
        (tmp_path / name).mkdir()
        count[0] = 0
        folder = begin(small_config(tmp_path / name, **SKIP), stop_at).folder
        if stop_at is not None:
            go_on(folder)
        ends.append(end_of(folder))
    assert not differing(*ends)
    assert ends[0]["state"]["progress"]["skipped"] == 3


def test_epochs_that_end_with_a_skipped_update_are_validated_all_the_same(tmp_path, broken):
    calls, _ = broken
    n = math.ceil(math.ceil(1047 / 8 / 3) / 3)
    calls |= {2 * n}
    result = begin(small_config(tmp_path, **{**SKIP, "eval_every": 10**6}))
    assert result.best_step == 2 * n - 1
    assert math.isfinite(result.best_loss)
    assert checkpoint_steps(result.folder)[-1] == 2 * n - 1
    assert go_on(result.folder).resumed_at == 2 * n - 1  # it is over


def test_a_run_that_only_skips_ends_with_an_error_and_its_checkpoints(tmp_path, broken):
    calls, _ = broken
    calls |= set(range(3, 1000))
    with pytest.raises(NonFiniteError, match="101 updates in a row after step 2 had no"):
        begin(by_steps(tmp_path, steps=900, on_nonfinite="skip", checkpoint_every=1))
    [folder] = (tmp_path / "runs").iterdir()
    assert sorted(p.name for p in (folder / "checkpoints").glob("step-*"))[-1] == "step-00000002"


def test_without_skip_the_first_one_ends_the_run(tmp_path, broken):
    calls, _ = broken
    calls |= {3}
    with pytest.raises(NonFiniteError, match="nothing was updated"):
        begin(by_steps(tmp_path))


# ---- spikes and layers ---------------------------------------------------------------------------
def test_a_spike_is_told_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("nplm.train.spikes.SpikeDetector.__init__.__defaults__", (1.0, 5))
    ends = []
    for name, threshold in (("told", 1.0), ("silent", None)):
        (tmp_path / name).mkdir()
        said = []
        config = by_steps(tmp_path / name, preset="char", context=8, spike_threshold=threshold)
        training.run(training.prepare(replace(config, steps=12)), said.append)
        [folder] = (tmp_path / name / "runs").iterdir()
        spikes = [line for line in said if line.startswith("spike ")]
        assert bool(spikes) == (threshold is not None)
        ends.append((folder / "checkpoints/step-00000012/model.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_layers_have_rates_that_fall_with_the_depth_and_keep_their_ratios(tmp_path):
    config = by_steps(tmp_path, preset="char", context=8, layer_decay=0.5, lr=0.01)
    job = training.prepare(config)
    initial = [group["initial_lr"] for group in job.optimizer.param_groups]
    assert sorted(set(initial), reverse=True) == [0.01 * 0.5**i for i in range(6)]
    job.optimizer.step()
    job.scheduler.step()
    lrs = [group["lr"] for group in job.optimizer.param_groups]
    assert [a / b for a, b in zip(lrs, initial)] == pytest.approx([lrs[0] / initial[0]] * len(lrs))


def test_muon_has_the_blocks_matrices_and_adamw_the_rest(tmp_path):
    config = by_steps(tmp_path, preset="char", context=8, optimizer=OptimizerConfig("Muon"))
    job = training.prepare(config)
    muon, adamw = job.optimizer.optimizers
    names = {p: name for name, p in job.model.named_parameters()}
    by_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert by_muon == {n for n in names.values() if n.startswith("blocks.") and
                       n.split(".")[2] in ("attn", "mlp") and n.endswith("weight")}  # fmt: skip
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw


def test_a_config_says_all_that_is_wrong_at_once():
    with pytest.raises(ConfigError) as refused:
        TrainConfig(
            optimizer=OptimizerConfig("Adm"), schedule=ScheduleConfig("StepL"),
            stop=StopConfig(2, semantics="kears"), average=AverageConfig("swa", decay=0.1),
        ).check()  # fmt: skip
    for words in ("optimizer 'Adm'", "schedule 'StepL'", "'kears'", "average.decay"):
        assert words in str(refused.value)


def test_swalr_leads_alone_after_its_start_also_from_a_plateau(tmp_path):
    schedule = ScheduleConfig("ReduceLROnPlateau", ("patience=0", "threshold=0.9"))
    average = AverageConfig("swa", start=10, every=1, swa_lr=5e-4, anneal=1)
    result = begin(by_steps(tmp_path, schedule=schedule, average=average, eval_every=3))
    rates = [m["lr"] for m in metrics_of(result.folder)]
    assert set(rates[12:]) == {5e-4}


def test_ctrl_c_ends_a_run_that_skips(tmp_path, broken):
    calls, _ = broken
    calls |= set(range(4, 1000))

    def progress(records):
        for n, record in enumerate(records, 1):
            if n == 6:
                os.kill(os.getpid(), signal.SIGINT)
            yield record

    job = training.prepare(by_steps(tmp_path, preset="char", context=8, on_nonfinite="skip"))
    result = training.run(job, lambda _: None, progress)
    assert result.signal == signal.SIGINT
    last = load_checkpoint(latest_checkpoint(result.folder))
    assert (last.step, last.progress["skipped"]) == (3, 3)


def test_another_rule_judges_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    stop = StopConfig(2, semantics="lightning", check_finite=True)
    monkeypatch.setattr("nplm.train.job.evaluate", lambda *_: Evaluation(math.nan, 1, math.nan))
    result = begin(by_steps(tmp_path, stop=stop))
    assert "nan is not finite" in result.stopped


def test_muon_takes_adamws_betas(tmp_path):
    settings = {"optimizer": OptimizerConfig("Muon"), "beta1": 0.8, "preset": "char", "context": 8}
    job = training.prepare(by_steps(tmp_path, **settings))
    assert job.optimizer.optimizers[1].param_groups[0]["betas"] == (0.8, 0.99)
