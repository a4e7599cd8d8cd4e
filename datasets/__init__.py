"""Datasets on disk: every one yields :class:`Scene` objects, read lazily.

    >>> from geo3d.datasets import open_dataset
    >>> scenes = open_dataset("scannet")          # the layout is recognised
    >>> scenes[0].view(0).depth                    # metres, 0 where unknown

Importing this package registers the readers; their heavy libraries load when a file of theirs is read.
"""

from geo3d.datasets.image_pairs import ImagePairs
from geo3d.datasets.modelnet import ModelNetHDF5, ModelNetResampled
from geo3d.datasets.mvimgnet import MVImgNet
from geo3d.datasets.object_arrays import ObjectArrays
from geo3d.datasets.object_folders import ObjectFolders
from geo3d.datasets.point_files import PointFiles
from geo3d.datasets.radiance_grids import RadianceGrids, read_grid
from geo3d.datasets.read_points import read_cloud, read_points
from geo3d.datasets.scannet import ScanNet
from geo3d.datasets.scannet_frames import ScanNetFrames
from geo3d.datasets.scanobjectnn import ScanObjectNN, ScanObjectNNHardest
from geo3d.datasets.scene import (
    PARTS,
    BrokenScene,
    Mesh,
    MissingPart,
    Quarantine,
    Remark,
    Scene,
    SceneDataset,
    Tracks,
    list_datasets,
    open_dataset,
    register_dataset,
)
from geo3d.datasets.shapenet import ShapeNet55
from geo3d.datasets.stereo_flow import StereoFlow
from geo3d.datasets.transforms import Transforms

# In the order in which they are tried. A COLMAP model also holds tracks, so it goes before a transforms.json beside it.
_SCENES = (ScanNet, ScanNetFrames, MVImgNet, Transforms, RadianceGrids, StereoFlow, ImagePairs)
_OBJECTS = (ShapeNet55, ModelNetHDF5, ModelNetResampled, ScanObjectNN, ScanObjectNNHardest, ObjectArrays)
for _reader in (*_SCENES, *_OBJECTS, ObjectFolders, PointFiles):
    register_dataset(_reader)

__all__ = [
    "PARTS",
    "BrokenScene",
    "ImagePairs",
    "MVImgNet",
    "Mesh",
    "MissingPart",
    "ModelNetHDF5",
    "ModelNetResampled",
    "ObjectArrays",
    "ObjectFolders",
    "PointFiles",
    "Quarantine",
    "RadianceGrids",
    "Remark",
    "ScanNet",
    "ScanNetFrames",
    "ScanObjectNN",
    "ScanObjectNNHardest",
    "Scene",
    "SceneDataset",
    "ShapeNet55",
    "StereoFlow",
    "Tracks",
    "Transforms",
    "list_datasets",
    "open_dataset",
    "read_cloud",
    "read_grid",
    "read_points",
    "register_dataset",
]
