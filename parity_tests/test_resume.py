"""A run that was stopped and resumed is the run that was not, to the byte."""

import json
import os
import random as pythons_random
import shutil
import signal
import time
from dataclasses import fields
from pathlib import Path

import pytest
from small_runs import (
    BY_STEPS,
    UPDATES,
    begin,
    differing,
    end_of,
    go_on,
    go_on_in_a_fresh_process,
    small_config,
    small_presets,
)

import nplm
from nplm import files
from nplm.cli import main
from nplm.errors import CheckpointError
from nplm.train import job as training
from nplm.train import resume
from nplm.train.checkpoint import checkpoint_steps
from nplm.train.run import RunFolder

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stopped: how it ended, and all that it left."""
    result = begin(small_config(tmp_path_factory.mktemp("whole")))
    return result, end_of(result.folder)


def test_the_run_has_everything_in_it(whole):
    result, end = whole
    metrics = end["metrics"]
    assert [m["step"] for m in metrics] == list(range(1, UPDATES + 1))
    assert {m["epoch"] for m in metrics} == {0, 1}
    assert {m["lr"] for m in metrics} == {0.03, 0.03 * 0.1}
    assert sorted({m["tokens"] for m in metrics}) == [40, 71, 72]  # padding, and a short window
    assert f"up to step {UPDATES}" in result.stopped
    assert end["state"]["stopper"]["counter"] == 5
    assert end["best"] == end["state"]["progress"]["best_step"] == UPDATES


EVERY = [  # an everyday run takes a third of them, over all phases of a window
    step if step % 3 == 1 else pytest.param(step, marks=pytest.mark.slow)
    for step in range(1, UPDATES + 1)
]


@pytest.mark.parametrize("step", EVERY)
def test_stopped_after_any_update_and_resumed_in_a_fresh_process_nothing_differs(
    whole, tmp_path, step
):
    result = begin(small_config(tmp_path), stop_at=step)
    assert result.signal == signal.SIGTERM
    assert checkpoint_steps(result.folder)[-1] == step
    (tmp_path / "elsewhere").mkdir()
    go_on_in_a_fresh_process(result.folder.path, tmp_path / "elsewhere", hash_seed=step)
    assert not differing(end_of(result.folder), whole[1])


@pytest.mark.parametrize("step", range(1, UPDATES, 3))
def test_a_run_by_steps_goes_on_the_same(tmp_path, step):
    ends = []
    for name, stop_at in (("whole", None), ("parted", step)):
        (tmp_path / name).mkdir()
        folder = begin(small_config(tmp_path / name, **BY_STEPS), stop_at).folder
        ends.append(end_of(go_on(folder).folder))
    assert not differing(*ends)
    assert len({m["lr"] for m in ends[0]["metrics"]}) > 25  # a warm-up and a cosine


@pytest.mark.parametrize("seed", range(10))
def test_chains_of_stops_change_nothing(whole, tmp_path, seed):
    draw = pythons_random.Random(seed)
    step, folder = 0, None
    while step < UPDATES:
        step += draw.randint(1, 9)
        if folder is None:
            folder = begin(small_config(tmp_path, checkpoint_every=draw.randint(1, 5)), step).folder
        else:
            go_on(folder, step, keep=draw.randint(1, 3))
    go_on(folder)
    assert not differing(end_of(folder), whole[1])


# ---- every component of the state is needed ------------------------------------------------------
PARTS = ["model", "optimizer", "scheduler", "stopper", "loader", "spikes", "random stream"]
NOT_NEEDED = {
    "step": "newest_good compares it with the folder's name",
    "attempt": "counted in attempts.jsonl",
    "seconds": "a time",
    "blas": "only told when it differs",
    "skipped": "test_training_strategies.py resumes runs that skip",
}
LEFT_OUT = [*PARTS, *(f.name for f in fields(resume.Progress) if f.name not in NOT_NEEDED)]


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_a_resumption_without_any_one_component_is_noticed(whole, tmp_path, monkeypatch, left_out):
    stop_at, changes, expected = 23, {}, whole[1]
    if left_out.startswith("best_"):  # a run that ends on losses above its best one
        stop_at, changes = 5, {"steps": 8}
        (tmp_path / "other").mkdir()
        expected = end_of(begin(small_config(tmp_path / "other", **changes)).folder)
        assert expected["best"] == 4
    result = begin(small_config(tmp_path, **changes), stop_at)
    if left_out.endswith("_bytes"):  # lines of updates that no checkpoint has
        for name in ("metrics", "samples"):
            with (result.folder.path / f"{name}.jsonl").open("a") as file:
                file.write('{"step": 24}\n')
    real_load, real_good = resume.load_states, resume.newest_good

    def load_states(checkpoint, parts):
        real_load(checkpoint, {name: part for name, part in parts.items() if name != left_out})

    def newest_good(folder, say):
        checkpoint, state, rejected = real_good(folder, say)
        if left_out.endswith("_bytes"):
            setattr(state, left_out, files.size_of(result.folder.path / f"{left_out[:-6]}.jsonl"))
        elif hasattr(state, left_out):
            setattr(state, left_out, getattr(resume.Progress(), left_out))
        return checkpoint, state, rejected

    monkeypatch.setattr(training, "load_states", load_states)
    monkeypatch.setattr(training, "newest_good", newest_good)
    if left_out == "random stream":
        monkeypatch.setattr(nplm.random.default_generator, "set_state", lambda state: None)
    if left_out == "optimizer":  # the scheduler sees that the learning rate is another one
        with pytest.raises(CheckpointError, match="the loaded state was saved at lr="):
            go_on(result.folder)
        return
    go_on(result.folder)
    assert differing(end_of(result.folder), expected)


def test_a_resumption_with_every_component_is_not(whole, tmp_path):
    result = begin(small_config(tmp_path), stop_at=23)
    go_on(result.folder)
    assert not differing(end_of(result.folder), whole[1])


# ---- kills ---------------------------------------------------------------------------------------
def killed_runs(folder: Path, kills: int, seed: int) -> list[RunFolder]:
    """Runs that were begun and resumed until they ended, with `kills` SIGKILLs in all.

    Every attempt is a fork of this process, which has everything loaded.
    """
    draw, runs, n = pythons_random.Random(seed), [], 0
    while n < kills:
        base = folder / f"{len(runs)}"
        base.mkdir()
        config, ended, most = small_config(base, checkpoint_every=3, keep=2), False, n + kills // 10
        while not ended:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    found = list(base.glob("runs/*/checkpoints/step-*"))
                    if found:
                        go_on(found[0].parent.parent)
                    else:
                        shutil.rmtree(base / "runs", ignore_errors=True)
                        begin(config)
                    status = 0
                finally:
                    os._exit(status)
            if n < min(kills, most):  # so that there are ten chains or more
                time.sleep(draw.uniform(0, 0.25))
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            n += os.WIFSIGNALED(status)
            ended = os.WIFEXITED(status)
            assert not ended or os.WEXITSTATUS(status) == 0
        runs.append(RunFolder(next((base / "runs").iterdir())))
    return runs


def check_killed_runs(whole, folder, kills, seed):
    runs = killed_runs(folder, kills, seed)
    assert len(runs) >= 10
    for run in runs:
        assert not differing(end_of(run), whole[1]), run.path
        assert not [p.name for p in run.checkpoints.iterdir() if p.name[0] in ".r"]  # no rejected-
        lines = (run.path / "attempts.jsonl").read_text().splitlines()
        began = [json.loads(line)["from_step"] for line in lines]
        assert began == sorted(began)  # nothing that was saved was made twice
        with small_presets():
            assert main(["check", str(run.path)]) == 0
        assert len(checkpoint_steps(run)) <= 3  # the newest two and the best
    attempts = sum(len((r.path / "attempts.jsonl").read_text().splitlines()) for r in runs)
    print(f"{kills} kills in {len(runs)} runs, {attempts} attempts that began")


def test_sixty_kills_at_random_moments_lose_nothing(whole, tmp_path):
    check_killed_runs(whole, tmp_path, 60, seed=int(os.environ.get("NPLM_KILL_SEED", "1")))


@pytest.mark.slow
def test_two_thousand_kills_at_random_moments_lose_nothing(whole, tmp_path):
    check_killed_runs(whole, tmp_path, 2000, seed=int(time.time()))
