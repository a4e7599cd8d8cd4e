"""geo3d: pre-train, load and use 3D and multi-view encoders.

    >>> import geo3d
    >>> model = geo3d.create_model("croco_v2_base_small", checkpoint="CroCo_V2_ViTBase_SmallDecoder.pth")
    >>> scenes = geo3d.open_dataset("path/to/scannet")

Importing this package imports nothing else; the names below load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FACE = {
    "Camera": "geo3d.geometry",
    "PointCloud": "geo3d.geometry",
    "SparseVoxels": "geo3d.geometry",
    "View": "geo3d.geometry",
    "ViewPair": "geo3d.geometry",
    "VolumeGrid": "geo3d.geometry",
    "Encoder": "geo3d.models",
    "InputError": "geo3d.errors",
    "NonCommercialWeights": "geo3d.errors",
    "create_model": "geo3d.models",
    "load_encoder": "geo3d.inference",
    "save_model": "geo3d.checkpoints",
    "list_models": "geo3d.models",
    "model_info": "geo3d.models",
    "register_family": "geo3d.models",
    "open_dataset": "geo3d.datasets",
    "list_datasets": "geo3d.datasets",
    "read_grid": "geo3d.datasets",
    "read_points": "geo3d.datasets",
}

_ROOMS = (
    "checkpoints",
    "cli",
    "datasets",
    "geometry",
    "inference",
    "interop",
    "methods",
    "models",
    "nn",
    "ops",
    "predict",
    "probe",
    "recipes",
    "reconstruction",
    "samples",
    "train",
    "visualize",
    "viz",
)

__all__ = [
    "Camera",
    "Encoder",
    "InputError",
    "NonCommercialWeights",
    "PointCloud",
    "SparseVoxels",
    "View",
    "ViewPair",
    "VolumeGrid",
    "__version__",
    "create_model",
    "list_datasets",
    "list_models",
    "load_encoder",
    "model_info",
    "open_dataset",
    "read_grid",
    "read_points",
    "register_family",
    "save_model",
]

if TYPE_CHECKING:
    from geo3d.checkpoints import save_model
    from geo3d.datasets import list_datasets, open_dataset, read_grid, read_points
    from geo3d.errors import InputError, NonCommercialWeights
    from geo3d.geometry import Camera, PointCloud, SparseVoxels, View, ViewPair, VolumeGrid
    from geo3d.inference import load_encoder
    from geo3d.models import Encoder, create_model, list_models, model_info, register_family


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"geo3d.{name}")
    if name not in _FACE:
        raise AttributeError(f"module 'geo3d' has no attribute {name!r}")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
