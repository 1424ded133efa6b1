"""The one door to the file system: files and folders that are whole or absent, tensors, the lock.

Every call of the system is in system.py, so that a test can make each one fail.
"""

from nplm.files.failures import shown
from nplm.files.folders import (
    files_below,
    free_bytes,
    is_directory,
    list_directory,
    make_directory,
    make_unique_directory,
    remove_directory,
    require_free,
    set_aside,
    sweep,
)
from nplm.files.locking import lock, require_filelock
from nplm.files.manifest import (
    MANIFEST,
    MANIFEST_VERSION,
    load_verified,
    verify_directory,
    write_directory,
)
from nplm.files.single import (
    append_line,
    cut_lines,
    parse_json,
    read_bytes,
    read_json,
    sha256_of,
    size_of,
    sync,
    write_bytes,
    write_json,
    write_text,
)
from nplm.files.tensors import load_tensors, parse_tensors, require_safetensors, save_tensors

__all__ = [
    "MANIFEST",
    "MANIFEST_VERSION",
    "append_line",
    "cut_lines",
    "files_below",
    "free_bytes",
    "is_directory",
    "list_directory",
    "load_tensors",
    "load_verified",
    "lock",
    "make_directory",
    "make_unique_directory",
    "parse_json",
    "parse_tensors",
    "read_bytes",
    "read_json",
    "remove_directory",
    "require_filelock",
    "require_free",
    "require_safetensors",
    "save_tensors",
    "set_aside",
    "sha256_of",
    "shown",
    "size_of",
    "sweep",
    "sync",
    "verify_directory",
    "write_bytes",
    "write_directory",
    "write_json",
    "write_text",
]
