"""The box that a radiance grid of a scene covers, and how many voxels it has along each side; z is up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from geo3d.datasets.scene import SURFACES, Scene
from geo3d.errors import InputError
from geo3d.spread import evenly_spread

#: Room left around what is known of a scene, as a share of each side, so that no surface lies on a face of the grid.
MARGIN = 0.05
#: The same around objects and cameras, which do not reach to the walls (NeRF-MAE's rule for Hypersim).
WIDE_MARGIN = 0.1
#: Which of the points count: a mesh has few strays, depth and sparse points have many.
_MESH_QUANTILES, _STRAY_QUANTILES = (0.002, 0.998), (0.01, 0.99)
#: Pixels of depth that are looked at, in how many views.
_PIXELS, _VIEWS = 200_000, 40
_FEWEST = 100  # points of depth or tracks that tell of a box
RULES = ("auto", "published")


def grid_sides(low: np.ndarray, high: np.ndarray, longest: int) -> tuple[int, int, int]:
    """Voxels along x, y and z of a box, as published grids have them.

    The longest side has ``longest`` of them, the others as many as their share comes to, rounded down, and one more
    where that is odd.

    Raises:
        InputError: fewer than 2 voxels, or corners in the wrong order.
    """
    extent = np.asarray(high, np.float64) - np.asarray(low, np.float64)
    if not (np.isfinite(extent).all() and (extent > 0).all()):
        raise InputError(f"box: high {np.asarray(high).tolist()} must lie beyond low {np.asarray(low).tolist()}")
    if longest < 2:
        raise InputError(f"longest side must be at least 2 voxels, got {longest}")
    shares = extent / extent.max()
    # A share that is 1 but for rounding is the longest side, too; 1e-9 keeps exact shares from being rounded down.
    sides = [longest if share > 1 - 1e-9 else max(1, int(share * longest + 1e-9)) for share in shares]
    return tuple(side if side == longest else side + side % 2 for side in sides)


def scene_box(scene: Scene, rule: str = "auto", classes: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the box of a scene.

    By ``auto``, the first of these that the scene has: mesh or points (but for the outermost 0.2 %), depth or sparse
    points (the outermost 1 %), each with 5 % of its sides added on each of them; the places of the cameras with 10 %.
    By ``published``, the boxes of its objects, or else the places of its cameras, with 10 % (NeRF-MAE, sec. 3).

    Args:
        scene: with anything of these.
        rule: one of :data:`RULES`.
        classes: names of what labels count in; instances of walls, floor and ceiling are then no objects.

    Returns:
        low, high (3,) float64 metres, less the scene's origin.

    Raises:
        InputError: the scene has nothing that tells, all cameras stand at one place, or an unknown rule.
        BrokenScene: a file is damaged.
    """
    if rule not in RULES:
        raise InputError(f"box rule {rule!r} is unknown; known: {', '.join(RULES)}")
    if rule == "published":
        points = _object_points(scene, classes or ())
        return _around(scene, _camera_places(scene) if points is None else points, (0, 1), WIDE_MARGIN)
    if {"mesh", "points"} & scene.parts and "tracks" not in scene.parts:
        return _around(scene, scene.cloud().xyz.double().numpy(), _MESH_QUANTILES, MARGIN)
    points = depth_points(scene) if {"depth", "poses"} <= scene.parts else np.zeros((0, 3))
    if len(points) < _FEWEST and "tracks" in scene.parts:
        points = scene.tracks().xyz
    if len(points) >= _FEWEST:
        return _around(scene, points, _STRAY_QUANTILES, MARGIN)
    return _around(scene, _camera_places(scene), (0, 1), WIDE_MARGIN)


def depth_points(scene: Scene, most: int = _PIXELS) -> np.ndarray:
    """Points (N, 3) float64 of a scene's depth, evenly taken from evenly spread views."""
    taken = evenly_spread(len(scene.view_names), _VIEWS)
    found = []
    for index in taken:
        camera, pose, depth = scene.depth_camera(index), scene.pose(index), scene.depth(index)
        pixels = np.flatnonzero(depth.reshape(-1) > 0)
        pixels = pixels[:: max(1, len(taken) * depth.size // most)]
        uv = torch.from_numpy(np.stack([pixels % depth.shape[1], pixels // depth.shape[1]], -1).astype(np.float64))
        xyz = camera.unproject(uv, torch.from_numpy(depth.reshape(-1)[pixels].astype(np.float64))).numpy()
        found.append(xyz @ pose[:3, :3].T + pose[:3, 3])
    return np.concatenate(found) if found else np.zeros((0, 3))


def _camera_places(scene: Scene) -> np.ndarray:
    if "poses" not in scene.parts:
        raise InputError(
            f"scene {scene.name} ({scene.root}): nothing tells of its extent; it has {sorted(scene.parts)}"
        )
    return np.stack([scene.pose(index)[:3, 3] for index in range(len(scene.view_names))])


def _object_points(scene: Scene, classes: Sequence[str]) -> np.ndarray | None:
    """Points (N, 3) of the objects of a labelled scene; None where there are none."""
    if not {"mesh", "points"} & scene.parts or "labels" not in scene.parts:
        return None
    cloud = scene.cloud()
    if cloud.instance is None:
        return None
    chosen = cloud.instance >= 0
    for number in (number for number, name in enumerate(classes) if name in SURFACES and cloud.semantic is not None):
        chosen &= cloud.semantic != number
    return cloud.xyz[chosen].double().numpy() if bool(chosen.any()) else None


def _around(
    scene: Scene, points: np.ndarray, quantiles: tuple[float, float], margin: float
) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(points, quantiles, axis=0)
    extent = high - low
    if not (np.isfinite(extent).all() and extent.max() > 0):
        raise InputError(f"scene {scene.name} ({scene.root}): all that tells of its extent lies at one place")
    # What is flat, as the places of cameras on a tripod are, becomes a tenth as thick as it is wide.
    low, high = (
        low - np.maximum(0.05 * extent.max() - extent / 2, 0),
        high + np.maximum(0.05 * extent.max() - extent / 2, 0),
    )
    return low - margin * (high - low), high + margin * (high - low)


__all__ = ["MARGIN", "RULES", "depth_points", "grid_sides", "scene_box"]
