"""Classes of the voxels of a grid, and boxes around its objects, from the labelled mesh or points of its scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from geo3d import ops
from geo3d.datasets.scene import SURFACES, Scene
from geo3d.geometry import VolumeGrid
from geo3d.geometry.surface import sample_surface

#: From this opacity on a voxel is occupied: what is below a published loss does not look at either.
OCCUPIED = 0.01
#: A voxel has the class of the nearest labelled point within this distance, voxels.
REACH = 1.75
#: Points an edge of a voxel, by which meshes are sampled, and how many of them at most.
_POINTS_A_SIDE, _MOST_POINTS = 2.0, 1_000_000
#: Objects of fewer points than this, or of which less than so much lies in the grid, have no box.
FEWEST_POINTS, LEAST_INSIDE = 20, 0.5
#: Instances of no known class that cover more of the grid in plan than this are ceilings and the like, and no objects.
LARGEST_UNNAMED = 0.5


def annotate(
    grid: VolumeGrid, scene: Scene, classes: Sequence[str] = (), leave_out: Sequence[str] = SURFACES, seed: int = 0
) -> VolumeGrid:
    """The grid with labels of its occupied voxels, and with boxes where the scene's labels tell objects apart.

    Args:
        grid: of the scene, with corners.
        scene: with labels, of a mesh or of points.
        classes: names of what its labels count in.
        leave_out: classes whose instances are no objects.
        seed: of the points that are spread over a mesh.

    Raises:
        MissingPart: the scene has no labels.
        ValueError: the grid has no corners.
        BrokenScene: a file of the scene is damaged.
    """
    scene.require("labels")
    sides = grid.voxel
    if "mesh" in scene.parts:
        mesh = scene.mesh()
        xyz, semantic, instance = _of_mesh(mesh.vertices, mesh.faces, mesh.semantic, mesh.instance, sides, seed)
        corners, owner, kinds = mesh.vertices, mesh.instance, mesh.semantic
    else:
        cloud = scene.points()
        xyz = corners = cloud.xyz.numpy()
        semantic = kinds = cloud.semantic.numpy()
        instance = owner = None if cloud.instance is None else cloud.instance.numpy()
    boxes = None
    if instance is not None:
        surfaces = [number for number, name in enumerate(classes) if name in leave_out]
        boxes = object_boxes(voxel_coordinates(grid, corners), owner, kinds, grid.sides, surfaces)
    return replace(grid, labels=voxel_labels(grid, xyz, semantic), boxes=boxes)


def voxel_coordinates(grid: VolumeGrid, xyz: np.ndarray) -> np.ndarray:
    """Points (N, 3) metres in voxels of a grid, which spans 0 to its sides; float64."""
    return (xyz.astype(np.float64) - grid.low.numpy()) / grid.voxel.numpy()


def voxel_labels(grid: VolumeGrid, xyz: np.ndarray, semantic: np.ndarray) -> Tensor:
    """(X, Y, Z) int64 class of each occupied voxel, that of the nearest point within :data:`REACH` voxels; else -1.

    Args:
        grid: with corners.
        xyz: (N, 3) labelled points, metres.
        semantic: (N,) classes, -1 where not known: voxels nearest to such points are not known either.
    """
    labels = torch.full(grid.sides, -1, dtype=torch.int64)
    occupied = torch.nonzero(grid.opacity > OCCUPIED)
    if not len(occupied) or not len(xyz):
        return labels
    query = occupied.float() + 0.5
    points = torch.from_numpy(voxel_coordinates(grid, xyz).astype(np.float32))
    index, squared = ops.knn(query, points, _offsets(query), _offsets(points), 1)
    index, squared = index[:, 0], squared[:, 0]
    found = torch.from_numpy(np.ascontiguousarray(semantic, dtype=np.int64))[index]
    labels[tuple(occupied.unbind(1))] = torch.where(squared <= REACH**2, found, -1)
    return labels


def object_boxes(
    xyz: np.ndarray,
    instance: np.ndarray,
    semantic: np.ndarray | None,
    sides: tuple[int, int, int],
    surfaces: Sequence[int] = (),
) -> Tensor:
    """Upright boxes (M, 7) float32 around the objects in a grid: centre, sides and yaw, see :class:`VolumeGrid`.

    Each is the smallest in plan around its points, cut off where it leaves the grid below or above, and at least a
    voxel along each side.

    Args:
        xyz: (N, 3) points in voxels.
        instance: (N,) number of each point's object, -1 where it is of none.
        semantic: (N,) classes; None where not known.
        sides: voxels of the grid.
        surfaces: classes whose instances are no objects.
    """
    boxes = []
    order = np.argsort(instance, kind="stable")
    numbers, first = np.unique(instance[order], return_index=True)
    for number, rows in zip(numbers, np.split(order, first[1:])):
        if number < 0 or len(rows) < FEWEST_POINTS:
            continue
        kind = -1 if semantic is None else _most_frequent(semantic[rows])
        points = xyz[rows]
        inside = ((points >= 0) & (points <= sides)).all(1)
        if kind in surfaces or inside.mean() < LEAST_INSIDE:
            continue
        centre, size, yaw = smallest_rectangle(points[:, :2])
        if kind < 0 and size.prod() > LARGEST_UNNAMED * sides[0] * sides[1]:
            continue
        low, high = max(points[:, 2].min(), 0), min(points[:, 2].max(), sides[2])
        boxes.append([*centre, (low + high) / 2, *np.maximum([*size, high - low], 1), yaw])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 7)


def _most_frequent(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def smallest_rectangle(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The rectangle of the smallest area around points of a plane; one of its sides lies along their hull.

    Args:
        points: (N, 2).

    Returns:
        centre (2,), sides (2,) along its own axes, and the angle of the first of them, in [-pi / 4, pi / 4).
    """
    hull = _hull(points)
    edges = np.diff(hull, axis=0, append=hull[:1])
    quarter = np.pi / 2
    angles = (np.arctan2(edges[:, 1], edges[:, 0]) + quarter / 2) % quarter - quarter / 2
    cos, sin = np.cos(angles), np.sin(angles)
    along = np.outer(cos, hull[:, 0]) + np.outer(sin, hull[:, 1])
    across = np.outer(cos, hull[:, 1]) - np.outer(sin, hull[:, 0])
    low = np.stack([along.min(1), across.min(1)], 1)
    high = np.stack([along.max(1), across.max(1)], 1)
    best = int((high - low).prod(1).argmin())
    middle = (low[best] + high[best]) / 2
    centre = np.array([cos[best] * middle[0] - sin[best] * middle[1], sin[best] * middle[0] + cos[best] * middle[1]])
    return centre, high[best] - low[best], float(angles[best])


def _hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of points (N, 2), counter-clockwise (Andrew's monotone chain)."""
    rows = np.unique(points, axis=0)
    if len(rows) < 3:
        return rows
    halves = []
    for ordered in (rows.tolist(), rows[::-1].tolist()):
        chain: list[list[float]] = []
        for x, y in ordered:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (y - ay) > (by - ay) * (x - ax):
                    break
                chain.pop()
            chain.append([x, y])
        halves += chain[:-1]
    return np.array(halves)


def _of_mesh(
    vertices: np.ndarray,
    faces: np.ndarray,
    semantic: np.ndarray,
    instance: np.ndarray | None,
    voxel: Tensor,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Points spread over a mesh a few to a voxel, each labelled as the nearest corner of its face."""
    corners = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    spacing = float(voxel.min()) / _POINTS_A_SIDE
    count = int(np.clip(area / spacing**2, 1, _MOST_POINTS))
    face, weights = sample_surface(vertices, faces, count, np.random.default_rng(seed))
    nearest = faces[face, weights.argmax(1)]
    xyz = (vertices[faces[face]] * weights[:, :, None]).sum(1)
    return xyz, semantic[nearest], None if instance is None else instance[nearest]


def _offsets(rows: Tensor) -> Tensor:
    return torch.tensor([0, len(rows)], dtype=torch.int64)


__all__ = ["OCCUPIED", "REACH", "annotate", "object_boxes", "smallest_rectangle", "voxel_coordinates", "voxel_labels"]
