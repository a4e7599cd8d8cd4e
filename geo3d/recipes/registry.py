"""The recipes by name: those of geo3d, and those that other packages bring as entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from geo3d.errors import InputError
from geo3d.recipes.recipe import Recipe

#: Group of entry points under which an installed package names its recipes.
ENTRY_POINTS = "geo3d.recipes"
_REGISTRY: dict[str, type[Recipe]] = {}


def register_recipe(name: str, recipe: type[Recipe]) -> type[Recipe]:
    """Make a recipe known under ``name``; a name is registered once."""
    if name in _REGISTRY:
        raise ValueError(f"recipe {name!r} is registered twice")
    _REGISTRY[name] = recipe
    return recipe


def list_recipes() -> list[str]:
    """Names of all recipes, sorted; those of other packages are not imported for it."""
    return sorted({*_REGISTRY, *_installed()})


def get_recipe(name: str) -> type[Recipe]:
    """The recipe of ``name``; that of another package is imported when it is first asked for.

    Raises:
        InputError: there is none, or the package that names it does not hold one.
    """
    if name not in _REGISTRY:
        installed = _installed()
        if name not in installed:
            raise InputError(f"unknown recipe {name!r}; known: {', '.join(list_recipes())}")
        _load(installed[name])
    return _REGISTRY[name]


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _load(point: EntryPoint) -> None:
    """Register the recipe of an entry point."""
    where = f"recipe {point.name!r}, which an installed package names as {point.value}"
    try:
        recipe = point.load()
    except Exception as error:  # of another's code: whatever it raises
        raise InputError(f"{where}, cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise InputError(f"{where}, is no subclass of geo3d.recipes.Recipe")
    _REGISTRY.setdefault(point.name, recipe)  # its module may have registered it
