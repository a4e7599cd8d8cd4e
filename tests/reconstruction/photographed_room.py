"""A furnished room photographed from some places, and what a network that knows it would say of pairs of photos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from geo3d.datasets.synthetic.render import render
from geo3d.datasets.synthetic.room import ROOM_KINDS, furnish_room
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.texture import Palette
from geo3d.datasets.synthetic.walk import walk_room
from geo3d.geometry import Camera, View
from geo3d.geometry.similarity import fit_similarity_robustly
from geo3d.reconstruction.pointmaps.matching import Matches, matches_of
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


def surface_codes(points: Tensor, channels: int = 24) -> Tensor:
    """(H, W, C) float32 unit codes of places (H, W, 3), metres: waves of 0.15 to 10 metres, the same at each call."""
    rng = np.random.default_rng(0)
    length = np.exp(rng.uniform(np.log(0.15), np.log(10.0), channels))
    directions = rng.standard_normal((3, channels))
    waves = torch.from_numpy(2 * np.pi * directions / np.linalg.norm(directions, axis=0) / length)
    return F.normalize(torch.cos(points @ waves + torch.from_numpy(rng.uniform(0, 2 * np.pi, channels))).float(), dim=2)


def seen_by(view: View, points: Tensor) -> Tensor:
    """(H, W) bool: which of the points (H, W, 3) are in a view's picture, and nothing before them."""
    pose = view.world_from_camera
    inside = (points - pose[:3, 3]) @ pose[:3, :3]
    u, v = view.camera.project(inside).round().unbind(-1)
    height, width = view.depth.shape
    there = (inside[..., 2] > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    depth = view.depth[torch.where(there, v, 0).long(), torch.where(there, u, 0).long()]
    return there & (inside[..., 2] < 1.03 * depth)


@dataclass
class Knowing:
    """Says of pairs what is true, but for noise, wrong points and a scale of its own for each.

    Args:
        views: of a place.
        noise: of a point, relative to its distance.
        wrong: share of points that lie anywhere, as surely as the others.
        strangers: views that no pair says anything of: their pairs have confidence 1.
        scales: least and largest.
        bend: spread of the logarithm by which distances along the view's own rays are wrong, smoothly over the image.
        astray: share of matches that are wrong, as sure as the others; None: there are no matches.
    """

    views: Sequence[View]
    noise: float = 0.0
    wrong: float = 0.0
    strangers: Sequence[int] = ()
    scales: tuple[float, float] = (0.4, 2.5)
    bend: float = 0.0
    astray: float | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    _found: dict[tuple[int, int], Matches] = field(default_factory=dict, repr=False)

    def of(self, first: int, second: int) -> PairPrediction:
        """One order."""
        pose = self.views[first].world_from_camera
        scale = float(np.exp(self.rng.uniform(*np.log(self.scales))))
        maps = []
        for number in (first, second):
            view = self.views[number]
            points = ((self._bent(view) - pose[:3, 3]) @ pose[:3, :3]).numpy()
            distance = np.linalg.norm(points, axis=-1, keepdims=True)
            points = points + self.noise * distance * self.rng.standard_normal(points.shape)
            astray = self.rng.random(distance.shape[:2]) < self.wrong
            points[astray] = self.rng.uniform(-5, 5, (int(astray.sum()), 3))
            confidence = self.rng.uniform(3, 12, distance.shape[:2])
            if {first, second} & set(self.strangers):
                confidence[:] = 1
            maps += [torch.from_numpy(scale * points).float(), torch.from_numpy(confidence).float()]
        return PairPrediction(first, second, *maps, self._matches(first, second))

    def _bent(self, view: View) -> Tensor:
        """(H, W, 3) points of a view, in the world."""
        points, eye = world_points(view), view.world_from_camera[:3, 3]
        if not self.bend:
            return points
        coarse = torch.from_numpy(self.rng.standard_normal((1, 1, 4, 5)))
        field = F.interpolate(coarse, points.shape[:2], mode="bicubic", align_corners=True)[0, 0]
        return eye + (points - eye) * (self.bend * field / field.std())[..., None].exp()

    def _matches(self, first: int, second: int) -> Matches | None:
        """By codes of the surface, alike in both orders; of some the second pixel is exchanged for that of another.

        What the other view does not see is less sure.
        """
        if self.astray is None:
            return None
        pair = min(first, second), max(first, second)
        if pair not in self._found:
            self._found[pair] = self._match(*pair)
        found = self._found[pair]
        return found if first < second else Matches(found.second, found.first, found.confidence)

    def _match(self, first: int, second: int) -> Matches:
        codes, sure = [], []
        for number, other in ((first, second), (second, first)):
            points = world_points(self.views[number])
            codes.append(surface_codes(points))
            codes[-1] += 0.01 * torch.from_numpy(self.rng.standard_normal(codes[-1].shape)).float()
            confidence = torch.from_numpy(self.rng.uniform(3, 12, points.shape[:2])).float()
            confidence[~seen_by(self.views[other], points)] *= 0.1
            if {first, second} & set(self.strangers):
                confidence[:] = 1
            sure.append(confidence)
        found = matches_of(*codes, *sure)
        rows = torch.from_numpy(self.rng.permutation(len(found))[: round(self.astray * len(found))])
        pixels = found.second.clone()
        pixels[rows] = pixels[rows.roll(1)]
        return Matches(found.first, pixels, found.confidence)

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
