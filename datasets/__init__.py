"""Datasets on disk: every one yields :class:`Scene` objects, read lazily.

    >>> from geo3d.datasets import open_dataset
    >>> scenes = open_dataset("scannet")          # the layout is recognised
    >>> scenes[0].view(0).depth                    # metres, 0 where unknown

Importing this package registers the readers; their heavy libraries load when a file of theirs is read.
"""

from geo3d.datasets.scene import (
    PARTS,
    BrokenScene,
    Mesh,
    MissingPart,
    Quarantine,
    Scene,
    SceneDataset,
    Tracks,
    list_datasets,
    open_dataset,
    register_dataset,
)

__all__ = [
    "PARTS",
    "BrokenScene",
    "Mesh",
    "MissingPart",
    "Quarantine",
    "Scene",
    "SceneDataset",
    "Tracks",
    "list_datasets",
    "open_dataset",
    "register_dataset",
]
