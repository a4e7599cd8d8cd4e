"""A furnished room as a scanner sees it, for benchmarks of sparse voxels: points on surfaces, with noise."""

from __future__ import annotations

import torch
from torch import Tensor

VOXEL_SIZE = 0.02  # metres
_NOISE = 0.004  # metres, standard deviation of each coordinate
_POINTS_PER_SQUARE_METRE = 12_000
_YAW = 0.2  # radians, so that no wall follows the voxels
# Low and high corner: the room, then boxes in it; metres.
_ROOM = ((0.0, 0.0, 0.0), (2.6, 2.0, 1.3))
_FURNITURE = (
    ((0.4, 0.3, 0.0), (1.2, 0.8, 0.5)),
    ((1.7, 1.3, 0.0), (2.4, 1.9, 0.7)),
    ((0.2, 1.5, 0.0), (0.7, 1.8, 1.1)),
    ((1.9, 0.2, 0.0), (2.2, 0.5, 0.4)),
)


def _faces(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Points spread evenly over the six faces of a box."""
    faces = []
    for axis in range(3):
        u, v = ((axis + step) % 3 for step in (1, 2))
        count = int((high - low)[u] * (high - low)[v] * _POINTS_PER_SQUARE_METRE)
        for side in (low, high):
            points = low + torch.rand(count, 3, generator=generator) * (high - low)
            points[:, axis] = side[axis]
            faces.append(points)
    return torch.cat(faces)


def room_points(scale: float = 1.0) -> Tensor:
    """(N, 3) float32 points in metres, the same at each call; at scale 1 they fill some 100,000 voxels of 2 cm."""
    generator = torch.Generator().manual_seed(0)
    boxes = [scale * torch.tensor(box) for box in (_ROOM, *_FURNITURE)]
    points = torch.cat([_faces(low, high, generator) for low, high in boxes])
    points += _NOISE * torch.randn(points.shape, generator=generator)
    cosine, sine = torch.tensor(_YAW).cos(), torch.tensor(_YAW).sin()
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return points @ turn.T


def room_voxels(scale: float = 1.0) -> Tensor:
    """(N, 4) int32 sorted voxels [batch 0, x, y, z] of :func:`room_points`."""
    cells = (room_points(scale) / VOXEL_SIZE).floor().int().unique(dim=0)
    return torch.cat([torch.zeros_like(cells[:, :1]), cells], 1)
