"""Signals, locks, damage, a full disk, another text: a run ends well, and goes on or says why."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from small_runs import (
    UPDATES,
    begin,
    differing,
    end_of,
    go_on,
    interrupted_at,
    prepared,
    small_config,
    small_presets,
)

from nplm import files
from nplm.cli import main
from nplm.errors import CheckpointError, DataError, RunInUseError
from nplm.parity.tolerances import THEOREM_64, assert_close
from nplm.train import job as training
from nplm.train import resume
from nplm.train.checkpoint import (
    best_checkpoint,
    checkpoint_steps,
    latest_checkpoint,
    load_checkpoint,
)
from nplm.train.config import StopConfig
from nplm.train.interruption import Interruption
from nplm.train.run import RunFolder

pytestmark = pytest.mark.cli

LONG = ["--steps", "100000", "--context", "8", "--batch-size", "1", "--log-every", "1",
        "--sample-length", "1", "--eval-every", "100000"]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n" * 40)
    return path


def started(tmp_path, text):
    """`nplm train` as a process of its own that has made some updates."""
    code = "import sys; from nplm.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "--data", str(text), *LONG]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in process.stdout:
        if line.startswith("step     3"):
            return process
    pytest.fail(f"no third step: {process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_command_that_goes_on(
    tmp_path, text, number, capsys
):
    process = started(tmp_path, text)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert "interrupted, and a checkpoint is kept" in out
    command = out.split("next       nplm ")[1].split()
    folder = RunFolder.open(tmp_path / command[-1])
    last = int(out.split("step")[-1].split()[0])
    assert command[:2] == ["train", "--resume"]
    assert checkpoint_steps(folder)[-1] >= last >= 3
    state = load_checkpoint(latest_checkpoint(folder)).progress
    assert state["step"] == checkpoint_steps(folder)[-1]


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_given_back_and_an_ignored_one_stays_ignored():
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.received is None
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGINT, ignored)


# ---- one at a time -------------------------------------------------------------------------------
def test_of_twenty_processes_on_one_run_one_trains_and_the_others_end_with_6(tmp_path):
    result = begin(small_config(tmp_path), stop_at=3)
    path = result.folder.path
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); import small_runs\n"
        "from nplm.errors import RunInUseError; from nplm.train import job, resume\n"
        "folder = resume.RunFolder.open(sys.argv[1])\n"
        "made = small_runs.prepared(folder)\n"
        "print('ready', flush=True); sys.stdin.readline(); began = time.monotonic()\n"
        "def slowly(records):\n"
        "    for record in records: time.sleep(0.1); yield record\n"
        "try: job.run(made, lambda _: None, slowly, resume=folder)\n"
        "except RunInUseError as error:\n"
        "    print(time.monotonic() - began, error); sys.exit(error.exit_code)\n"
    )
    here = os.path.dirname(__file__)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), here], text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(20)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == [0] + [6] * 19
    refused = [out for out in said if out]
    assert all("in use by process" in out or "in use by another" in out for out in refused)
    print("slowest refusal", max(float(out.split()[0]) for out in refused), "s")
    assert end_of(result.folder)["state"]["step"] == UPDATES


def test_a_run_in_use_is_refused_by_the_command_line_with_6(tmp_path, text, capsys):
    result = begin(small_config(tmp_path), stop_at=3)
    with files.lock(result.folder.path), small_presets():
        assert main(["train", "--resume", str(result.folder.path)]) == 6
    assert "in use by process" in capsys.readouterr().err


# ---- damage --------------------------------------------------------------------------------------
def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def damage(path):
    flip(path / "model.safetensors")


DAMAGE = {
    "a bit": flip,
    "a byte": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "all of it": lambda file: file.unlink(),
}
FILES = ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json",
         "tokenizer.json"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return end_of(begin(small_config(tmp_path_factory.mktemp("whole"))).folder)


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(tmp_path, whole, name, how):
    result = begin(small_config(tmp_path), stop_at=11)
    DAMAGE[how](latest_checkpoint(result.folder) / name)
    said = []
    job = prepared(result.folder)
    training.run(job, said.append, resume=result.folder)
    assert "rejected" in said[0]
    assert f"step-00000011/{name}: " in said[0]
    assert "resumed    after step 10, attempt 2" in said
    assert not differing(end_of(result.folder), whole)
    assert (result.folder.checkpoints / "rejected-step-00000011").exists()
    tail = (result.folder.path / "metrics.attempt-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in tail] == [11]


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
            and p.name not in (".lock", ".owner.json")}  # fmt: skip


def test_if_no_checkpoint_is_whole_nothing_is_changed_and_the_run_does_not_begin_again(
    tmp_path, capsys
):
    result = begin(small_config(tmp_path), stop_at=6)
    for step in checkpoint_steps(result.folder):
        damage(result.folder.checkpoint(step))
    before = contents(result.folder.path)
    with small_presets():
        assert main(["train", "--resume", str(result.folder.path)]) == 3
    assert (
        "none of its 4 checkpoints can be used, and nothing was changed" in capsys.readouterr().err
    )
    assert contents(result.folder.path) == before


def test_a_run_that_ended_before_its_first_checkpoint_is_not_begun_again(tmp_path):
    result = begin(small_config(tmp_path), stop_at=2)
    shutil.rmtree(result.folder.checkpoints)
    result.folder.checkpoints.mkdir()
    with pytest.raises(CheckpointError, match="ended before its first checkpoint"):
        go_on(result.folder)


def test_a_marker_of_a_best_checkpoint_that_was_lost_is_put_right(tmp_path):
    result = begin(small_config(tmp_path), stop_at=10)
    assert json.loads((result.folder.checkpoints / "best.json").read_text())["step"] == 10
    damage(result.folder.checkpoint(10))
    go_on(result.folder, stop_at=9)
    assert best_checkpoint(result.folder) == result.folder.checkpoint(4)


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "stopper", "loader", "progress"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, part, monkeypatch):
    result = begin(small_config(tmp_path), stop_at=3)
    real = resume.load_checkpoint

    def without(path):
        checkpoint = real(path)
        object.__setattr__(checkpoint, part, None)
        return checkpoint

    monkeypatch.setattr(resume, "load_checkpoint", without)
    before = contents(result.folder.path)
    with pytest.raises(CheckpointError, match=r"missing|how far the run was"):
        go_on(result.folder)
    assert contents(result.folder.path) == before


# ---- what a resumption asks for ------------------------------------------------------------------
def test_the_newest_run_is_found_and_a_finished_one_says_so(tmp_path, text, capsys):
    small = ["--data", str(text), "--steps", "3", "--context", "8", "--batch-size", "2",
             "--sample-length", "3", "--out", str(tmp_path / "runs")]  # fmt: skip
    for name in ("one", "two"):
        assert main(["train", *small, "--name", name]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "newest", "--out", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "_two" in out
    assert "finished   all 3 updates were made" in out


def test_settings_of_a_run_cannot_be_changed_by_its_resumption(tmp_path, capsys):
    folder = begin(small_config(tmp_path), stop_at=3).folder.path
    command = ["train", "--resume", str(folder), "--lr", "1", "--steps=9", "--log_every", "5"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "a run keeps its settings, so leave out --steps, --lr" in err


def test_another_text_is_refused(tmp_path):
    folder = begin(small_config(tmp_path), stop_at=3).folder
    (tmp_path / "text.txt").write_text("another text " * 100)
    with pytest.raises(DataError, match="the text is another one than the run"):
        go_on(folder)


def test_the_default_text_is_that_of_the_run_whatever_python_carries(tmp_path):
    config = small_config(tmp_path, data=(), steps=4, epochs=None, eval_every=4, stop=StopConfig())
    config = training.dataclasses.replace(
        config, schedule=training.TrainConfig().schedule, context=8
    )
    folder = begin(config, stop_at=2).folder
    kept = folder.path / "corpus.txt"
    go_on(folder)
    assert load_checkpoint(latest_checkpoint(folder)).step == 4
    kept.write_text(kept.read_text() + "x")
    with pytest.raises(DataError, match="the text is another one"):
        go_on(folder)


@pytest.mark.parametrize(("first", "second"), [("cpu", "torch:cpu"), ("torch:cpu", "cpu")])
def test_a_run_goes_on_on_the_other_backend(tmp_path, first, second):
    pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
    for name in ("whole", "parted"):
        (tmp_path / name).mkdir()
    settings = {"dtype": "float64", "device": first, "preset": "test-plain", "stop": StopConfig()}
    settings["epochs"] = 2
    whole = begin(small_config(tmp_path / "whole", **settings)).folder
    parted = begin(small_config(tmp_path / "parted", **settings), stop_at=13).folder
    go_on(parted, device=second)
    ends = [load_checkpoint(latest_checkpoint(folder)) for folder in (parted, whole)]
    assert ends[0].step == ends[1].step == UPDATES
    for name, weight in ends[1].model.items():
        assert_close(ends[0].model[name], weight, THEOREM_64, name)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (folder.path / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (parted, whole)
    ]
    assert_close(losses[0], losses[1], THEOREM_64, "losses")


def test_every_attempt_is_written_down(tmp_path):
    folder = begin(small_config(tmp_path), stop_at=3).folder
    go_on(folder, stop_at=5)
    attempts = [
        json.loads(line) for line in (folder.path / "attempts.jsonl").read_text().splitlines()
    ]
    assert [(a["attempt"], a["from_step"]) for a in attempts] == [(1, 0), (2, 3)]
    assert all({"command", "versions", "blas", "device", "started"} <= set(a) for a in attempts)


def test_a_library_user_without_signals_of_the_main_thread_can_train(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(begin(small_config(tmp_path, steps=2))))
    thread.start()
    thread.join()
    assert ended[0].signal is None


def test_a_run_that_another_process_holds_is_refused_in_the_library_too(tmp_path):
    folder = begin(small_config(tmp_path), stop_at=3).folder
    with files.lock(folder.path), pytest.raises(RunInUseError):
        training.run(prepared(folder), print, interrupted_at(None), resume=folder)
