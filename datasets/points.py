"""LabelledScenes: the sample source of methods that read labelled points."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo3d.datasets.scannet import SCANNET20_CLASSES
from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError
from geo3d.geometry import PointCloud

#: Kind of dataset -> the classes that its labels count in.
CLASSES = {"scannet": SCANNET20_CLASSES}
_KEPT_CLOUDS = 64  # a scan of 80,000 vertices takes 4 MB


class LabelledScenes:
    """All scenes of some datasets that hold labelled points or a labelled mesh, as one list.

    Small and picklable; each process reads clouds by itself when it needs them and keeps the latest.

    Args:
        datasets: where the scenes are.
        scenes: dataset number and name of each scene.

    Raises:
        InputError: no scene, or datasets that are labelled with different classes.
    """

    def __init__(self, datasets: Sequence[SceneDataset], scenes: Sequence[tuple[int, str]]) -> None:
        self.datasets, self.scenes = tuple(datasets), tuple(scenes)
        if not self.scenes:
            roots = ", ".join(str(dataset.root) for dataset in self.datasets)
            raise InputError(f"{roots}: no scene holds labelled points or a labelled mesh; see docs/datasets.md")
        kinds = sorted({self.datasets[number].kind for number, _ in self.scenes})
        named = {CLASSES[kind] for kind in kinds}
        if len(named) > 1:
            raise InputError(
                f"datasets of kinds {', '.join(kinds)} have different classes; train on one kind at a time"
            )
        #: Names of the classes, in the order of the labels.
        self.classes: tuple[str, ...] = named.pop()
        self._kept: OrderedDict[int, PointCloud] = OrderedDict()

    @classmethod
    def find(cls, roots: Sequence[str | Path]) -> LabelledScenes:
        """The labelled scenes under some folders; broken ones go to their dataset's quarantine.

        Raises:
            InputError: a folder is no dataset, or there is no labelled scene.
        """
        datasets = [open_dataset(root) for root in roots]
        found = [
            (number, scene.name)
            for number, dataset in enumerate(datasets)
            for scene in dataset.readable("labels")
            if scene.parts & {"points", "mesh"}
        ]
        return cls(datasets, found)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}

    def describe(self, index: int) -> str:
        """Dataset and name of a scene."""
        number, name = self.scenes[index]
        return f"{self.datasets[number].root}: {name}"

    def subset(self, rows: Sequence[int]) -> LabelledScenes:
        """Some of the scenes."""
        return LabelledScenes(self.datasets, [self.scenes[row] for row in rows])

    def cloud(self, index: int) -> PointCloud:
        """Points of a scene with their labels, and colours and normals where the scene has them.

        Raises:
            InputError: the scene is broken or has labels that are not of its classes.
        """
        if index not in self._kept:
            number, name = self.scenes[index]
            self._kept[index] = self._read(self.datasets[number].open(name))
            if len(self._kept) > _KEPT_CLOUDS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index]

    def _read(self, scene: Scene) -> PointCloud:
        cloud = labelled_points(scene)
        if len(cloud) == 0 or not -1 <= int(cloud.semantic.min()) <= int(cloud.semantic.max()) < len(self.classes):
            reason = "holds no point" if len(cloud) == 0 else f"has labels outside -1 to {len(self.classes) - 1}"
            raise InputError(f"scene {scene.name} ({scene.root}) {reason}")
        return cloud


def labelled_points(scene: Scene) -> PointCloud:
    """A scene's points, or else the vertices of its mesh, with labels.

    Raises:
        MissingPart: the scene has neither, or no labels.
        BrokenScene: its files are damaged.
    """
    scene.require("labels")
    if "points" in scene.parts:
        return scene.points()
    mesh = scene.mesh()
    columns = (mesh.vertices, mesh.colors, mesh.normals, mesh.semantic, mesh.instance)
    return PointCloud(*(None if c is None else torch.from_numpy(np.ascontiguousarray(c)) for c in columns))
