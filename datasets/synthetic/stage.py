"""Stage: the surfaces of a scene assembled for rays, lit once for all views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from geo3d.datasets.synthetic.furniture import CATEGORIES, Thing
from geo3d.datasets.synthetic.shapes import Patch, vertex_normals
from geo3d.datasets.synthetic.texture import Atlas, Palette
from geo3d.errors import require_extra

#: Rays and surface points are worked off in pieces that stay in a processor's cache: about twice as fast.
CHUNK = 8192

_LUXEL = 0.12  # metres between samples of the baked light
_AMBIENT = 0.5  # light from everywhere, beside lamps of about 2
_AMBIENT_RAYS = 20
_LIGHT_RAYS = 4
_AMBIENT_REACH = 1.2  # metres within which a surface darkens its neighbours
_LIFT = 2e-3  # metres by which shadow rays start off their surface
_COVERED = 0.12  # a light sample less open than this is covered by something close
_GAMMA = 2.2


@dataclass(frozen=True)
class Light:
    """A disc-like light.

    Args:
        center: (3,) metres.
        radius: metres; the larger, the softer the shadows.
        color: (3,) linear intensity.
        facing: (3,) unit vector for a window, which lights one side; None for a lamp, which lights all around.
    """

    center: np.ndarray
    radius: float
    color: np.ndarray
    facing: np.ndarray | None = None


def grid_sample(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear samples (N, len(rows), len(columns), K) of grids (N, R, C, K) at fractional row and column indices."""
    r0 = np.minimum(rows.astype(int), grid.shape[1] - 2)
    c0 = np.minimum(columns.astype(int), grid.shape[2] - 2)
    fr, fc = (rows - r0)[:, None, None], (columns - c0)[:, None]
    lines = grid[:, r0] * (1 - fr) + grid[:, r0 + 1] * fr
    return lines[:, :, c0] * (1 - fc) + lines[:, :, c0 + 1] * fc


def by_shape(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of equal rows: (row, indices) for every distinct row of ``keys`` (P, K)."""
    distinct, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    yield from zip(distinct, np.split(order, np.cumsum(np.bincount(group.ravel()))[:-1]))


def edge_lengths(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longest edge in metres of every row interval (..., R - 1) and column interval (..., C - 1) of grids."""
    rows = np.linalg.norm(np.diff(corners, axis=-3), axis=-1).max(-1)
    columns = np.linalg.norm(np.diff(corners, axis=-2), axis=-1).max(-2)
    return rows, columns


def _uncover(block: np.ndarray) -> np.ndarray:
    """Light (N, R, C, 3) of grids (N, R, C, 4), where samples that something covers take their open neighbours' mean.

    A covered sample is black; interpolated, it would darken what lies around the thing that covers it.
    """
    weight = (block[..., 3:] > _COVERED).astype(np.float32)
    light = block[..., :3]
    for _ in range(2):
        padded = np.pad(np.concatenate([light * weight, weight], -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        mean = total[..., :3] / np.maximum(total[..., 3:], 1)
        light = np.where((weight == 0) & (total[..., 3:] > 0), mean, light)
        weight = np.minimum(weight + total[..., 3:], 1)
    return light


class Stage:
    """A scene ready to be looked at.

    Args:
        things: what is in it; a thing's place in the list is its instance number.
        palette: the textures that the things name.
        lights: what lights it.
        rng: draws texture offsets and light samples.

    Attributes:
        corners, uv, texture, instance: of every patch; patches keep their own grid sizes.
        semantic: (I,) nyu40 id of every instance.
    """

    def __init__(self, things: list[Thing], palette: Palette, lights: list[Light], rng: np.random.Generator) -> None:
        self.things = things
        self.semantic = np.array([CATEGORIES[t.category] for t in things], np.int32)
        patches = [t.world_patches() for t in things]
        self.instance = np.repeat(np.arange(len(things), dtype=np.int32), [len(p) for p in patches])
        self.patches: list[Patch] = [p for group in patches for p in group]
        self.texture = np.array([p.texture for p in self.patches], np.int32)
        self.atlas = Atlas(palette.textures)
        fitted = np.array([t.fitted for t in palette.textures])[self.texture]
        self._uv_offset = np.where(fitted[:, None], 0, rng.uniform(0, 4, (len(self.patches), 2)))
        self._glow = np.array([t.glow for t in palette.textures], np.float32)[self.texture]
        self._shapes = np.array([p.corners.shape[:2] for p in self.patches])
        self._lay_out_light()
        self._triangulate()
        self._bake(lights, rng)

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Patches of equal grid size: (patch numbers (N,), corners (N, R, C, 3), uv (N, R, C, 2))."""
        for _, index in by_shape(self._shapes):
            corners = np.stack([self.patches[i].corners for i in index])
            uv = np.stack([self.patches[i].uv for i in index]) + self._uv_offset[index, None, None]
            yield index, corners, uv

    def _lay_out_light(self) -> None:
        """Choose each patch's grid of light samples and where it starts; a border of one sample runs around each."""
        self._luxels = np.zeros((len(self.patches), 2), np.int32)
        for index, corners, _ in self.groups():
            for axis, lengths in enumerate(edge_lengths(corners)):
                cells = lengths.shape[-1]
                bends = 1 if cells == 1 else (cells + 1) // 2
                self._luxels[index, axis] = np.maximum(np.ceil(lengths.sum(-1) / _LUXEL), bends)
        sizes = (self._luxels + 2).prod(1)
        self._light_start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

    def light_coordinates(self, index: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Where fractions in [0, 1] of rows and columns fall in the bordered light grids: (N, R, C, 2) as (x, y)."""
        y = 0.5 + rows[None, :, None] * self._luxels[index, 0][:, None, None]
        x = 0.5 + columns[None, None, :] * self._luxels[index, 1][:, None, None]
        return np.stack(np.broadcast_arrays(x, y), -1)

    def _triangulate(self) -> None:
        """Two triangles a quad, their corner attributes, and the ray tracer over them."""
        corners_of, values_of, owner = [], [], []
        for index, corners, uv in self.groups():
            rows, columns = corners.shape[1:3]
            light = self.light_coordinates(index, np.linspace(0, 1, rows), np.linspace(0, 1, columns))
            grid = np.concatenate([corners, uv, light], -1)
            a, b, c, d = grid[:, :-1, :-1], grid[:, :-1, 1:], grid[:, 1:, 1:], grid[:, 1:, :-1]
            triangles = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], 3)  # (N, R-1, C-1, 2, 3, 7)
            corners_of.append(triangles[..., :3].reshape(-1, 3, 3))
            values_of.append(triangles[..., 3:].reshape(-1, 3, 4))
            owner.append(np.repeat(index, (rows - 1) * (columns - 1) * 2))
        triangles, values = np.concatenate(corners_of), np.concatenate(values_of)
        normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        length = np.linalg.norm(normal, axis=1)
        solid = length > 1e-12
        self.triangles = triangles[solid].astype(np.float32)
        self.triangle_normal = (normal[solid] / length[solid, None]).astype(np.float32)
        self.triangle_patch = np.concatenate(owner)[solid].astype(np.int32)
        first = values[:, 0]
        self._triangle_values = np.concatenate([first, values[:, 1] - first, values[:, 2] - first], 1)[solid].astype(
            np.float32
        )
        purpose = "making synthetic scenes"
        tracer = require_extra("embreex.rtcore_scene", "synthetic", purpose)
        construction = require_extra("embreex.mesh_construction", "synthetic", purpose)
        self._tracer = tracer.EmbreeScene(robust=True)
        count = len(self.triangles)
        construction.TriangleMesh(
            self._tracer, self.triangles.reshape(-1, 3), np.arange(3 * count, dtype=np.int32).reshape(count, 3)
        )

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
        """First hits of rays.

        Args:
            origins, directions: (N, 3).

        Returns:
            ``primID`` (-1 where nothing is hit), barycentric ``u`` and ``v``, and ``tfar`` in lengths of the direction.
        """
        return self._tracer.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32), output=1
        )

    def distance(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(N,) float32 distance to the first hit, in lengths of the direction; 1e37 where nothing is hit."""
        return self._tracer.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32), query="DISTANCE"
        )

    def _bake(self, lights: list[Light], rng: np.random.Generator) -> None:
        """Light and openness at every sample: ambient light with occlusion, lamps and windows with soft shadows."""
        places, normals, slots, sizes = [], [], [], []
        for index, corners, _ in self.groups():
            smooth = np.concatenate([corners, vertex_normals(corners)], -1)
            for (rows, columns), members in by_shape(self._luxels[index]):
                r = (np.arange(rows) + 0.5) / rows * (corners.shape[1] - 1)
                c = (np.arange(columns) + 0.5) / columns * (corners.shape[2] - 1)
                sampled = grid_sample(smooth[members], r, c).reshape(-1, 6)
                places.append(sampled[:, :3])
                normals.append(sampled[:, 3:])
                slots.append(index[members])
                sizes.append((len(members), rows, columns))
        place, normal = np.concatenate(places), np.concatenate(normals)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        start = place + _LIFT * normal
        openness, direct = np.empty(len(start)), np.empty((len(start), 3))
        step = CHUNK // _AMBIENT_RAYS
        for first in range(0, len(start), step):
            part = slice(first, first + step)
            openness[part] = self._openness(start[part], normal[part], rng)
            direct[part] = sum(self._direct(lamp, start[part], normal[part], rng) for lamp in lights)
        light = direct + _AMBIENT * openness[:, None]
        exposure = 0.62 / np.percentile(light.mean(1), 60)
        light = np.minimum(np.maximum(light * exposure, 0.02), 1.35) ** (1 / _GAMMA)
        baked = np.concatenate([light, openness[:, None]], 1).astype(np.float32)
        self._light = np.zeros((self._light_start[-1], 4), np.float32)
        offset = 0
        for patches, (count, rows, columns) in zip(slots, sizes):
            block = baked[offset : offset + count * rows * columns].reshape(count, rows, columns, 4)
            offset += count * rows * columns
            block[..., :3] = np.maximum(_uncover(block), self._glow[patches][:, None, None, None])
            bordered = np.pad(block, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").reshape(count, -1, 4)
            within = np.arange(bordered.shape[1])
            self._light[self._light_start[patches][:, None] + within] = bordered

    def _openness(self, start: np.ndarray, normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Share (N,) of the half-space above each place that is free within reach, cosine-weighted; 0 within solids."""
        k = np.arange(_AMBIENT_RAYS)
        radius = np.sqrt((k + 0.5) / _AMBIENT_RAYS)
        angle = 2.399963 * k + rng.uniform(0, 2 * np.pi, (len(start), 1))  # golden angle: even over the disc
        side = np.where(np.abs(normal[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
        tangent = np.cross(side, normal)
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
        bitangent = np.cross(normal, tangent)
        direction = (
            (radius * np.cos(angle))[..., None] * tangent[:, None]
            + (radius * np.sin(angle))[..., None] * bitangent[:, None]
            + np.sqrt(1 - radius**2)[:, None] * normal[:, None]
        )
        origin, direction = np.repeat(start, _AMBIENT_RAYS, 0), direction.reshape(-1, 3)
        hit = self.cast(origin, direction)
        behind = np.einsum("ij,ij->i", self.triangle_normal[hit["primID"]], direction) > 0
        inside = (hit["primID"] >= 0) & behind  # the ray meets the back of a surface: it starts within a solid
        free = np.where(inside, 0, np.minimum(hit["tfar"], _AMBIENT_REACH) / _AMBIENT_REACH)
        return free.reshape(len(start), -1).mean(1)

    def _direct(self, lamp: Light, start: np.ndarray, normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Light (N, 3) that comes straight from one lamp."""
        total = np.zeros(len(start))
        for _ in range(_LIGHT_RAYS):
            target = lamp.center + lamp.radius * rng.uniform(-0.6, 0.6, (len(start), 3))
            towards = target - start
            squared = (towards**2).sum(1)
            unit = towards / np.sqrt(squared)[:, None]
            strength = np.maximum((unit * normal).sum(1), 0)
            if lamp.facing is not None:
                strength *= np.maximum(-(unit @ lamp.facing), 0)
            lit = np.flatnonzero(strength > 1e-3)
            near = self.distance(start[lit], towards[lit])
            seen = lit[near > 0.95]  # a lamp's own shade stands no further than a twentieth before it
            total[seen] += strength[seen] / (0.6 + squared[seen])
        return total[:, None] / _LIGHT_RAYS * lamp.color

    def light_at(self, patch: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Baked light (N, 3) and openness, together (N, 4), at bordered light-grid coordinates (N, 2)."""
        corner = xy.astype(np.int32)
        corner = np.minimum(corner, self._luxels[patch][:, ::-1])
        f = (xy - corner).astype(np.float32)
        stride = self._luxels[patch, 1] + 2
        base = self._light_start[patch] + corner[:, 1] * stride + corner[:, 0]
        fx, fy = f[:, :1], f[:, 1:]
        lower = self._light.take(base, 0)
        lower += fx * (self._light.take(base + 1, 0) - lower)
        upper = self._light.take(base + stride, 0)
        upper += fx * (self._light.take(base + stride + 1, 0) - upper)
        return lower + fy * (upper - lower)

    def shade(self, patch: np.ndarray, uv: np.ndarray, light_xy: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colours (N, 3) uint8 of surface points, the same from wherever they are seen.

        Args:
            patch: (N,) patch numbers.
            uv: (N, 2) metres along the surface.
            light_xy: (N, 2) coordinates in the patch's light grid.
            footprint: (N,) metres that the sample should average over.
        """
        color = self.atlas.lookup(self.texture[patch], uv, footprint)
        color *= self.light_at(patch, light_xy)[:, :3]
        return np.minimum(color + np.float32(0.5), np.float32(255)).astype(np.uint8)

    def surface_at(self, triangle: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Texture and light coordinates, (N, 2) each, of barycentric points on triangles."""
        values = self._triangle_values.take(triangle, 0)
        at = values[:, :4] + u[:, None] * values[:, 4:8] + v[:, None] * values[:, 8:]
        return at[:, :2], at[:, 2:]
