"""Surfaces from which rooms, furniture and objects are built: grids of quads with texture coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Patch:
    """A grid of quads. Rows run along v and columns along u; u x v points out of the surface.

    Args:
        corners: (R, C, 3) float64 metres.
        uv: (R, C, 2) float64 metres along the surface, for the texture.
        texture: number of the texture in the scene's palette.
    """

    corners: np.ndarray
    uv: np.ndarray
    texture: int


def rectangle(origin: Sequence[float], right: Sequence[float], up: Sequence[float], texture: int) -> Patch:
    """A flat rectangle from its lower-left corner and its two edges; faces right x up."""
    origin, right, up = (np.asarray(x, float) for x in (origin, right, up))
    width, height = np.linalg.norm(right), np.linalg.norm(up)
    corners = np.array([[origin, origin + right], [origin + up, origin + right + up]])
    return Patch(corners, np.array([[[0, 0], [width, 0]], [[0, height], [width, height]]], float), texture)


def box(size: Sequence[float], base: Sequence[float], texture: int, front: int | None = None) -> list[Patch]:
    """A box of ``size`` (x, y, z) whose bottom face is centred at ``base``; ``front`` is the texture of its +y face."""
    sx, sy, sz = size
    x, y, z = np.asarray(base, float) - [sx / 2, sy / 2, 0]
    face = texture if front is None else front
    return [
        rectangle((x + sx, y + sy, z), (-sx, 0, 0), (0, 0, sz), face),
        rectangle((x, y, z), (sx, 0, 0), (0, 0, sz), texture),
        rectangle((x + sx, y, z), (0, sy, 0), (0, 0, sz), texture),
        rectangle((x, y + sy, z), (0, -sy, 0), (0, 0, sz), texture),
        rectangle((x, y, z + sz), (sx, 0, 0), (0, sy, 0), texture),
        rectangle((x, y + sy, z), (sx, 0, 0), (0, -sy, 0), texture),
    ]


def lathe(
    profile: Sequence[tuple[float, float]], texture: int, base: Sequence[float] = (0, 0, 0), segments: int = 20
) -> Patch:
    """A surface of revolution about z through ``base``.

    Args:
        profile: (radius, height) points; going up, the surface faces outwards, going down, inwards.
        texture: texture number.
        base: where height 0 of the axis stands.
        segments: quads around the axis.
    """
    radius, height = np.asarray(profile, float).T
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    corners = np.stack(
        [radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle), np.repeat(height[:, None], segments + 1, 1)],
        -1,
    )
    corners[:, -1] = corners[:, 0]
    run = np.concatenate([[0], np.cumsum(np.hypot(np.diff(radius), np.diff(height)))])
    u, v = np.meshgrid(angle * radius.max(), run)
    return Patch(corners + np.asarray(base, float), np.stack([u, v], -1), texture)


def disc(radius: float, base: Sequence[float], texture: int, up: bool = True, segments: int = 20) -> Patch:
    """A flat disc centred at ``base``, textured straight across."""
    angle = np.linspace(0, 2 * np.pi, segments + 1) * (1 if up else -1)
    rim = radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    plan = np.stack([rim, np.zeros_like(rim)])
    corners = np.concatenate([plan, np.zeros((2, segments + 1, 1))], -1)
    return Patch(corners + np.asarray(base, float), plan, texture)


def cylinder(radius: float, height: float, base: Sequence[float], texture: int, segments: int = 16) -> list[Patch]:
    """A closed upright cylinder standing on ``base``."""
    top = np.add(base, (0, 0, height))
    return [
        lathe([(radius, 0), (radius, height)], texture, base, segments),
        disc(radius, top, texture, True, segments),
        disc(radius, base, texture, False, segments),
    ]


def ellipsoid(radii: Sequence[float], center: Sequence[float], texture: int, roundness: float = 1.0) -> Patch:
    """An ellipsoid; ``roundness`` under 1 squares it off into a cushion."""

    def power(x: np.ndarray) -> np.ndarray:
        return np.sign(x) * np.abs(x) ** roundness

    latitude, longitude = np.linspace(-np.pi / 2, np.pi / 2, 11)[:, None], np.linspace(0, 2 * np.pi, 25)
    across = np.cos(latitude)
    across[[0, -1]] = 0  # the poles are points
    unit = np.stack(
        [
            power(across) * power(np.cos(longitude)),
            power(across) * power(np.sin(longitude)),
            power(np.sin(latitude)) * np.ones_like(longitude),
        ],
        -1,
    )
    unit[:, -1] = unit[:, 0]
    radii = np.asarray(radii, float)
    uv = unit[..., :2] * radii[:2] + np.sign(latitude)[..., None] * (1 - np.abs(unit[..., 2:])) * radii[2]
    return Patch(unit * radii + np.asarray(center, float), uv, texture)


def drape(width: float, height: float, base: Sequence[float], texture: int, folds: int, depth: float) -> list[Patch]:
    """A hanging cloth in the x-z plane with vertical folds; both sides."""
    t = np.linspace(0, 1, 8 * folds + 1)
    wave = depth / 2 * np.sin(2 * np.pi * folds * t)
    line = np.stack([width * (0.5 - t), wave, np.zeros_like(t)], -1) + np.asarray(base, float)
    run = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    corners = np.stack([line, np.add(line, (0, 0, height))])
    uv = np.stack([np.stack([run, np.zeros_like(run)], -1), np.stack([run, np.full_like(run, height)], -1)])
    return [Patch(corners, uv, texture), Patch(corners[:, ::-1] - [0, 0.004, 0], uv[:, ::-1], texture)]


def placed(patches: list[Patch], position: Sequence[float], yaw: float = 0.0) -> list[Patch]:
    """Turn about z by ``yaw`` radians, then move."""
    c, s = np.cos(yaw), np.sin(yaw)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return [replace(p, corners=p.corners @ rotation.T + np.asarray(position, float)) for p in patches]


def vertex_normals(corners: np.ndarray) -> np.ndarray:
    """Unit normals at the corners (..., R, C, 3) of grids, smooth across quads."""
    along_u = np.gradient(corners, axis=-2)
    closed = (corners[..., 0, :] == corners[..., -1, :]).all((-1, -2))  # around an axis: the seam is no edge
    seam = 0.5 * (corners[..., 1, :] - corners[..., -2, :])
    along_u[..., [0, -1], :] = np.where(closed[..., None, None, None], seam[..., None, :], along_u[..., [0, -1], :])
    normal = np.cross(along_u, np.gradient(corners, axis=-3))
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal /= np.maximum(length, 1e-12)
    pole = (length < 1e-9).all(-2, keepdims=True)  # the row is a single point: take the next row's mean
    next_row = np.concatenate([normal[..., 1:2, :, :], normal[..., :-1, :, :]], -3).mean(-2, keepdims=True)
    next_row /= np.maximum(np.linalg.norm(next_row, axis=-1, keepdims=True), 1e-12)
    return np.where(pole, next_row, normal)


def grid_sample(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear samples (N, len(rows), len(columns), K) of grids (N, R, C, K) at fractional row and column indices."""
    r0 = np.minimum(rows.astype(int), grid.shape[1] - 2)
    c0 = np.minimum(columns.astype(int), grid.shape[2] - 2)
    fr, fc = (rows - r0)[:, None, None], (columns - c0)[:, None]
    lines = grid[:, r0] * (1 - fr) + grid[:, r0 + 1] * fr
    return lines[:, :, c0] * (1 - fc) + lines[:, :, c0 + 1] * fc


def edge_lengths(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longest edge in metres of every row interval (..., R - 1) and column interval (..., C - 1) of grids."""
    rows = np.linalg.norm(np.diff(corners, axis=-3), axis=-1).max(-1)
    columns = np.linalg.norm(np.diff(corners, axis=-2), axis=-1).max(-2)
    return rows, columns


def by_shape(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of equal rows: (row, indices) for every distinct row of ``keys`` (P, K)."""
    distinct, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    yield from zip(distinct, np.split(order, np.cumsum(np.bincount(group.ravel()))[:-1]))
