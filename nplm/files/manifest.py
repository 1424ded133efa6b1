"""A folder that appears complete or not at all, with a manifest of the sizes and hashes in it.

MANIFEST.json is written last and holds a hash of its own body, so damage anywhere is seen.
Read before: single.py, folders.py.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nplm.errors import CheckpointError, StorageError
from nplm.files import system
from nplm.files.failures import shown, storage_error, storage_errors
from nplm.files.folders import discard, remove_directory
from nplm.files.single import (
    digest_of,
    opened,
    parse_json,
    read_bytes,
    sha256_of,
    sync_directory,
    temporary_name,
    write_bytes,
)

MANIFEST = "MANIFEST.json"
MANIFEST_VERSION = 2  # 1 had no hash of its own; it is still read
_MANIFEST_LIMIT = 1_000_000  # bytes; a larger one is not ours, and is not read
_READ_BACK_LIMIT = 256 * 2**20  # bytes; larger files are only measured after writing
_PLAIN = re.compile(  # nor a name that Windows keeps for a device
    r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[a-z0-9_][a-z0-9_.-]{0,99}", re.I | re.ASCII
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


# ---- writing -------------------------------------------------------------------------------------


def write_directory(final_path: Path | str, files: Mapping[str, Callable[[Path], None]]) -> Path:
    """Write a folder of files that appears complete or not at all; return its path.

    `files` maps a plain file name to a function that writes the file at the path it is given. The
    manifest is written last, everything is synced, then one rename puts the folder in its place,
    where it is read back. Raises StorageError; ValueError for a name with a folder in it. Nothing
    is left after an error.
    """
    final = Path(final_path)
    for name in files:
        if not _plain(name):
            raise ValueError(f"write_directory: {name!r} is not a plain file name")
    with storage_errors(final):
        if system.lexists(final):
            raise FileExistsError(errno.EEXIST, "it exists already")
        temporary = temporary_name(final.parent)
        system.mkdir(temporary)
        try:
            entries = {}
            for name, write in files.items():
                with storage_errors(final / name, rename=True):
                    write(temporary / name)
                    entries[name] = _sync_and_describe(temporary / name)
            # Writing the manifest also syncs the folder, and so the names of all files in it.
            with storage_errors(final / MANIFEST, rename=True):
                write_bytes(temporary / MANIFEST, _seal(MANIFEST_VERSION, entries))
            system.rename(temporary, final)
        except BaseException:
            discard(temporary)
            raise
        try:
            sync_directory(final.parent)
            _read_back(final)
        except Exception:  # after Ctrl-C it may stay: it is whole
            with contextlib.suppress(StorageError):
                remove_directory(final)
            raise
    return final


def _plain(name: str) -> bool:
    return bool(_PLAIN.fullmatch(name)) and name != MANIFEST


def _sync_and_describe(path: Path) -> dict[str, Any]:
    handle = system.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        system.fsync(handle)  # the writer may not have done it
        return {"bytes": system.fstat(handle).st_size, "sha256": digest_of(handle)}
    finally:
        system.close(handle)


def _seal(version: int, entries: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest; those of version 2 end with the hash of all the rest."""
    body = {"format_version": version, "files": entries}
    text = json.dumps(body, indent=2)
    sealed = json.dumps(body | {"sha256": sha256_of(text.encode())}, indent=2)
    return (sealed + "\n").encode()


def _read_back(path: Path) -> None:
    try:
        verify_directory(path, hash_limit=_READ_BACK_LIMIT)
    except CheckpointError as error:
        code = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        raise storage_error(
            f"{path}: was written but does not come back ({error}); the disk may be failing: "
            "choose another folder",
            code or errno.EIO,
        ) from error


# ---- reading -------------------------------------------------------------------------------------


def verify_directory(path: Path | str, *, hash_limit: int | None = None) -> dict[str, Any]:
    """Check a folder of `write_directory` against its manifest and return the manifest.

    Files above `hash_limit` bytes are only measured. Raises CheckpointError naming the file and the
    reason: missing, unexpected, not a regular file, wrong size, wrong hash, or a manifest that is
    damaged or of an unknown version.
    """
    path = Path(path)
    manifest = _measured(path)
    for name, expected in manifest["files"].items():
        if hash_limit is None or expected["bytes"] <= hash_limit:
            with opened(path / name, follow=False) as (handle, _):
                _compare(path / name, digest_of(handle), expected)
    return manifest


def load_verified(path: Path | str) -> dict[str, bytes]:
    """Return the content of every file in a folder of `write_directory`, checked in memory.

    What changes on the disk after the check changes nothing here. Raises CheckpointError as
    `verify_directory` does.
    """
    path = Path(path)
    content = {}
    for name, expected in _measured(path)["files"].items():
        content[name] = read_bytes(path / name, limit=expected["bytes"], follow=False)
        _compare(path / name, sha256_of(content[name]), expected)
    return content


def _compare(path: Path, found: str, expected: Mapping[str, Any]) -> None:
    if found != expected["sha256"]:
        raise CheckpointError(f"{path}: damaged: its SHA-256 differs from the manifest's")


def _measured(path: Path) -> dict[str, Any]:
    """The manifest of a folder that has just the files it lists, each of the size it says."""
    sizes = {}
    try:
        for name in sorted(system.listdir(path)):
            info = system.lstat(path / name)
            if not stat.S_ISREG(info.st_mode):
                raise CheckpointError(
                    f"{_place(path, name)}: is not a regular file, so it is not read"
                )
            sizes[name] = info.st_size
    except OSError as error:
        raise CheckpointError(f"{path}: not a checkpoint folder: {error.strerror}") from error
    if MANIFEST not in sizes:
        raise CheckpointError(f"{path / MANIFEST}: missing, so the folder is incomplete")
    manifest = _read_manifest(path / MANIFEST)
    entries = manifest["files"]
    for name in sorted(entries.keys() - sizes.keys()):
        raise CheckpointError(f"{path / name}: missing, but the manifest lists it")
    for name in sorted(sizes.keys() - entries.keys() - {MANIFEST}):
        raise CheckpointError(f"{_place(path, name)}: not listed in the manifest")
    for name, expected in entries.items():
        if sizes[name] != expected["bytes"]:
            raise CheckpointError(
                f"{path / name}: damaged: expected {expected['bytes']} bytes, found {sizes[name]}"
            )
    return manifest


def _place(path: Path, name: str) -> str:
    """Where a file is that a stranger named."""
    return str(path / name) if _PLAIN.fullmatch(name) else f"{path}: file {shown(name)}"


def _read_manifest(path: Path) -> dict[str, Any]:
    data = read_bytes(path, limit=_MANIFEST_LIMIT, follow=False)
    manifest = parse_json(data, path)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is int and version > MANIFEST_VERSION:
        raise CheckpointError(
            f"{path}: format version {shown(version)} was written by a newer nplm, "
            f"this one reads {MANIFEST_VERSION}; update nplm"
        )
    keys = {1: {"format_version", "files"}, 2: {"format_version", "files", "sha256"}}
    if type(version) is not int or version not in keys or manifest.keys() != keys[version]:
        raise CheckpointError(
            f"{path}: damaged: not a manifest of version {' or '.join(map(str, keys))}"
        )
    entries = manifest["files"]
    if not isinstance(entries, dict) or not all(
        _plain(name) and _is_entry(entry) for name, entry in entries.items()
    ):
        raise CheckpointError(f"{path}: damaged: its list of files cannot be read")
    if version > 1 and data != _seal(version, entries):
        raise CheckpointError(f"{path}: damaged: it differs from what its own SHA-256 was taken of")
    return dict(manifest)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
        and bool(_SHA256.fullmatch(entry["sha256"]))
    )
