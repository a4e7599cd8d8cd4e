"""What methods that read points share: settings of crops, scenes that hold what is read, rotated and scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.methods.checks import check_at_least, check_positive, check_range
from geo3d.methods.method import SourceSamples
from geo3d.ops.voxelize import voxelize
from geo3d.samples.points import PointScenes


@dataclass(frozen=True)
class VoxelCropConfig:
    """How a network over voxels is trained on crops of scenes; methods add their own fields."""

    model: str
    """Network, one that reads voxels."""
    signals: Literal["XYZ", "XYZ_RGB", "XYZ_NORM", "XYZ_RGB_NORM"] = "XYZ_RGB_NORM"
    """What the network sees of points beside their place: colours, normals, or both."""
    voxel_size: float = 0.05
    """Edge of a voxel, metres."""
    max_voxels: int = 8_000
    """Voxels of a training crop: the nearest ones to a random one."""
    scale: tuple[float, float] = (0.8, 1.2)
    """Scenes are scaled by a random factor between these."""

    def __post_init__(self) -> None:
        check_positive(self, "voxel_size")
        check_at_least(self, 1, "max_voxels")
        check_range(self, "scale")


class PointSamples(SourceSamples[PointScenes]):
    """Scenes of points as the items of a method, one each.

    Args:
        source: where points come from.
        reads: fields of points that the network cannot do without.
    """

    def __init__(self, source: PointScenes, reads: tuple[str, ...]) -> None:
        super().__init__(source)
        self.reads = reads

    def cloud(self, index: int) -> PointCloud:
        """All points of a scene, as they are stored.

        Raises:
            InputError: the scene lacks colours or normals that the network reads, or is broken.
        """
        cloud = self.source.cloud(index)
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


def random_point_a_voxel(xyz: Tensor, rng: np.random.Generator) -> Tensor:
    """Rows of (N, 3) points, in voxel units, of which each is a random one of its voxel."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    return voxelize(xyz, torch.tensor([0, len(xyz)]), 1.0, None, "random", generator)[2]
