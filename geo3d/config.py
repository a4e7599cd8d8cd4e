"""Typed configs as plain values and files, and back."""

from __future__ import annotations

import dataclasses
import typing
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from geo3d.errors import InputError, did_you_mean
from geo3d.writing import write_text

#: Characters of a value that a message shows.
_SHOWN = 200


def save_config(config: Any, path: Path) -> None:
    """Write a config as YAML that :func:`load_config` reads."""
    import yaml  # here, so that models need no more than torch and numpy

    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False))


def load_config(kind: type, path: Path) -> Any:
    """Read a config that :func:`save_config` wrote; fields that the file leaves out take their defaults.

    Raises:
        InputError: no such file, not YAML, an unknown field or a value of the wrong type: says which.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as a config ({' '.join(str(error).split())})") from error
    return typed_value(kind, values, str(path))


def coerce(config: Any, where: str = "") -> None:
    """Give the fields of a config the types that they are annotated with: text becomes a path, a list a tuple.

    Args:
        config: a dataclass, also a frozen one; fields that are dataclasses themselves are only looked at.
        where: begins the messages.

    Raises:
        InputError: a value of another type; says what was expected and what was found.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        typed = typed_value(hints[f.name], to_plain(value), where + f.name)
        if not dataclasses.is_dataclass(value):
            object.__setattr__(config, f.name, typed)


def to_plain(value: Any) -> Any:
    """A config as dicts, lists, numbers and text."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def typed_value(kind: Any, value: Any, where: str) -> Any:
    """A plain value as one of an annotated type: the inverse of :func:`to_plain`, and the check of options.

    Args:
        kind: annotation: a plain type, ``Path``, tuples, ``Literal``, unions of these, a dataclass.
        value: lists will do for tuples, whole numbers for floats, names and values for a dataclass.
        where: begins the message.

    Raises:
        InputError: a value of another type, an unknown or misspelt field; says what was expected and what was found.
    """
    if isinstance(value, np.ndarray | np.bool_):
        value = value.tolist()
    if dataclasses.is_dataclass(kind):
        return value if type(value) is kind else _dataclass_from_plain(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return typed_value(args[0], value, where)
    if origin in (typing.Union, UnionType):
        return _one_of(args, value, where)
    if origin is typing.Literal:
        return _expect(value in args, value, f"one of {', '.join(map(str, args))}", where)
    if origin is tuple:
        length = None if args[-1] is Ellipsis else len(args)
        inside = name_of(args[0])
        wanted = f"a list of {inside}" if length is None else f"a list of {length} ({inside})"
        _expect(isinstance(value, list | tuple) and length in (None, len(value)), value, wanted, where)
        kinds = args if length is not None else args[:1] * len(value)
        return tuple(typed_value(k, v, where) for k, v in zip(kinds, value, strict=True))
    if kind is Path:
        _expect(isinstance(value, str | Path) and "\0" not in str(value), value, "a path", where)
        return Path(value)
    if kind in (float, int):
        number = Real if kind is float else Integral
        _expect(isinstance(value, number) and not isinstance(value, bool), value, name_of(kind), where)
        try:
            return kind(value)
        except OverflowError:
            raise InputError(f"{where}: {str(value)[:20]}... is too large a number") from None
    return _expect(type(value) is kind, value, name_of(kind), where)


def name_of(kind: Any) -> str:
    """What people call an annotated type."""
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value as the first of some types that takes it."""
    some = [kind for kind in kinds if kind is not type(None)]
    if value is None and len(some) < len(kinds):
        return None
    for kind in some[:-1]:
        try:
            return typed_value(kind, value, where)
        except InputError:
            continue  # the next one may take it; the last one says what is wrong
    return typed_value(some[-1], value, where)


def _dataclass_from_plain(kind: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, f"the fields of {kind.__name__}", where)
    hints = typing.get_type_hints(kind, include_extras=True)
    unknown = [str(key) for key in value if key not in hints]
    if unknown:
        near = did_you_mean(unknown[0], hints)
        raise InputError(f"{where}: unknown field {', '.join(unknown)}; known: {', '.join(hints)}{near}")
    values = {key: typed_value(hints[key], v, f"{where}: {key}") for key, v in value.items()}
    lacking = [
        f.name
        for f in dataclasses.fields(kind)
        if f.init and f.name not in values and f.default is f.default_factory is dataclasses.MISSING
    ]
    if lacking:
        raise InputError(f"{where}: lacks {', '.join(lacking)}")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _expect(holds: bool, value: Any, wanted: str, where: str) -> Any:
    if not holds:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise InputError(f"{where}: expected {wanted}, found {shown}")
    return value
