"""One process at a time in a folder, whoever is killed and however many try at once."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from nplm import files
from nplm.errors import CheckpointError, NplmError, RunInUseError, StorageError
from nplm.files import system

pytest.importorskip("filelock", reason="the lock is filelock's: pip install filelock")

pytestmark = pytest.mark.cli

HOLD = """
import sys, time
from nplm import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""

# Imports first, waits for the starting shot, then says what came of it and how long it took.
TRY = """
import os, sys, time
import filelock
from nplm import files
from nplm.errors import RunInUseError
folder = sys.argv[1]
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
try:
    with files.lock(folder):
        print("held", flush=True)
        sys.stdin.readline()
except RunInUseError as error:
    print("refused", time.perf_counter() - start, error, flush=True)
"""


def start(code, folder):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.fixture
def holder(tmp_path):
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_at_once_who_holds_the_folder(tmp_path, holder):
    since = time.perf_counter()
    with pytest.raises(RunInUseError) as caught, files.lock(tmp_path):
        pass
    assert time.perf_counter() - since < 0.2
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}: in use by process {holder.pid} on .+ since "
        r"\d{4}-\d\d-\d\dT\S+; wait for its end, or use another run",
        str(caught.value),
    )
    assert caught.value.exit_code == 6


def test_the_lock_of_a_killed_process_is_free_and_its_note_does_not_matter(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / ".owner.json").read_text())["pid"] == holder.pid
    with files.lock(tmp_path):
        assert json.loads((tmp_path / ".owner.json").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == [".lock"]


def test_of_twenty_processes_at_once_one_gets_the_lock_and_the_others_hear_so(tmp_path):
    processes = [start(TRY, tmp_path) for _ in range(20)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 20
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().split(" ", 2) for process in processes]
    for process in processes:
        process.communicate("end\n")
    refused = [words for words in said if words[0] == "refused"]
    assert sorted(words[0] for words in said) == ["held\n"] + ["refused"] * 19
    assert max(float(words[1]) for words in refused) < 0.2
    assert all(f"{tmp_path}: in use by " in words[2] for words in refused)


def test_the_lock_can_be_taken_again_after_it_was_given_back_but_not_twice(tmp_path):
    for _ in range(3):
        with files.lock(tmp_path), pytest.raises(RunInUseError), files.lock(tmp_path):
            pass
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path):
        raise ZeroDivisionError
    with files.lock(tmp_path):
        pass


@pytest.mark.parametrize(
    "note", [b"", b"[]", b"{}", b'{"pid": 1, "host": "\\u202e", "since": ""}', b"x" * 2000]
)
def test_a_note_that_cannot_be_read_hides_only_the_name_of_the_owner(tmp_path, note):
    with files.lock(tmp_path):
        (tmp_path / ".owner.json").write_bytes(note)
        with pytest.raises(RunInUseError, match="in use by another process"), files.lock(tmp_path):
            pass


def test_a_full_disk_takes_the_note_but_not_the_lock(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(system, "write", full)
    with files.lock(tmp_path), pytest.raises(RunInUseError), files.lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".lock"]


def test_a_folder_that_cannot_be_locked_says_why(tmp_path, monkeypatch):
    missing = files.lock(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="missing: no such folder"), missing:
        pass
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StorageError, match=r"\.lock: could not be written"), files.lock(tmp_path):
        pass
    monkeypatch.setitem(sys.modules, "filelock", None)
    sentence = r"^locking a run needs filelock, which is not installed: pip install filelock$"
    with pytest.raises(NplmError, match=sentence), files.lock(tmp_path):
        pass


READ_ONLY = """
import os, sys
import filelock
from nplm import files
os.setuid(65534)
from nplm.errors import StorageError
try:
    with files.lock(sys.argv[1]):
        pass
except StorageError as error:
    print(error.errno, error)
"""


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another"
)
def test_a_read_only_folder_is_a_storage_error(tmp_path):
    for parent in tmp_path.parents[:3]:  # of pytest, of its run, of its process
        if not parent.stat().st_mode & 0o001:
            parent.chmod(0o755)
    tmp_path.chmod(0o555)
    process = start(READ_ONLY, tmp_path)
    out, _ = process.communicate()
    assert out.startswith(
        f"13 {tmp_path / '.lock'}: could not be written: Permission denied; check"
    )
