"""What methods that read points share: scenes that hold what is read, rotated and scaled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud

if TYPE_CHECKING:
    from geo3d.samples.points import PointScenes


class PointSamples:
    """Scenes of points as the items of a method, one each.

    Args:
        scenes: where points come from.
        reads: fields of points that the network cannot do without.
    """

    def __init__(self, scenes: PointScenes, reads: tuple[str, ...]) -> None:
        self.scenes, self.reads = scenes, reads

    def __len__(self) -> int:
        return len(self.scenes)

    def describe(self, index: int) -> str:
        """Dataset and name of a scene."""
        return self.scenes.describe(index)

    def cloud(self, index: int) -> PointCloud:
        """All points of a scene, as they are stored.

        Raises:
            InputError: the scene lacks colours or normals that the network reads, or is broken.
        """
        cloud = self.scenes.cloud(index)
        for part in self.reads:
            if getattr(cloud, part) is None:
                raise InputError(f"{self.describe(index)}: the scene has no {part}; choose signals without them")
        return cloud


def rotate_and_scale(cloud: PointCloud, angle: float, factor: float) -> tuple[Tensor, Tensor | None]:
    """A scene rotated about its vertical axis and scaled.

    Args:
        cloud: one scene, z up.
        angle: radians, counter-clockwise seen from above.
        factor: by which lengths grow.

    Returns:
        (N, 3) float64 positions about the mean of the points, and (N, 3) float32 normals where the scene has any.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    xyz = (cloud.xyz.double() - cloud.xyz.double().mean(0)) @ (factor * turn).T
    return xyz, None if cloud.normals is None else (cloud.normals.double() @ turn.T).float()
