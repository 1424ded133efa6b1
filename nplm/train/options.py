"""Options of an optimizer or a scheduler as words NAME=VALUE, held against what it takes."""

from __future__ import annotations

import ast
import inspect
import math
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nplm import files
from nplm.errors import ConfigError, unknown

FUNCTIONS = ("lr_lambda", "scale_fn")  # arguments that no word can be
LONGEST = 10_000  # characters of a word: Python may not survive to parse what is nested deeper
_WORDS = {"true": True, "false": False, "none": None}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def takes(build: Callable[..., Any]) -> list[str]:
    """The names of what `build` takes after its first argument, last_epoch left out."""
    names = list(inspect.signature(build).parameters)[1:]
    return [name for name in names if name != "last_epoch"]


def required(build: Callable[..., Any]) -> list[str]:
    """Those of them that have no default."""
    parameters = inspect.signature(build).parameters
    return [name for name in takes(build) if parameters[name].default is inspect.Parameter.empty]


def read_options(
    words: Iterable[str],
    build: Callable[..., Any],
    where: str,
    elsewhere: dict[str, str] | None = None,
) -> dict[str, Any]:
    """{name: value} of words such as momentum=0.9, betas=0.9,0.95 or nesterov=true.

    The names are those of what `build` takes, and the values of the types that it declares;
    `elsewhere` has the names with a setting of their own. Raises ConfigError, which begins with
    `where`, for a word of another form, a name that is unknown, given twice or stands for a
    function, and for a value that is no number, list or plain word, or of another type.
    """
    elsewhere = elsewhere or {}
    hints = get_type_hints(build.__init__ if isinstance(build, type) else build)  # type: ignore[misc]
    known = [name for name in takes(build) if name not in elsewhere]
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if len(word) > LONGEST:
            n = f"{len(word):,}"
            raise ConfigError(
                f"{where}: expected at most {LONGEST:,} characters, got {n}: {files.shown(word)}"
            )
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"{where}: expected NAME=VALUE, such as momentum=0.9, got {files.shown(word)}"
            )
        if name in elsewhere:
            raise ConfigError(f"{where}: {name} is {elsewhere[name]}; give it there")
        if name not in known:
            raise ConfigError(f"{where}: {unknown('option', name, known or ['none'])}")
        if name in FUNCTIONS:
            raise ConfigError(f"{where}: {name} is a function, which no word can be; leave it out")
        if name in found:
            raise ConfigError(f"{where}: {name} is given twice")
        value = _value(text, f"{where}: {name}")
        try:
            found[name] = _as(value, hints[name])
        except TypeError as error:
            raise ConfigError(
                f"{where}: a value of the wrong type: {name}: expected {error}, "
                f"got {files.shown(text)}"
            ) from None
    return found


def _value(text: str, where: str) -> Any:
    """A number, a list of numbers and words, or a word; nothing is evaluated."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    value: Any = ...
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python about text such as 1if
            value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            value = math.inf
        elif text.replace("_", "").replace("-", "").isalnum():
            return text
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, bool) or not isinstance(part, int | float | str | None):
            raise ConfigError(
                f"{where}: expected a number, a list or a word, got {files.shown(text)}"
            )
        if isinstance(part, int | float) and not abs(part) <= 10**15:
            raise ConfigError(
                f"{where}: expected a number of at most 10^15, got {files.shown(text)}"
            )
    return value


def _as(value: Any, hint: Any) -> Any:
    """A value as the type that an argument declares; TypeError with that type in words."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        expected = []
        for one in inside:
            if one is type(None) and value is None:
                return None
            if one in _KINDS or get_origin(one) is not None:
                try:
                    return _as(value, one)
                except TypeError as error:
                    expected.append(str(error))
        raise TypeError(" or ".join(expected + ["none"] * (type(None) in inside)))
    if origin is Literal:
        if value not in inside:
            raise TypeError(" or ".join(inside))
        return value
    if origin is not None:  # tuple[X, Y], list[X] or Iterable[X]
        if not isinstance(value, list | tuple):
            raise TypeError(f"{len(inside)} values" if origin is tuple else "a list such as [4,8]")
        wanted = inside if origin is tuple else inside * len(value)
        if len(value) != len(wanted):
            raise TypeError(f"{len(inside)} values")
        return (tuple if origin is tuple else list)(_as(v, w) for v, w in zip(value, wanted))
    good: Any = (int, float) if hint is float else hint
    if hint in _KINDS and not (isinstance(value, good) and (hint is bool) == (type(value) is bool)):
        raise TypeError(_KINDS[hint])
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
