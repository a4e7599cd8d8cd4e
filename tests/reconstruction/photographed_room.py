"""A furnished room photographed from some places, and what a network that knows it would say of pairs of photos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.synthetic.render import render
from geo3d.datasets.synthetic.room import ROOM_KINDS, furnish_room
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.texture import Palette
from geo3d.datasets.synthetic.walk import walk_room
from geo3d.geometry import Camera, View
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction


def photograph(number: int, views: int, camera: Camera) -> list[View]:
    """Views of a room, 18 degrees apart, with depth; the same at each call."""
    rng = np.random.default_rng(number)
    palette = Palette(rng)
    room = furnish_room(list(ROOM_KINDS)[number % len(ROOM_KINDS)], palette, rng)
    stage = Stage(room.things, palette, room.lights, rng)
    found = []
    for index, pose in enumerate(walk_room(stage, room.size, camera, views, rng)):
        shot = render(stage, camera, pose)
        image, depth = torch.from_numpy(shot.color).float() / 255, torch.from_numpy(shot.depth)
        found.append(View(f"{index:02d}", camera, torch.from_numpy(pose), image, depth))
    return found


def world_points(view: View) -> Tensor:
    """(H, W, 3) float64 points of all pixels; every one of a room is known."""
    xyz, pixel = view.world_points()
    assert len(pixel) == view.depth.numel()
    return xyz.view(*view.depth.shape, 3)


@dataclass
class Knowing:
    """Says of pairs what is true, but for noise, wrong points and a scale of its own for each.

    Args:
        views: of a place.
        rng: draws all three.
        noise: of a point, relative to its distance.
        wrong: share of points that lie anywhere, as surely as the others.
        scales: least and largest.
    """

    views: Sequence[View]
    rng: np.random.Generator
    noise: float = 0.0
    wrong: float = 0.0
    scales: tuple[float, float] = (0.4, 2.5)

    def __call__(self, first: int, second: int) -> PairPrediction:
        pose = self.views[first].world_from_camera
        scale = float(np.exp(self.rng.uniform(*np.log(self.scales))))
        maps = []
        for number in (first, second):
            points = ((world_points(self.views[number]) - pose[:3, 3]) @ pose[:3, :3]).numpy()
            distance = np.linalg.norm(points, axis=-1, keepdims=True)
            points = points + self.noise * distance * self.rng.standard_normal(points.shape)
            astray = self.rng.random(distance.shape[:2]) < self.wrong
            points[astray] = self.rng.uniform(-5, 5, (int(astray.sum()), 3))
            confidence = self.rng.uniform(3, 12, distance.shape[:2])
            maps += [torch.from_numpy(scale * points).float(), torch.from_numpy(confidence).float()]
        return PairPrediction(first, second, *maps)

    def both(self, pairs: Iterable[tuple[int, int]]) -> list[PairPrediction]:
        """Of every pair in both orders."""
        return [self(*order) for i, j in pairs for order in ((i, j), (j, i))]


@dataclass(frozen=True)
class Errors:
    """How far views lie from the truth once both are laid on each other.

    Args:
        degrees: largest error of a camera's rotation.
        places: largest error of a camera's place, metres.
        focal: largest relative error.
        points: median distance of a point, metres.
    """

    degrees: float
    places: float
    focal: float
    points: float


def compare(found: AlignedViews, views: Sequence[View]) -> Errors:
    """Found views beside the true ones."""
    from geo3d.geometry.similarity import fit_similarity_robustly

    true = torch.stack([world_points(view) for view in views])
    ours = torch.stack([found.points(index) for index in range(len(views))])
    known = torch.stack([depth > 0 for depth in found.depths])
    laid = found.moved(fit_similarity_robustly(ours[known][::7], true[known][::7], rng=np.random.default_rng(0)))
    poses = torch.stack([view.world_from_camera for view in views])
    turned = poses[:, :3, :3].mT @ laid.world_from_camera[:, :3, :3]
    cosine = ((turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)
    apart = torch.stack([laid.points(index) for index in range(len(views))]) - true
    return Errors(
        float(cosine.acos().rad2deg().max()),
        float((laid.world_from_camera[:, :3, 3] - poses[:, :3, 3]).norm(dim=1).max()),
        max(abs(focal / view.camera.fx - 1) for focal, view in zip(found.focals, views)),
        float(apart.norm(dim=-1)[known].median()),
    )
