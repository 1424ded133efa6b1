"""Flags to a dataclass: tyro reads them, and an unknown flag gets the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, TypeVar, get_type_hints

from nplm.errors import ConfigError

Config = TypeVar("Config")


def parse(config: type[Config], arguments: list[str], prog: str) -> Config:
    """A `config` from command-line arguments; a field without a default has no flag, but a place.

    `--help` and values of the wrong type end in tyro's own message (SystemExit 0 or 2); unknown
    flags raise ConfigError, all of them at once.
    """
    try:
        import tyro
    except ImportError:
        raise ConfigError(
            "the command line needs the package tyro, which is not installed: run "
            "`pip install tyro tqdm`"
        ) from None
    places: Any = tyro.conf.PositionalRequiredArgs
    made, extra = tyro.cli(places[config], args=arguments, prog=prog, return_unknown_args=True)
    if extra:
        known = _flags(config)
        raise ConfigError("; ".join(_unknown(word, known) for word in extra if word[:1] == "-")
                          or f"unexpected argument {extra[0]!r}; see {prog} --help")  # fmt: skip
    return made


def _unknown(flag: str, known: list[str]) -> str:
    near = difflib.get_close_matches(flag.split("=")[0], known, n=1, cutoff=0.5)
    return f"unknown flag {flag!r}" + (f"; did you mean {near[0]}?" if near else "; see --help")


def _flags(config: Any, prefix: str = "--") -> list[str]:
    """Every flag of a dataclass, those of dataclasses inside it with a dot."""
    flags = ["--help"] if prefix == "--" else []
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        name = prefix + field.name.replace("_", "-")
        nested = dataclasses.is_dataclass(hints[field.name])
        flags += _flags(hints[field.name], name + ".") if nested else [name]
    return flags
