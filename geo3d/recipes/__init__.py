"""Recipes: a method with its presets, its data and its report, by name."""

from geo3d.recipes import croco, spark, spark3d, swin3d
from geo3d.recipes.pretrain import pretrain
from geo3d.recipes.registry import get_recipe, list_recipes, register_recipe

for _module in (croco, spark, spark3d, swin3d):
    register_recipe(_module.__name__.rpartition(".")[2], _module.RECIPE)

__all__ = ["get_recipe", "list_recipes", "pretrain", "register_recipe"]
