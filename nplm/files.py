"""Every call to the file system, so that a test can make each one fail; files of tensors.

A file appears whole or not at all: it is written beside its place, synced, then renamed. A folder
(`write_directory`) likewise, with a manifest of sizes and hashes that `verify_directory` checks.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.errors import CheckpointError, NplmError, StorageError

MANIFEST = "MANIFEST.json"
MANIFEST_VERSION = 1
_MANIFEST_LIMIT = 1_000_000  # bytes; a larger one is not ours, and is not read

_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "your quota is used up: delete something or choose another folder",
    errno.EFBIG: "the file is larger than the system allows here: choose another folder",
    errno.EACCES: "check its permissions or choose another folder",
    errno.EPERM: "check its permissions or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EISDIR: "this is a folder: give the name of a file",
    errno.EEXIST: "choose another name, or move the old one away",
}


@contextlib.contextmanager
def _storage_errors(path: Path, *, rename: bool = False) -> Iterator[None]:
    """Turn an OSError of writing into a StorageError: which path, what the system said, advice.

    `rename` makes a StorageError about a temporary path speak of `path` too.
    """
    try:
        yield
    except OSError as caught:
        error = caught
        if isinstance(caught, StorageError):
            if not rename or not isinstance(caught.__cause__, OSError):
                raise
            error = caught.__cause__
        code = error.errno or 0
        said = error.strerror or str(error)
        advice = _ADVICE.get(code, "choose another folder, or try again")
        wrapped = StorageError(f"{path}: could not be written: {said}; {advice}")
        wrapped.errno = code  # callers tell "disk full" from the rest
        raise wrapped from error


# ---- files ---------------------------------------------------------------------------------------


def _temporary(parent: Path) -> Path:
    return parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory, and needs no sync after a rename
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(handle)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace the file at `path` (through a link, if it is one): the old file or the new, whole.

    Raises StorageError.
    """
    with _storage_errors(Path(path)):
        target = Path(os.path.realpath(path))
        temporary = _temporary(target.parent)
        try:
            with open(temporary, "xb") as file:  # a plain open: the umask decides the mode
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_directory(target.parent)


def write_text(path: Path | str, text: str) -> None:
    """Replace the file by `text` in UTF-8, line ends as they are. Raises StorageError."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Replace the file by `value` as JSON; raises ValueError for NaN, infinity and other types."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_line(path: Path | str, text: str) -> None:
    """Append one line in one write, not synced. Raises StorageError; ValueError for a newline."""
    if "\n" in text:
        raise ValueError("append_line: the text must be one line, got a newline inside")
    data = (text + "\n").encode("utf-8")
    with _storage_errors(Path(path)), open(path, "ab", buffering=0) as file:
        if (written := file.write(data)) != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes fitted")


def read_bytes(path: Path | str, *, error: type[NplmError] = CheckpointError) -> bytes:
    """Read a regular file; raises `error` when it is missing, a folder, a pipe, or unreadable."""
    try:
        mode = os.stat(path).st_mode  # asked before opening: a pipe would block for ever
        if stat.S_ISDIR(mode):
            raise error(f"{path}: is a folder, expected a file")
        if not stat.S_ISREG(mode):
            raise error(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the path") from None
    except OSError as failure:
        if isinstance(failure, error):
            raise
        raise error(f"{path}: could not be read: {failure.strerror or failure}") from failure


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises CheckpointError naming the path and what is wrong with it."""
    data = read_bytes(path)
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def sha256_of(source: Path | str | bytes) -> str:
    """Return the SHA-256, hexadecimal, of bytes or of a file (CheckpointError if unreadable)."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{source}: could not be read: {error.strerror or error}") from error


# ---- folders -------------------------------------------------------------------------------------


def make_directory(path: Path | str) -> Path:
    """Create a folder and its parents if they are not there. Raises StorageError."""
    with _storage_errors(Path(path)):
        os.makedirs(path, exist_ok=True)
    return Path(path)


def list_directory(path: Path | str) -> list[str]:
    """Return the names in a folder, sorted; raises CheckpointError if it cannot be read."""
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise CheckpointError(f"{path}: could not be listed: {error.strerror}") from None


def is_directory(path: Path | str) -> bool:
    """Whether `path` is a folder, or a link to one."""
    return os.path.isdir(path)


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
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(parent, n) for n in names if n.endswith(suffix) and n[0] != "."]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def make_unique_directory(path: Path | str) -> Path:
    """Create a folder that was not there: `path`, or `path-2`, `path-3` ... Raises StorageError."""
    path = Path(path)
    make_directory(path.parent)
    candidate, number = path, 1
    with _storage_errors(path):
        while True:
            try:
                os.mkdir(candidate)  # fails if another process was faster: never two owners
                return candidate
            except FileExistsError:
                number += 1
                candidate = path.with_name(f"{path.name}-{number}")


def write_directory(final_path: Path | str, files: Mapping[str, Callable[[Path], None]]) -> Path:
    """Write a folder of files that appears complete or not at all; return its path.

    `files` maps a plain file name to a function that writes the file at the path it is given. The
    manifest is written last, everything is synced, then one rename puts the folder in its place.
    Raises StorageError; ValueError for a name with a folder in it. Nothing is left after an error.
    """
    final = Path(final_path)
    for name in files:
        if not _plain(name):
            raise ValueError(f"write_directory: {name!r} is not a plain file name")
    with _storage_errors(final):
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, "it exists already")
        temporary = _temporary(final.parent)
        os.mkdir(temporary)
        try:
            entries = {}
            for name, write in files.items():
                with _storage_errors(final / name, rename=True):
                    write(temporary / name)
                    entries[name] = _sync_and_describe(temporary / name)
            # Writing the manifest also syncs the folder, and so the names of all files in it.
            write_json(temporary / MANIFEST, {"format_version": MANIFEST_VERSION, "files": entries})
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_directory(final.parent)
    return final


def _plain(name: str) -> bool:
    return bool(name) and not set("/\\\0") & set(name) and name[0] != "." and name != MANIFEST


def _sync_and_describe(path: Path) -> dict[str, Any]:
    with open(path, "rb+") as file:  # the writer may not have synced it
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify_directory(path: Path | str) -> dict[str, Any]:
    """Check a folder of `write_directory` against its manifest and return the manifest.

    Raises CheckpointError naming the file and the reason: missing, unexpected, not a regular file,
    wrong size, wrong hash, or a manifest that is damaged or of an unknown version.
    """
    path = Path(path)
    try:
        present = {entry.name: entry for entry in os.scandir(path)}
    except OSError as error:
        raise CheckpointError(f"{path}: not a checkpoint folder: {error.strerror}") from None
    for name, entry in present.items():
        if not entry.is_file(follow_symlinks=False):
            raise CheckpointError(f"{path / name}: is not a regular file, so it is not read")
    if MANIFEST not in present:
        raise CheckpointError(f"{path / MANIFEST}: missing, so the folder is incomplete")
    manifest = _read_manifest(path / MANIFEST, present[MANIFEST].stat().st_size)
    entries = manifest["files"]
    for name in sorted(entries.keys() - present.keys()):
        raise CheckpointError(f"{path / name}: missing, but the manifest lists it")
    for name in sorted(present.keys() - entries.keys() - {MANIFEST}):
        raise CheckpointError(f"{path / name}: not listed in the manifest")
    for name, expected in entries.items():
        size = present[name].stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{path / name}: damaged: expected {expected['bytes']} bytes, found {size}"
            )
        if sha256_of(path / name) != expected["sha256"]:
            raise CheckpointError(
                f"{path / name}: damaged: its SHA-256 differs from the manifest's"
            )
    return manifest


def _read_manifest(path: Path, size: int) -> dict[str, Any]:
    if size > _MANIFEST_LIMIT:
        raise CheckpointError(f"{path}: {size} bytes is too large for a manifest")
    manifest: dict[str, Any] = read_json(path)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise CheckpointError(
            f"{path}: format version {version} was written by a newer nplm, "
            f"this one reads {MANIFEST_VERSION}; update nplm"
        )
    if version != MANIFEST_VERSION or manifest.keys() != {"format_version", "files"}:
        raise CheckpointError(f"{path}: damaged: not a manifest of version {MANIFEST_VERSION}")
    entries = manifest["files"]
    if not isinstance(entries, dict) or not all(
        _plain(name) and isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"}
        for name, entry in entries.items()
    ):
        raise CheckpointError(f"{path}: damaged: its list of files cannot be read")
    return manifest


# ---- tensors -------------------------------------------------------------------------------------

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_WRITABLE = {np.dtype(code) for code in _DTYPES.values()}


def require_safetensors() -> ModuleType:
    """The package, or an NplmError that says how to install it."""
    try:
        import safetensors.numpy
    except ImportError:
        raise NplmError(
            "files of tensors need safetensors, which is not installed: pip install safetensors"
        ) from None
    return safetensors


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays of any layout and byte order as a safetensors file (whole or not at all).

    Raises StorageError; ValueError for a dtype that the format lacks (objects, text, complex).
    """
    library = require_safetensors()
    plain = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    write_bytes(path, library.numpy.save(plain, dict(metadata) if metadata else None))


def _storable(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # safetensors 0.8.0 writes the raw buffer of whatever it gets: wrong numbers unless contiguous.
    # Not `ascontiguousarray`, which turns shape () into (1,).
    array = np.asarray(tensor)
    little = array.dtype.newbyteorder("<")
    if little not in _WRITABLE:
        raise ValueError(f"save_tensors: tensor {name!r} has dtype {array.dtype}, not storable")
    return np.asarray(array, dtype=little, order="C")


def load_tensors(path: Path | str) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file into arrays that may be written to; BF16 is widened to float32.

    Raises CheckpointError naming the path, and the tensor or the reason.
    """
    library = require_safetensors()
    data = read_bytes(path)
    try:
        views = library.deserialize(data)
    except library.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from None
    return {name: _array(path, name, view) for name, view in views}


def _array(path: Path | str, name: str, view: Mapping[str, Any]) -> npt.NDArray[Any]:
    code = view["dtype"]
    array: npt.NDArray[Any]
    if code == "BF16":  # the upper half of a float32
        words = np.frombuffer(view["data"], "<u2").astype(np.uint32) << np.uint32(16)
        array = words.view(np.float32)
    elif code in _DTYPES:
        array = np.frombuffer(view["data"], _DTYPES[code])
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    else:
        known = ", ".join([*_DTYPES, "BF16"])
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {code}, expected one of {known}")
    try:
        return array.reshape(view["shape"])
    except ValueError as error:  # an empty tensor may claim any size: (0, 10**30)
        raise CheckpointError(f"{path}: tensor {name!r} has an impossible shape: {error}") from None
