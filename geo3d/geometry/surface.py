"""Triangle surfaces: normals of their vertices, and points spread evenly over them."""

from __future__ import annotations

import numpy as np

_SMALL = 1e-100


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3) float32: the faces' normals averaged by area; (0, 0, 1) for a vertex of no face.

    Args:
        vertices: (V, 3) metres.
        faces: (F, 3) vertex indices, counter-clockwise seen from outside.
    """
    corners = vertices[faces].astype(np.float64)
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # twice the area long
    spread = np.repeat(weighted, 3, axis=0)
    flat, count = faces.reshape(-1), len(vertices)
    normals = np.stack([np.bincount(flat, weights=spread[:, axis], minlength=count) for axis in range(3)], 1)
    return unit_normals(normals)


def unit_normals(normals: np.ndarray) -> np.ndarray:
    """Normals (N, 3) of any length as unit vectors, float32; (0, 0, 1) where one is zero or not a number."""
    normals = normals.astype(np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    # Squares of numbers so large or small leave the range of float64: such rows are scaled first.
    extreme = (~((length > _SMALL) & (length < 1 / _SMALL)) & np.isfinite(normals).all(1, keepdims=True)).ravel()
    if extreme.any():
        largest = np.abs(normals[extreme]).max(1, keepdims=True)
        normals[extreme] /= np.where(largest > 0, largest, 1)
        length[extreme] = np.linalg.norm(normals[extreme], axis=1, keepdims=True)
    known = np.isfinite(length) & (length > 0)
    upright = np.array([0.0, 0.0, 1.0])
    return np.where(known, normals / np.where(known, length, 1), upright).astype(np.float32)


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points of a surface: one from each of ``count`` shares of equal area, which lie in the order of the faces.

    Args:
        vertices: (V, 3) coordinates.
        faces: (F, 3) vertex indices.
        count: how many points.
        rng: what is drawn from.

    Returns:
        face (count,) int64 of each point and the weights (count, 3) float64 of that face's corners, which sum to 1.

    Raises:
        ValueError: the faces have no area.
    """
    corners = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    until = area.cumsum()
    if not (len(until) and 0 < until[-1] < np.inf):
        raise ValueError("the faces have no area that points could be drawn from")
    position = (np.arange(count) + rng.random(count)) * (until[-1] / count)
    face = np.searchsorted(until, np.minimum(position, np.nextafter(until[-1], 0)), side="right")
    outwards, along = np.sqrt(rng.random(count)), rng.random(count)
    return face, np.stack([1 - outwards, outwards * (1 - along), outwards * along], 1)
