"""Classes by name: registered, and brought by other packages as entry points."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from geo3d import InputError
from geo3d.registry import Registry


class Animal:
    """The base."""


class Cat(Animal):
    """What is registered."""


class Dog(Animal):
    """What another package brings."""


@pytest.fixture
def animals(monkeypatch) -> Registry:
    """A registry with a cat, beside a package that names four more."""
    kennel = ModuleType("kennel")
    kennel.Dog, kennel.stone = Dog, "granite"
    monkeypatch.setitem(sys.modules, "kennel", kennel)
    values = {"dog": "kennel:Dog", "stone": "kennel:stone", "wolf": "kennel:Wolf", "fox": "no_such_package:Fox"}
    points = [EntryPoint(name, value, "geo3d.animals") for name, value in values.items()]
    monkeypatch.setattr("geo3d.registry.entry_points", lambda group: points if group == "geo3d.animals" else [])
    registry = Registry("animal", Animal)
    registry.register("cat", Cat)
    return registry


def test_what_is_registered_and_what_is_installed_is_found(animals: Registry) -> None:
    assert animals.names() == ["cat", "dog", "fox", "stone", "wolf"]
    assert animals.get("cat") is Cat
    assert animals.get("dog") is Dog
    assert animals.get("dog") is Dog


def test_a_name_is_registered_once(animals: Registry) -> None:
    with pytest.raises(ValueError, match="animal 'cat' is registered twice"):
        animals.register("cat", Dog)
    assert animals.get("cat") is Cat


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cta", r"unknown animal 'cta'; known: cat, dog, fox, stone, wolf; did you mean 'cat'\?"),
        ("stone", "'stone', which an installed package names as kennel:stone, is no subclass of .*Animal"),
        ("wolf", "'wolf', .* kennel:Wolf, cannot be imported: AttributeError"),
        ("fox", "'fox', .* cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_what_cannot_be_had_says_why(animals: Registry, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        animals.get(name)
