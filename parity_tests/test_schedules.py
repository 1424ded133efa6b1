"""get_schedule: every recipe against its tool's formula, written here once more from its source.

The first half of ORACLE is transformers' optimization.py, the second llm.c's schedulers.h and
nanoGPT's train.py; factors and rates are compared with `==`.
"""

import inspect
import math
import re

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm.errors import ConfigError
from nplm.optim import SGD, lr_scheduler, schedules
from nplm.optim.schedules import RECIPES, get_schedule

pytestmark = pytest.mark.step
LR = 0.3


def optimizer(lr=LR):
    return SGD([nplm.zeros(1, requires_grad=True)], lr=lr)


# ---- the formulas --------------------------------------------------------------------------------
def warm(s, w):
    return float(s) / float(max(1, w))


def progress(s, t, w):
    return float(s - w) / float(max(1, t - w))


def half_wave(s, t, w, n, floor):
    factor = 0.5 * (1.0 + math.cos(math.pi * float(n) * 2.0 * progress(s, t, w)))
    return max(0, factor * (1 - floor) + floor)


def restarts(s, t, w, n):
    p = progress(s, t, w)
    return 0.0 if p >= 1 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((float(n) * p) % 1.0))))


def ahead(s, t, w, n, floor, begin):
    s, w, t = float(s), float(w), float(t)
    if s < w:
        if begin is None:
            return (s + 1.0) / max(1.0, w)
        return begin + (1.0 - begin) * s / max(1, w - 1)
    p = (s - w + 1.0) / max(1.0, t - w)
    return max(0, 0.5 * (1.0 + math.cos(math.pi * n * 2.0 * p)) * (1 - floor) + floor)


def poly(s, t, w, end, power):
    if s > t:
        return end / LR
    return ((LR - end) * (1 - (s - w) / (t - w)) ** power + end) / LR


def inverse(s, w, scale):
    scale = (w or 10_000) if scale is None else scale
    return 1.0 / math.sqrt((s + (scale - w)) / scale)


SHAPE = {  # as a rise, as a fall
    "linear": (lambda p: p, lambda p, n: 1.0 - p),
    "cosine": (
        lambda p: 0.5 * (1.0 - math.cos(math.pi * p)),
        lambda p, n: 0.5 * (1.0 + math.cos(math.pi * float(n) * 2.0 * p)),
    ),
    "1-sqrt": (lambda p: 1.0 - math.sqrt(1.0 - p), lambda p, n: 1.0 - math.sqrt(p)),
}


def wsd(s, w, stable, decay, up="linear", down="cosine", floor=0, n=0.5):
    if s < w:
        return max(0.0, SHAPE[up][0](warm(s, w)) * (1.0 - floor) + floor)
    if s < w + stable:
        return 1.0
    if s < w + stable + decay:
        p = float(s - w - stable) / float(max(1, decay))
        return max(0.0, SHAPE[down][1](p, n) * (1.0 - floor) + floor)
    return floor


def llmc(shape, s, t, w, floor):
    """schedulers.h in float64; llm.c stops with an assertion after T."""
    begin = int(np.float32(0.8) * np.float32(t)) if shape == "wsd" else w
    if s < w:
        return (s + 1) / w
    if s < begin:
        return 1.0
    p = min(1.0, (s - begin) / (t - begin))
    height = {
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * p)),
        "linear": lambda: 1.0 - p,
        "wsd": lambda: 1.0 - math.sqrt(p),
    }[shape]()
    return floor + height * (1.0 - floor)


def nanogpt(s, t, w, floor):
    if s < w:
        return (s + 1) / (w + 1)
    if s > t:
        return floor
    return floor + 0.5 * (1.0 + math.cos(math.pi * ((s - w) / (t - w)))) * (1 - floor)


def after_warmup(formula):
    return lambda s, w, **k: warm(s, w) if s < w else formula(s, w=w, **k)


ORACLE = {
    "constant": lambda s: 1,
    "constant_with_warmup": after_warmup(lambda s, w: 1.0),
    "linear": after_warmup(lambda s, w, t: max(0.0, float(t - s) / float(max(1, t - w)))),
    "cosine": after_warmup(lambda s, w, t, n=0.5: half_wave(s, t, w, n, 0.0)),
    "cosine_with_restarts": after_warmup(lambda s, w, t, n=1: restarts(s, t, w, n)),
    "cosine_with_min_lr": after_warmup(
        lambda s, w, t, n=0.5, min_lr=None, floor=None: half_wave(
            s, t, w, n, min_lr / LR if floor is None else floor
        )
    ),
    "cosine_warmup_with_min_lr": lambda s, w, t, n=0.5, min_lr=None, floor=None, begin=None: ahead(
        s, t, w, n, min_lr / LR if floor is None else floor, begin
    ),
    "polynomial": after_warmup(lambda s, w, t, end=1e-7, power=1.0: poly(s, t, w, end, power)),
    "inverse_sqrt": after_warmup(lambda s, w, scale=None: inverse(s, w, scale)),
    "warmup_stable_decay": lambda s, w, decay, t=None, stable=None, **shape: wsd(
        s, w, t - w - decay if stable is None else stable, decay, **shape
    ),
    "llmc_cosine": lambda s, t, w=0, floor=0.0: llmc("cosine", s, t, w, floor),
    "llmc_linear": lambda s, t, w=0, floor=0.0: llmc("linear", s, t, w, floor),
    "llmc_wsd": lambda s, t, w=0, floor=0.0: llmc("wsd", s, t, w, floor),
    "nanogpt": lambda s, t, w, floor=0.1: nanogpt(s, t, w, floor),
    "warmup_cosine": lambda s, t, w, floor=0.1: nanogpt(s, t, w, floor),
    "warmup_constant": lambda s, w: min((s + 1) / (w + 1), 1.0),
}  # fmt: skip
SHORT = {  # our names of settings, the oracle's
    "warmup_steps": "w", "total_steps": "t", "num_cycles": "n", "min_lr_ratio": "floor",
    "min_lr": "min_lr", "warmup_lr_ratio": "begin", "lr_end": "end", "power": "power",
    "timescale": "scale", "decay_steps": "decay", "stable_steps": "stable", "warmup_type": "up",
    "decay_type": "down",
}  # fmt: skip
ratios = st.sampled_from([0.0, 0.1, 0.37, 1.0])
types = st.sampled_from(["linear", "cosine", "1-sqrt"])


@st.composite
def settings_of(draw, name):
    """Random settings that the recipe takes."""
    takes = inspect.signature(RECIPES[name]).parameters
    total = draw(st.integers(1, 120))
    chosen = {"total_steps": total, "warmup_steps": draw(st.integers(0, total - 1))}
    if name == "warmup_stable_decay":
        chosen["decay_steps"] = draw(st.integers(0, total - chosen["warmup_steps"]))
        if draw(st.booleans()):
            chosen["stable_steps"] = draw(st.integers(0, 50))
            del chosen["total_steps"]
        chosen |= {"warmup_type": draw(types), "decay_type": draw(types)}
    if "min_lr" in takes and draw(st.booleans()):
        chosen["min_lr"] = draw(st.sampled_from([0.0, 0.01, LR]))
    else:
        chosen["min_lr_ratio"] = draw(ratios)
    for setting, values in {
        "num_cycles": st.sampled_from([0.5, 1, 2.5, 3]),
        "warmup_lr_ratio": ratios,
        "lr_end": st.sampled_from([0.0, 1e-7, 0.1]),
        "power": st.sampled_from([0.5, 1.0, 2, 3.3]),
        "timescale": st.integers(1, 500),
    }.items():
        if draw(st.booleans()):
            chosen[setting] = draw(values)
    return {name: value for name, value in chosen.items() if name in takes}


@pytest.mark.parametrize("name", RECIPES)
@examples(40)
@given(data=st.data())
def test_every_rate_is_the_formula_of_its_source(name, data):
    chosen = data.draw(settings_of(name))
    moved = optimizer()
    scheduler = get_schedule(name, moved, **chosen)
    expected = {SHORT[setting]: value for setting, value in chosen.items()}
    if name not in ("constant", "nanogpt", "warmup_cosine", "warmup_constant"):
        expected.setdefault("w", 0)
    assert type(scheduler) is lr_scheduler.LambdaLR
    for step in range(130):
        assert moved.param_groups[0]["lr"] == LR * ORACLE[name](step, **expected), step
        moved.step()
        scheduler.step()


def test_llmcs_last_fifth_begins_where_its_float32_says():
    for total in range(1, 20_000, 7):
        scheduler = get_schedule("llmc_wsd", optimizer(), total_steps=total)
        begin = int(np.float32(0.8) * np.float32(total))
        factor = scheduler.lr_lambdas[0]
        assert begin == 0 or (factor(begin - 1), factor(begin)) == (1.0, 1.0)
        assert factor(begin + 1) < 1.0


FIRST = {  # the factor at step 0 with 10 updates of warm-up in 100
    "constant": 1, "warmup_cosine": 1 / 11, "nanogpt": 1 / 11, "warmup_constant": 1 / 11,
    "llmc_cosine": 1 / 10, "llmc_linear": 1 / 10, "llmc_wsd": 1 / 10,
    "cosine_warmup_with_min_lr": 1 / 10,
}  # fmt: skip
USUAL = {
    "warmup_steps": 10,
    "total_steps": 100,
    "decay_steps": 20,
    "min_lr_ratio": 0.0,
}


def usual(name):
    takes = inspect.signature(RECIPES[name]).parameters
    return {setting: value for setting, value in USUAL.items() if setting in takes}


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_rate_is_the_one_that_the_docstring_names(name):
    moved = optimizer(1.0)
    get_schedule(name, moved, **usual(name))
    first = moved.param_groups[0]["lr"]
    assert first == FIRST.get(name, 0)
    if name.startswith(("warmup_co", "nanogpt")):
        return  # shown in docs/schedules.md as they are
    said = re.search(r"At\s+step\s+0: (.*)", " ".join(RECIPES[name].__doc__.split()))[1]
    words = {0: ("0", "min_lr_ratio"), 1: ("1",), 1 / 10: ("1 / W",)}[first]
    assert said.startswith(words), said
    source = re.search(r"transformers|llm\.c", RECIPES[name].__doc__)
    assert source


def test_transformers_own_schedules_give_the_same_rates():
    theirs = pytest.importorskip(
        "transformers.optimization", reason="pip install numpy-lm[oracles]"
    )
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
    renamed = {
        "warmup_steps": "num_warmup_steps", "total_steps": "num_training_steps",
        "decay_steps": "num_decay_steps", "min_lr_ratio": "min_lr_rate",
    }  # fmt: skip
    for name in list(ORACLE)[:10]:
        rates = []
        for library in (nplm, torch):
            moved = library.optim.SGD([library.zeros(1, requires_grad=True)], lr=LR)
            if library is nplm:
                scheduler = get_schedule(name, moved, **usual(name))
            else:
                chosen = {renamed[k]: v for k, v in usual(name).items()}
                if name == "warmup_stable_decay":
                    chosen["min_lr_ratio"] = chosen.pop("min_lr_rate")
                make = theirs.TYPE_TO_SCHEDULER_FUNCTION[theirs.SchedulerType(name)]
                scheduler = make(moved, **chosen)
            seen = []
            for _ in range(120):
                seen.append(moved.param_groups[0]["lr"])
                moved.step()
                scheduler.step()
            rates.append(seen)
        assert rates[0] == rates[1], name


# ---- what is refused -----------------------------------------------------------------------------
BAD = {
    "an unknown name": (("cosin", {}), "unknown schedule 'cosin': .*did you mean 'cosine'?"),
    "an unknown setting": (
        ("linear", {"total_steps": 9, "warmup_step": 1}),
        "unknown setting of schedule 'linear' 'warmup_step': .*did you mean 'warmup_steps'?"),
    "a setting where there is none": (("constant", {"total_steps": 9}), "expected one of none"),
    "a missing setting": (("linear", {}), "'linear' needs total_steps, got none"),
    "two missing settings": (("nanogpt", {}), "needs warmup_steps and total_steps"),
    "a negative warm-up": (("inverse_sqrt", {"warmup_steps": -1}), "warmup_steps >= 0, got -1"),
    "a warm-up without an end": (
        ("cosine", {"warmup_steps": 9, "total_steps": 9}), "below total_steps=9, got 9"),
    "no floor": (("cosine_with_min_lr", {"total_steps": 9}), "one of min_lr and min_lr_ratio"),
    "two floors": (
        ("cosine_warmup_with_min_lr", {"total_steps": 9, "min_lr": 0.1, "min_lr_ratio": 0.1}),
        "one of min_lr and min_lr_ratio"),
    "a floor above the rate": (
        ("cosine_with_min_lr", {"total_steps": 9, "min_lr": 1.0}), r"min_lr_ratio in \[0, 1\]"),
    "a last rate above the first": (
        ("polynomial", {"total_steps": 9, "lr_end": 0.3}), "lr_end below lr=0.3, got 0.3"),
    "no timescale": (("inverse_sqrt", {"timescale": 0}), "timescale > 0, got 0"),
    "an unknown shape": (
        ("warmup_stable_decay", {"decay_steps": 1, "total_steps": 9, "decay_type": "cos"}),
        "unknown decay_type 'cos'.*did you mean 'cosine'"),
    "no length": (("warmup_stable_decay", {"decay_steps": 1}), "total_steps or stable_steps"),
    "lengths that do not add up": (
        ("warmup_stable_decay", {"decay_steps": 1, "total_steps": 9, "stable_steps": 3}),
        "= total_steps and none below 0"),
    "a decay that is too long": (
        ("warmup_stable_decay", {"decay_steps": 10, "total_steps": 9}), "none below 0"),
    "an odd floor": (("llmc_wsd", {"total_steps": 9, "min_lr_ratio": 2}), r"in \[0, 1\], got 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_with_what_is_expected(case):
    (name, chosen), says = BAD[case]
    moved = optimizer()
    with pytest.raises(ConfigError, match=says):
        get_schedule(name, moved, **chosen)
    assert moved.param_groups[0]["lr"] == LR


def test_a_recipe_moves_torchs_optimizers_and_every_group():
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.4)]
    moved = torch.optim.AdamW(groups, lr=0.2)
    get_schedule("llmc_linear", moved, total_steps=8, warmup_steps=4)
    assert [group["lr"] for group in moved.param_groups] == [0.1 * 0.25, 0.4 * 0.25]


def test_the_public_recipes_are_the_named_ones():
    public = {
        name
        for name, value in vars(schedules).items()
        if inspect.isfunction(value) and not name.startswith("_") and name != "get_schedule"
        and value.__module__ == schedules.__name__
    }  # fmt: skip
    assert public | {"nanogpt"} == set(RECIPES) == set(ORACLE)
