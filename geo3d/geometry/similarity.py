"""Similarities of space: rotation, one scale, translation; found between points that correspond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry.rotation import triangle_frames

#: Of a residual, relative to the spread of the target: below it a correspondence is as good as exact.
_EXACT = 1e-6
_STEPS = 30
#: Triples that propose a similarity, points by which they are compared, and the share that has to lie near.
_DRAWS, _SCORED, _THIRD = 200, 500, 0.35
#: How many times the usual residual a point may have.
_WIDE = 6.0


@dataclass(frozen=True)
class Similarity:
    """``target = scale * rotation @ source + translation``; all of float64.

    Args:
        rotation: (3, 3), determinant +1.
        translation: (3,).
        scale: larger than 0.
    """

    rotation: Tensor
    translation: Tensor
    scale: float

    def apply(self, points: Tensor) -> Tensor:
        """Points (..., 3) moved, in their dtype."""
        rotation, translation = self.rotation.to(points), self.translation.to(points)
        return self.scale * points @ rotation.T + translation

    def inverse(self) -> Similarity:
        """The way back."""
        rotation = self.rotation.T
        return Similarity(rotation, -rotation @ self.translation / self.scale, 1 / self.scale)

    def after(self, first: Similarity) -> Similarity:
        """This one after another: ``self.after(first).apply(p) == self.apply(first.apply(p))``."""
        return Similarity(
            self.rotation @ first.rotation, self.apply(first.translation), float(self.scale * first.scale)
        )

    def pose(self) -> Tensor:
        """(4, 4) float64 rigid transform: what becomes of a camera at the origin of the source."""
        pose = torch.eye(4, dtype=torch.float64, device=self.rotation.device)
        pose[:3, :3], pose[:3, 3] = self.rotation, self.translation
        return pose

    def of_pose(self, pose: Tensor) -> Tensor:
        """(4, 4) pose of a camera of the source, in the target."""
        moved = torch.eye(4, dtype=torch.float64, device=pose.device)
        moved[:3, :3] = self.rotation @ pose[:3, :3].double()
        moved[:3, 3] = self.apply(pose[:3, 3].double())
        return moved

    @classmethod
    def none(cls) -> Similarity:
        """That which changes nothing."""
        return cls(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0)


def fit_similarity(
    source: Tensor, target: Tensor, weights: Tensor | None = None, with_scale: bool = True
) -> Similarity:
    """The similarity of least weighted squared distance (Umeyama 1991), in float64.

    Args:
        source, target: (N, 3) points that correspond, row by row.
        weights: (N,) 0 or more; equal when not given.
        with_scale: find the scale too; else it is 1.

    Raises:
        InputError: fewer than three points of a weight, points on one line, or values that are not finite.
    """
    source, target = source.double(), target.double()
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise InputError(
            f"a similarity is found between points (N, 3) and (N, 3), got {tuple(source.shape)}, {tuple(target.shape)}"
        )
    weights = source.new_ones(len(source)) if weights is None else weights.double()
    used = weights > 0
    if int(used.sum()) < 3:
        raise InputError(f"a similarity needs three points of a weight above 0, got {int(used.sum())}")
    share = (weights / weights.sum())[:, None]
    middles = (share * source).sum(0), (share * target).sum(0)
    one, other = source - middles[0], target - middles[1]
    covariance = (share * other).T @ one
    spread = float((share * one.square()).sum())
    if not torch.isfinite(covariance).all():
        raise InputError("a similarity is found between points that are finite; leave the others out")
    u, singular, vt = torch.linalg.svd(covariance)
    if not float(singular[1]) > 1e-12 * float(singular[0]):
        raise InputError("the points lie on one line or at one place, which leaves their rotation open; give others")
    signs = singular.new_ones(3)
    signs[2] = torch.sign(torch.linalg.det(u @ vt))
    rotation = u * signs @ vt
    scale = float((singular * signs).sum()) / spread if with_scale else 1.0
    if not scale > 0:
        raise InputError("the points do not correspond: the scale between them comes out as 0")
    return Similarity(rotation, middles[1] - scale * rotation @ middles[0], scale)


def fit_similarity_robustly(
    source: Tensor, target: Tensor, weights: Tensor | None = None, rng: np.random.Generator | None = None
) -> Similarity:
    """The similarity of most points, which wrong correspondences do not move: up to half of them, with a generator.

    Started from the plain solution, or from that of three points which brings a third of all nearest; then least
    squares again and again, a point weighing by one over its residual, and nothing beyond six times the usual one.

    Args:
        source, target: (N, 3) points that correspond, row by row.
        weights: (N,) 0 or more; equal when not given.
        rng: draws the triples; without it there are none, and some wrong correspondences are borne alone.

    Raises:
        InputError: as :func:`fit_similarity`.
    """
    source, target = source.double(), target.double()
    weights = source.new_ones(len(source)) if weights is None else weights.double()
    found = fit_similarity(source, target, weights) if rng is None else _of_triples(source, target, weights, rng)
    least = _EXACT * float(torch.linalg.vector_norm(target - target.median(0).values, dim=1).median()) + 1e-300
    before: Tensor | None = None
    for _ in range(_STEPS):
        residual = torch.linalg.vector_norm(found.apply(source) - target, dim=1)
        usual = max(_third(residual[weights > 0]), least)
        inside = residual <= _WIDE * usual if rng is not None else torch.ones_like(residual, dtype=torch.bool)
        found = fit_similarity(source, target, weights * inside / residual.clamp_min(0.1 * usual))
        moved = found.apply(source[:1])
        if before is not None and float((moved - before).abs().max()) < 1e-3 * least:
            break
        before = moved
    return found


def _third(residual: Tensor) -> float:
    """Value below which a third of them lie."""
    return float(residual.kthvalue(int(_THIRD * len(residual)) + 1).values)


def _of_triples(source: Tensor, target: Tensor, weights: Tensor, rng: np.random.Generator) -> Similarity:
    """Of similarities by three points each, that which brings a third of all points nearest."""
    rows = np.flatnonzero((weights > 0).cpu().numpy())
    if len(rows) < 3:
        raise InputError(f"a similarity needs three points of a weight above 0, got {len(rows)}")
    scored = rows if len(rows) <= _SCORED else rng.choice(rows, _SCORED, replace=False)
    one, other = source.cpu().numpy(), target.cpu().numpy()
    triples = rng.choice(rows, (_DRAWS, 3))
    triples = triples[(triples != triples[:, [1, 2, 0]]).all(1)]
    sides = [np.linalg.norm(p[triples] - p[triples[:, [1, 2, 0]]], axis=2).sum(1) for p in (one, other)]
    with np.errstate(all="ignore"):
        scales = sides[1] / sides[0]
    rotations = triangle_frames(other[triples]) @ triangle_frames(one[triples]).swapaxes(1, 2)
    places = other[triples].mean(1) - scales[:, None] * np.einsum("tij,tj->ti", rotations, one[triples].mean(1))
    good = np.isfinite(rotations).all((1, 2)) & np.isfinite(scales) & (scales > 0)
    rotations, places, scales = rotations[good], places[good], scales[good]
    if not len(scales):
        return fit_similarity(source, target, weights)
    moved = np.einsum("tij,nj->tni", scales[:, None, None] * rotations, one[scored]) + places[:, None]
    apart = ((moved - other[scored]) ** 2).sum(2)
    # A small scale brings all points near each other: what counts is how far they lie apart in the mean of both units.
    third = np.partition(apart, int(_THIRD * (len(scored) - 1)), axis=1)[:, int(_THIRD * (len(scored) - 1))] / scales
    best = int(third.argmin())
    return Similarity(torch.from_numpy(rotations[best]), torch.from_numpy(places[best]), float(scales[best]))


__all__ = ["Similarity", "fit_similarity", "fit_similarity_robustly"]
