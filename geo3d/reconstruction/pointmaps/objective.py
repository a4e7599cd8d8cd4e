"""What the alignment of all views minimises (DUSt3R, section 3.4), all terms of it in a few operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.reconstruction.pointmaps.lens import PrincipalPoint, from_centre
from geo3d.reconstruction.pointmaps.prediction import PairPrediction, sizes_of

#: Geometric mean of the scales of all predictions, so that nothing can shrink to naught.
MEAN_SCALE = 0.5
#: Places of all predictions together at which the objective is taken: more make it slower and hardly better.
_TERMS, _FEWEST_OF_A_VIEW = 400_000, 300


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


def usual_step(predictions: Sequence[PairPrediction], sizes: Sequence[tuple[int, int]]) -> int:
    """Distance of pixels at which all predictions together have about so many terms."""
    most = max(_FEWEST_OF_A_VIEW, _TERMS // (2 * len(predictions)))
    return max(1, math.ceil(math.sqrt(max(h * w for h, w in sizes) / most)))


def descend(
    parameters: Sequence[Tensor],
    value: Callable[[], Tensor],
    steps: int,
    rate: float,
    last_rate: float,
    tick: Callable[[int, float], None] | None = None,
) -> tuple[float, float]:
    """Adam from where parameters are, its rate falling as a cosine; where it ends above its start, they are put back.

    Args:
        parameters: that ``value`` is computed from.
        value: what is minimised.
        steps: 0 or more.
        rate, last_rate: at the first and the last step.
        tick: told step and value now and then.

    Returns:
        The value at the start and at the end.

    Raises:
        InputError: the value is no number at the end.
    """
    with torch.no_grad():
        start = float(value())
    begun = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.9))
    for step in range(steps):
        share = step / max(1, steps - 1)
        for group in optimizer.param_groups:
            group["lr"] = last_rate + (rate - last_rate) * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        now = value()
        now.backward()
        optimizer.step()
        if tick is not None and (step % 10 == 0 or step == steps - 1):
            tick(step + 1, float(now.detach()))
    with torch.no_grad():
        last = float(value())
        if not math.isfinite(last):
            raise InputError("the alignment went astray: its objective is no number; lower its rate")
        if last > start:  # too few steps to settle, from a start that was right already
            for parameter, first in zip(parameters, begun):
                parameter.copy_(first)
            last = start
    return start, last


__all__ = ["MEAN_SCALE", "Terms", "Unknowns", "descend", "normalised", "taken", "taken_pixels", "usual_step"]
