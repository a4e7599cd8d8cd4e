"""GridScenes and LabelledGrids: the sample sources of methods that read radiance grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from geo3d.datasets.scene import Scene, SceneDataset
from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.samples.labels import common_classes, require_labels
from geo3d.samples.source import Items, SampleSource


class GridScenes(SampleSource[VolumeGrid]):
    """Scenes that hold a radiance grid, as `geo3d prepare grids` makes them of posed captures."""

    kind = "grids"
    holds = "a radiance grid (`geo3d prepare grids` makes them of posed captures)"
    needs = ("grid",)
    #: A grid of 160 voxels a side takes 65 MB.
    open_scenes: ClassVar[int] = 8

    def load(self, scene: Scene) -> VolumeGrid:
        return scene.grid()

    def grid(self, index: int) -> VolumeGrid:
        """The grid of a scene, as it is stored.

        Raises:
            InputError: the scene is broken, or has labels that are not of its classes.
        """
        return self.opened(index)


class LabelledGrids(GridScenes):
    """Scenes whose radiance grid has a class for every voxel that is not empty, all labelled with the same classes.

    Args:
        datasets, scenes, items: as :class:`SampleSource` takes them.

    Raises:
        InputError: no scene; or datasets that do not name their classes, or are labelled with different ones.
    """

    kind = "labelled grids"
    holds = "a radiance grid with labels"

    def __init__(
        self, datasets: Sequence[SceneDataset], scenes: Sequence[tuple[int, str]], items: Items | None = None
    ) -> None:
        super().__init__(datasets, scenes, items)
        #: Names of the classes, in the order of the labels.
        self.classes: tuple[str, ...] = common_classes(self)

    def load(self, scene: Scene) -> VolumeGrid:
        grid = super().load(scene)
        if grid.labels is None:
            raise InputError(f"scene {scene.name} ({scene.root}) has a grid without labels of its voxels")
        require_labels(grid.labels, self.classes, scene)
        return grid


__all__ = ["GridScenes", "LabelledGrids"]
