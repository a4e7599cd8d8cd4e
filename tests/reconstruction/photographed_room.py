"""A furnished room photographed from some places, and what a network that knows it would say of pairs of photos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geo3d.datasets.synthetic.render import render
from geo3d.datasets.synthetic.room import ROOM_KINDS, furnish_room
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.texture import Palette
from geo3d.datasets.synthetic.walk import walk_room
from geo3d.geometry import Camera, View
from geo3d.geometry.similarity import fit_similarity_robustly
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction


class PhotographedRoom:
    """A room and a walk through it, neighbours 18 degrees apart; the same at each call.

    Args:
        number: of the room.
        views: count.
        camera: that took them.
    """

    def __init__(self, number: int, views: int, camera: Camera) -> None:
        rng = np.random.default_rng(number)
        palette = Palette(rng)
        room = furnish_room(list(ROOM_KINDS)[number % len(ROOM_KINDS)], palette, rng)
        self.stage = Stage(room.things, palette, room.lights, rng)
        self.camera = camera
        self.poses = walk_room(self.stage, room.size, camera, views, rng)

    def view(self, number: int, camera: Camera | None = None) -> View:
        """A view with image and depth, by the room's camera or another one."""
        camera, pose = camera or self.camera, self.poses[number]
        shot = render(self.stage, camera, pose)
        image, depth = torch.from_numpy(shot.color).float() / 255, torch.from_numpy(shot.depth)
        return View(f"{number:02d}", camera, torch.from_numpy(pose), image, depth)

    def views(self) -> list[View]:
        """All of them."""
        return [self.view(number) for number in range(len(self.poses))]

    def save(self, number: int, path: Path) -> Path:
        """Write a view as a photo."""
        Image.fromarray(render(self.stage, self.camera, self.poses[number]).color).save(path)
        return path


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
        noise: of a point, relative to its distance.
        wrong: share of points that lie anywhere, as surely as the others.
        strangers: views that no pair says anything of: their pairs have confidence 1.
        scales: least and largest.
    """

    views: Sequence[View]
    noise: float = 0.0
    wrong: float = 0.0
    strangers: Sequence[int] = ()
    scales: tuple[float, float] = (0.4, 2.5)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def of(self, first: int, second: int) -> PairPrediction:
        """One order."""
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
            if {first, second} & set(self.strangers):
                confidence[:] = 1
            maps += [torch.from_numpy(scale * points).float(), torch.from_numpy(confidence).float()]
        return PairPrediction(first, second, *maps)

    def __call__(self, orders: Iterable[tuple[int, int]]) -> list[PairPrediction]:
        return [self.of(*order) for order in orders]

    def both(self, pairs: Iterable[tuple[int, int]]) -> list[PairPrediction]:
        """Of every pair in both orders."""
        return self([order for i, j in pairs for order in ((i, j), (j, i))])


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
    true = [world_points(view) for view in views]
    known = [depth > 0 for depth in found.depths]
    ours = torch.cat([found.points(index)[kept] for index, kept in enumerate(known)])
    kept = torch.cat([points[kept] for points, kept in zip(true, known)])
    laid = found.moved(fit_similarity_robustly(ours[::7], kept[::7], rng=np.random.default_rng(0)))
    poses = torch.stack([view.world_from_camera for view in views])
    turned = poses[:, :3, :3].mT @ laid.world_from_camera[:, :3, :3]
    cosine = ((turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)
    apart = torch.cat([(laid.points(index) - points)[k] for index, (points, k) in enumerate(zip(true, known))])
    return Errors(
        float(cosine.acos().rad2deg().max()),
        float((laid.world_from_camera[:, :3, 3] - poses[:, :3, 3]).norm(dim=1).max()),
        max(abs(focal / view.camera.fx - 1) for focal, view in zip(found.focals, views)),
        float(apart.norm(dim=-1).median()),
    )
