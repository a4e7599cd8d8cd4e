"""A scene with some of its views alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from geo3d.datasets.quarantine import Remark
from geo3d.datasets.scene import Mesh, Scene, Tracks
from geo3d.geometry import Camera, PointCloud, VolumeGrid

#: Parts that are listed by pairs of views under numbers of their own, which a subset would have to list anew.
_LISTED_BY_PAIR = frozenset({"disparity", "flow"})


class ViewSubset(Scene):
    """Some of a scene's views, numbered anew; all that is not of a view is the scene's.

    Args:
        scene: with views.
        kept: numbers of the views that stay, in their order.
    """

    def __init__(self, scene: Scene, kept: Sequence[int]) -> None:
        scene.require("views")
        self.name, self.root, self.metric, self.is_object = scene.name, scene.root, scene.metric, scene.is_object
        self.of_many_places, self.category, self.subset = scene.of_many_places, scene.category, scene.subset
        self.parts = scene.parts - _LISTED_BY_PAIR
        self._scene, self._kept = scene, list(kept)
        names = scene.view_names
        self._names = [names[index] for index in self._kept]
        self._number = np.full(len(names), -1)  # of each of the scene's views here
        self._number[self._kept] = np.arange(len(self._kept))

    @property
    def origin(self) -> np.ndarray:
        return self._scene.origin

    @property
    def remarks(self) -> tuple[Remark, ...]:
        return self._scene.remarks

    @property
    def view_names(self) -> Sequence[str]:
        return self._names

    def camera(self, index: int) -> Camera:
        return self._scene.camera(self._kept[index])

    def pose(self, index: int) -> np.ndarray:
        return self._scene.pose(self._kept[index])

    def image(self, index: int) -> Image.Image:
        return self._scene.image(self._kept[index])

    def depth(self, index: int) -> np.ndarray:
        return self._scene.depth(self._kept[index])

    def depth_camera(self, index: int) -> Camera:
        return self._scene.depth_camera(self._kept[index])

    def mask(self, index: int) -> np.ndarray:
        return self._scene.mask(self._kept[index])

    def points(self) -> PointCloud:
        return self._scene.points()

    def mesh(self) -> Mesh:
        return self._scene.mesh()

    def grid(self) -> VolumeGrid:
        return self._scene.grid()

    def tracks(self) -> Tracks:
        """The scene's sparse points, and of their observations those of the views that stay."""
        tracks = self._scene.tracks()
        view = self._number[tracks.view]
        stay = view >= 0
        return Tracks(tracks.xyz, tracks.error, view[stay], tracks.point[stay], tracks.uv[stay])

    def pairs(self) -> np.ndarray:
        """Of the pairs that the dataset lists, those whose views both stay."""
        pairs = self._number[self._scene.pairs()]
        return pairs[(pairs >= 0).all(1)]


__all__ = ["ViewSubset"]
