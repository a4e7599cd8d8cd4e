"""Recipes by name: those of geo3d, one's own, and those of installed packages."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from geo3d import InputError
from geo3d.recipes import get_recipe, list_recipes, register_recipe, registry
from geo3d.recipes.spark import SparKRecipe

MODULE = """
from geo3d.recipes.spark import SparKRecipe

class MyRecipe(SparKRecipe):
    summary = "mine"

count = 3
"""


@pytest.fixture(autouse=True)
def _restored(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch) -> str:
    """A package that names recipes; returns its name."""
    (tmp_path / "their_recipes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    values = {"theirs": "their_recipes:MyRecipe", "number": "their_recipes:count", "absent": "their_recipes:Absent"}
    points = EntryPoints(EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in values.items())
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    yield "their_recipes"
    sys.modules.pop("their_recipes", None)


def test_a_name_is_registered_once() -> None:
    assert register_recipe("twice", SparKRecipe) is get_recipe("twice")
    with pytest.raises(ValueError, match="'twice' is registered twice"):
        register_recipe("twice", SparKRecipe)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown recipe 'sparc'; known: croco, spark, spark3d, swin3d"):
        get_recipe("sparc")


def test_recipes_of_installed_packages_are_imported_when_asked_for(installed: str) -> None:
    assert {"theirs", "spark"} <= set(list_recipes())
    get_recipe("spark")
    assert installed not in sys.modules
    assert get_recipe("theirs").summary == "mine"
    assert get_recipe("theirs") is sys.modules[installed].MyRecipe
    assert list_recipes().count("theirs") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "their_recipes:count, is no subclass of geo3d.recipes.Recipe"),
        ("absent", "their_recipes:Absent, cannot be imported: AttributeError"),
    ],
)
def test_packages_that_hold_no_recipe_are_named(installed: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_recipe(name)
