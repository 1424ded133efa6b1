"""Settings from a TOML file and from flags, into a dataclass.

tyro reads the flags; a file's settings are their defaults. What is wrong is said all at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import tomllib
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_origin

from nplm import files
from nplm.errors import ConfigError
from nplm.train.tables import converted, from_table, types_of


class Checked(Protocol):
    """A dataclass of settings that knows what is wrong with its values."""

    def check(self) -> None:
        """Raise a ConfigError that lists everything that is out of range."""


Config = TypeVar("Config", bound=Checked)
Settings = TypeVar("Settings")


def parse(config: type[Config], arguments: list[str], prog: str, settings: Any = None) -> Config:
    """A checked `config` from command-line arguments, on top of `--config FILE.toml` if given.

    settings: what such a file may hold, a dataclass that `config` inherits from. `--help` prints
    and ends (SystemExit 0). All that is wrong, in the file and in the flags, is one ConfigError.
    """
    try:
        import tyro
    except ImportError:
        raise ConfigError(
            "the command line needs the package tyro, which is not installed: run "
            "`pip install tyro tqdm`"
        ) from None
    problems: list[str] = []
    default: Any = tyro.MISSING_NONPROP
    path = None if {"-h", "--help"} & set(arguments) else _config_path(arguments)
    if path is not None and settings is not None:
        made, problems = read_settings(settings, path)
        default = config(**{f.name: getattr(made, f.name) for f in dataclasses.fields(settings)})
    found = _mistakes(flags_of(config), arguments)
    problems += found
    places: Any = tyro.conf.PositionalRequiredArgs
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its box of several lines
            made, extra = tyro.cli(
                places[config], args=arguments, prog=prog, default=default, return_unknown_args=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError("; ".join(problems or [_usage(config, prog)])) from None
    if extra and not found:
        problems.append(f"unexpected argument {extra[0]!r}; see {prog} --help")
    try:
        made.check()
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return made


def _mistakes(hints: dict[str, Any], arguments: list[str]) -> list[str]:
    """Unknown flags, values that are missing or of the wrong type, lists that are given twice.

    tyro knows the first two, one at a time and in a box, and takes the last of two lists.
    """
    problems, seen, i = [], set(), 0
    while i < len(arguments):
        word, equals, text = arguments[i].partition("=")
        flag = word.replace("_", "-")  # tyro takes both
        i += 1
        if not _is_flag(word) or flag in ("-h", "--help"):
            continue
        if flag not in hints:
            problems.append(_unknown(word, list(hints)))
            continue
        if hints[flag] is bool:  # it stands alone
            if equals or (i < len(arguments) and not _is_flag(arguments[i])):
                got = text if equals else arguments[i]
                problems.append(f"{flag}: expected no value, got {got!r}; write {flag} alone")
            continue
        is_list = get_origin(hints[flag]) is tuple
        if is_list and flag in seen:
            problems.append(f"{flag}: given twice; write all values after one {flag}")
        seen.add(flag)
        following = text if equals else arguments[i] if i < len(arguments) else "--"
        if not equals and _is_flag(following):
            hint = (
                "none" if following.startswith("--") else f"{following!r}; write {flag}={following}"
            )
            problems.append(f"{flag}: expected a value, got {hint}")
            i += not following.startswith("--")
            continue
        if problem := _problem(following, hints[flag]):
            problems.append(f"{flag}: {problem}")
    return problems


def _is_flag(word: str) -> bool:
    """Whether a word begins as a flag does, and is not a negative number."""
    try:
        float(word)
    except ValueError:
        return word.startswith("-")
    return False


def _problem(text: str, hint: Any) -> str | None:
    value: Any = text
    for kind in (float, int):  # as TOML would have it
        with contextlib.suppress(ValueError):
            value = kind(text)
    inside = get_args(hint) or (hint,)
    if bool in inside:
        value = {"True": True, "False": False}.get(text, text)
    try:
        converted(text if str in inside or Path in inside else value, hint)
    except TypeError as error:
        return f"expected {error}, got {text!r}"
    return None


def _usage(config: Any, prog: str) -> str:
    required = [
        field.name.upper()
        for field in dataclasses.fields(config)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    return f"{' '.join(required)} is missing: expected {' '.join([prog, *required])}"


def _config_path(arguments: list[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        path: Path | None = parser.parse_known_args(arguments)[0].config
    except argparse.ArgumentError:  # `--config` at the very end: tyro says what is missing
        return None
    return path


def read_settings(settings: type[Settings], path: Path) -> tuple[Settings, list[str]]:
    """The settings of a TOML file on top of the defaults, and what is wrong with the file.

    Raises ConfigError for a file that is not TOML.
    """
    try:
        table = tomllib.loads(files.read_bytes(path, error=ConfigError).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, 1,000 brackets
        raise ConfigError(f"{path}: expected a TOML file, got {error}") from None
    made, problems = from_table(settings, table)
    return made, [f"{path}: {problem}" for problem in problems]


def given_flags(config: Any, arguments: list[str]) -> list[str]:
    """The flags of `config` that stand among the arguments."""
    words = {word.partition("=")[0].replace("_", "-") for word in arguments}
    return [flag for flag in flags_of(config) if flag in words]


def _unknown(flag: str, known: list[str]) -> str:
    near = difflib.get_close_matches(flag.split("=")[0], known, n=1, cutoff=0.5)
    return f"unknown flag {flag!r}" + (f"; did you mean {near[0]}?" if near else "; see --help")


def flags_of(config: Any) -> dict[str, Any]:
    """Every flag of a dataclass with its type; a field without a default has a place, no flag.

    A bool has two, which stand alone: --recompute and --no-recompute.
    """
    places = {
        field.name
        for field in dataclasses.fields(config)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    types = types_of(config)
    flags = {"--" + name.replace("_", "-"): types[name] for name in types if name not in places}
    opposites = {"--no-" + flag[2:]: bool for flag, hint in flags.items() if hint is bool}
    return {"--help": bool, **flags, **opposites}
