"""Files and folders are written whole or not at all; damage and failure are named."""

import errno
import json
import math
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from nplm import files
from nplm.errors import CheckpointError, StorageError

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
    with pytest.raises(CheckpointError, match="could not be read"):
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

    monkeypatch.setattr(files.os, call, fail)
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

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


# ---- folders ---------------------------------------------------------------------------------


FILES = {
    "a.txt": lambda p: files.write_text(p, "hello"),
    "b.bin": lambda p: p.write_bytes(bytes(9)) and None,  # a writer that does not sync
}


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the name of a handle")
def test_every_file_is_synced_before_the_folder_and_the_folder_before_the_rename(
    tmp_path, monkeypatch
):
    calls, fsync, rename = [], os.fsync, os.rename

    def path_of(handle):
        return Path(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(files.os, "fsync", lambda h: (calls.append(path_of(h)), fsync(h))[1])
    monkeypatch.setattr(files.os, "rename", lambda a, b: (calls.append(a), rename(a, b))[1])
    files.write_directory(tmp_path / "d", FILES)
    *of_files, synced_folder, renamed, synced_parent = calls
    assert synced_folder == renamed
    assert renamed.name.startswith(".tmp-")
    assert synced_parent == tmp_path
    inside = [path.name for path in of_files if path.parent == renamed]
    assert {"a.txt", "b.bin"} <= set(inside)
    assert inside[-1].startswith(".tmp-")  # MANIFEST.json, before it gets its name


def test_a_written_folder_verifies_and_its_manifest_lists_sizes_and_hashes(tmp_path):
    path = files.write_directory(tmp_path / "d", FILES)
    manifest = files.verify_directory(path)
    assert manifest["format_version"] == 1
    assert manifest["files"] == {
        "a.txt": {"bytes": 5, "sha256": files.sha256_of(b"hello")},
        "b.bin": {"bytes": 9, "sha256": files.sha256_of(bytes(9))},
    }
    assert sorted(os.listdir(path)) == ["MANIFEST.json", "a.txt", "b.bin"]


def test_every_flipped_bit_and_every_truncation_of_a_folder_is_detected(tmp_path):
    path = files.write_directory(tmp_path / "d", FILES)
    for file in path.iterdir():
        whole = file.read_bytes()
        damaged = [whole[:n] for n in range(len(whole))]
        if file.name != files.MANIFEST:
            damaged += [flip(whole, bit) for bit in range(len(whole) * 8)]
        else:  # a quarter of it: the pattern repeats, and the seconds count
            damaged += [flip(whole, bit) for bit in range(0, len(whole) * 8, 4)]
        for data in damaged:
            if data.rstrip() == whole.rstrip():
                continue  # the last newline
            file.write_bytes(data)
            with pytest.raises(CheckpointError) as caught:
                files.verify_directory(path)
            assert str(path) in str(caught.value)
        file.write_bytes(whole)
    files.verify_directory(path)


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damage_missing(path):
    (path / "a.txt").unlink()
    return r"a\.txt: missing, but the manifest lists it"


def damage_extra(path):
    (path / "c.txt").write_text("")
    return r"c\.txt: not listed in the manifest"


def damage_size(path):
    (path / "a.txt").write_text("hell")
    return r"a\.txt: damaged: expected 5 bytes, found 4"


def damage_content(path):
    (path / "a.txt").write_text("jello")
    return r"a\.txt: damaged: its SHA-256 differs from the manifest's"


def damage_link(path):
    (path / "a.txt").rename(path.parent / "a.txt")
    (path / "a.txt").symlink_to(path.parent / "a.txt")
    return r"a\.txt: is not a regular file, so it is not read"


def damage_manifest_missing(path):
    (path / files.MANIFEST).unlink()
    return r"MANIFEST\.json: missing, so the folder is incomplete"


def damage_manifest_version(path):
    content = json.loads((path / files.MANIFEST).read_text())
    (path / files.MANIFEST).write_text(json.dumps(content | {"format_version": 2}))
    return r"format version 2 was written by a newer nplm, this one reads 1; update nplm"


def damage_manifest_keys(path):
    (path / files.MANIFEST).write_text('{"format_version": 1}')
    return r"MANIFEST\.json: damaged: not a manifest of version 1"


def damage_manifest_names(path):
    content = {"format_version": 1, "files": {"../a.txt": {"bytes": 5, "sha256": ""}}}
    (path / files.MANIFEST).write_text(json.dumps(content))
    return r"MANIFEST\.json: damaged: its list of files cannot be read"


def damage_manifest_size(path):
    (path / files.MANIFEST).write_bytes(b" " * 1_000_001)
    return r"1000001 bytes is too large for a manifest"


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


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "", ".x", "a\\b", "MANIFEST.json", "a\0"])
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
