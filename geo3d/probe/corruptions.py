"""What becomes of clouds outside of data sets: fewer points, noise, sides that nothing sees, stray points."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Distance from which a cloud of radius 1 is looked at where its hidden side is taken away.
_DISTANCE = 3.0
#: Radius of the sphere at which points are mirrored to tell which are hidden, over the largest distance.
_MIRROR = 10.0


def with_noise(xyz: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Every point moved by normal noise in each direction.

    Args:
        xyz: (N, 3) in the unit sphere.
        share: deviation along each axis, of the radius.
        rng: what is drawn from.
    """
    return xyz + torch.from_numpy(rng.normal(scale=share, size=xyz.shape)).to(xyz)


def with_outliers(xyz: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """A share of the points put elsewhere, evenly in the unit sphere.

    Args:
        xyz: (N, 3) in the unit sphere.
        share: of the points.
        rng: what is drawn from.
    """
    count = round(share * len(xyz))
    direction = rng.normal(size=(count, 3))
    direction *= np.cbrt(rng.random((count, 1))) / np.linalg.norm(direction, axis=1, keepdims=True)
    moved = xyz.clone()
    moved[torch.from_numpy(rng.permutation(len(xyz))[:count])] = torch.from_numpy(direction).to(xyz)
    return moved


def half_cut(xyz: Tensor, rng: np.random.Generator) -> Tensor:
    """(M, 3): the points on one side of a random plane through the origin, which is their mean."""
    side = xyz @ torch.from_numpy(rng.normal(size=3)).to(xyz)
    return xyz[side >= 0]


def hidden_side_cut(xyz: Tensor, rng: np.random.Generator) -> Tensor:
    """(M, 3): the points that are seen from a random direction, three radii away.

    Points are hidden where others are in front of them, as on a closed surface (Katz, Tal and Basri 2007: mirrored at a
    large sphere about the eye, the points on the convex hull of all and the eye are those that are seen).
    """
    from scipy.spatial import ConvexHull  # which comes with scikit-learn

    eye = rng.normal(size=3)
    rays = xyz.double().numpy() - _DISTANCE * eye / np.linalg.norm(eye)
    distance = np.linalg.norm(rays, axis=1, keepdims=True)
    mirrored = rays * (2 * _MIRROR * distance.max() / distance - 1)
    hull = ConvexHull(np.vstack([mirrored, np.zeros((1, 3))])).vertices
    return xyz[torch.from_numpy(np.sort(hull[hull < len(xyz)]).astype(np.int64))]


__all__ = ["half_cut", "hidden_side_cut", "with_noise", "with_outliers"]
