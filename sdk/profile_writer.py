"""Write a device profile as the TOML file that `load_profile` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import EdgekitError, InvalidInput
from edgekit.profile import DeviceProfile

BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
HEAD = "# Written by edgekit calibrate: figures whose source begins with 'calibrate' were measured on that machine.\n"


def profile_toml(profile: DeviceProfile) -> str:
    """The profile as TOML; what is not known is left out, as in a file written by hand."""
    return HEAD + toml(_without_defaults(profile))


def write_profile(profile: DeviceProfile, path: Path) -> None:
    """Write the file whole or not at all. Raises `InvalidInput` where the path takes none."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(profile_toml(profile), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise EdgekitError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_path(path: Path) -> None:
    """Raise `InvalidInput` unless a profile can be written there and then be found by its path."""
    if path.suffix.lower() != ".toml":
        raise InvalidInput(f"'{path}' does not end in .toml, and -d takes a file by that ending: choose another -o")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder '{path.absolute().parent}': make it, or choose another -o")


def toml(table: Mapping[str, Any]) -> str:
    """A table of strings, numbers, booleans, lists and tables as a TOML document.

    Source: TOML 1.0.0, https://toml.io/en/v1.0.0.
    """
    return "\n".join(_lines(table, ())).strip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Plain values first: in TOML everything after a header belongs to it."""
    headed = [key for key, value in table.items() if _has_header(value, path)]
    lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in headed]
    for key in headed:
        inner, value = (*path, key), table[key]
        name = ".".join(map(_key, inner))
        for row in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]", *_lines(row, inner)]
    return lines


def _has_header(value: Any, path: tuple[str, ...]) -> bool:
    """Whether a table, or a list of tables, gets a header of its own: at the top, and where one line is too little."""
    tables = value if isinstance(value, list) else [value]
    if not tables or not all(isinstance(table, dict) for table in tables):
        return False
    flat = all(not isinstance(item, dict | list) for table in tables for item in table.values())
    return not path or not flat


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value and set(short) & set(".e") else repr(value)
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }" if value else "{}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _escaped(character: str) -> str:
    plain = character >= " " and character != "\x7f"
    return ESCAPES.get(character) or (character if plain else f"\\u{ord(character):04x}")


def _key(key: str) -> str:
    return key if key and set(key) <= BARE else _value(key)


def _without_defaults(value: Any) -> Any:
    """Builtins without the fields that hold their defaults."""
    if isinstance(value, msgspec.Struct):
        fields = {field.name: (getattr(value, field.name), field.default) for field in msgspec.structs.fields(value)}
        kept = {
            name: item for name, (item, default) in fields.items() if item != default and item not in (None, (), {})
        }
        return {name: _without_defaults(item) for name, item in kept.items()}
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_without_defaults(item) for item in value]
    return value
