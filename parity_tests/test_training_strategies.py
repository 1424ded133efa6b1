"""Every optimizer, schedule and stopping rule of a run by its settings: what it makes of them, and
that a run that was stopped and resumed is the run that was not.
"""

import math

import pytest
from small_runs import (
    UPDATES,
    begin,
    by_steps,
    differing,
    metrics_of,
    parted,
    prepared,
    small_config,
)

from nplm.train import job as training
from nplm.train import parts
from nplm.train.config import (
    OptimizerConfig,
    ScheduleConfig,
    StopConfig,
)

torch = pytest.importorskip("torch", reason="the judge of these tests: pip install torch")
pytestmark = pytest.mark.run

OPTIONS = {  # of each optimizer, at least one that is not its default
    "ASGD": ["lambd=0.001"], "SGD": ["momentum=0.9", "nesterov=true"], "Adadelta": ["rho=0.8"],
    "Adafactor": ["beta2_decay=-0.7"], "Adagrad": ["lr_decay=0.1"], "Adam": ["amsgrad=true"],
    "AdamW": ["eps=1e-6"], "Adamax": ["eps=1e-6"], "Muon": ["momentum=0.9", "ns_steps=4"],
    "NAdam": ["momentum_decay=0.01"], "RAdam": ["decoupled_weight_decay=true"],
    "RMSprop": ["centered=true", "momentum=0.5"], "Rprop": ["etas=0.4,1.3"],
}  # fmt: skip
SCHEDULES = {  # classes and recipes that need options, or where a default would show nothing
    "StepLR": ["step_size=7"], "MultiStepLR": ["milestones=[4,9]"], "ConstantLR": [],
    "LinearLR": ["start_factor=0.1"], "ExponentialLR": ["gamma=0.9"], "PolynomialLR": ["power=2"],
    "CosineAnnealingLR": [], "CosineAnnealingWarmRestarts": ["T_0=5", "T_mult=2"],
    "CyclicLR": ["base_lr=0.001", "max_lr=0.1", "step_size_up=4", "mode=triangular2"],
    "OneCycleLR": [], "ReduceLROnPlateau": ["patience=0", "threshold=1"],
    "SequentialLR": ["milestones=[6]"], "ChainedScheduler": [],
}  # fmt: skip
PARTS = {
    "SequentialLR": ("LinearLR start_factor=0.1 total_iters=6", "CosineAnnealingLR eta_min=1e-5"),
    "ChainedScheduler": ("ConstantLR factor=0.1", "ExponentialLR gamma=0.9"),
}
NEEDED = {"warmup_stable_decay": ["decay_steps=9"], "cosine_with_min_lr": ["min_lr=0.001"],
          "cosine_warmup_with_min_lr": ["min_lr_ratio=0.1"]}  # fmt: skip


def schedule_of(name, unit="step"):
    options = tuple(SCHEDULES.get(name) or NEEDED.get(name, []))
    return ScheduleConfig(name, options, unit, parts=PARTS.get(name, ()))


def test_every_optimizer_and_schedule_has_a_case():
    assert OPTIONS.keys() == parts.OPTIMIZERS.keys()
    assert SCHEDULES.keys() == parts.SCHEDULERS.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_an_optimizer_gets_torchs_options_and_a_stop_changes_nothing(tmp_path, name):
    changes = {"optimizer": OptimizerConfig(name, tuple(OPTIONS[name])), "lr": 1e-3,
               "schedule": ScheduleConfig("constant")}  # fmt: skip
    job = training.prepare(by_steps(tmp_path, preset="char", context=8, **changes))
    given = {}
    for word in OPTIONS[name]:
        key, _, text = word.partition("=")
        given[key] = {"true": True}.get(text, text if text == "true" else eval(text.title()))
    if name == "Muon":
        given["adjust_lr_fn"] = "match_rms_adamw"
    if name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam"):
        given["betas"] = (0.9, 0.99)
    decay = {} if name == "Rprop" else {"weight_decay": 0.1 if name in parts.DECOUPLED else 0.0}
    theirs = getattr(torch.optim, name)([torch.zeros(2, 2)], lr=1e-3, **given, **decay)
    [expected] = theirs.param_groups
    ours = job.optimizer.param_groups[0]
    assert {k: ours[k] for k in expected if k != "params"} == {
        k: v for k, v in expected.items() if k != "params"
    }
    assert not differing(*parted(tmp_path, 13, steps=20, **changes))


def torchs_rates(config, n_groups, losses):
    """The first group's rate at every update, by torch's scheduler of the same settings."""
    schedule, total = config.schedule, config.steps
    params = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(n_groups)]
    optimizer = torch.optim.AdamW(params, lr=config.lr, betas=(0.9, 0.99))
    known = torch.optim.lr_scheduler

    def made(name, words, length):
        settings = dict(word.split("=") for word in words)
        settings = {k: v if v == "triangular2" else eval(v) for k, v in settings.items()}
        if name == "CosineAnnealingLR":
            settings.setdefault("T_max", length)
        if name == "OneCycleLR":
            settings |= {"max_lr": config.lr, "total_steps": total}
        return getattr(known, name)(optimizer, **settings)

    if schedule.name == "SequentialLR":
        inner = [
            made(p.split()[0], p.split()[1:], n) for p, n in zip(schedule.parts, (6, total - 6))
        ]
        scheduler = known.SequentialLR(optimizer, inner, milestones=[6])
    elif schedule.name == "ChainedScheduler":
        inner = [made(p.split()[0], p.split()[1:], total) for p in schedule.parts]
        scheduler = known.ChainedScheduler(inner, optimizer=optimizer)
    else:
        scheduler = made(schedule.name, schedule.options, total)
    rates = []
    for update in range(1, total + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule.name != "ReduceLROnPlateau":
            if update < total or schedule.name != "OneCycleLR":
                scheduler.step()
        elif update in losses:
            scheduler.step(losses[update])
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_torch_moves_the_rate_as_torchs_does_and_a_stop_changes_nothing(
    tmp_path, name
):
    config = by_steps(tmp_path, schedule=schedule_of(name))
    result = begin(config)
    metrics = metrics_of(result.folder)
    losses = {m["step"]: m["validation_loss"] for m in metrics if "validation_loss" in m}
    assert [m["lr"] for m in metrics] == torchs_rates(config, 2, losses)
    assert len({m["lr"] for m in metrics}) > 1
    changes = {"epochs": None, "steps": UPDATES, "stop": StopConfig(), "accumulate": 1,
               "schedule": config.schedule}  # fmt: skip
    assert not differing(*parted(tmp_path, 17, **changes))


@pytest.mark.parametrize("name", parts.RECIPES)
def test_a_recipe_goes_on_the_same_after_a_stop(tmp_path, name):
    changes = {"epochs": None, "steps": 20, "stop": StopConfig(), "schedule": schedule_of(name)}
    assert not differing(*parted(tmp_path, 9, **changes))


@pytest.mark.parametrize(("settings", "first"), [
    ({"name": "linear"}, 1.0), ({"name": "linear", "warmup_steps": 4}, 0.0),
    ({"name": "constant_with_warmup"}, 0.0), ({"name": "nanogpt"}, 1 / 4),
    ({"name": "llmc_cosine", "warmup_steps": 4, "min_lr": 0.003}, 1 / 4),
], ids=str)  # fmt: skip
def test_a_recipe_begins_as_its_tool_does(tmp_path, settings, first):
    result = begin(by_steps(tmp_path, schedule=ScheduleConfig(**settings)))
    rates = [m["lr"] for m in metrics_of(result.folder)]
    assert rates[0] == pytest.approx(first * 0.03, rel=1e-15)
    if settings.get("min_lr"):
        assert min(rates[5:]) > 0.003
        assert rates[-1] < 0.0035


@pytest.mark.parametrize("settings", [
    {"semantics": "pytorchtools-2020"}, {"semantics": "keras", "baseline": 3.0},
    {"semantics": "keras", "start_from_epoch": 2}, {"semantics": "lightning"},
    {"semantics": "lightning", "stopping_threshold": 3.3}, {"semantics": "plateau"},
    {"semantics": "lightning", "divergence_threshold": 3.0, "check_finite": False},
    {"semantics": "plateau", "threshold_mode": "abs"}, {"semantics": "transformers"},
], ids=str)  # fmt: skip
def test_a_run_stops_by_the_rule_that_it_names_stopped_before_or_not(tmp_path, settings):
    stop = StopConfig(patience=2, delta=0.2, **settings)
    ends = parted(tmp_path, 3, stop=stop)
    assert not differing(*ends)
    judge, last = parts.make_stopper(stop), None
    for m in ends[0]["metrics"]:
        if "validation_loss" in m:
            assert not judge.early_stop
            judge(m["validation_loss"], step=m["step"])
            last = m["step"]
    assert judge.early_stop == ends[0]["state"]["stopper"]["early_stop"]
    assert judge.early_stop or last == ends[0]["metrics"][-1]["step"]


# ---- windows -------------------------------------------------------------------------------------
def test_windows_change_with_the_epoch_and_a_stop_changes_nothing(tmp_path):
    changes = {"accumulate": 1, "windows": ("0:1", "1:4"), "stop": StopConfig(), "epochs": 2,
               "normalise": "microbatch"}  # fmt: skip
    ends = parted(tmp_path, 60, **changes)
    assert not differing(*ends)
    tokens = {e: [m["tokens"] for m in ends[0]["metrics"] if m["epoch"] == e] for e in (0, 1)}
    assert (max(tokens[0]), max(tokens[1])) == (24, 96)
    assert sum(tokens[0]) == sum(tokens[1])
    assert len(tokens[1]) == math.ceil(len(tokens[0]) / 4)
    result = begin(small_config(tmp_path, **changes))
    assert prepared(result.folder).total == len(ends[0]["metrics"])
