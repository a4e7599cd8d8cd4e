"""Rotations in space."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def quaternion_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) w, x, y, z of any length; NaN where that is 0."""
    with np.errstate(all="ignore"):
        w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix (3, 3) float64; all rotations are equally likely."""
    return quaternion_matrix(rng.standard_normal(4))


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion (w, x, y, z), w not negative, of a rotation matrix (3, 3).

    The eigenvector of its symmetric 4 x 4 form, which is right near half turns too.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    form = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    quaternion = np.linalg.eigh(form)[1][:, -1]
    return quaternion * (1 if quaternion[0] >= 0 else -1)


def turn_matrix(turn: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of turns (..., 3), an axis times its angle in radians; with gradients at 0 too."""
    x, y, z = turn.unbind(-1)
    zero = torch.zeros_like(x)
    across = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(across)


def nearest_rotations(matrices: Tensor) -> Tensor:
    """The nearest rotations (..., 3, 3) float64 of matrices that are one but for rounding."""
    u, _, vt = torch.linalg.svd(matrices.double())
    return u @ vt


def rotation_angle(rotation: Tensor) -> float:
    """Angle of a rotation (3, 3), degrees."""
    return math.degrees(math.acos(float(((rotation.trace() - 1) / 2).clamp(-1, 1))))


def triangle_frames(corners: np.ndarray) -> np.ndarray:
    """Axes, as columns of (T, 3, 3), of triangles (T, 3, 3): along the first side, in the plane, and out of it.

    NaN where the corners lie on a line.
    """
    with np.errstate(all="ignore"):
        x = corners[:, 1] - corners[:, 0]
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        z = np.cross(x, corners[:, 2] - corners[:, 0])
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], 2)


__all__ = [
    "nearest_rotations",
    "quaternion_matrix",
    "quaternion_of",
    "random_rotation",
    "rotation_angle",
    "triangle_frames",
    "turn_matrix",
]
