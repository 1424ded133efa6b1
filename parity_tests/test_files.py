"""Files and folders are written whole or not at all; damage and failure are named."""

import ast
import errno
import json
import math
import os
import re
import stat

import numpy as np
import pytest
from house import PACKAGE

from nplm import files
from nplm.errors import CheckpointError, StorageError
from nplm.files import system

pytestmark = pytest.mark.cli


@pytest.mark.skipif(os.name == "nt", reason="the umask is Unix's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_decides_who_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.save_tensors(tmp_path / "t", {"a": np.zeros(2)})
        files.write_directory(tmp_path / "d", {"x": lambda p: files.write_text(p, "x")})
    finally:
        os.umask(before)
    for path in (tmp_path / "t", tmp_path / "d" / "x", tmp_path / "d" / files.MANIFEST):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_writing_through_a_link_replaces_what_it_points_to(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_json_comes_back_and_refuses_what_is_not_json(tmp_path):
    value = {"a": [1, 2.5, None, True, "é\ud800"], "b": {"c": 1e-300}}
    files.write_json(tmp_path / "v.json", value)
    assert files.read_json(tmp_path / "v.json") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "v.json", {"loss": math.nan})
    assert files.read_json(tmp_path / "v.json") == value


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not valid JSON: Expecting value"),
        (b'{"a": 1', "not valid JSON: .*char 7"),
        (b"NaN", "not valid JSON: NaN is not a JSON number"),
        (b"\xff", "not valid JSON: .*can't decode byte 0xff"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_damaged_json_is_refused_with_path_and_reason(tmp_path, data, sentence):
    path = tmp_path / "v.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        files.read_json(path)
    assert str(caught.value).startswith(str(path))


def test_lines_are_appended_whole_and_one_at_a_time(tmp_path):
    files.append_line(tmp_path / "log", "a")
    files.append_line(tmp_path / "log", "ü")
    assert (tmp_path / "log").read_bytes() == "a\nü\n".encode()
    with pytest.raises(ValueError, match="got a newline inside"):
        files.append_line(tmp_path / "log", "a\nb")


def test_the_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert files.sha256_of(tmp_path / "x") == files.sha256_of(b"abc") == known
    with pytest.raises(CheckpointError, match="missing: no such file"):
        files.sha256_of(tmp_path / "missing")


ADVICE = {
    errno.ENOSPC: "No space left on device; free some space or choose another folder",
    errno.EACCES: "Permission denied; check its permissions or choose another folder",
    errno.EROFS: "Read-only file system; choose a folder on a disk that can be written",
    errno.EIO: "Input/output error; choose another folder, or try again",
}


@pytest.mark.parametrize("code", ADVICE)
@pytest.mark.parametrize("call", ["fsync", "replace", "rename", "mkdir"])
def test_a_failed_call_of_the_system_says_path_reason_and_advice_and_leaves_nothing(
    tmp_path, monkeypatch, code, call
):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(system, call, fail)
    with pytest.raises(StorageError) as caught:
        files.write_directory(tmp_path / "d", {"x": lambda p: files.write_text(p, "x")})
    monkeypatch.undo()
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "d"))
    assert ".tmp-" not in message
    assert message.endswith(f"could not be written: {ADVICE[code]}")
    assert caught.value.errno == code
    assert os.listdir(tmp_path) == []


def test_writing_into_a_missing_folder_says_to_create_it(tmp_path):
    for write in (files.write_text, files.append_line):
        with pytest.raises(
            StorageError, match=r"no/f: could not be written: .*; create the folder"
        ):
            write(tmp_path / "no" / "f", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        files.make_directory(tmp_path / "file" / "below")


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(system, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


# ---- folders ---------------------------------------------------------------------------------


FILES = {
    "a.txt": lambda p: files.write_text(p, "hello"),
    "b.bin": lambda p: p.write_bytes(bytes(9)) and None,  # a writer that does not sync
}


def test_a_written_folder_verifies_and_its_manifest_lists_sizes_and_hashes(tmp_path):
    path = files.write_directory(tmp_path / "d", FILES)
    manifest = files.verify_directory(path)
    assert manifest["format_version"] == files.MANIFEST_VERSION == 2
    assert re.fullmatch("[0-9a-f]{64}", manifest["sha256"])
    assert manifest["files"] == {
        "a.txt": {"bytes": 5, "sha256": files.sha256_of(b"hello")},
        "b.bin": {"bytes": 9, "sha256": files.sha256_of(bytes(9))},
    }
    assert sorted(os.listdir(path)) == ["MANIFEST.json", "a.txt", "b.bin"]


def damage_size(path):
    (path / "a.txt").write_text("hell")
    return r"a\.txt: damaged: expected 5 bytes, found 4"


def damage_content(path):
    (path / "a.txt").write_text("jello")
    return r"a\.txt: damaged: its SHA-256 differs from the manifest's"


def damage_manifest_version(path):
    content = json.loads((path / files.MANIFEST).read_text())
    (path / files.MANIFEST).write_text(json.dumps(content | {"format_version": 3}))
    return r"format version 3 was written by a newer nplm, this one reads 2; update nplm"


def damage_manifest_keys(path):
    (path / files.MANIFEST).write_text('{"format_version": 1}')
    return r"MANIFEST\.json: damaged: not a manifest of version 1 or 2"


def damage_manifest_names(path):
    content = {"format_version": 1, "files": {"../a.txt": {"bytes": 5, "sha256": ""}}}
    (path / files.MANIFEST).write_text(json.dumps(content))
    return r"MANIFEST\.json: damaged: its list of files cannot be read"


def damage_manifest_size(path):
    (path / files.MANIFEST).write_bytes(b" " * 1_000_001)
    return r"1000001 bytes, expected at most 1000000, so it is not read"


def damage_manifest_hash(path):
    content = json.loads((path / files.MANIFEST).read_text())
    (path / files.MANIFEST).write_text(json.dumps(content, indent=2))  # without the last newline
    return r"MANIFEST\.json: damaged: it differs from what its own SHA-256 was taken of"


@pytest.mark.parametrize("damage", [v for k, v in list(globals().items()) if k[:7] == "damage_"])
def test_a_damaged_folder_is_refused_with_file_and_reason(tmp_path, damage):
    path = files.write_directory(tmp_path / "d", FILES)
    sentence = damage(path)
    with pytest.raises(CheckpointError, match=sentence):
        files.verify_directory(path)


def test_a_folder_that_is_not_there_or_is_there_already_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint folder: No such file"):
        files.verify_directory(tmp_path / "d")
    files.write_directory(tmp_path / "d", FILES)
    with pytest.raises(StorageError, match="it exists already; choose another name, or move"):
        files.write_directory(tmp_path / "d", FILES)
    files.verify_directory(tmp_path / "d")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/x", "", ".x", "a\\b", "MANIFEST.json", "a\0", "CON", "nul.txt"]
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is not a plain file name"):
        files.write_directory(tmp_path / "d", {name: lambda p: None})


def test_a_writer_that_fails_leaves_nothing_and_its_own_error(tmp_path):
    def fail(path):
        path.write_text("half")
        raise ZeroDivisionError("in the writer")

    with pytest.raises(ZeroDivisionError, match="in the writer"):
        files.write_directory(tmp_path / "d", {"a": fail})
    assert os.listdir(tmp_path) == []


def test_a_folder_with_a_manifest_of_version_1_still_verifies(tmp_path):
    path = files.write_directory(tmp_path / "d", FILES)
    entries = files.verify_directory(path)["files"]
    (path / files.MANIFEST).write_text(json.dumps({"format_version": 1, "files": entries}))
    assert files.verify_directory(path)["files"] == entries
    assert files.load_verified(path) == {"a.txt": b"hello", "b.bin": bytes(9)}


def test_large_files_are_only_measured_when_a_folder_is_read_back(tmp_path):
    path = files.write_directory(tmp_path / "d", FILES)
    (path / "b.bin").write_bytes(b"\1" * 9)
    files.verify_directory(path, hash_limit=8)
    with pytest.raises(CheckpointError, match=r"b\.bin: damaged: its SHA-256"):
        files.verify_directory(path, hash_limit=9)


def test_what_does_not_come_back_was_not_written(tmp_path, monkeypatch):
    rename = os.rename

    def damage(source, target):
        (source / "a.txt").write_text("jello")
        rename(source, target)
        monkeypatch.setattr(system, "rename", rename)

    monkeypatch.setattr(system, "rename", damage)
    with pytest.raises(StorageError, match=r"was written but does not come back \(.*SHA-256") as e:
        files.write_directory(tmp_path / "d", FILES)
    assert e.value.errno == errno.EIO
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_after_the_check_changes_nothing(tmp_path):
    path = files.write_directory(tmp_path / "d", FILES)
    content = files.load_verified(path)
    (path / "a.txt").write_text("jello")
    assert content == {"a.txt": b"hello", "b.bin": bytes(9)}
    with pytest.raises(CheckpointError, match=r"a\.txt: damaged: its SHA-256"):
        files.load_verified(path)


# ---- lines, space, what is left over -------------------------------------------------------------


def test_lines_are_cut_back_and_the_tail_is_kept(tmp_path):
    log, tail = tmp_path / "log", tmp_path / "tail"
    for line in ("one", "two", "three"):
        files.append_line(log, line, sync=True)
    with open(log, "a") as file:
        file.write("ha")  # half a line, of a killed run
    assert files.size_of(log) == 16
    assert files.size_of(tmp_path / "missing") == 0
    files.cut_lines(log, 8, tail)
    assert (log.read_text(), tail.read_text()) == ("one\ntwo\n", "three\nha")
    files.cut_lines(log, 8, tail)
    files.cut_lines(log, 4, tail)
    assert (log.read_text(), tail.read_text()) == ("one\n", "three\nhatwo\n")
    files.cut_lines(tmp_path / "missing", 0, tmp_path / "no tail")
    assert sorted(os.listdir(tmp_path)) == ["log", "tail"]


def test_a_cut_goes_on_after_a_crash_between_its_two_writes(tmp_path):
    (tmp_path / "log").write_text("one\ntwo\n")
    (tmp_path / "tail").write_text("zero\ntwo\n")  # the second write did not come
    files.cut_lines(tmp_path / "log", 4, tmp_path / "tail")
    assert (tmp_path / "log").read_text() == "one\n"
    assert (tmp_path / "tail").read_text() == "zero\ntwo\n"


@pytest.mark.parametrize(
    ("n_bytes", "sentence"), [(9, "has 8 bytes, expected at least 9"), (5, "no line ends after 5")]
)
def test_a_cut_where_no_line_ends_is_refused(tmp_path, n_bytes, sentence):
    (tmp_path / "log").write_text("one\ntwo\n")
    with pytest.raises(CheckpointError, match=sentence):
        files.cut_lines(tmp_path / "log", n_bytes, tmp_path / "tail")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert os.listdir(tmp_path) == ["log"]


def test_a_sweep_removes_what_crashes_left_and_nothing_else(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    for name in (".tmp-12-0123abcd", ".del-12-0123abcd"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "f").write_text("x")
    (tmp_path / ".tmp-13-0123abcd").write_text("half")
    (tmp_path / ".tmp-14-0123abcd").symlink_to(tmp_path / "kept")
    others = [".tmp-mine", ".del-1", "tmp-12-0123abcd", ".tmp-12-0123abcd.txt", ".lock", "step-1"]
    for name in others:
        (tmp_path / name).mkdir()
    assert len(files.sweep(tmp_path)) == 4
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "kept"])
    assert os.listdir(tmp_path / "kept") == ["file"]
    assert files.sweep(tmp_path / "missing") == []


def test_too_little_space_is_said_with_both_numbers(tmp_path, monkeypatch):
    usage = os.statvfs(tmp_path)
    assert files.free_bytes(tmp_path / "not" / "there") <= usage.f_frsize * usage.f_blocks
    files.require_free(tmp_path, 1)
    monkeypatch.setattr(files.folders, "free_bytes", lambda path: 3_000_000)
    with pytest.raises(StorageError, match=r"needs 4\.5 MB, 3\.0 MB are free; free some") as caught:
        files.require_free(tmp_path, 4_500_000)
    assert caught.value.errno == errno.ENOSPC


def test_a_folder_behind_a_link_is_written_and_removed_there(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    path = files.write_directory(tmp_path / "runs" / "d", FILES)
    files.verify_directory(path)
    assert os.listdir(tmp_path / "disk") == ["d"]
    files.remove_directory(path)
    assert os.listdir(tmp_path / "disk") == []
    with pytest.raises(StorageError, match=r"runs/d: could not be removed: No such file"):
        files.remove_directory(path)


# ---- the one door --------------------------------------------------------------------------------

MODULES = {"os", "os.path", "shutil", "io", "tempfile"}
NO_CALLS_OF_FILES = {  # what these modules say and do without a file
    "getpid", "getenv", "fspath", "cpu_count", "StringIO", "BytesIO", "TextIOWrapper", "_exit",
    "sched_getaffinity", "get_terminal_size", "basename", "dirname", "sysconf", "kill",
    "register_at_fork", "fork", "waitpid",
}  # fmt: skip
METHODS = {
    "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir", "rmdir", "touch",
    "iterdir", "glob", "rglob", "is_file", "is_dir", "exists", "symlink_to", "tofile", "savez",
    "fromfile", "memmap",
}  # fmt: skip
EXCEPTIONS = {(file, call) for file, calls in {  # and why
    "cli/__init__.py": ["os.open", "os.dup2"],  # a closed standard output: the null device
    "backend/threads.py": ["?.read_text"],  # the kernel's own pages about cores and quotas
    "bench/machine.py": ["?.read_text"],  # likewise, about the processor and memory
    # weights and gradients between processes, in a folder that is gone afterwards
    "bench/rounds.py": ["tempfile.TemporaryDirectory", "open", "os.remove", "?.fromfile"],
    "bench/torch_turns.py": ["tempfile.TemporaryDirectory"],  # likewise
    # likewise; its own standard streams: what a library prints is no answer
    "bench/worker.py": ["?.fromfile", "?.tofile", "open", "os.dup", "os.dup2", "os.fdopen"],
    "train/processes.py": ["os.open", "os.dup2", "os.listdir", "os.close"],  # a fork gives all up
}.items() for call in calls}  # fmt: skip


def calls_of_files(tree):
    """The calls in a module that may reach the file system, as `os.open`, `open`, `?.exists`."""
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id == "open":
            yield "open"
        if isinstance(called, ast.Attribute):
            owner = ast.unparse(called.value)
            if owner in MODULES and called.attr not in NO_CALLS_OF_FILES:
                yield f"{owner}.{called.attr}"
            elif called.attr in METHODS and owner not in ("files", "system"):
                yield f"?.{called.attr}"


def test_the_file_system_is_called_in_one_module_only():
    found = {
        (str(path.relative_to(PACKAGE)), call)
        for path in PACKAGE.rglob("*.py")
        for call in calls_of_files(ast.parse(path.read_text()))
    }
    assert found == EXCEPTIONS
    code = "open(p); os.mkdir(p); os.path.exists(p); Path(p).read_text(); os.getpid(); f.open(p)"
    expected = ["?.read_text", "open", "os.mkdir", "os.path.exists"]
    assert sorted(calls_of_files(ast.parse(code))) == expected
