"""Every call to the file system that nplm makes, by its own name: a test can fail or record each.

Used as `system.fsync(handle)`, not by `from system import`: a name replaced here is replaced.
"""

from os import (
    close,
    fstat,
    fsync,
    listdir,
    lstat,
    mkdir,
    open,
    read,
    rename,
    replace,
    rmdir,
    stat,
    unlink,
    walk,
    write,
)
from os.path import isdir, lexists, realpath
from shutil import disk_usage

__all__ = [
    "close",
    "disk_usage",
    "fstat",
    "fsync",
    "isdir",
    "lexists",
    "listdir",
    "lstat",
    "mkdir",
    "open",
    "read",
    "realpath",
    "rename",
    "replace",
    "rmdir",
    "stat",
    "unlink",
    "walk",
    "write",
]
