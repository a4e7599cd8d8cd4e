"""What methods that read points have in common: how a scene is turned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geo3d.geometry import PointCloud


def turned(cloud: PointCloud, angle: float, factor: float) -> tuple[Tensor, Tensor | None]:
    """A scene turned about its vertical axis and scaled.

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
