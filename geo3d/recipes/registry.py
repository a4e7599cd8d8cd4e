"""The recipes by name: those of geo3d, and those that other packages bring as entry points of ``geo3d.recipes``."""

from geo3d.errors import InputError
from geo3d.recipes.recipe import Recipe
from geo3d.registry import Registry

RECIPES = Registry("recipe", Recipe)
register_recipe, get_recipe = RECIPES.register, RECIPES.get


def list_recipes(purpose: str | None = None) -> list[str]:
    """Names of the recipes, sorted; those of one purpose alone (``pretrain``, ``finetune``), or all.

    Those of other packages that cannot be imported have none and are listed with all: what is wrong is told where they
    are used.
    """
    return [name for name in RECIPES.names() if purpose in (None, _purpose(name))]


def _purpose(name: str) -> str:
    try:
        return get_recipe(name).purpose
    except InputError:
        return Recipe.purpose
