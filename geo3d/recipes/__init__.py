"""Recipes: a method with its presets, its data and its report, by name."""

from geo3d.recipes.classify import ClassifyRecipe
from geo3d.recipes.croco import CroCoRecipe
from geo3d.recipes.dense import DepthRecipe, FlowRecipe, StereoRecipe
from geo3d.recipes.detect import GridDetectionRecipe
from geo3d.recipes.i2p_mae import I2PMAERecipe
from geo3d.recipes.multiview import MultiViewRecipe
from geo3d.recipes.nerf_mae import NeRFMAERecipe
from geo3d.recipes.pointmaps import PointmapsRecipe
from geo3d.recipes.pretrain import pretrain
from geo3d.recipes.recipe import Recipe, RoomsRun, Run
from geo3d.recipes.registry import get_recipe, list_recipes, register_recipe
from geo3d.recipes.segment import SegmentRecipe
from geo3d.recipes.segment_grids import GridSegmentationRecipe
from geo3d.recipes.spark import SparKRecipe
from geo3d.recipes.spark3d import SparK3DRecipe
from geo3d.recipes.swin3d import Swin3DRecipe

register_recipe("classify", ClassifyRecipe)
register_recipe("croco", CroCoRecipe)
register_recipe("depth", DepthRecipe)
register_recipe("flow", FlowRecipe)
register_recipe("i2p_mae", I2PMAERecipe)
register_recipe("multiview", MultiViewRecipe)
register_recipe("nerf_mae", NeRFMAERecipe)
register_recipe("detect", GridDetectionRecipe)
register_recipe("segment_grids", GridSegmentationRecipe)
register_recipe("pointmaps", PointmapsRecipe)
register_recipe("segment", SegmentRecipe)
register_recipe("spark", SparKRecipe)
register_recipe("spark3d", SparK3DRecipe)
register_recipe("stereo", StereoRecipe)
register_recipe("swin3d", Swin3DRecipe)

__all__ = ["Recipe", "RoomsRun", "Run", "get_recipe", "list_recipes", "pretrain", "register_recipe"]
