"""PointScenes and LabelledScenes: the sample sources of methods that read points."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError
from geo3d.geometry import PointCloud

if TYPE_CHECKING:
    from typing_extensions import Self

_KEPT_CLOUDS = 64  # a scan of 80,000 vertices takes 4 MB


class PointScenes:
    """All scenes of some datasets that hold points or a mesh, as one list.

    Small and picklable; each process reads clouds by itself when it needs them and keeps the latest.

    Args:
        datasets: where the scenes are.
        scenes: dataset number and name of each scene.

    Raises:
        InputError: no scene.
    """

    #: Parts that a scene must hold beside points or a mesh, and what they are called in messages.
    needs: ClassVar[tuple[str, ...]] = ()
    holds: ClassVar[str] = "points or a mesh"

    def __init__(self, datasets: Sequence[SceneDataset], scenes: Sequence[tuple[int, str]]) -> None:
        self.datasets, self.scenes = tuple(datasets), tuple(scenes)
        if not self.scenes:
            roots = ", ".join(str(dataset.root) for dataset in self.datasets)
            raise InputError(f"{roots}: no scene holds {self.holds}; see docs/datasets.md")
        self._kept: OrderedDict[int, tuple[PointCloud, bool]] = OrderedDict()

    @classmethod
    def find(cls, roots: Sequence[str | Path]) -> Self:
        """The scenes under some folders; broken ones go to their dataset's quarantine.

        Raises:
            InputError: a folder is no dataset, or there is no scene of that kind.
        """
        datasets = [open_dataset(root) for root in roots]
        found = [
            (number, scene.name)
            for number, dataset in enumerate(datasets)
            for scene in dataset.readable(*cls.needs)
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

    def subset(self, rows: Sequence[int]) -> Self:
        """Some of the scenes."""
        return type(self)(self.datasets, [self.scenes[row] for row in rows])

    def cloud(self, index: int) -> PointCloud:
        """Points of a scene, with colours, normals and labels where the scene has them.

        Raises:
            InputError: the scene is broken, holds no point, or has labels that are not of its classes.
        """
        return self._keep(index)[0]

    def metric(self, index: int) -> bool:
        """Whether a scene's lengths are metres; they are of arbitrary scale otherwise."""
        return self._keep(index)[1]

    def _keep(self, index: int) -> tuple[PointCloud, bool]:
        if index not in self._kept:
            number, name = self.scenes[index]
            scene = self.datasets[number].open(name)
            self._kept[index] = self._read(scene), scene.metric
            if len(self._kept) > _KEPT_CLOUDS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index]

    def _read(self, scene: Scene) -> PointCloud:
        cloud = scene_points(scene)
        if len(cloud) == 0:
            raise InputError(f"scene {scene.name} ({scene.root}) holds no point")
        return cloud


class LabelledScenes(PointScenes):
    """All scenes of some datasets that hold labelled points or a labelled mesh, as one list.

    Args:
        datasets, scenes: as :class:`PointScenes` takes them.

    Raises:
        InputError: no scene, or datasets that are labelled with different classes.
    """

    needs = ("labels",)
    holds = "labelled points or a labelled mesh"

    def __init__(self, datasets: Sequence[SceneDataset], scenes: Sequence[tuple[int, str]]) -> None:
        super().__init__(datasets, scenes)
        kinds = sorted({self.datasets[number].kind for number, _ in self.scenes})
        named = {self.datasets[number].classes for number, _ in self.scenes}
        if len(named) > 1:
            raise InputError(
                f"datasets of kinds {', '.join(kinds)} have different classes; train on one kind at a time"
            )
        #: Names of the classes, in the order of the labels.
        self.classes: tuple[str, ...] = named.pop()

    def _read(self, scene: Scene) -> PointCloud:
        scene.require("labels")
        cloud = super()._read(scene)
        if not -1 <= int(cloud.semantic.min()) <= int(cloud.semantic.max()) < len(self.classes):
            raise InputError(f"scene {scene.name} ({scene.root}) has labels outside -1 to {len(self.classes) - 1}")
        return cloud


def scene_points(scene: Scene) -> PointCloud:
    """A scene's points, or else the vertices of its mesh, with what is known of them.

    Raises:
        MissingPart: the scene has neither.
        BrokenScene: its files are damaged.
    """
    if "points" in scene.parts:
        return scene.points()
    mesh = scene.mesh()
    columns = (mesh.vertices, mesh.colors, mesh.normals, mesh.semantic, mesh.instance)
    return PointCloud(*(None if c is None else torch.from_numpy(np.ascontiguousarray(c)) for c in columns))


def labelled_points(scene: Scene) -> PointCloud:
    """The same of a labelled scene.

    Raises:
        MissingPart: the scene has neither points nor mesh, or no labels.
        BrokenScene: its files are damaged.
    """
    scene.require("labels")
    return scene_points(scene)
