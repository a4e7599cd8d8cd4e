"""DepthViews: posed views with depth."""

from __future__ import annotations

import numpy as np
import torch

from geo3d.datasets.scene import Scene
from geo3d.geometry import View
from geo3d.samples.dense import DenseItem, nearest_values
from geo3d.samples.source import SampleSource


class DepthViews(SampleSource[Scene]):
    """Posed views with depth, a group a scene."""

    kind = "views with depth"
    holds = "posed views with depth"
    needs = ("views", "poses", "depth")

    @classmethod
    def groups_in(cls, scene: Scene) -> np.ndarray:
        return np.zeros(len(scene.view_names), dtype=np.int64)

    def name_in_scene(self, index: int) -> str:
        return self.opened(index).view_names[self.number(index)]

    def view(self, index: int) -> View:
        """A view with image, camera, pose and depth.

        Raises:
            InputError: it cannot be read.
        """
        return self.opened(index).view(self.number(index))

    def dense(self, index: int) -> DenseItem:
        """A view's image, and its depth at places of it: (h, w, 1) metres, NaN where unknown.

        Raises:
            BrokenScene: a file of the scene cannot be read.
        """
        scene, number = self.opened(index), self.number(index)
        depth, camera, depth_camera = scene.depth(number), scene.camera(number), scene.depth_camera(number)
        values = np.where(depth > 0, depth, np.float32(np.nan))[..., None]

        def at(places: np.ndarray) -> np.ndarray:
            if depth_camera != camera:
                rays = camera.unproject(torch.from_numpy(places), torch.ones(places.shape[:2], dtype=torch.float64))
                places = depth_camera.project(rays).numpy()
            return nearest_values(values, places)

        return DenseItem((scene.image(number),), at)


__all__ = ["DepthViews"]
