"""Stage: the surfaces of a scene, textured, lit and ready for rays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from geo3d.datasets.synthetic.furniture import CATEGORIES, Thing
from geo3d.datasets.synthetic.light import Light, LightGrid
from geo3d.datasets.synthetic.shapes import by_shape
from geo3d.datasets.synthetic.texture import Atlas, Palette
from geo3d.datasets.synthetic.tracer import Tracer

_LARGEST_OFFSET = 4.0  # metres by which a texture is moved, so that surfaces of one material differ


class Stage:
    """A scene ready to be looked at; its colours do not depend on the view.

    Args:
        things: what is in it; a thing's place in the list is its instance number.
        palette: the textures that the things name.
        lights: what lights it.
        rng: draws texture offsets and rays of light.

    Attributes:
        semantic: (I,) int32 nyu40 id of every instance.
        instance: (P,) int32 instance of every patch.
        triangle_patch: (T,) int32 patch of every triangle of ``tracer``.
        tracer: casts rays.
        light: the baked light.
    """

    def __init__(self, things: list[Thing], palette: Palette, lights: list[Light], rng: np.random.Generator) -> None:
        self.things = things
        self.semantic = np.array([CATEGORIES[t.category] for t in things], np.int32)
        patches = [t.world_patches() for t in things]
        self.instance = np.repeat(np.arange(len(things), dtype=np.int32), [len(p) for p in patches])
        self._patches = [p for group in patches for p in group]
        self._shapes = np.array([p.corners.shape[:2] for p in self._patches])
        self._texture = np.array([p.texture for p in self._patches], np.int32)
        self._atlas = Atlas(palette.textures)
        fitted = np.array([t.fitted for t in palette.textures])[self._texture]
        offset = rng.uniform(0, _LARGEST_OFFSET, (len(self._patches), 2))
        self._offset = np.where(fitted[:, None], 0, offset)
        self.light = LightGrid(self.groups, len(self._patches))
        self._triangulate()
        glow = np.array([t.glow for t in palette.textures], np.float32)[self._texture]
        self.light.bake(self.tracer, lights, glow, rng)

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Patches of equal grid size: (patch numbers (N,), corners (N, R, C, 3), uv (N, R, C, 2))."""
        for _, index in by_shape(self._shapes):
            corners = np.stack([self._patches[i].corners for i in index])
            uv = np.stack([self._patches[i].uv for i in index]) + self._offset[index, None, None]
            yield index, corners, uv

    def _triangulate(self) -> None:
        """Two triangles a quad, with texture and light coordinates at their corners."""
        parts, owner = [], []
        for index, corners, uv in self.groups():
            rows, columns = corners.shape[1:3]
            light = self.light.coordinates(index, np.linspace(0, 1, rows), np.linspace(0, 1, columns))
            grid = np.concatenate([corners, uv, light], -1)
            a, b, c, d = grid[:, :-1, :-1], grid[:, :-1, 1:], grid[:, 1:, 1:], grid[:, 1:, :-1]
            both = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], 3)
            parts.append(both.reshape(-1, 3, 7))
            owner.append(np.repeat(index, (rows - 1) * (columns - 1) * 2))
        joined = np.concatenate(parts)
        side, other = joined[:, 1, :3] - joined[:, 0, :3], joined[:, 2, :3] - joined[:, 0, :3]
        solid = np.linalg.norm(np.cross(side, other), axis=1) > 1e-12  # quads at a pole have an empty half
        joined = joined[solid]
        self.tracer = Tracer(joined[..., :3])
        self.triangle_patch = np.concatenate(owner)[solid].astype(np.int32)
        values = joined[..., 3:]
        steps = [values[:, 0], values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]]
        self._triangle_values = np.concatenate(steps, 1).astype(np.float32)

    def surface_at(self, triangle: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Texture and light coordinates, (N, 2) each, of barycentric points on triangles."""
        values = self._triangle_values.take(triangle, 0)
        at = values[:, :4] + u[:, None] * values[:, 4:8] + v[:, None] * values[:, 8:]
        return at[:, :2], at[:, 2:]

    def shade(self, patch: np.ndarray, uv: np.ndarray, light_xy: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colours (N, 3) uint8 of surface points, the same from wherever they are seen.

        Args:
            patch: (N,) patch numbers.
            uv: (N, 2) float32 metres along the surface.
            light_xy: (N, 2) coordinates in the patch's light grid.
            footprint: (N,) float32 metres that the sample should average over.
        """
        color = self._atlas.lookup(self._texture[patch], uv, footprint)
        color *= self.light.at(patch, light_xy)[:, :3]
        return np.minimum(color + np.float32(0.5), np.float32(255)).astype(np.uint8)
