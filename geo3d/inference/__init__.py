"""Trained encoders put to work: one call from points, images or grids to features. No training code is imported."""

from geo3d.inference.encoded import EncodedCloud, EncodedGrid, EncodedImage, EncodedPair, EncodedScene
from geo3d.inference.loaded import LoadedEncoder, load_encoder
from geo3d.inference.normals import estimate_normals
from geo3d.inference.stereo import StereoOutput, match_stereo
from geo3d.inference.tiling import TiledOutput, tiled_loss, tiled_prediction

__all__ = [
    "EncodedCloud",
    "EncodedGrid",
    "EncodedImage",
    "EncodedPair",
    "EncodedScene",
    "LoadedEncoder",
    "StereoOutput",
    "TiledOutput",
    "estimate_normals",
    "load_encoder",
    "match_stereo",
    "tiled_loss",
    "tiled_prediction",
]
