"""What went wrong with a path, in one sentence; names that strangers chose, safe to print."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from nplm.errors import StorageError

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
def storage_errors(path: Path, *, doing: str = "written", rename: bool = False) -> Iterator[None]:
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
        wrapped = storage_error(f"{path}: could not be {doing}: {said}; {advice}", code)
        raise wrapped from error


def storage_error(sentence: str, code: int) -> StorageError:
    """A StorageError that carries `errno`: callers tell "disk full" from the rest by it."""
    error = StorageError(sentence)
    error.errno = code
    return error


def shown(value: object) -> str:
    """What a file says, as a message may print it: escaped, and cut after 60 characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}..."
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
