"""A disk that is full, fails or is read-only while a run trains: it ends well, and goes on."""

import contextlib
import errno
import os
import shutil

import pytest
from small_runs import UPDATES, begin, differing, end_of, go_on, small_config, small_presets

from nplm import files
from nplm.errors import NplmError, StorageError
from nplm.files import system
from nplm.train import job as training
from nplm.train.checkpoint import best_checkpoint, checkpoint_steps
from nplm.train.run import RunFolder

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return end_of(begin(small_config(tmp_path_factory.mktemp("whole"))).folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_fails_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, code):
    with small_presets():
        job = training.prepare(small_config(tmp_path))
    real, broken = system.write, []

    def write(handle, data):
        if broken:
            raise OSError(code, os.strerror(code))
        return real(handle, data)

    monkeypatch.setattr(system, "write", write)

    def progress(records):
        for record in records:
            if record.step == 8:
                broken.append(True)
            yield record

    with pytest.raises(StorageError, match=os.strerror(code)) as failure:
        training.run(job, lambda _: None, progress)
    assert failure.value.exit_code == 5
    broken.clear()
    monkeypatch.undo()
    folder = RunFolder(next((tmp_path / "runs").iterdir()))
    assert checkpoint_steps(folder)[-1] == 6
    go_on(folder)
    assert end_of(folder)["state"]["step"] == UPDATES


def test_a_run_that_has_no_room_for_two_checkpoints_is_not_begun(tmp_path, monkeypatch):
    with small_presets():
        job = training.prepare(small_config(tmp_path))
    needed = 2 * 3 * 4 * job.model.num_parameters()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(system, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(StorageError, match=r"needs .* MB, .* MB are free") as failure:
        training.run(job, lambda _: None)
    assert failure.value.errno == errno.ENOSPC
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(system, "disk_usage", lambda path: usage._replace(free=needed))
    assert training.run(job, lambda _: None).best_step


def test_the_best_checkpoint_is_found_while_another_becomes_the_best(tmp_path, monkeypatch):
    folder = begin(small_config(tmp_path), stop_at=4).folder
    real, looks = files.read_json, []

    def read_json(path):  # the marker that was read is of the checkpoint before
        looks.append(path)
        return {"step": 3} if len(looks) == 1 else real(path)

    monkeypatch.setattr(files, "read_json", read_json)
    assert best_checkpoint(folder) == folder.checkpoint(4)


def counted_calls(monkeypatch, fail_at=None, code=errno.EIO):
    """Every call of the system is counted; the one of number `fail_at` fails."""
    calls = []

    def counting(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == fail_at:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    for name in system.__all__:
        if name not in ("isdir", "lexists", "realpath"):  # they answer, and raise nothing
            monkeypatch.setattr(system, name, counting(name, getattr(system, name)))
    return calls


@pytest.mark.parametrize(
    "code",
    [errno.ENOSPC, *(pytest.param(n, marks=pytest.mark.slow) for n in (errno.EIO, errno.EACCES))],
)
def test_whichever_call_of_a_whole_run_fails_it_ends_well_and_goes_on(
    tmp_path, monkeypatch, whole, code
):
    with monkeypatch.context() as patch:
        calls = counted_calls(patch)
        (tmp_path / "whole").mkdir()
        begin(small_config(tmp_path / "whole"))
        total = len(calls)
    assert total > 500
    for fail_at in range(1, total, 193):
        base = tmp_path / f"{fail_at}"
        base.mkdir()
        with monkeypatch.context() as patch:
            counted_calls(patch, fail_at, code)
            with contextlib.suppress(NplmError):
                begin(small_config(base))
        found = list(base.glob("runs/*/checkpoints/step-*"))
        if found:
            run = RunFolder(found[0].parent.parent)
            go_on(run)
            assert not differing(end_of(run), whole), fail_at
