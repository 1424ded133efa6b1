"""Folders: make, list, measure and remove them. Read before: single.py.

One that is removed gets another name first, so a crash leaves no half of it under its own.
"""

import errno
import re
import stat
from pathlib import Path

from nplm.errors import CheckpointError, NplmError
from nplm.files import system
from nplm.files.failures import storage_error, storage_errors
from nplm.files.single import sync_directory, temporary_name

_LEFT_OVER = re.compile(r"\.(tmp|del)-\d+-[0-9a-f]{8}")  # the names of `temporary_name`


def make_directory(path: Path | str) -> Path:
    """Create a folder and its parents if they are not there. Raises StorageError."""
    path = Path(path)
    with storage_errors(path):
        if not system.isdir(path):
            if path.parent != path:
                make_directory(path.parent)
            try:
                system.mkdir(path)
            except FileExistsError:
                if not system.isdir(path):  # else another process was faster
                    raise
            sync_directory(path.parent)
    return path


def make_unique_directory(path: Path | str) -> Path:
    """Create a folder that was not there: `path`, or `path-2`, `path-3` ... Raises StorageError."""
    path = Path(path)
    make_directory(path.parent)
    candidate, number = path, 1
    with storage_errors(path):
        while True:
            try:
                system.mkdir(candidate)  # fails if another process was faster: never two owners
            except FileExistsError:
                number += 1
                candidate = path.with_name(f"{path.name}-{number}")
            else:
                sync_directory(path.parent)
                return candidate


def list_directory(path: Path | str) -> list[str]:
    """Return the names in a folder, sorted; raises CheckpointError if it cannot be read."""
    try:
        return sorted(system.listdir(path))
    except OSError as error:
        raise CheckpointError(f"{path}: could not be listed: {error.strerror}") from error


def is_directory(path: Path | str) -> bool:
    """Whether `path` is a folder, or a link to one."""
    return system.isdir(path)


def files_below(
    folder: Path | str, suffix: str, *, error: type[NplmError] = CheckpointError
) -> list[Path]:
    """Return the files in a folder and below whose names end in `suffix`, by relative path.

    Hidden names are left out and links to folders are not followed, so that it ends. Raises `error`
    naming the folder that cannot be listed.
    """

    def refuse(failure: OSError) -> None:
        raise error(f"{failure.filename}: could not be listed: {failure.strerror}") from None

    found = []
    for parent, folders, names in system.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(parent, n) for n in names if n.endswith(suffix) and n[0] != "."]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


# ---- removing ------------------------------------------------------------------------------------


def remove_directory(path: Path | str) -> None:
    """Remove a folder: whole under its name, or gone. Raises StorageError."""
    path = Path(path)
    with storage_errors(path, doing="removed"):
        doomed = temporary_name(path.parent, "del")
        system.rename(path, doomed)
        try:
            sync_directory(path.parent)
        except BaseException:
            system.rename(doomed, path)
            raise
        try:
            _delete(doomed)
        except OSError:  # once more: what is left costs space until the next sweep
            _delete(doomed)


def set_aside(path: Path | str) -> Path:
    """Give a folder the name `rejected-...`, for people to look at; return its new path.

    Raises StorageError.
    """
    path = Path(path)
    with storage_errors(path, doing="renamed"):
        number, aside = 1, path.with_name(f"rejected-{path.name}")
        while system.lexists(aside):
            number += 1
            aside = path.with_name(f"rejected-{path.name}-{number}")
        system.rename(path, aside)
        sync_directory(path.parent)
    return aside


def discard(path: Path) -> None:
    """Delete what is not wanted, as far as it goes; never raises an error of the system."""
    for _ in range(2):
        try:
            return _delete(path)
        except FileNotFoundError:
            return None
        except OSError:
            continue


def _delete(path: Path) -> None:
    if not stat.S_ISDIR(system.lstat(path).st_mode):  # a link is deleted, not what it points to
        return system.unlink(path)
    for name in system.listdir(path):
        _delete(path / name)
    return system.rmdir(path)


def sweep(folder: Path | str) -> list[str]:
    """Delete what crashes left in a folder, for the holder of its lock; return the names.

    Only names that `temporary_name` gives. What cannot be deleted stays, without an error.
    """
    try:
        names = list_directory(folder)
    except CheckpointError:
        return []
    left = [name for name in names if _LEFT_OVER.fullmatch(name)]
    for name in left:
        discard(Path(folder) / name)
    return left


# ---- space ---------------------------------------------------------------------------------------


def free_bytes(path: Path | str) -> int:
    """Return the free bytes where `path` is, or will be. Raises StorageError."""
    path = Path(path)
    with storage_errors(path):
        while True:
            try:
                return system.disk_usage(path).free
            except FileNotFoundError:
                if path == path.parent:
                    raise
                path = path.parent


def require_free(path: Path | str, n_bytes: int) -> None:
    """Raise StorageError (ENOSPC) unless `n_bytes` are free where `path` is, or will be."""
    free = free_bytes(path)
    if free < n_bytes:
        raise storage_error(
            f"{path}: needs {n_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
            "free some space or choose another folder",
            errno.ENOSPC,
        )
