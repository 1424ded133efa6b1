"""One process at a time in a folder: the system's lock decides, and ends with its holder.

`.owner.json` beside it only says who that is; one that a killed process left is overwritten.
"""

import contextlib
import datetime
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from nplm.errors import CheckpointError, NplmError, RunInUseError, StorageError
from nplm.files import system
from nplm.files.failures import storage_errors
from nplm.files.single import parse_json, read_bytes, write_json

LOCK, OWNER = ".lock", ".owner.json"


def require_filelock() -> ModuleType:
    """The package, or an NplmError that says how to install it."""
    try:
        import filelock
    except ImportError:
        raise NplmError(
            "locking a run needs filelock, which is not installed: pip install filelock"
        ) from None
    return filelock


@contextlib.contextmanager
def lock(path: Path | str) -> Iterator[None]:
    """Hold a folder for this process alone; raises RunInUseError at once if another has it.

    Raises CheckpointError if there is no such folder, StorageError if it cannot be written.
    """
    library = require_filelock()
    folder = Path(path)
    if not system.isdir(folder):
        raise CheckpointError(f"{folder}: no such folder; check the path")
    guard = library.FileLock(folder / LOCK)
    with storage_errors(folder / LOCK):
        try:
            guard.acquire(blocking=False)
        except library.Timeout:
            raise RunInUseError(
                f"{folder}: in use by {_owner(folder)}; wait for its end, or use another run"
            ) from None
    try:
        note = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        with contextlib.suppress(StorageError):  # a full disk: the lock holds without it
            write_json(folder / OWNER, note)
        yield
    finally:
        with contextlib.suppress(OSError):
            system.unlink(folder / OWNER)  # before the next owner writes its own
        guard.release()


def _owner(folder: Path) -> str:
    try:
        note = parse_json(read_bytes(folder / OWNER, limit=1000, follow=False), folder / OWNER)
        pid, host, since = (str(note[key]) for key in ("pid", "host", "since"))
    except (CheckpointError, KeyError, TypeError):
        return "another process"
    if not (pid + host + since).isprintable():
        return "another process"
    return f"process {pid} on {host} since {since}"
