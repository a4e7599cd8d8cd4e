"""The recipes by name."""

from __future__ import annotations

from geo3d.errors import InputError
from geo3d.recipes.recipe import Recipe

_REGISTRY: dict[str, Recipe] = {}


def register_recipe(name: str, recipe: Recipe) -> Recipe:
    """Make a recipe known under ``name``; a name is registered once."""
    if name in _REGISTRY:
        raise ValueError(f"recipe {name!r} is registered twice")
    _REGISTRY[name] = recipe
    return recipe


def list_recipes() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(_REGISTRY)


def get_recipe(name: str) -> Recipe:
    """The recipe of ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in _REGISTRY:
        raise InputError(f"unknown recipe {name!r}; known: {', '.join(list_recipes())}")
    return _REGISTRY[name]
