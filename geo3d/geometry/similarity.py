"""Similarities of space: rotation, one scale, translation; found between points that correspond."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.errors import InputError

#: Of a residual, relative to the spread of the target: below it a correspondence is as good as exact.
_EXACT = 1e-6
_STEPS = 30
_SETTLED = 1e-9


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
    source: Tensor, target: Tensor, weights: Tensor | None = None, with_scale: bool = True
) -> Similarity:
    """The similarity of least weighted distance, not squared, which some wrong correspondences hardly move.

    Least squares with weights over the residual, again and again from the plain solution; arguments, result and errors
    as :func:`fit_similarity`.
    """
    source, target = source.double(), target.double()
    weights = source.new_ones(len(source)) if weights is None else weights.double()
    found = fit_similarity(source, target, weights, with_scale)
    before = torch.inf
    for _ in range(_STEPS):
        residual = torch.linalg.vector_norm(found.apply(source) - target, dim=1)
        total = float((weights * residual).sum())
        if not total < before * (1 - _SETTLED):
            break
        before = total
        least = _EXACT * torch.linalg.vector_norm(target, dim=1).mean().clamp_min(1e-300)
        found = fit_similarity(source, target, weights / residual.clamp_min(least), with_scale)
    return found


__all__ = ["Similarity", "fit_similarity", "fit_similarity_robustly"]
