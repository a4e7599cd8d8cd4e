"""PointScenes and LabelledScenes: the sample sources of methods that read points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from geo3d.datasets.scene import Scene, SceneDataset
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.samples.labels import common_classes, require_labels
from geo3d.samples.source import Items, SampleSource


class LoadedPoints(NamedTuple):
    """What is kept of a scene: a scan of 80,000 vertices takes 4 MB."""

    cloud: PointCloud
    metric: bool


class PointScenes(SampleSource[LoadedPoints]):
    """Scenes that hold points or a mesh."""

    kind = "points"
    holds = "points or a mesh"
    one_of = ("points", "mesh")

    def load(self, scene: Scene) -> LoadedPoints:
        cloud = scene.cloud()
        if len(cloud) == 0:
            raise InputError(f"scene {scene.name} ({scene.root}) holds no point")
        return LoadedPoints(cloud, scene.metric)

    def cloud(self, index: int) -> PointCloud:
        """Points of a scene, with colours, normals and labels where the scene has them.

        Raises:
            InputError: the scene is broken, holds no point, or has labels that are not of its classes.
        """
        return self.opened(index).cloud

    def metric(self, index: int) -> bool:
        """Whether a scene's lengths are metres; they are of arbitrary scale otherwise."""
        return self.opened(index).metric


class LabelledScenes(PointScenes):
    """Scenes that hold labelled points or a labelled mesh, all labelled with the same classes.

    Args:
        datasets, scenes, items: as :class:`SampleSource` takes them.

    Raises:
        InputError: no scene; or datasets that do not name their classes, or are labelled with different ones.
    """

    kind = "labelled points"
    holds = "labelled points or a labelled mesh (files of points beside a classes.txt with the names of classes)"
    needs = ("labels",)

    def __init__(
        self, datasets: Sequence[SceneDataset], scenes: Sequence[tuple[int, str]], items: Items | None = None
    ) -> None:
        super().__init__(datasets, scenes, items)
        #: Names of the classes, in the order of the labels.
        self.classes: tuple[str, ...] = common_classes(self)

    def load(self, scene: Scene) -> LoadedPoints:
        scene.require("labels")
        loaded = super().load(scene)
        require_labels(loaded.cloud.semantic, self.classes, scene)
        return loaded
