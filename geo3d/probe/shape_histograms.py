"""Features of a cloud that are made by hand: what can be told of objects without any network.

Two sets. *Whole-shape* histograms are of distances, areas and angles between random points (D2, D3 and A3 of Osada et
al. 2002), of radii, and of the places along the axes: simple, and partly bound to the pose. *Local* ones are of how the
neighbourhoods of points lie, as lines, planes or bodies, at four sizes: the same in any pose, and far stronger.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Random pairs and triples of points.
_TUPLES = 8192
#: Points whose neighbourhoods are looked at, at most.
_CENTRES = 512
#: Sizes of neighbourhoods, as shares of the cloud: of 1,024 points 8, 16, 48 and 128.
_SHARES = (1 / 128, 1 / 64, 3 / 64, 1 / 8)
_FEWEST = 4  # points of a neighbourhood
_SMALL = 1e-9


def whole_shape_histograms(clouds: list[Tensor]) -> Tensor:
    """Histograms over whole clouds: D2, D3, A3, radii, places and distances along each axis, and extents.

    Args:
        clouds: each (N, 3) float32.

    Returns:
        (B, 422) float32; square roots of shares, whose plain products say how alike two histograms are.
    """
    return torch.stack([_whole_shape(_normalised(xyz)) for xyz in clouds]).sqrt()


def local_histograms(clouds: list[Tensor]) -> Tensor:
    """Histograms over the neighbourhoods of points, at four sizes, beside D2 and radii; the same in any pose.

    Of each neighbourhood: how much it is like a line, a plane or a body (differences of the deviations along its three
    principal axes, over the largest), its radius, and how far off its mean the point lies, over the radius.

    Args:
        clouds: each (N, 3) float32.

    Returns:
        (B, 480) float32; square roots of shares.
    """
    return torch.stack([_local(_normalised(xyz)) for xyz in clouds]).sqrt()


def _normalised(xyz: Tensor) -> Tensor:
    """Points about their mean, the farthest at 1."""
    centred = xyz.float() - xyz.float().mean(0)
    return centred / centred.norm(dim=1).max().clamp_min(_SMALL)


def _whole_shape(xyz: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (xyz[torch.randint(len(xyz), (_TUPLES,), generator=generator)] for _ in range(3))
    one, other = b - a, c - a
    area = torch.linalg.cross(one, other).norm(dim=1) / 2
    cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1)).clamp_min(_SMALL)
    return torch.cat(
        [
            _distances_and_radii(xyz, one),
            _histogram(area.sqrt(), math.sqrt(1.3), 64),  # 1.299: the largest triangle in the unit circle
            _histogram(cosine.clamp(-1, 1).acos(), math.pi, 64),
            *(_histogram(xyz[:, axis] + 1, 2, 32) for axis in range(3)),
            *(_histogram(one[:, axis].abs(), 2, 32) for axis in range(3)),
            xyz.amax(0) - xyz.amin(0),
            xyz.std(0, correction=0),
        ]
    )


def _local(xyz: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    a, b = (xyz[torch.randint(len(xyz), (_TUPLES,), generator=generator)] for _ in range(2))
    centres = xyz[torch.arange(min(_CENTRES, len(xyz))) * len(xyz) // min(_CENTRES, len(xyz))]
    sizes = [min(len(xyz), max(_FEWEST, round(share * len(xyz)))) for share in _SHARES]
    nearest = torch.cdist(centres, xyz).topk(sizes[-1], largest=False)
    offset = xyz[nearest.indices] - centres[:, None]  # (M, K, 3)
    found = [_distances_and_radii(xyz, b - a)]
    for size in sizes:
        part = offset[:, :size]
        mean, radius = part.mean(1), nearest.values[:, size - 1]
        deviation = _eigenvalues(part.mT @ part / size - mean[:, :, None] * mean[:, None]).clamp_min(0).sqrt()
        large, middle, little = (deviation / deviation[:, :1].clamp_min(_SMALL)).unbind(1)
        found += [_histogram(share, 1, 16) for share in (large - middle, middle - little, little)]
        found += [_histogram(radius, 0.8, 32), _histogram(mean.norm(dim=1) / radius.clamp_min(_SMALL), 1, 16)]
    return torch.cat(found)


def _distances_and_radii(xyz: Tensor, between: Tensor) -> Tensor:
    return torch.cat([_histogram(between.norm(dim=1), 2, 64), _histogram(xyz.norm(dim=1), 1, 32)])


def _histogram(values: Tensor, most: float, bins: int) -> Tensor:
    """(bins,) shares of (N,) values of 0 to ``most``; larger ones count as ``most``."""
    number = (values * (bins / most)).long().clamp(0, bins - 1)
    return torch.bincount(number, minlength=bins) / len(values)


def _eigenvalues(matrices: Tensor) -> Tensor:
    """(M, 3) eigenvalues, largest first, of (M, 3, 3) symmetric matrices: roots of the cubic, by its angle."""
    third = matrices.diagonal(dim1=1, dim2=2).sum(1) / 3
    rest = matrices - third[:, None, None] * torch.eye(3)
    spread = (rest.square().sum((1, 2)) / 6).sqrt()
    half = torch.linalg.det(rest / spread.clamp_min(1e-20)[:, None, None]) / 2
    angle = half.clamp(-1, 1).acos() / 3
    turns = torch.tensor([0, -2 * math.pi / 3, 2 * math.pi / 3])  # largest, middle, smallest
    return third[:, None] + 2 * spread[:, None] * (angle[:, None] + turns).cos()


__all__ = ["local_histograms", "whole_shape_histograms"]
