"""Single files. One appears whole or not at all: written beside its place, synced, then renamed.

Read before: system.py. What is read may come from a stranger: regular files only, and capped.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nplm.errors import CheckpointError, NplmError
from nplm.files import system
from nplm.files.failures import shown, storage_errors

JSON_LIMIT = 16 * 2**20  # bytes: a state, a tokenizer of 100,000 words
_JSON_VALUES = 10**6  # commas and brackets: Python needs up to 100 bytes for each
_CHUNK = 2**20  # bytes hashed at a time
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends


# ---- writing -------------------------------------------------------------------------------------


def temporary_name(parent: Path, kind: str = "tmp") -> Path:
    """A name for what is not finished (tmp) or not wanted any more (del); `sweep` knows them."""
    return parent / f".{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def sync_directory(path: Path) -> None:
    """Make the names in a folder survive a power loss. Raises OSError."""
    if os.name == "nt":  # Windows cannot open a directory, and needs no sync after a rename
        return
    handle = system.open(path, os.O_RDONLY)
    try:
        system.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        system.close(handle)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace the file at `path` (through a link, if it is one): the old file or the new, whole.

    Raises StorageError.
    """
    with storage_errors(Path(path)):
        target = Path(system.realpath(path))
        temporary = temporary_name(target.parent)
        try:
            _write_new(temporary, data)
            system.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                system.unlink(temporary)
            raise
        sync_directory(target.parent)


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
    handle = system.open(path, flags, 0o666)  # less what the umask takes away
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[system.write(handle, rest) :]
        system.fsync(handle)
    finally:
        system.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Replace the file by `text` in UTF-8, line ends as they are. Raises StorageError."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Replace the file by `value` as JSON; raises ValueError for NaN, infinity and other types."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_line(path: Path | str, text: str, *, sync: bool = False) -> None:
    """Append one line in one write, synced on request.

    Raises StorageError; ValueError for a newline.
    """
    if "\n" in text:
        raise ValueError("append_line: the text must be one line, got a newline inside")
    data = (text + "\n").encode("utf-8")
    path = Path(path)
    with storage_errors(path):
        if system.lexists(path) and not stat.S_ISREG(system.stat(path).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")  # a pipe would block for ever
        handle = system.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY, 0o666)
        try:
            if (written := system.write(handle, data)) != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes fitted")
            if sync:
                system.fsync(handle)
        finally:
            system.close(handle)
        if sync:
            sync_directory(path.parent)  # the file may be new


def sync(path: Path | str) -> None:
    """Bring what was appended to a file onto the disk; nothing if it is not there.

    Raises StorageError.
    """
    path = Path(path)
    with storage_errors(path):
        if not system.lexists(path):
            return
        handle = system.open(path, os.O_WRONLY | _BINARY)
        try:
            system.fsync(handle)
        finally:
            system.close(handle)
        sync_directory(path.parent)


def cut_lines(path: Path | str, n_bytes: int, tail_path: Path | str) -> None:
    """Cut a file of lines back to its first `n_bytes`; what is cut is added to `tail_path` first.

    Cutting again after a crash in between adds nothing twice. Raises StorageError; CheckpointError
    if the file is shorter, or no line ends there.
    """
    data = read_bytes(path) if size_of(path) else b""
    if len(data) < n_bytes:
        raise CheckpointError(
            f"{path}: has {len(data)} bytes, expected at least {n_bytes}: lines are missing; "
            "restore the file, or go on from an earlier checkpoint"
        )
    if n_bytes and data[n_bytes - 1 : n_bytes] != b"\n":
        raise CheckpointError(
            f"{path}: no line ends after {n_bytes} bytes, so it was changed; "
            "restore the file, or go on from an earlier checkpoint"
        )
    if cut := data[n_bytes:]:
        kept = read_bytes(tail_path) if size_of(tail_path) else b""
        if not kept.endswith(cut):
            write_bytes(tail_path, kept + cut)
        write_bytes(path, data[:n_bytes])


# ---- reading -------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(
    path: Path | str, *, error: type[NplmError] = CheckpointError, follow: bool = True
) -> Iterator[tuple[int, int]]:
    """A handle that reads a regular file, and its size; whatever goes wrong is an `error`.

    Without `follow` a link is refused.
    """
    flags = os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0)  # a pipe would block for ever
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = system.open(path, flags)
        try:
            info = system.fstat(handle)
            if stat.S_ISDIR(info.st_mode):
                raise error(f"{path}: is a folder, expected a file")
            if not stat.S_ISREG(info.st_mode):
                raise error(f"{path}: is not a regular file")
            yield handle, info.st_size
        finally:
            system.close(handle)
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the path") from None
    except MemoryError:
        raise error(f"{path}: does not fit into memory") from None
    except OSError as failure:
        if isinstance(failure, error):
            raise
        said = failure.strerror or failure
        if failure.errno == errno.ELOOP and not follow:
            said = "it is a link"
        raise error(f"{path}: could not be read: {said}") from failure


def read_up_to(handle: int, n_bytes: int) -> bytes:
    """Read `n_bytes`, or all there are if they are fewer."""
    parts = []
    while n_bytes and (part := system.read(handle, n_bytes)):
        parts.append(part)
        n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_bytes(
    path: Path | str,
    *,
    error: type[NplmError] = CheckpointError,
    limit: int | None = None,
    follow: bool = True,
) -> bytes:
    """Read a regular file; raises `error` when it is missing, a folder, a pipe, or unreadable.

    So too when it has more than `limit` bytes, which then are not read.
    """
    with opened(path, error=error, follow=follow) as (handle, size):
        if limit is not None and size > limit:
            raise error(f"{path}: {size} bytes, expected at most {limit}, so it is not read")
        data = read_up_to(handle, size)
        while part := system.read(handle, _CHUNK):  # it grew, or it is one that tells no size
            data += part
            if limit is not None and len(data) > limit:
                raise error(f"{path}: grew beyond {limit} bytes while it was read")
        return data


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises CheckpointError naming the path and what is wrong with it."""
    return parse_json(read_bytes(path, limit=JSON_LIMIT), path)


def parse_json(data: bytes, where: Path | str) -> Any:
    """Parse JSON from anyone; raises CheckpointError, which begins with `where`.

    Refused besides what is no JSON: NaN, a key that stands twice, a depth or a number of values
    that Python could not hold in little memory.
    """
    if len(data) > JSON_LIMIT or sum(map(data.count, (b",", b"[", b"{"))) > _JSON_VALUES:
        raise CheckpointError(
            f"{where}: too large to be ours: {len(data)} bytes, expected at most {JSON_LIMIT} "
            f"and {_JSON_VALUES} values"
        )
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except RecursionError:
        raise CheckpointError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return content


def size_of(path: Path | str) -> int:
    """Return the bytes of a file, 0 if there is none. Raises CheckpointError."""
    try:
        return system.stat(path).st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read: {error.strerror or error}") from error


def sha256_of(source: Path | str | bytes) -> str:
    """Return the SHA-256, hexadecimal, of bytes or of a file (CheckpointError if unreadable)."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with opened(source) as (handle, _):
        return digest_of(handle)


def digest_of(handle: int) -> str:
    """Return the SHA-256 of what a handle reads to its end. Raises OSError."""
    digest = hashlib.sha256()
    while part := system.read(handle, _CHUNK):
        digest.update(part)
    return digest.hexdigest()
