"""Options of an optimizer or a scheduler as words NAME=VALUE, held against what it takes."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from nplm.errors import ConfigError

FUNCTIONS = ("lr_lambda", "scale_fn")  # arguments that no word can be
_WORDS = {"true": True, "false": False, "none": None}


def takes(build: Callable[..., Any]) -> list[str]:
    """The names of what `build` takes after its first argument, last_epoch left out."""
    names = list(inspect.signature(build).parameters)[1:]
    return [name for name in names if name != "last_epoch"]


def required(build: Callable[..., Any]) -> list[str]:
    """Those of them that have no default."""
    parameters = inspect.signature(build).parameters
    return [name for name in takes(build) if parameters[name].default is inspect.Parameter.empty]


def read_options(
    words: Iterable[str], names: Iterable[str], where: str, elsewhere: dict[str, str] | None = None
) -> dict[str, Any]:
    """{name: value} of words such as momentum=0.9, betas=0.9,0.95 or nesterov=true.

    `names` are those that there are, `elsewhere` those that have a setting of their own. Raises
    ConfigError, which begins with `where`, for a word of another form, a name that is unknown,
    given twice or stands for a function, and for a value that is no number, list or plain word.
    """
    found: dict[str, Any] = {}
    known = [name for name in names if name not in (elsewhere or {})]
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{where}: expected NAME=VALUE, such as momentum=0.9, got {word!r}")
        if name in (elsewhere or {}):
            raise ConfigError(f"{where}: {name} is {(elsewhere or {})[name]}; give it there")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(known) or "none"
            raise ConfigError(f"{where}: unknown option {name!r}: expected one of {listed}{hint}")
        if name in FUNCTIONS:
            raise ConfigError(f"{where}: {name} is a function, which no word can be; leave it out")
        if name in found:
            raise ConfigError(f"{where}: {name} is given twice")
        found[name] = _value(text, f"{where}: {name}")
    return found


def _value(text: str, where: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        if text.replace("_", "").replace("-", "").isalnum():
            return text
        value = ...
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, bool) or not isinstance(part, int | float | str | None):
            raise ConfigError(f"{where}: expected a number, a list or a word, got {text!r}")
        if isinstance(part, int | float) and not abs(part) <= 10**15:
            raise ConfigError(f"{where}: expected a number of at most 10^15, got {text!r}")
    return value


def build(make: Callable[[], Any], where: str) -> Any:
    """What `make` gives; a value that it refuses is a ConfigError that begins with `where`."""
    try:
        return make()
    except ConfigError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        said = error.args[0] if error.args else type(error).__name__
        kind = "a value of the wrong type: " if isinstance(error, TypeError) else ""
        raise ConfigError(f"{where}: {kind}{said}") from error
