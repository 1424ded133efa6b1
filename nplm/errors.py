"""Every exception that nplm raises on purpose, with the exit code that the command line gives it.

A message is one sentence: what, where, expected, got, what to do.
"""

import difflib
from collections.abc import Iterable


class NplmError(Exception):
    """Base of nplm's own exceptions; `exit_code` is what `nplm` returns to the shell."""

    exit_code = 1


class GraphError(NplmError, RuntimeError):
    """The autograd graph was misused: a second backward, nothing recorded (torch: RuntimeError)."""


class BackendError(NplmError, RuntimeError):
    """Arrays of two backends met in one op, or a backend is unknown or not installed."""


class ConfigError(NplmError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 2


class DataError(NplmError, ValueError):
    """A corpus, a token or a target cannot be used for training."""

    exit_code = 3


class CheckpointError(NplmError, RuntimeError):
    """A checkpoint or a run folder is missing, damaged, or belongs to another model."""

    exit_code = 3


class NonFiniteError(NplmError, ArithmeticError):
    """A loss or a gradient norm became NaN or infinite, so training stopped before the update."""

    exit_code = 4


class StorageError(NplmError, OSError):
    """A file or folder could not be written: disk full, read-only, no permission."""

    exit_code = 5


class RunInUseError(NplmError):
    """Another process holds the run folder."""

    exit_code = 6


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence for a name that does not exist, with the nearest one that does."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name[:100]!r}: expected one of {', '.join(names)}{hint}"
