"""`nplm VERB ...`: finds the verb's file, runs it, and turns errors into a sentence and a code.

Exit codes: 0 done, 1 failed, 2 usage or settings, 3 data or checkpoint refused, 4 the loss became
non-finite, 5 disk or memory, 6 the run is in use, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module

from nplm.errors import ConfigError, NplmError, unknown

VERBS = {
    "train": "train a model on text: yours, or one that Python carries",
    "generate": "let a trained model write",
    "compare": "hold runs side by side: settings, losses, samples",
    "check": "verify every file of a run",
    "parity": "hold nplm against PyTorch, value by value",
    "schedule": "show a learning-rate schedule, by its name",
    "lr-find": "suggest a learning rate by a short test",
    "bench": "time the updates of a model, op by op, and beside torch",
    "presets": "list the models that have a name",
    "doctor": "say whether training can work on this machine",
}

WELCOME = """nplm: training of language models in NumPy, proved against PyTorch
  nplm train [--data FILE]      train a small model on Python's own documentation, or your text
  nplm generate RUN             let the trained model write
  nplm compare RUN RUN          hold runs side by side: settings, losses, samples
  nplm check RUN                verify every file of a run
  nplm parity                   hold nplm against PyTorch, value by value
  nplm schedule NAME --show     draw a learning-rate schedule
  nplm lr-find                  suggest a learning rate by a short test
  nplm bench                    time the updates of a model, op by op, and beside torch
  nplm presets                  list the models that have a name
  nplm doctor                   say whether training can work on this machine
  nplm VERB --help              every setting
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else ""
    if sys.stdout is None or getattr(sys.stdout, "closed", False):
        return _fail(verb, "standard output is closed; send it to a file or to /dev/null", 5)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that cannot be shown must not end a run
            stream.reconfigure(errors="replace")
    try:
        try:
            return _run(verb, arguments[1:])
        finally:
            sys.stdout.flush()  # here, where a full disk still gets its sentence
    except NplmError as error:
        return _fail(verb, str(error), error.exit_code)
    except MemoryError as error:
        return _fail(verb, f"out of memory: {error}; use a smaller model or batch", 5)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted; finished checkpoints are intact", 130, before="\n")
    except BrokenPipeError:  # `nplm train | head`: the reader has gone, and that is fine
        _drop_output()
        return 1
    except OSError as error:  # nplm's own files raise StorageError: this is the output
        _drop_output()
        where = error.filename or "standard output"
        said = error.strerror or error
        return _fail(verb, f"{where}: could not be used: {said}; send the output elsewhere", 5)


def _fail(verb: str, sentence: str, code: int, before: str = "") -> int:
    with contextlib.suppress(OSError):  # standard error may be full too
        if os.environ.get("NPLM_DEBUG") and sys.exc_info()[0]:
            traceback.print_exc()
        if sys.stderr is not None:
            print(f"{before}nplm {verb}: {sentence}", file=sys.stderr, flush=True)
    return code


def _drop_output() -> None:
    """Standard output goes nowhere from here on: Python would fail again when it ends."""
    with contextlib.suppress(OSError, ValueError):  # not a file of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("", "-h", "--help", "help"):
        print(WELCOME, end="")
        return 0
    if verb == "--version":
        from nplm import __version__

        print(f"nplm {__version__}")
        return 0
    if verb not in VERBS:
        raise ConfigError(unknown("verb", verb, VERBS))
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"nplm {verb}: {message}\n"  # a sentence too
    try:
        code: int = import_module(f"nplm.cli.{verb.replace('-', '_')}").main(arguments)
    finally:
        warnings.formatwarning = before
    return code
