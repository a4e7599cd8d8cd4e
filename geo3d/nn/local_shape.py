"""What the surface around a point is like, at several sizes: the same in any pose, and made of the points alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Figures of each size.
FIGURES = 5
_CLOUDS_AT_ONCE = 8
_SMALLEST = 1e-6  # of a neighbourhood's extent, radii of the cloud


def shape_channels(radii: Sequence[float]) -> int:
    """Columns of :func:`local_shape`."""
    return FIGURES * len(radii) + 1


@torch.no_grad()
def local_shape(points: Tensor, centres: Tensor, radii: Sequence[float]) -> Tensor:
    """How much the neighbourhoods of centres are like a line, a plane or a body; how full they are, and how one-sided.

    Of the points closer than a radius, deviations s1 >= s2 >= s3 along the axes of their covariance give
    (s1 - s2) / s1, (s2 - s3) / s1 and s3 / s1; beside these stand the root of their share of all points, and how far
    their mean is from the centre, over the radius. The last column is the distance of the centre from the origin.

    Args:
        points: (B, N, 3) clouds about the origin.
        centres: (B, G, 3).
        radii: in the unit of the points.

    Returns:
        (B, G, 5 * radii + 1).
    """
    parts = zip(points.split(_CLOUDS_AT_ONCE), centres.split(_CLOUDS_AT_ONCE))
    return torch.cat([_figures(*part, radii) for part in parts])


def _figures(points: Tensor, centres: Tensor, radii: Sequence[float]) -> Tensor:
    count = points.shape[1]
    distance = torch.cdist(centres, points)
    squares = (points.unsqueeze(-1) * points.unsqueeze(-2)).flatten(2)
    found = []
    for radius in radii:
        near = (distance < radius).to(points.dtype)
        inside = near.sum(2, keepdim=True).clamp_min(1)
        mean = near @ points / inside
        covariance = (near @ squares / inside).unflatten(2, (3, 3)) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        deviations = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt().flip(-1)
        first, second, third = deviations.unsqueeze(-2).unbind(-1)
        largest = first.clamp_min(_SMALLEST)
        found += [(first - second) / largest, (second - third) / largest, third / largest, (inside / count).sqrt()]
        found.append((mean - centres).norm(dim=-1, keepdim=True) / radius)
    return torch.cat([*found, centres.norm(dim=-1, keepdim=True)], 2)


__all__ = ["FIGURES", "local_shape", "shape_channels"]
