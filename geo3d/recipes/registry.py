"""The recipes by name: those of geo3d, and those that other packages bring as entry points of ``geo3d.recipes``."""

from geo3d.recipes.recipe import Recipe
from geo3d.registry import Registry

RECIPES = Registry("recipe", Recipe)
register_recipe, list_recipes, get_recipe = RECIPES.register, RECIPES.names, RECIPES.get
