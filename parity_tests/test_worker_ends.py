"""Workers that fail, are killed or interrupted, and that nothing of them outlives a run."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_processes import (
    PATIENT,
    assert_the_bits_of_threads,
    forks_at_the_second_window,  # noqa: F401
    model_of,
    on_threads,
    outcome,
    run,
    start,
    team_of,
    wait_for,
    window_of,
)

from nplm.backend import threads
from nplm.errors import DataError
from nplm.models import Decoder
from nplm.train import processes

pytestmark = [
    pytest.mark.step,
    pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux alone"),
]


def alive(pid):
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# ---- what can go wrong ---------------------------------------------------------------------------
@pytest.mark.parametrize("row", [0, 5], ids=["here", "in the worker"])
def test_an_error_comes_out_in_the_caller_as_from_threads(row):
    model, bad = model_of(dropout=0.3), window_of((6,))
    start(model)
    bad[0].inputs[row, 2] = 99
    with pytest.raises(DataError, match="ids must be integers"):
        run(model, bad)
    assert not threads.blas_is_held()
    start(model)
    assert_the_bits_of_threads(model, window_of())


@pytest.mark.parametrize("when", ["before a window", "within"])
def test_a_killed_worker_costs_a_warning_and_nothing_else(when, monkeypatch):
    model = model_of(dropout=0.3)
    (worker,) = start(model).workers
    expected = on_threads(model, window_of())
    if when == "within":  # it stands still until this process is at work
        os.kill(worker.pid, signal.SIGSTOP)
        inner = Decoder.loss

        def loss(*args):
            with contextlib.suppress(ProcessLookupError):  # threads come here again
                os.kill(worker.pid, signal.SIGKILL)
            return inner(*args)

        monkeypatch.setattr(Decoder, "loss", loss)
    else:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.warns(UserWarning, match="worker process has ended"):
        found = outcome(model, window_of())
    assert found[1] == expected[1]
    assert found[3] == expected[3]
    for name, gradient in expected[2].items():
        np.testing.assert_array_equal(found[2][name], gradient, name)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_the_bits_of_threads(model, window_of(), by_processes=False)


def test_a_worker_that_never_says_a_word_is_given_up(monkeypatch):
    monkeypatch.setattr(processes, "_serve", lambda *a: time.sleep(PATIENT) or os._exit(0))
    model = model_of()
    run(model, *[window_of()] * 2)
    (worker,) = team_of(model).workers
    assert_the_bits_of_threads(model, window_of(), by_processes=False)
    assert alive(worker.pid)
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    assert_the_bits_of_threads(model, window_of(), by_processes=False)
    assert not alive(worker.pid)
    assert not team_of(model).workers


def test_a_system_without_processes_to_spare_goes_on_with_threads(monkeypatch):
    def fork():
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    model = model_of()
    for seed in range(3):
        assert_the_bits_of_threads(model, window_of(seed=seed), by_processes=False)


def test_ctrl_c_in_a_window_leaves_no_worker_and_the_next_window_right(monkeypatch):
    model = model_of()
    (worker,) = start(model).workers
    inner = Decoder.features

    def interrupted(self, ids):
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model)
    monkeypatch.setattr(Decoder, "features", inner)
    assert not alive(worker.pid)
    start(model)
    assert_the_bits_of_threads(model, window_of())


def test_the_memory_of_workers_is_counted():
    from nplm.bench import machine

    model = model_of()
    before = machine.resident_bytes()
    start(model)
    assert processes.pids() == [w.pid for w in team_of(model).workers]
    with_worker = machine.resident_bytes()
    team_of(model).close()
    assert machine.resident_bytes() < with_worker
    assert before < with_worker


# ---- nothing is left -----------------------------------------------------------------------------
def test_workers_end_with_their_model():
    model = model_of()
    (worker,) = start(model).workers
    assert alive(worker.pid)
    del model
    wait_for(lambda: not alive(worker.pid), "the worker outlives its model")


PROGRAM = """
    import os, sys, time
    import numpy as np
    import nplm
    from nplm.backend import threads
    from nplm.data.loader import Batch, Window
    from nplm.models import Decoder, preset
    from nplm.train import accumulate, buffers, processes, shards

    shards.WORTHWHILE, processes.FIRST = 0, 1
    threads.set_num_threads(2)
    model = Decoder(preset("char", vocab_size=11, context=8, n_layer=1, n_head=2, n_embd=16))
    ids = np.zeros((4, 8), int)
    lock = open(sys.argv[1], "w")
    import fcntl
    fcntl.flock(lock, fcntl.LOCK_EX)
    for _ in range(2):
        model.zero_grad()
        accumulate(Window([Batch(ids, ids)]), model)
    team = processes._teams[buffers._buffers[model]]
    while not team.are_there():
        time.sleep(0.01)
    model.zero_grad()
    accumulate(Window([Batch(ids, ids)]), model)
    print(team.workers[0].pid, flush=True)
"""


def run_program(tmp_path, more):
    """Standard output and the exit code of PROGRAM and `more`, and its worker's pid."""
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(more)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        capture_output=True, text=True, timeout=PATIENT, check=False,
    )  # fmt: skip
    return done, int(done.stdout.split()[0])


@pytest.mark.parametrize(
    ("more", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("os._exit(4)", 4)],
)
def test_workers_end_with_the_program_however_it_ends(tmp_path, more, code):
    """And hold neither its output nor its locks."""
    import fcntl

    done, pid = run_program(tmp_path, more)
    assert (done.returncode, done.stderr) == (code, "")
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    wait_for(lambda: not alive(pid), "the worker outlives the program")


def test_a_worker_holds_nothing_of_its_parent(tmp_path):
    """No file and no lock; standard streams lead nowhere."""
    model = model_of()
    with open(tmp_path / "mine", "w"):
        (worker,) = start(model).workers
        links = [os.readlink(p) for p in Path(f"/proc/{worker.pid}/fd").iterdir()]
    (connection,) = [link for link in links if link != os.devnull]
    assert connection.startswith("socket:")


def test_a_fork_of_the_program_trains_on_its_own(tmp_path):
    """Its gradients do not go into its parent's buffers, nor its batches to the workers there."""
    more = """
        ones = np.ones((4, 8), int)
        expected = {k: np.array(p.grad.numpy()) for k, p in model.named_parameters()}
        parent, pid = os.getpid(), os.fork()
        while pid == 0:  # until it is killed, or nobody is there to do so
            model.zero_grad()
            accumulate(Window([Batch(ones, ones)]), model)
            if os.getppid() != parent:
                os._exit(0)
        try:
            for _ in range(200):
                model.zero_grad()
                accumulate(Window([Batch(ids, ids)]), model)
                for k, p in model.named_parameters():
                    np.testing.assert_array_equal(p.grad.numpy(), expected[k])
        finally:
            os.kill(pid, 9)
        print("equal", len(team.workers))
    """
    done, _ = run_program(tmp_path, more)
    assert done.stderr == ""
    assert done.stdout.split()[1:] == ["equal", "1"]


def test_no_signal_stays_blocked():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    model = model_of()
    (worker,) = start(model).workers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    (mask,) = [
        line.split()[1]
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        if line.startswith("SigBlk:")
    ]
    assert int(mask, 16) == 0


def test_a_signal_handler_of_the_program_does_not_run_in_workers():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *a: seen.append(os.getpid()))
    try:
        model = model_of()
        (worker,) = start(model).workers
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for the program, which
            os.kill(worker.pid, number)  # ends its update first
        assert_the_bits_of_threads(model, window_of())
        os.kill(worker.pid, signal.SIGUSR1)
        wait_for(lambda: not alive(worker.pid), "the worker caught SIGUSR1")
        assert not seen
    finally:
        signal.signal(signal.SIGUSR1, before)
