"""Registry: classes by name, those of geo3d and those that other packages bring as entry points."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, TypeVar

from geo3d.errors import InputError, did_you_mean

Base = TypeVar("Base")


def named_module(noun: str, names: Iterable[str], package: str, name: str) -> ModuleType:
    """The module of a package for one of a table of names, which is imported now.

    Args:
        noun: what these are called in messages, such as ``task``.
        names: that there are.
        package: whose modules are called so.
        name: the one that is asked for.

    Raises:
        InputError: there is none of that name.
    """
    known = list(names)
    if name not in known:
        raise InputError(f"unknown {noun} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    return importlib.import_module(f"{package}.{name}")


class Registry(Generic[Base]):
    """Subclasses of a base by name.

    Beside what is registered it knows what installed packages name in the group of entry points ``geo3d.<noun>s``; that
    is imported when it is first asked for.

    Args:
        noun: what such a class is called in messages, such as ``probe``.
        base: what each must be a subclass of.
    """

    def __init__(self, noun: str, base: type[Base]) -> None:
        self.noun, self.base = noun, base
        self._known: dict[str, type[Base]] = {}

    def register(self, name: str, cls: type[Base]) -> type[Base]:
        """Make a class known under ``name``; a name is registered once."""
        if name in self._known:
            raise ValueError(f"{self.noun} {name!r} is registered twice")
        self._known[name] = cls
        return cls

    def names(self) -> list[str]:
        """All names, sorted; what other packages bring is not imported for it."""
        return sorted({*self._known, *self._installed()})

    def get(self, name: str) -> type[Base]:
        """The class of ``name``.

        Raises:
            InputError: there is none, or the package that names it does not hold one.
        """
        if name not in self._known:
            installed = self._installed()
            if name not in installed:
                known = self.names()
                raise InputError(f"unknown {self.noun} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
            self._known.setdefault(name, self._load(installed[name]))  # its module may have registered it
        return self._known[name]

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=f"geo3d.{self.noun}s")}

    def _load(self, point: EntryPoint) -> type[Base]:
        where = f"{self.noun} {point.name!r}, which an installed package names as {point.value}"
        try:
            cls = point.load()
        except Exception as error:  # of another's code: whatever it raises
            raise InputError(f"{where}, cannot be imported: {type(error).__name__}: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise InputError(f"{where}, is no subclass of {self.base.__module__}.{self.base.__name__}")
        return cls
