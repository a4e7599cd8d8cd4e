"""Typed configs as plain values and files, and back."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from geo3d.errors import InputError


def save_config(config: Any, path: Path) -> None:
    """Write a config as YAML that :func:`load_config` reads."""
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False))


def load_config(kind: type, path: Path) -> Any:
    """Read a config that :func:`save_config` wrote; fields that the file leaves out take their defaults.

    Raises:
        InputError: no such file, not YAML, an unknown field or a value of the wrong type: says which.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as a config ({' '.join(str(error).split())})") from error
    return _from_plain(kind, values, str(path))


def to_plain(value: Any) -> Any:
    """A config as dicts, lists, numbers and text."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _from_plain(kind: Any, value: Any, where: str) -> Any:
    """The inverse of :func:`to_plain` for a value of the annotated type ``kind``."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_plain(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _from_plain(args[0], value, where)
    if origin in (typing.Union, UnionType):
        if value is None and type(None) in args:
            return None
        return _from_plain(next(a for a in args if a is not type(None)), value, where)
    if origin is typing.Literal:
        return _expect(value in args, value, f"one of {', '.join(map(str, args))}", where)
    if origin is tuple:
        length = None if args[-1] is Ellipsis else len(args)
        wanted = "a list" if length is None else f"a list of {length}"
        _expect(isinstance(value, list) and length in (None, len(value)), value, wanted, where)
        kinds = args if length is not None else args[:1] * len(value)
        return tuple(_from_plain(k, v, where) for k, v in zip(kinds, value, strict=True))
    if kind is Path:
        return Path(_expect(isinstance(value, str), value, "a path", where))
    if kind is float:
        return float(_expect(isinstance(value, int | float) and not isinstance(value, bool), value, "a number", where))
    return _expect(type(value) is kind, value, kind.__name__, where)


def _dataclass_from_plain(kind: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, f"the fields of {kind.__name__}", where)
    hints = typing.get_type_hints(kind, include_extras=True)
    unknown = [str(key) for key in value if key not in hints]
    if unknown:
        raise InputError(f"{where}: unknown field {', '.join(unknown)}; known: {', '.join(hints)}")
    return kind(**{key: _from_plain(hints[key], v, f"{where}: {key}") for key, v in value.items()})


def _expect(holds: bool, value: Any, wanted: str, where: str) -> Any:
    if not holds:
        raise InputError(f"{where}: expected {wanted}, found {value!r}")
    return value
