"""A dataclass of settings from nested tables of plain values: a TOML file's, or run.json's."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def from_table(config: type[Config], table: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """A `config` from a table, on top of its defaults, and everything that is wrong with the table.

    Tables in it are the dataclasses inside `config`; '-' and '_' are the same in a key. None or the
    text "None" stands for no value where a field allows it.
    """
    problems: list[str] = []
    return _filled(config, table, "", list(types_of(config)), problems), problems


def types_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting of a dataclass with its type, those of dataclasses inside it with a dot."""
    found: dict[str, Any] = {}
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        name, hint = prefix + field.name, hints[field.name]
        found |= types_of(hint, name + ".") if dataclasses.is_dataclass(hint) else {name: hint}
    return found


def _filled(
    config: Any, table: Mapping[str, Any], prefix: str, settings: list[str], problems: list[str]
) -> Any:
    """A `config` from one table; `settings` are the names that the whole knows."""
    hints = get_type_hints(config)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        where = prefix + name
        if name in values:
            problems.append(f"{where}: given twice, with '-' and with '_'")
        elif name not in hints:
            near = difflib.get_close_matches(where, settings, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if where in settings and "." in name:
                hint = f"; write it in a table: [{where.rpartition('.')[0]}]"
            problems.append(f"unknown setting {where!r}{hint}")
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                values[name] = _filled(hints[name], value, where + ".", settings, problems)
            else:
                problems.append(f"{where}: expected a table [{where}], got {value!r}")
        else:
            try:
                values[name] = converted(value, hints[name])
            except TypeError as error:
                problems.append(f"{where}: expected {error}, got {value!r}")
    return config(**values)


def converted(value: Any, hint: Any) -> Any:
    """A plain value as the type of a field; TypeError with the type's name where it is another."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):  # X | None
        if value is None or value == "None":
            return None
        try:
            return converted(value, inside[0])
        except TypeError as error:
            raise TypeError(f"{error} or None") from None
    if origin is Literal:
        if value not in inside:
            raise TypeError(" or ".join(repr(choice) for choice in inside))
        return value
    if origin is tuple:
        listed = value if isinstance(value, list) else [value]
        return tuple(converted(item, inside[0]) for item in listed)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise TypeError("a number below 1e308") from None
    if hint is Path and type(value) is str:
        try:
            value.encode("utf-8", "surrogateescape")  # what the system can take
        except UnicodeEncodeError:
            value = ""
        if not value or "\0" in value:
            raise TypeError("a path")
        return Path(value)
    if type(value) is not hint:
        raise TypeError(
            {int: "a whole number", float: "a number", bool: "True or False"}.get(hint, "text")
        )
    return value
