"""Every call of the file system fails once, and the power fails after every call.

What was there before stays whole, no rest is left, and a second try succeeds.
"""

import contextlib
import errno
import itertools
import os
from pathlib import Path

import pytest
from stored import new_run, save_example

from nplm import files
from nplm.errors import CheckpointError, StorageError
from nplm.files import system
from nplm.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.cli

CODES = [errno.EIO, errno.ENOSPC, errno.EACCES]
NEVER_FAIL = {"isdir", "lexists", "realpath"}  # they answer no instead of raising


@contextlib.contextmanager
def failing(k, code, *, for_good=False):
    """The k-th call of the file system raises, and every later one `for_good`; yields the calls."""
    calls = []

    def wrap(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == k or (for_good and len(calls) > k):
                if name == "close":  # a close that fails has closed
                    real(*args)
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in set(system.__all__) - NEVER_FAIL:
            patch.setattr(system, name, wrap(name, getattr(system, name)))
        yield calls


def error_of(act, *args):
    try:
        act(*args)
    except (StorageError, CheckpointError) as error:
        return error


def tree(folder):
    """Every path below a folder: the bytes of a file, None for a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def rests(folder):
    return [p.name for p in folder.rglob(".*") if p.name[:5] in (".tmp-", ".del-")]


# ---- what is tried: prepare, act, and the states that an error may leave -------------------------


class Saving:
    """A checkpoint beside an older one."""

    def prepare(self, base):
        self.run = new_run(base)
        save_example(self.run, 500)

    def act(self):
        save_example(self.run, 600)

    def after_error(self, before, after):
        return [before]


class Replacing:
    """A file that is there."""

    def prepare(self, base):
        self.path = base / "file"
        files.write_text(self.path, "old")

    def act(self):
        files.write_text(self.path, "new")

    def after_error(self, before, after):
        return [before, after]


class Removing:
    """A folder of files, as the rotation of checkpoints does."""

    def prepare(self, base):
        content = {name: lambda p: files.write_text(p, "x") for name in ("a", "b")}
        self.path = files.write_directory(base / "d", content)

    def act(self):
        files.remove_directory(self.path)

    def after_error(self, before, after):
        return [before]


class Cutting:
    """Lines past the checkpoint."""

    def prepare(self, base):
        self.log, self.tail = base / "log", base / "tail"
        files.write_text(self.log, "one\ntwo\nthree\n")
        files.write_text(self.tail, "zero\n")

    def act(self):
        files.cut_lines(self.log, 4, self.tail)

    def after_error(self, before, after):
        return [before, before | {"tail": after["tail"]}, after]


class Appending:
    """A line that must last."""

    def prepare(self, base):
        self.log = base / "log"
        files.append_line(self.log, "one")

    def act(self):
        if not self.log.read_text().endswith("two\n"):
            files.append_line(self.log, "two", sync=True)

    def after_error(self, before, after):
        return [before, after]


class Making:
    """Folders below folders."""

    def prepare(self, base):
        self.path = base / "a" / "b" / "c"

    def act(self):
        files.make_directory(self.path)

    def after_error(self, before, after):
        return [dict(sorted(after.items())[:n]) for n in range(4)]


TRIED = [Saving, Replacing, Removing, Cutting, Appending, Making]


def prepared(base, kind):
    base.mkdir()
    action = kind()
    action.prepare(base)
    return action


def without_fault(base, kind):
    """The tree before and after, and the calls."""
    action = prepared(base, kind)
    before = tree(base)
    with failing(0, 0) as calls:
        action.act()
    return before, tree(base), calls


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", TRIED)
def test_whichever_call_fails_what_was_there_stays_and_a_second_try_succeeds(tmp_path, kind, code):
    before, after, calls = without_fault(tmp_path / "model", kind)
    errors = []
    for k, call in enumerate(calls, 1):
        base = tmp_path / str(k)
        action = prepared(base, kind)
        with failing(k, code):
            error = error_of(action.act)
        if error:
            errors.append(error)
            assert str(base) in str(error), call
            assert isinstance(error, StorageError) or kind is Cutting, call  # which reads first
            assert ".tmp-" not in str(error), call
            said = error if isinstance(error, StorageError) else error.__cause__
            assert said.errno == code, call
            assert tree(base) in action.after_error(before, after), call
        else:
            assert tree(base) == after, call
        assert rests(base) == [], call
        if tree(base) != after:
            action.act()
        assert tree(base) == after, call
    assert len(errors) >= 4


@pytest.mark.parametrize("kind", TRIED)
def test_when_the_disk_fails_for_good_the_last_good_state_stays(tmp_path, kind):
    before, after, calls = without_fault(tmp_path / "model", kind)
    for k, call in enumerate(calls, 1):
        base = tmp_path / str(k)
        action = prepared(base, kind)
        with failing(k, errno.EIO, for_good=True), pytest.raises((StorageError, CheckpointError)):
            action.act()
        files.sweep(base)
        files.sweep(base / "2025-11-24_tiny" / "checkpoints")
        assert tree(base) in [*action.after_error(before, after), after], call


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_whichever_call_fails_while_loading_the_error_names_the_file(tmp_path, code):
    path = save_example(new_run(tmp_path))
    whole = tree(tmp_path)
    for k in itertools.count(1):
        with failing(k, code) as calls:
            error = error_of(load_checkpoint, path)
        if len(calls) < k:
            break
        assert isinstance(error, CheckpointError)
        assert str(path) in str(error)
    assert k > 10
    assert error is None
    assert tree(tmp_path) == whole


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_sweep_is_never_an_error(tmp_path, code):
    for k in itertools.count(1):
        (tmp_path / ".tmp-1-0123abcd" / "x").mkdir(parents=True, exist_ok=True)
        with failing(k, code) as calls:
            files.sweep(tmp_path)
        if len(calls) < k:
            break
    assert k > 5
    assert os.listdir(tmp_path) == []


# ---- power loss ----------------------------------------------------------------------------------


class Disk:
    """What a disk holds: of every file and folder, what is there now and what is safe by a sync."""

    def __init__(self, folder):
        self.now = self.read(folder)
        self.root = str(folder)
        self.handles = {}

    def read(self, path):
        if path.is_file():
            data = path.read_bytes()
            return {"now": data, "safe": data}
        names = {p.name: self.read(p) for p in path.iterdir()}
        return {"now": names, "safe": dict(names)}

    def find(self, path):
        node = self.now
        for part in Path(path).relative_to(self.root).parts:
            node = node["now"][part]
        return node

    def names(self, path):
        return self.find(Path(path).parent)["now"]

    def move(self, source, target):
        self.names(target)[Path(target).name] = self.names(source).pop(Path(source).name)

    def apply(self, name, args, result):
        """Follow one call of `system`."""
        if name == "open":
            if args[1] & os.O_CREAT and Path(args[0]).name not in self.names(args[0]):
                self.names(args[0])[Path(args[0]).name] = {"now": b"", "safe": b""}
            self.handles[result] = self.find(args[0])
        elif name == "write":
            self.handles[args[0]]["now"] += bytes(args[1][:result])
        elif name == "fsync":
            node = self.handles[args[0]]
            node["safe"] = dict(node["now"]) if isinstance(node["now"], dict) else node["now"]
        elif name in ("rename", "replace"):
            self.move(*args)
        elif name == "mkdir":
            self.names(args[0])[Path(args[0]).name] = {"now": {}, "safe": {}}
        elif name in ("unlink", "rmdir"):
            del self.names(args[0])[Path(args[0]).name]

    def after_power_loss(self, names):
        """The tree that comes back: names as they are `now` or as `safe`, of the data the safe."""

        def walk(node, path):
            if isinstance(node["now"], bytes):
                return {path: node["safe"]}
            found = {path: None} if path else {}
            for name, below in node[names].items():
                found |= walk(below, f"{path}/{name}" if path else name)
            return found

        return walk(self.now, "")


def power_losses(base, kind):
    """Act, and return every tree that a loss of power at any moment may leave; the last is safe."""
    action = prepared(base, kind)
    disk, trees, log, handles = Disk(base), [], [], {}

    def wrap(name, real):
        def call(*args):
            result = real(*args)
            disk.apply(name, args, result)
            if name == "open":
                handles[result] = args[0]
            log.append((name, (handles[args[0]],) if name == "fsync" else args))
            trees.extend(disk.after_power_loss(names) for names in ("now", "safe"))
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            patch.setattr(system, name, wrap(name, getattr(system, name)))
        action.act()
    return trees, log


def kept(content):
    """A tree without what a sweep removes."""
    return {
        name: data
        for name, data in content.items()
        if not any(part[:5] in (".tmp-", ".del-") for part in Path(name).parts)
    }


@pytest.mark.parametrize("kind", TRIED)
def test_whenever_the_power_fails_the_old_or_the_new_state_comes_back_whole(tmp_path, kind):
    before, after, _ = without_fault(tmp_path / "model", kind)
    trees, _ = power_losses(tmp_path / "run", kind)
    allowed = [*kind().after_error(before, after), after]
    for number, found in enumerate(trees):
        assert kept(found) in allowed, number
    assert kept(trees[-1]) == after  # what has returned is there for good
    assert before in [kept(found) for found in trees]


def test_a_checkpoint_is_synced_file_by_file_then_its_folder_then_renamed_then_the_parent(tmp_path):
    _, log = power_losses(tmp_path / "run", Saving)
    renamed = next(args for name, args in log if name == "rename")
    synced = [args[0] for name, args in log if name == "fsync"]
    before = [args[0] for name, args in log[: log.index(("rename", renamed))] if name == "fsync"]
    temporary, final = renamed
    assert before[-1] == temporary
    assert {path.name for path in before if path.parent == temporary} > {
        "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json",
    }  # fmt: skip
    assert synced[len(before)] == final.parent
    replaced = [Path(args[1]).name for name, args in log if name == "replace"]
    assert replaced[-1] == files.MANIFEST  # the last file to get its name
