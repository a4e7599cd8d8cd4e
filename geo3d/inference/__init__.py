"""Trained encoders put to work: one call from points, images or grids to features. No training code is imported."""

from geo3d.inference.encoded import EncodedCloud, EncodedGrid, EncodedImage, EncodedPair, EncodedScene
from geo3d.inference.loaded import LoadedEncoder, load_encoder
from geo3d.inference.normals import estimate_normals

__all__ = [
    "EncodedCloud",
    "EncodedGrid",
    "EncodedImage",
    "EncodedPair",
    "EncodedScene",
    "LoadedEncoder",
    "estimate_normals",
    "load_encoder",
]
