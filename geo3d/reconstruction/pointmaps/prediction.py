"""What a network says of two views, and what becomes of all such: posed views with depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.geometry.similarity import Similarity
from geo3d.reconstruction.pointmaps.lens import LensCentre, PrincipalPoint, from_centre, pixel_centres
from geo3d.reconstruction.pointmaps.matching import Matches


@dataclass(frozen=True, eq=False)
class PairPrediction:
    """Pointmaps of one order of two views; both in the camera frame of the first, at a scale of their own.

    Args:
        first, second: numbers of the views.
        first_points, second_points: (H, W, 3) and (H', W', 3), OpenCV's axes.
        first_confidence, second_confidence: (H, W) and (H', W').
        matches: pixels of both that show one thing, with confidences, where the network has descriptors; else None.
    """

    first: int
    second: int
    first_points: Tensor
    first_confidence: Tensor
    second_points: Tensor
    second_confidence: Tensor
    matches: Matches | None = None

    def __post_init__(self) -> None:
        for points, confidence in (
            (self.first_points, self.first_confidence),
            (self.second_points, self.second_confidence),
        ):
            if points.ndim != 3 or points.shape[2] != 3 or confidence.shape != points.shape[:2]:
                raise InputError(
                    f"pointmaps of views {self.first} and {self.second} are (H, W, 3) with confidences (H, W), got "
                    f"{tuple(points.shape)} and {tuple(confidence.shape)}"
                )
        if self.first == self.second:
            raise InputError(f"a pair is of two views, got view {self.first} twice")

    @property
    def score(self) -> float:
        """How sure the network is of both views: the product of the mean confidences."""
        return float(self.first_confidence.double().mean() * self.second_confidence.double().mean())

    def connects(self, least: float, share: float) -> bool:
        """Whether so large a share of the pixels of both views has that confidence: they see one place."""
        return all(float((c > least).double().mean()) >= share for c in (self.first_confidence, self.second_confidence))

    def sides(self) -> tuple[tuple[int, Tensor, Tensor], tuple[int, Tensor, Tensor]]:
        """View, points and confidence of the first and of the second."""
        return (
            (self.first, self.first_points, self.first_confidence),
            (self.second, self.second_points, self.second_confidence),
        )


@dataclass(frozen=True, eq=False)
class AlignedViews:
    """Views in one frame.

    Args:
        world_from_camera: (N, 4, 4) float64 poses, OpenCV's axes.
        focals: N focal lengths along x, pixels of the pointmaps.
        principal_points: N pixels (x, y), and how square the pixels are.
        depths: N maps (H, W) float32 along z, 0 where unknown, in the world's unit.
        confidences: N maps (H, W).
        similarities: of each prediction, from its own frame and scale to the world.
        objective: value of what was minimised, at the start and at the end; nothing where nothing was.
        told: how they were found, in a line.
    """

    world_from_camera: Tensor
    focals: list[float]
    principal_points: list[LensCentre]
    depths: list[Tensor]
    confidences: list[Tensor]
    similarities: list[Similarity]
    objective: tuple[float, ...] = ()
    told: str = ""

    def points(self, view: int) -> Tensor:
        """(H, W, 3) float64 points of a view's pixels in the world; where depth is unknown, the camera's place."""
        depth = self.depths[view].double()
        rays = camera_rays(*depth.shape, self.focals[view], self.principal_points[view])
        pose = self.world_from_camera[view]
        return (rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]

    def camera(self, view: int) -> Camera:
        """Intrinsics of a view's pointmap."""
        height, width = self.depths[view].shape
        focal, (x, y, aspect) = self.focals[view], self.principal_points[view]
        return Camera(width, height, focal, focal / aspect, x, y)

    def moved(self, similarity: Similarity) -> AlignedViews:
        """The same in another frame and unit."""
        poses = torch.stack([similarity.of_pose(pose) for pose in self.world_from_camera])
        return AlignedViews(
            poses,
            self.focals,
            self.principal_points,
            [depth * similarity.scale for depth in self.depths],
            self.confidences,
            [similarity.after(one) for one in self.similarities],
            self.objective,
            self.told,
        )


def camera_rays(height: int, width: int, focal: float, principal_point: PrincipalPoint) -> Tensor:
    """(H, W, 3) float64 places of pixels at depth 1 in the frame of a pinhole."""
    across = from_centre(pixel_centres(height, width), principal_point) / focal
    return torch.cat([across, torch.ones_like(across[..., :1])], -1)


def sizes_of(predictions: Sequence[PairPrediction]) -> list[tuple[int, int]]:
    """Height and width of every view, by its number.

    Raises:
        InputError: there is no prediction, a view of a number is in none, or a view has two sizes.
    """
    known: dict[int, tuple[int, int]] = {}
    for prediction in predictions:
        for view, points, _ in prediction.sides():
            size = tuple(points.shape[:2])
            if known.setdefault(view, size) != size:
                raise InputError(f"view {view} has pointmaps of sizes {known[view]} and {size}; give one")
    if not known:
        raise InputError("alignment needs predictions of one pair at least")
    missing = sorted(set(range(max(known) + 1)) - set(known))
    if missing:
        raise InputError(f"view {missing[0]} is in no prediction; leave it out and number the others anew")
    return [known[view] for view in range(len(known))]


def surest(predictions: Sequence[PairPrediction], view: int) -> Tensor:
    """(H, W) confidence of a view's pixels in the prediction that is surest of each."""
    return torch.stack([c for p in predictions for number, _, c in p.sides() if number == view]).amax(0)


__all__ = ["AlignedViews", "PairPrediction", "camera_rays", "sizes_of", "surest"]
