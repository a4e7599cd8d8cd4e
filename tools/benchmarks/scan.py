"""A furnished room as a scanner sees it, with colours and normals: the scene of the benchmarks of attention.

Points lie on the surfaces of synthetic rooms (`docs/synthetic.md`) that something could see, with noise; a smaller
scene is the part of the same room about one of its corners, so that its windows are filled alike.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from geo3d.errors import require_extra
from geo3d.geometry import PointCloud

VOXEL_SIZE = 0.02  # metres
_MESH_EDGE = 0.03  # metres: of the surfaces that points are drawn on, and of the textures on them
_POINTS_PER_SQUARE_METRE = 30_000
_VOXELS_PER_SQUARE_METRE = 4_000  # that noise, edges and slanting walls let so many points fill
_POSITION_NOISE = 0.004  # metres, standard deviation of each coordinate, as those of the normals' and colours'
_NORMAL_NOISE = 0.08
_COLOR_NOISE = 0.04
_YAW = np.radians(12)  # so that no wall follows the voxels
_ROOM_GAP = 0.15  # metres of wall between two rooms


def _surfaces(room: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (T, 3, 3) in metres and colours (T, 3, 3) in [0, 1] of one room; its corner is the origin."""
    from geo3d.datasets.synthetic.furnished import furnished_mesh

    mesh = furnished_mesh(room, _MESH_EDGE)
    return mesh.vertices[mesh.faces], mesh.colors[mesh.faces]


def _areas(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas (T,) and unit normals (T, 3)."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    return lengths / 2, normals / lengths[:, None]


@cache
def scan(voxels: int) -> PointCloud:
    """Points in metres with colours and normals, z up, the same at each call; they fill about so many voxels of 2 cm.

    Raises:
        MissingExtra: the extra ``synthetic`` is not installed.
    """
    require_extra("embreex", "synthetic", "the scene of this benchmark")
    parts, wanted, found, start = [], voxels / _VOXELS_PER_SQUARE_METRE, 0.0, 0.0
    while found < wanted:  # rooms in a row
        triangles, colors = _surfaces(len(parts))
        triangles[..., 0] += start
        parts.append((triangles, colors))
        found += _areas(triangles)[0].sum()
        start = triangles[..., 0].max() + _ROOM_GAP
    triangles, colors = (np.concatenate(part) for part in zip(*parts))
    nearest = np.argsort(np.linalg.norm(triangles[..., :2].mean(1), axis=1), kind="stable")
    area, normals = _areas(triangles[nearest])
    kept = int(np.searchsorted(area.cumsum(), wanted)) + 1
    chosen, area, normals = nearest[:kept], area[:kept], normals[:kept]

    rng = np.random.default_rng(0)
    count = int(area.sum() * _POINTS_PER_SQUARE_METRE)
    triangle = rng.choice(len(chosen), count, p=area / area.sum())
    xyz, color = _spread(triangles[chosen][triangle], colors[chosen][triangle], rng)

    noise = rng.standard_normal((3, count, 3), np.float32)
    turn = np.array([[np.cos(_YAW), -np.sin(_YAW), 0], [np.sin(_YAW), np.cos(_YAW), 0], [0, 0, 1]], np.float32)
    normal = normals[triangle] + _NORMAL_NOISE * noise[1]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    columns = (
        (xyz + _POSITION_NOISE * noise[0]) @ turn.T,
        (color + _COLOR_NOISE * noise[2]).clip(0, 1),
        normal @ turn.T,
    )
    return PointCloud(*(torch.from_numpy(column.astype(np.float32)) for column in columns))


@cache
def room_cloud(count: int) -> dict[str, np.ndarray]:
    """So many points of one furnished room in random order: ``xyz`` with noise, ``colors`` and ``normals``, float32.

    Raises:
        MissingExtra: the extra ``synthetic`` is not installed.
    """
    require_extra("embreex", "synthetic", "the scene of this benchmark")
    triangles, colors = _surfaces(0)
    area, normals = _areas(triangles)
    rng = np.random.default_rng(0)
    triangle = rng.choice(len(area), count, p=area / area.sum())
    xyz, color = _spread(triangles[triangle], colors[triangle], rng)
    xyz = xyz + _POSITION_NOISE * rng.standard_normal(xyz.shape, np.float32)
    columns = {"xyz": xyz, "colors": color.clip(0, 1), "normals": normals[triangle]}
    return {name: column.astype(np.float32) for name, column in columns.items()}


def _spread(triangles: np.ndarray, colors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A point (N, 3) of each triangle (N, 3, 3), drawn evenly, and its colour."""
    # The square root spreads points evenly over a triangle.
    along, across = np.sqrt(rng.random(len(triangles), np.float32)), rng.random(len(triangles), np.float32)
    weight = np.stack([1 - along, along * (1 - across), along * across], 1)[..., None]
    return (triangles * weight).sum(1), (colors * weight).sum(1)
