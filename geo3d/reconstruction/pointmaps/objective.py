"""What the alignment of all views minimises (DUSt3R, section 3.4), all terms of it in a few operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.reconstruction.pointmaps.lens import PrincipalPoint, from_centre
from geo3d.reconstruction.pointmaps.prediction import PairPrediction, sizes_of

#: Geometric mean of the scales of all predictions, so that nothing can shrink to naught.
MEAN_SCALE = 0.5


@dataclass(frozen=True, eq=False)
class Unknowns:
    """What is looked for; pairs' points go to the world as ``scale * (rotation @ p + translation)``.

    Args:
        rotation, translation: (N, 3, 3) and (N, 3) of ``world_from_camera``.
        depth: (N, P) along z at the pixels of :class:`Terms`.
        focal: (N,) pixels.
        pair_rotation, pair_translation, pair_scale: (E, 3, 3), (E, 3), (E,) of each prediction; scales before they
            are normalised.
    """

    rotation: Tensor
    translation: Tensor
    depth: Tensor
    focal: Tensor
    pair_rotation: Tensor
    pair_translation: Tensor
    pair_scale: Tensor


class Terms:
    """The predictions as arrays: every ``every``-th pixel of each view, padded to the largest number of them.

    Args:
        predictions: of pairs.
        principal_points: pixel (x, y) of each view.
        every: distance of the pixels that are taken; 1: all.
        dtype: of what is computed.
    """

    def __init__(
        self,
        predictions: Sequence[PairPrediction],
        principal_points: Sequence[PrincipalPoint],
        every: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        sizes = sizes_of(predictions)
        self.every, self.dtype = every, dtype
        grids = [taken_pixels(*size, every) for size in sizes]
        self.counts = [len(grid) for grid in grids]
        most = max(self.counts)
        self.pixels = torch.zeros(len(sizes), most, 2, dtype=dtype)
        for row, grid, middle in zip(self.pixels, grids, principal_points):
            row[: len(grid)] = from_centre(grid.double(), middle).to(dtype)
        self.views = torch.tensor([[p.first, p.second] for p in predictions]).T  # (2, E)
        self.points = torch.zeros(2, len(predictions), most, 3, dtype=dtype)
        self.weight = torch.zeros(2, len(predictions), most, dtype=dtype)
        for number, prediction in enumerate(predictions):
            for side, (_, points, confidence) in enumerate(prediction.sides()):
                flat, weight = taken(points, every), taken(confidence, every).double().log()
                finite = flat.isfinite().all(1) & weight.isfinite()
                self.points[side, number, : len(flat)] = torch.where(finite[:, None], flat, 0).to(dtype)
                self.weight[side, number, : len(flat)] = torch.where(finite, weight, 0).to(dtype)
        for side in range(2):
            self.weight[side] /= sum(self.counts[view] for view in self.views[side].tolist())

    def world(self, unknowns: Unknowns) -> Tensor:
        """(N, P, 3) places of the pixels by depth, focal length and pose."""
        across = self.pixels / unknowns.focal[:, None, None]
        seen = torch.cat([across, torch.ones_like(across[..., :1])], -1) * unknowns.depth[..., None]
        return seen @ unknowns.rotation.mT + unknowns.translation[:, None]

    def value(self, unknowns: Unknowns) -> Tensor:
        """The objective: for the first and for the second views, log confidences times distances over all pixels."""
        scale = normalised(unknowns.pair_scale)[:, None, None]
        turned, moved_by = unknowns.pair_rotation.mT * scale, unknowns.pair_translation[:, None] * scale
        world, total = self.world(unknowns), 0.0
        for side in range(2):
            apart = world[self.views[side]] - (self.points[side] @ turned + moved_by)
            total = total + (self.weight[side] * torch.linalg.vector_norm(apart, dim=-1)).sum()
        return total


def normalised(scale: Tensor) -> Tensor:
    """Scales with the geometric mean :data:`MEAN_SCALE`."""
    return MEAN_SCALE * scale / scale.log().mean().exp()


def taken(values: Tensor, every: int) -> Tensor:
    """(P, ...) values of every so many pixels of a map (H, W, ...), from half of that on."""
    return values[every // 2 :: every, every // 2 :: every].flatten(0, 1)


def taken_pixels(height: int, width: int, every: int) -> Tensor:
    """(P, 2) pixels (x, y) that :func:`taken` takes."""
    y, x = (torch.arange(every // 2, size, every) for size in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


__all__ = ["MEAN_SCALE", "Terms", "Unknowns", "normalised", "taken", "taken_pixels"]
