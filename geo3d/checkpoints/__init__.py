"""The authors' file layouts, read safely; and where weights lie that are named otherwise than by a path."""

from geo3d.checkpoints.hub import resolve
from geo3d.checkpoints.loading import load_exactly, read_weight_file, save_model
from geo3d.checkpoints.shipped import ShippedWeights, shipped_info, shipped_names, shipped_weights

__all__ = [
    "ShippedWeights",
    "load_exactly",
    "read_weight_file",
    "resolve",
    "save_model",
    "shipped_info",
    "shipped_names",
    "shipped_weights",
]
