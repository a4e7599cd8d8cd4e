"""PosedScene: a scene whose views, cameras and poses are read once, as one list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from geo3d.datasets.scene import Remark, Scene
from geo3d.geometry import Camera
from geo3d.geometry.origin import find_origin


@dataclass(frozen=True)
class ViewList:
    """The usable views of a scene, in a fixed order.

    Args:
        names: name of each view.
        cameras: intrinsics of each image; views that share a camera share the object.
        poses: (N, 4, 4) float64 ``world_from_camera``.
        remarks: what was left out.
        origin: (3,) float64, what was taken off the poses.
    """

    names: Sequence[str]
    cameras: Sequence[Camera]
    poses: np.ndarray
    remarks: tuple[Remark, ...] = ()
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def located(self, origin: np.ndarray | None = None) -> ViewList:
        """The views with an origin taken off their poses; None: the one that suits the camera positions."""
        poses = self.poses.copy()
        if origin is None:
            origin = find_origin(poses[:, :3, 3])
        poses[:, :3, 3] -= origin
        return replace(self, poses=poses, origin=origin)


class PosedScene(Scene, ABC):
    """Base of scenes with posed views. Subclasses implement :meth:`read_views`, and :meth:`image`."""

    @abstractmethod
    def read_views(self) -> ViewList:
        """Read the list of views, less their origin; called once, when one is first asked for.

        Raises:
            BrokenScene: the list cannot be read, or holds too few views.
        """

    @cached_property
    def views(self) -> ViewList:
        """The list of views."""
        self.require("views")
        return self.read_views()

    @property
    def origin(self) -> np.ndarray:
        return self.views.origin.copy() if "views" in self.parts else super().origin

    @property
    def remarks(self) -> tuple[Remark, ...]:
        return self.views.remarks if "views" in self.parts else ()

    @property
    def view_names(self) -> Sequence[str]:
        return self.views.names

    def camera(self, index: int) -> Camera:
        return self.views.cameras[index]

    def pose(self, index: int) -> np.ndarray:
        return self.views.poses[index].copy()
