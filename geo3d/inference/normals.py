"""Normals of points that come without: planes through nearest neighbours, turned towards where they were seen from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geo3d.ops.knn import knn

#: Points that a plane is laid through.
NEIGHBOURS = 16
_TINY = 1e-30
#: Cosine of the angle between a normal and the way to the middle of the points below which that way tells no side.
_GRAZING = 0.1


@torch.no_grad()
def estimate_normals(
    xyz: Tensor, at: Tensor | None = None, viewpoint: Tensor | None = None, neighbours: int = NEIGHBOURS
) -> Tensor:
    """Unit normals of the plane of least squares through the points nearest to each.

    Args:
        xyz: (N, 3) float32 finite positions.
        at: (M, 3) places to estimate them at; at the points themselves when not given.
        viewpoint: (3,) in the same frame, towards which normals turn. When not given it is the mean of the points, and
            where the plane passes near it, as that of level ground does, they turn upwards.
        neighbours: that a plane is laid through, 1 to 64.

    Returns:
        (M, 3) float32; (0, 0, 1) where the neighbours tell no plane, since they all lie at one place.
    """
    at = xyz if at is None else at
    offsets, at_offsets = (torch.tensor([0, len(t)], device=xyz.device) for t in (xyz, at))
    index, _ = knn(at, xyz, at_offsets, offsets, min(neighbours, len(xyz)))
    members = xyz.index_select(0, index.flatten()).view(*index.shape, 3) - at.unsqueeze(1)
    normal = _least_direction(members - members.mean(1, keepdim=True))
    away = (xyz.mean(0) if viewpoint is None else viewpoint.to(at)) - at
    side = (normal * away).sum(1, keepdim=True)
    if viewpoint is None:
        side = torch.where(side.abs() < _GRAZING * away.norm(dim=1, keepdim=True), normal[:, 2:], side)
    return torch.where(side < 0, -normal, normal)


def _least_direction(members: Tensor) -> Tensor:
    """(M, 3) unit eigenvector of the least eigenvalue of the covariance of (M, k, 3), in closed form.

    LAPACK takes several microseconds a matrix; these are a few passes over all at once.
    """
    x, y, z = members.double().unbind(2)
    xx, yy, zz, xy, xz, yz = ((a * b).sum(1) for a, b in ((x, x), (y, y), (z, z), (x, y), (x, z), (y, z)))
    scale = (xx + yy + zz).clamp_min(_TINY)
    xx, yy, zz, xy, xz, yz = (t / scale for t in (xx, yy, zz, xy, xz, yz))
    # Eigenvalues of a symmetric matrix of trace 1 by the roots of its characteristic polynomial (Smith, 1961).
    third = (xx + yy + zz) / 3
    a, b, c = xx - third, yy - third, zz - third
    spread = ((a * a + b * b + c * c + 2 * (xy * xy + xz * xz + yz * yz)) / 6).clamp_min(_TINY).sqrt()
    half = (a * (b * c - yz * yz) - xy * (xy * c - yz * xz) + xz * (xy * yz - b * xz)) / (2 * spread**3)
    angle = half.clamp(-1, 1).acos() / 3
    least = third + 2 * spread * (angle + 2 * math.pi / 3).cos()
    # The rows of (matrix - least) span the plane; the longest of their cross products is the normal.
    rows = torch.stack([torch.stack(r, 1) for r in ((xx - least, xy, xz), (xy, yy - least, yz), (xz, yz, zz - least))])
    crosses = torch.linalg.cross(rows[[0, 0, 1]], rows[[1, 2, 2]])
    lengths, longest = crosses.square().sum(2).max(0)
    normal = crosses[longest, torch.arange(len(least), device=least.device)]
    known = (lengths > _TINY).unsqueeze(1)
    upright = normal.new_tensor([0.0, 0.0, 1.0])
    return torch.where(known, normal / lengths.clamp_min(_TINY).sqrt().unsqueeze(1), upright).float()
