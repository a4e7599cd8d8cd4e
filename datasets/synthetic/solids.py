"""Solids of which synthetic objects are built: grids of corners, each swept along a path.

A solid is a list of grids (R, C, 3) of corners in units of the object; quads between neighbours are its surface. Unlike
the patches of rooms they have no texture, and may cross one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

Solid = list[np.ndarray]
Vector = Sequence[float] | np.ndarray
_THIN = 1e-6  # rings smaller than this are a point, and need no cap


def circle(corners: int = 14) -> np.ndarray:
    """(M, 2) corners of a unit circle."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def polygon(corners: int, divisions: int = 3) -> np.ndarray:
    """(M, 2) points along the edges of a regular polygon in the unit circle; a square has level edges."""
    angle = (np.arange(corners + 1) + (0.5 if corners == 4 else 0.0)) * (2 * np.pi / corners)
    corner = np.stack([np.cos(angle), np.sin(angle)], 1)
    along = np.arange(divisions)[:, None] / divisions
    return np.concatenate([a + along * (b - a) for a, b in pairwise(corner)])


def square(divisions: int = 3) -> np.ndarray:
    """(M, 2) points along the edges of the square of edge 2."""
    return polygon(4, divisions) * np.sqrt(2)


def superellipse(exponent: float, corners: int = 20) -> np.ndarray:
    """(M, 2) points of |x|^n + |y|^n = 1: a circle for 2, rounded squares above."""
    unit = circle(corners)
    return unit / (np.abs(unit) ** exponent).sum(1, keepdims=True) ** (1 / exponent)


def star(points: int, inner: float) -> np.ndarray:
    """(M, 2) corners of a star, whose inner corners are at radius ``inner``."""
    return circle(2 * points) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


def blob(rng: np.random.Generator, roughness: float, corners: int = 24) -> np.ndarray:
    """(M, 2) points of a random smooth outline that a centre sees whole."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    radius = np.ones(corners)
    for wave in range(2, 6):
        radius += rng.normal(0, roughness / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return circle(corners) * radius.clip(0.25)[:, None]


def loft(rings: np.ndarray, closed: bool = False, caps: bool = True) -> Solid:
    """The surface through rings (K, M, 3), with flat caps, or closed from the last ring to the first."""
    rings = np.concatenate([rings, rings[:, :1]], 1)
    if closed:
        return [np.concatenate([rings, rings[:1]])]
    solid = [rings]
    for ring in (rings[0], rings[-1]) if caps else ():
        centre = ring[:-1].mean(0)
        if np.abs(ring - centre).max() > _THIN:
            solid.append(np.stack([ring, np.broadcast_to(centre, ring.shape)]))
    return solid


def extrusion(section: np.ndarray, height: float, rings: int = 4, top: float = 1.0) -> Solid:
    """A section (M, 2) raised along z from 0 to ``height``, there ``top`` times as wide."""
    return swept(section, np.linspace(0, height, rings), np.linspace(1, top, rings))


def swept(section: np.ndarray, z: Vector, scale: Vector, caps: bool = True) -> Solid:
    """A section (M, 2) along z: of so many heights (K,), at each of which it is scaled by (K,) or (K, 2)."""
    z, scale = np.asarray(z, float), np.asarray(scale, float)
    plan = section[None] * (scale[:, None, None] if scale.ndim == 1 else scale[:, None])
    height = np.broadcast_to(z[:, None, None], (*plan.shape[:2], 1))
    return loft(np.concatenate([plan, height], -1), caps=caps)


def lathe(profile: Sequence[tuple[float, float]], corners: int = 18) -> Solid:
    """A surface of revolution about z, open where its ends are off the axis; ``profile`` is (radius, height) points."""
    radius, z = np.asarray(profile, float).T
    return swept(circle(corners), z, radius, caps=False)


def box(size: Vector, at: Vector = (0, 0, 0)) -> Solid:
    """A box of edges ``size`` (3,), centred at ``at``."""
    x, y, z = size
    solid = swept(square(), np.linspace(-z / 2, z / 2, 4), np.tile([x / 2, y / 2], (4, 1)))
    return moved(solid, at)


def cylinder(radius: float, height: float, at: Vector = (0, 0, 0), top: float = 1.0) -> Solid:
    """An upright cylinder centred at ``at``, whose top is ``top`` times as wide."""
    return moved(extrusion(radius * circle(), height, top=top), np.add(at, (0, 0, -height / 2)))


def ellipsoid(radii: Vector, at: Vector = (0, 0, 0), roundness: tuple[float, float] = (2.0, 2.0)) -> Solid:
    """A super-ellipsoid centred at ``at``; both exponents 2: an ellipsoid, larger ones: squared off, 1: pointed."""
    rx, ry, rz = radii
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 11)
    cos, sin = np.cos(latitude).clip(0), np.sin(latitude)
    norm = (cos ** roundness[0] + np.abs(sin) ** roundness[0]) ** (1 / roundness[0])
    section = circle(18) if roundness[1] == 2 else superellipse(roundness[1])
    wide = cos / norm
    wide[[0, -1]] = 0
    return moved(swept(section * [rx, ry], rz * sin / norm, wide, caps=False), at)


def tube(
    path: np.ndarray, radius: float | np.ndarray, section: np.ndarray | None = None, closed: bool = False
) -> Solid:
    """A section, a circle of its own, along a path (K, 3), at each point scaled by ``radius``."""
    path = np.asarray(path, float)
    section = circle(9) if section is None else section
    radius = np.broadcast_to(np.asarray(radius, float), len(path))
    if closed:
        along = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    else:
        along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    right, up = _frames(along)
    plan = radius[:, None, None] * section[None]
    return loft(path[:, None] + plan[..., :1] * right[:, None] + plan[..., 1:] * up[:, None], closed)


def _frames(along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (K, 3) across directions (K, 3), which turn as little as they can from one to the next."""
    right = np.empty_like(along)
    axis = np.eye(3)[np.abs(along[0]).argmin()]
    for i, direction in enumerate(along):
        axis = axis - direction * (axis @ direction)
        length = np.sqrt(axis @ axis)
        if length < 1e-9:
            axis = np.eye(3)[np.abs(direction).argmin()]
            axis = axis - direction * (axis @ direction)
            length = np.sqrt(axis @ axis)
        axis = axis / length
        right[i] = axis
    return right, np.cross(along, right)


def limb(start: Vector, end: Vector, first: float, last: float | None = None) -> Solid:
    """A rounded rod from a point to another, of radius ``first`` there and ``last`` here."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    last = first if last is None else last
    along = end - start
    along /= max(float(np.linalg.norm(along)), 1e-12)
    round_off = np.array([1.0, 0.7, 0.0])
    wide = np.sqrt(1 - round_off**2).clip(0.02)
    middle = np.linspace(0, 1, 4)[1:-1, None]
    path = np.concatenate(
        [
            start - first * round_off[:, None] * along,
            start + middle * (end - start),
            end + last * round_off[::-1, None] * along,
        ]
    )
    radius = np.concatenate([first * wide, first + middle[:, 0] * (last - first), last * wide[::-1]])
    return tube(path, radius)


def ring(
    radius: float, thick: float, at: Vector = (0, 0, 0), section: np.ndarray | None = None, turn: float = 1.0
) -> Solid:
    """A torus about z, or ``turn`` of one; ``thick`` is the radius of its section."""
    whole = turn >= 1
    angle = np.linspace(0, 2 * np.pi * min(turn, 1.0), 25)[: 24 if whole else 25]
    path = radius * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], 1)
    return moved(tube(path, thick, section, closed=whole), at)


def plate(outline: np.ndarray, thickness: float, at: Vector = (0, 0, 0)) -> Solid:
    """A flat outline (M, 2) of some thickness, centred at ``at``."""
    return moved(extrusion(outline, thickness, rings=2), np.add(at, (0, 0, -thickness / 2)))


def wing(root: float, tip: float, span: float, sweep: float, rise: float, thickness: float = 0.1) -> Solid:
    """A wing along +y: chords along x at root and tip, which lies ``sweep`` further back and ``rise`` higher."""
    share = np.linspace(0, 1, 5)
    chord = root + share * (tip - root)
    outline = circle(14) * [0.5, 0.5 * thickness]
    rings = np.zeros((5, 14, 3))
    rings[..., 0] = outline[:, 0] * chord[:, None] - (sweep * share)[:, None]
    rings[..., 1] = (span * share)[:, None]
    rings[..., 2] = outline[:, 1] * chord[:, None] + (rise * share)[:, None]
    return loft(rings)


def moved(solid: Solid, by: Vector) -> Solid:
    """The solid shifted by a vector (3,)."""
    return [grid + np.asarray(by, float) for grid in solid]


def scaled(solid: Solid, by: float | Vector) -> Solid:
    """The solid scaled about the origin, also by (3,) factors; -1 mirrors."""
    return [grid * np.asarray(by, float) for grid in solid]


def turned(solid: Solid, axis: str, angle: float) -> Solid:
    """The solid turned about an axis through the origin, ``x``, ``y`` or ``z``, by radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return [grid @ matrix.T for grid in solid]


def lying(solid: Solid) -> Solid:
    """The solid laid down: what was z is x, x is y and y is z."""
    return [grid[..., [2, 0, 1]] for grid in solid]


def mirrored(solid: Solid, axis: int = 1) -> Solid:
    """The solid and its mirror image across an axis."""
    sign = np.ones(3)
    sign[axis] = -1
    return solid + scaled(solid, sign)


def around(solid: Solid, count: int, start: float = 0.0) -> Solid:
    """Copies of a solid in equal steps about z."""
    return [grid for i in range(count) for grid in turned(solid, "z", start + 2 * np.pi * i / count)]


@lru_cache(maxsize=256)
def _faces(rows: int, columns: int) -> np.ndarray:
    corner = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])


def triangles(solid: Solid) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64 of a solid."""
    vertices = np.concatenate([grid.reshape(-1, 3) for grid in solid])
    starts = np.cumsum([0, *(grid.shape[0] * grid.shape[1] for grid in solid[:-1])])
    return vertices, np.concatenate([_faces(*grid.shape[:2]) + start for grid, start in zip(solid, starts)])
