"""`nplm VERB ...`: finds the verb's file, runs it, and turns errors into a sentence and a code.

Exit codes: 0 done, 1 failed, 2 usage or settings, 3 data or checkpoint refused, 4 the loss became
non-finite, 5 disk or memory, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "train": "train a model on text: yours, or one that Python carries",
    "generate": "let a trained model write",
}

WELCOME = """nplm: training of language models in NumPy, proved against PyTorch

  nplm train                    train a small model on Python's own documentation (minutes)
  nplm train --data FILE        train it on your text
  nplm generate RUN             let the trained model write
  nplm VERB --help              every setting
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(WELCOME, end="")
        return 0
    if arguments[0] == "--version":
        from nplm import __version__

        print(f"nplm {__version__}")
        return 0
    from nplm.errors import NplmError

    try:
        return _run(arguments[0], arguments[1:])
    except NplmError as error:
        if os.environ.get("NPLM_DEBUG"):
            traceback.print_exc()
        print(f"nplm {arguments[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError as error:
        print(f"nplm {arguments[0]}: out of memory: {error}; use a smaller model or batch",
              file=sys.stderr)  # fmt: skip
        return 5
    except KeyboardInterrupt:
        print(f"\nnplm {arguments[0]}: interrupted; finished checkpoints are intact",
              file=sys.stderr)  # fmt: skip
        return 130
    except BrokenPipeError:  # `nplm train | head`: the reader has gone, and that is fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        from nplm.errors import ConfigError
        from nplm.models.config import unknown

        raise ConfigError(unknown("verb", verb, VERBS))
    code: int = import_module(f"nplm.cli.{verb}").main(arguments)
    return code
