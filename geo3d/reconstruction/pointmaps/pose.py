"""The pose of a camera from points whose pixels are known: P3P within RANSAC, then refined.

Small and in numpy, so that nothing beyond geo3d's own needs is required and every draw comes from the generator handed
in; what is solved is the calibrated case, a pinhole with known focal length (Grunert 1841, as in Haralick et al. 1991).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from geo3d.errors import InputError
from geo3d.geometry.rotation import triangle_frames, turn_matrix
from geo3d.reconstruction.pointmaps.lens import PrincipalPoint, from_centre

#: Pixels of the longer side, for which the published threshold of 5 pixels was chosen.
_PUBLISHED_SIDE, _PUBLISHED_PIXELS = 512, 5.0
_DRAWS = 256
_SCORED = 2000  # points at which poses of draws are compared
_FEWEST = 6
_STEPS = 20
#: Of the nearest points, the share by whose error the threshold is widened, and how many times that it then is.
_SHARE, _WIDE = 0.3, 2.0
_REAL = 1e-4  # of a root's imaginary part, relative to its size


@dataclass(frozen=True)
class FoundPose:
    """A camera's pose among points.

    Args:
        world_from_camera: (4, 4) float64.
        inliers: (N,) bool, points that lie before the camera and near enough to their pixel.
    """

    world_from_camera: np.ndarray
    inliers: np.ndarray


def usual_threshold(height: int, width: int) -> float:
    """Pixels within which a point counts as seen where it should be: 5 of 512, as published."""
    return _PUBLISHED_PIXELS * max(height, width) / _PUBLISHED_SIDE


def find_pose(
    points: np.ndarray,
    pixels: np.ndarray,
    focal: float,
    principal_point: PrincipalPoint,
    rng: np.random.Generator,
    threshold: float,
    draws: int = _DRAWS,
) -> FoundPose:
    """The pose from which a pinhole sees points at their pixels; up to half of them and more may be wrong.

    Args:
        points: (N, 3) in the world, finite.
        pixels: (N, 2) where they are seen, pixels (x, y).
        focal: pixels.
        principal_point: pixel (x, y).
        rng: draws the triples that poses are proposed by.
        threshold: pixels; twice the error of the nearest 30 % of the points where that is more.
        draws: triples.

    Raises:
        InputError: fewer than six points, or no pose that as many fit.
    """
    points = np.asarray(points, np.float64)
    rays = np.c_[from_centre(np.asarray(pixels, np.float64), principal_point) / focal, np.ones(len(points))]
    if len(points) < _FEWEST:
        raise InputError(f"the pose of a camera needs {_FEWEST} points or more, got {len(points)}")
    # In the points' own unit and place, so that nothing below depends on them.
    middle = np.median(points, 0)
    unit = float(np.median(np.linalg.norm(points - middle, axis=1))) or 1.0
    points = (points - middle) / unit
    allowed = threshold / focal
    triples = rng.integers(len(points), size=(draws, 3))
    triples = triples[(triples != triples[:, [1, 2, 0]]).all(1)]
    rotations, translations = _from_triples(points[triples], rays[triples])
    scored = np.arange(len(points)) if len(points) <= _SCORED else rng.choice(len(points), _SCORED, replace=False)
    if len(rotations):
        errors = _errors(rotations, translations, points[scored], rays[scored])
        best = np.minimum(errors, allowed**2).sum(1).argmin()
        pose = rotations[best], translations[best]
        # Points that are all a little off are refined by more of them.
        nearest = np.partition(errors[best], int(_SHARE * (len(scored) - 1)))[int(_SHARE * (len(scored) - 1))]
        if np.isfinite(nearest):
            allowed = max(allowed, _WIDE * np.sqrt(nearest))
        for _ in range(3):
            inliers = _errors(*(part[None] for part in pose), points, rays)[0] <= allowed**2
            if inliers.sum() < _FEWEST:
                break
            pose = _refined(*pose, points[inliers], rays[inliers], allowed)
        inliers = _errors(*(part[None] for part in pose), points, rays)[0] <= allowed**2
    if not len(rotations) or inliers.sum() < _FEWEST:
        raise InputError(
            f"no pose of the camera explains {_FEWEST} of {len(points)} points within {threshold:.1f} pixels: the "
            "pointmap and the pixels do not belong together"
        )
    rotation, translation = pose
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3], world_from_camera[:3, 3] = rotation.T, middle - unit * rotation.T @ translation
    return FoundPose(world_from_camera, inliers)


def _errors(rotations: np.ndarray, translations: np.ndarray, points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(P, N) squared distances from where points are seen, in units of the focal length; infinite behind a camera."""
    seen = np.einsum("pij,nj->pni", rotations, points) + translations[:, None]
    before = seen[..., 2] > 1e-9
    with np.errstate(all="ignore"):
        apart = seen[..., :2] / seen[..., 2:] - rays[:, :2]
        squared = (apart**2).sum(-1)
    return np.where(before, squared, np.inf)


def _from_triples(points: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera from world, up to four for each triple of points (T, 3, 3) on rays (T, 3, 3): (P, 3, 3) and (P, 3).

    With distances ``s1, u s1, v s1`` from the camera, the law of cosines over the triangle's sides leaves a polynomial
    of the fourth degree in ``v``.
    """
    unit = rays / np.linalg.norm(rays, axis=2, keepdims=True)
    a2, b2, c2 = (((points[:, i] - points[:, j]) ** 2).sum(1) for i, j in ((1, 2), (0, 2), (0, 1)))
    alpha, beta, gamma = ((unit[:, i] * unit[:, j]).sum(1) for i, j in ((1, 2), (0, 2), (0, 1)))
    good = np.minimum(np.minimum(a2, b2), c2) > 1e-12
    points, unit, a2, b2, c2 = points[good], unit[good], a2[good], b2[good], c2[good]
    alpha, beta, gamma = alpha[good], beta[good], gamma[good]
    if not len(points):
        return np.zeros((0, 3, 3)), np.zeros((0, 3))
    less, more, ratio_a, ratio_c = (a2 - c2) / b2, (a2 + c2) / b2, a2 / b2, c2 / b2
    coefficients = np.stack(
        [
            (less - 1) ** 2 - 4 * ratio_c * alpha**2,
            4 * (less * (1 - less) * beta - (1 - more) * alpha * gamma + 2 * ratio_c * alpha**2 * beta),
            2
            * (
                less**2
                - 1
                + 2 * less**2 * beta**2
                + 2 * (1 - ratio_c) * alpha**2
                - 4 * more * alpha * beta * gamma
                + 2 * (1 - ratio_a) * gamma**2
            ),
            4 * (-less * (1 + less) * beta + 2 * ratio_a * gamma**2 * beta - (1 - more) * alpha * gamma),
            (1 + less) ** 2 - 4 * ratio_a * gamma**2,
        ],
        1,
    )
    v, triple = _real_roots(coefficients)
    less, alpha, beta, gamma, b2 = less[triple], alpha[triple], beta[triple], gamma[triple], b2[triple]
    with np.errstate(all="ignore"):
        u = ((less - 1) * v**2 - 2 * less * beta * v + 1 + less) / (2 * (gamma - v * alpha))
        first = np.sqrt(b2 / (1 + v**2 - 2 * v * beta))
    distance = np.stack([first, u * first, v * first], 1)
    good = np.isfinite(distance).all(1) & (distance > 0).all(1)
    distance, triple = distance[good], triple[good]
    seen = distance[:, :, None] * unit[triple]
    rotation = triangle_frames(seen) @ triangle_frames(points[triple]).swapaxes(1, 2)
    translation = seen[:, 0] - np.einsum("pij,pj->pi", rotation, points[triple, 0])
    whole = np.isfinite(rotation).all((1, 2))
    return rotation[whole], translation[whole]


def _real_roots(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive real roots of polynomials (T, 5), the highest power first, and whose they are."""
    number = np.flatnonzero(np.abs(coefficients[:, 0]) > 1e-12 * np.abs(coefficients).max(1))
    companion = np.zeros((len(number), 4, 4))
    companion[:, 0] = -coefficients[number, 1:] / coefficients[number, :1]
    companion[:, [1, 2, 3], [0, 1, 2]] = 1
    roots = np.linalg.eigvals(companion)
    real = (np.abs(roots.imag) < _REAL * np.maximum(np.abs(roots.real), 1e-9)) & (roots.real > 0)
    return roots.real[real], np.repeat(number, real.sum(1))


def _refined(
    rotation: np.ndarray, translation: np.ndarray, points: np.ndarray, rays: np.ndarray, allowed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of reprojection, errors beyond a third of what is allowed weighing less: Gauss-Newton's steps."""
    narrow = allowed / 3
    for _ in range(_STEPS):
        moved = points @ rotation.T
        x, y, z = (moved + translation).T
        before = z > 1e-9
        if before.sum() < _FEWEST:
            break
        moved, x, y, z, target = moved[before], x[before], y[before], z[before], rays[before, :2]
        residual = np.stack([x / z, y / z], 1) - target
        weight = 1 / np.maximum(np.linalg.norm(residual, axis=1) / narrow, 1)
        zero = np.zeros_like(z)
        slope = np.stack([np.stack([1 / z, zero, -x / z**2], 1), np.stack([zero, 1 / z, -y / z**2], 1)], 1)
        turn = np.zeros((len(z), 3, 3))  # of a small rotation w from the left: w x moved
        turn[:, 0, 1], turn[:, 0, 2], turn[:, 1, 2] = moved[:, 2], -moved[:, 1], moved[:, 0]
        turn -= turn.swapaxes(1, 2)
        jacobian = np.concatenate([slope @ turn, slope], 2)
        weighted = jacobian * weight[:, None, None]
        normal = np.einsum("nki,nkj->ij", weighted, jacobian)
        step = -np.linalg.lstsq(normal, np.einsum("nki,nk->i", weighted, residual), rcond=None)[0]
        rotation = turn_matrix(torch.from_numpy(step[:3])).numpy() @ rotation
        translation = translation + step[3:]
        if np.abs(step).max() < 1e-10:
            break
    return rotation, translation


__all__ = ["FoundPose", "find_pose", "usual_threshold"]
