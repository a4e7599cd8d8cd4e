"""The box of a radiance field: the inner box that is resolved evenly, and the contracted surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.reconstruction.scene_rays import SceneRays

#: Added on every side of a box that is known, as a share of the side: a surface on the face itself leaks rays.
MARGIN = 0.07
#: Width of the contracted surroundings where the box is not known, in half sides of the inner box.
BORDER = 0.5
#: Half side of a box that is found from the cameras alone, as a share of their median distance from its centre.
_HALF_SIDE = 0.55
#: Half side of such a box where the cameras do not look at one place, as a share of the extent of their places.
_HALF_EXTENT = 0.65
#: Quantiles of depth or sparse points between which a box is laid.
_QUANTILES = (0.01, 0.99)
_MOST_POINTS = 200_000
#: Cosine between axes, on average, above which cameras all look the same way, so that their axes meet nowhere.
_PARALLEL = 0.98
#: Sine of the angle by which half of the axes may miss the point: cameras that go round something stay below 0.11,
#: those that look about in a room at 0.19 and more (measured on a capture and three rooms).
_ASIDE = 0.15


@dataclass(frozen=True)
class FieldBox:
    """An inner box, and how wide its contracted surroundings are.

    The grid of a field spans ``centre - (1 + border) half`` to ``centre + (1 + border) half``. Within the inner box it
    is the world; beyond, ``u = (x - centre) / half`` of infinity norm ``r`` moves to
    ``u (1 + border - border / r) / r``.

    Args:
        low, high: corners of the inner box, metres, along the axes of the world.
        border: 0 or more; 0: what lies outside is not modelled.

    Raises:
        InputError: corners that are not three finite numbers each, or in the wrong order; a border below 0.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    border: float = 0.0

    def __post_init__(self) -> None:
        corners = np.array([self.low, self.high], dtype=np.float64)
        if corners.shape != (2, 3) or not np.isfinite(corners).all() or not (corners[1] > corners[0]).all():
            raise InputError(f"box: high must lie beyond low along every axis, got low {self.low}, high {self.high}")
        if not 0 <= self.border <= 4:
            raise InputError(f"box: border must lie in 0 to 4, got {self.border}")

    @property
    def centre(self) -> np.ndarray:
        """(3,) float64 metres."""
        return (np.asarray(self.low) + np.asarray(self.high)) / 2

    @property
    def half(self) -> np.ndarray:
        """(3,) float64 half sides of the inner box, metres."""
        return (np.asarray(self.high) - np.asarray(self.low)) / 2

    def sides(self, longest: int) -> tuple[int, int, int]:
        """Nodes along x, y and z of a grid of the whole span, of about cubic voxels.

        Args:
            longest: nodes along the longest side.
        """
        share = self.half / self.half.max()
        return tuple(max(4, round(longest * float(part))) for part in share)


def _of_points(points: np.ndarray, border: float | None, margin: float = MARGIN) -> FieldBox:
    low, high = np.quantile(points, _QUANTILES, axis=0)
    return _widened(low, high, margin, BORDER if border is None else border)


def _widened(low: np.ndarray, high: np.ndarray, margin: float, border: float) -> FieldBox:
    room = margin * (high - low).clip(1e-3 * float((high - low).max()))
    low, high = low - room, high + room
    return FieldBox(tuple(map(float, low)), tuple(map(float, high)), float(border))


def meeting_point(places: np.ndarray, axes: np.ndarray) -> np.ndarray | None:
    """Where the optical axes come nearest to each other, by least squares.

    Args:
        places: (V, 3) of the cameras.
        axes: (V, 3) unit vectors forward.

    Returns:
        (3,), or None where the axes are nearly parallel, or most of the cameras do not look at the point.
    """
    if np.linalg.norm(axes.mean(0)) > _PARALLEL:
        return None
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # takes off what lies along the axis
    point = np.linalg.solve(across.sum(0), (across @ places[:, :, None]).sum(0))[:, 0]
    towards = point - places
    along = (towards * axes).sum(1)
    aside = np.linalg.norm(towards - along[:, None] * axes, axis=1) / np.linalg.norm(towards, axis=1).clip(1e-12)
    return point if (along > 0).mean() > 0.5 and float(np.median(aside)) < _ASIDE else None


def camera_box(poses: np.ndarray, border: float | None = None) -> FieldBox:
    """A box from the cameras alone: a cube where they look, or, where they look about, one around them.

    Args:
        poses: (V, 4, 4) ``world_from_camera``.
        border: of the box; None: 0.5.

    Raises:
        InputError: all cameras stand at one place.
    """
    places, axes = poses[:, :3, 3], poses[:, :3, 2]
    extent = float((places.max(0) - places.min(0)).max())
    if not extent > 0:
        raise InputError("box: all photos were taken from one place, which shows no depth; give the box, low and high")
    centre = meeting_point(places, axes)
    if centre is None:
        centre, half = (places.max(0) + places.min(0)) / 2, _HALF_EXTENT * extent
    else:
        half = _HALF_SIDE * float(np.median(np.linalg.norm(places - centre, axis=1)))
    low, high = centre - half, centre + half
    return FieldBox(tuple(map(float, low)), tuple(map(float, high)), BORDER if border is None else border)


def find_box(
    scene: Scene,
    rays: SceneRays,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    border: float | None = None,
) -> tuple[FieldBox, str]:
    """The box of a scene, by the first of these that there is: corners given; its mesh or points; depth; sparse points;
    the cameras.

    A known box, and that of a mesh or points, is widened by 7 % of its sides, since a surface on the face of a grid
    leaks rays, and has no surroundings. The others lie between quantiles (1 and 99 %) of what is known, or by
    :func:`camera_box`, and have contracted surroundings half as wide as the box.

    Args:
        scene: where the rays are of.
        rays: of its photos.
        low, high: (3,) corners that are known, metres; both or none.
        border: of the box in any case; None: as above.

    Returns:
        The box, and whence it is in a few words.

    Raises:
        InputError: one corner alone, corners in the wrong order, or no way to find a box.
    """
    if (low is None) != (high is None):
        raise InputError("box: give both corners, low and high, or none")
    if low is not None and high is not None:
        FieldBox(tuple(low), tuple(high))  # in order, or an error that names the corners as they were given
        widened = _widened(np.asarray(low, float), np.asarray(high, float), MARGIN, 0 if border is None else border)
        return widened, "given"
    if {"mesh", "points"} & scene.parts and "tracks" not in scene.parts:
        xyz = scene.cloud().xyz.double().numpy()
        if len(xyz) > 1 and (xyz.max(0) > xyz.min(0)).all():
            kind = "mesh" if "points" not in scene.parts else "points"
            return _widened(xyz.min(0), xyz.max(0), MARGIN, 0 if border is None else border), f"of its {kind}"
    if rays.distances is not None:
        step = max(1, rays.pixels // _MOST_POINTS)
        some = rays.at(torch.arange(0, rays.pixels, step))
        known = some.distances > 0
        if int(known.sum()) > 100:
            points = some.origins[known] + some.distances[known, None] * some.directions[known]
            return _of_points(points.double().numpy(), border), "of its depth"
    if "tracks" in scene.parts:
        tracks = scene.tracks()
        if len(tracks.xyz) > 100:
            return _of_points(tracks.xyz, border), "of its sparse points"
    return camera_box(rays.poses, border), "of its cameras"


__all__ = ["BORDER", "MARGIN", "FieldBox", "camera_box", "find_box", "meeting_point"]
