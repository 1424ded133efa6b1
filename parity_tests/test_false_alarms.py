"""No false alarm: random healthy scenarios, and the comparison says nothing of any of them."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest

pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

from nplm.models.config import DecoderConfig
from nplm.parity.lockstep import Scenario, lockstep
from nplm.parity.scenarios import (
    OPTIMIZERS,
    SCHEDULES,
    epoch_ends,
    random_scenario,
    settings_of,
)

pytestmark = pytest.mark.run

SEED, MANY, FEW, AT_LEAST = 18, 500, 12, 20


def scenario(i):
    return random_scenario(np.random.default_rng([SEED, i]))


def modes(s):
    """float32 is claimed phase by phase, and so is Muon, which computes in bfloat16."""
    whole = s.dtype == "float64" and s.optimizer != "Muon"
    return ("isolated", "free") if whole else ("isolated",)


def alarms(n):
    """(how many comparisons, what they say: "scenario, mode: ...") of the first n scenarios."""
    made, said = 0, []
    for i in range(n):
        s = scenario(i)
        for mode in modes(s):
            found = lockstep(s, mode=mode)
            made += 1
            if not found.equal:
                said.append(f"scenario {i}, {mode}: {found.first.sentence()}")
    return made, said


def test_random_healthy_scenarios_raise_no_alarm():
    made, said = alarms(FEW)
    assert made > 1.2 * FEW
    assert not said, "\n".join(said)


@pytest.mark.slow
def test_500_random_healthy_scenarios_raise_no_alarm(capsys):
    made, said = alarms(MANY)
    with capsys.disabled():
        print(f"\n{made} comparisons of {MANY} scenarios, {len(said)} alarms; settings:")
        for name, count in sorted(counts(MANY).items()):
            print(f"{count:5d}  {name}")
    assert not said, "\n".join(said)


@pytest.mark.parametrize("i", [249, 341, 362, 417])
def test_a_decay_that_cancels_the_gradient_is_no_alarm(i):
    """RMSprop divides g + decay p by its own size; in these four, one element nearly vanishes."""
    s = scenario(i)
    assert (s.optimizer, s.weight_decay > 0) == ("RMSprop", True)
    found = lockstep(s, mode="free")
    assert found.equal, found.first.sentence()


def counts(n):
    return Counter(name for i in range(n) for name in settings_of(scenario(i)))


def test_every_setting_is_drawn_at_least_20_times():
    found = counts(MANY)
    rare = {name: count for name, count in found.items() if count < AT_LEAST}
    assert not rare
    for name in OPTIMIZERS:
        assert f"optimizer={name}" in found
    for name in SCHEDULES:
        assert f"schedule={name}" in found
    for where in ("never", "inside an epoch", "at the end of an epoch"):
        assert f"resume {where}" in found
    assert sum(len(modes(scenario(i))) == 2 for i in range(MANY)) >= 200


def test_no_setting_is_always_the_same():
    drawn = [scenario(i) for i in range(MANY)]
    for field in fields(Scenario):
        assert len({str(getattr(s, field.name)) for s in drawn}) > 1, field.name
    for field in fields(DecoderConfig):
        assert len({getattr(s.model, field.name) for s in drawn}) > 1, field.name


def test_a_scenario_comes_from_its_generator_alone():
    first, again, other = (random_scenario(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert random_scenario(np.random.default_rng(1), dtype="float32").dtype == "float32"


@pytest.mark.parametrize("i", range(6))
def test_the_ends_of_epochs_are_those_of_the_run(i):
    from nplm.parity.nplm_run import NplmRun

    s = scenario(i)
    run = NplmRun(s)
    run.watch(None)
    ends = [made.step for made in run.fit(0, 0) if made.epoch_ended]
    assert ends == epoch_ends(s)
