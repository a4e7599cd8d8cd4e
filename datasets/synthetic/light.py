"""Light that is computed once on the surfaces, so that every view sees the same: lamps, windows, shadows, corners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from geo3d.datasets.synthetic.shapes import by_shape, edge_lengths, grid_sample, vertex_normals
from geo3d.datasets.synthetic.tracer import Tracer

Groups = Callable[[], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]]

_SPACING = 0.12  # metres between samples
_PIECE = 400  # samples lit at a time, which bounds the memory for rays
_AMBIENT = 0.5  # light from everywhere, beside lamps of about 2
_AMBIENT_RAYS = 20
_AMBIENT_REACH = 1.2  # metres within which a surface darkens its neighbours
_LAMP_RAYS = 4
_SOFTENING = 0.6  # square metres; light falls as 1 / (distance ** 2 + this), so that walls near a lamp do not glare
_LIFT = 2e-3  # metres by which rays start off their surface
_COVERED = 0.12  # a sample less open than this is covered by something close
_MIDDLE, _DARKEST, _BRIGHTEST = 0.62, 0.02, 1.35  # exposure: where the upper middle of all samples, and the ends, come
_GAMMA = 2.2
_GOLDEN_ANGLE = 2.399963


@dataclass(frozen=True)
class Light:
    """A lamp or a window.

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


class LightGrid:
    """A grid of light samples on every patch, each with a border of one sample for interpolation.

    Samples hold the factor (3) of a texture's sRGB value, and openness: the share of the half-space above that is free
    nearby, 0 within solids.

    Args:
        groups: patches of equal grid size: numbers (N,), corners (N, R, C, 3) and texture coordinates.
        count: number of patches.
    """

    def __init__(self, groups: Groups, count: int) -> None:
        self._groups = groups
        self._cells = np.zeros((count, 2), np.int32)
        for index, corners, _ in groups():
            for axis, lengths in enumerate(edge_lengths(corners)):
                quads = lengths.shape[-1]
                bends = 1 if quads == 1 else (quads + 1) // 2
                self._cells[index, axis] = np.maximum(np.ceil(lengths.sum(-1) / _SPACING), bends)
        ends = np.cumsum((self._cells + 2).prod(1))
        self._start = np.concatenate([[0], ends[:-1]]).astype(np.int32)
        self._samples = np.zeros((ends[-1], 4), np.float32)

    def coordinates(self, index: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Where fractions in [0, 1] of rows and columns fall in the grids of patches: (N, R, C, 2) as (x, y)."""
        y = 0.5 + rows[None, :, None] * self._cells[index, 0][:, None, None]
        x = 0.5 + columns[None, None, :] * self._cells[index, 1][:, None, None]
        return np.stack(np.broadcast_arrays(x, y), -1)

    def at(self, patch: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Light and openness (N, 4) at grid coordinates (N, 2) of patches (N,)."""
        corner = np.minimum(xy.astype(np.int32), self._cells[patch][:, ::-1])
        fraction = (xy - corner).astype(np.float32)
        fx, fy = fraction[:, :1], fraction[:, 1:]
        stride = self._cells[patch, 1] + 2
        base = self._start[patch] + corner[:, 1] * stride + corner[:, 0]
        lower = self._samples.take(base, 0)
        lower += fx * (self._samples.take(base + 1, 0) - lower)
        upper = self._samples.take(base + stride, 0)
        upper += fx * (self._samples.take(base + stride + 1, 0) - upper)
        return lower + fy * (upper - lower)

    def bake(self, tracer: Tracer, lights: list[Light], glow: np.ndarray, rng: np.random.Generator) -> None:
        """Light all samples.

        Args:
            tracer: everything that casts shadows.
            lights: what lights the scene, beside an even ambient light.
            glow: (P,) least brightness of each patch.
            rng: draws the rays.
        """
        blocks = list(self._places())
        place = np.concatenate([samples.reshape(-1, 6) for _, samples in blocks])
        openness, direct = np.empty(len(place)), np.empty((len(place), 3))
        for first in range(0, len(place), _PIECE):
            piece = slice(first, first + _PIECE)
            normal = place[piece, 3:] / np.maximum(np.linalg.norm(place[piece, 3:], axis=1, keepdims=True), 1e-9)
            start = place[piece, :3] + _LIFT * normal
            openness[piece] = _openness(tracer, start, normal, rng)
            direct[piece] = sum(_direct(tracer, lamp, start, normal, rng) for lamp in lights)
        light = direct + _AMBIENT * openness[:, None]
        light *= _MIDDLE / np.percentile(light.mean(1), 60)
        factor = np.clip(light, _DARKEST, _BRIGHTEST) ** (1 / _GAMMA)
        self._store(blocks, np.concatenate([factor, openness[:, None]], 1).astype(np.float32), glow)

    def _places(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Patches of equal grids: numbers (N,), and position and normal (N, rows, columns, 6) of their samples."""
        for index, corners, _ in self._groups():
            surface = np.concatenate([corners, vertex_normals(corners)], -1)
            for (rows, columns), members in by_shape(self._cells[index]):
                r = (np.arange(rows) + 0.5) / rows * (corners.shape[1] - 1)
                c = (np.arange(columns) + 0.5) / columns * (corners.shape[2] - 1)
                yield index[members], grid_sample(surface[members], r, c)

    def _store(self, blocks: list[tuple[np.ndarray, np.ndarray]], lit: np.ndarray, glow: np.ndarray) -> None:
        offset = 0
        for patches, samples in blocks:
            shape = samples.shape[:3]
            block = lit[offset : offset + np.prod(shape)].reshape(*shape, 4)
            offset += np.prod(shape)
            block[..., :3] = np.maximum(_uncovered(block), glow[patches][:, None, None, None])
            bordered = np.pad(block, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").reshape(len(patches), -1, 4)
            self._samples[self._start[patches][:, None] + np.arange(bordered.shape[1])] = bordered


def _uncovered(block: np.ndarray) -> np.ndarray:
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


def _openness(tracer: Tracer, start: np.ndarray, normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share (N,) of the half-space above each place that is free within reach, cosine-weighted; 0 within solids."""
    k = np.arange(_AMBIENT_RAYS)
    radius = np.sqrt((k + 0.5) / _AMBIENT_RAYS)
    angle = _GOLDEN_ANGLE * k + rng.uniform(0, 2 * np.pi, (len(start), 1))  # even over the disc below the half-sphere
    side = np.where(np.abs(normal[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    tangent = np.cross(side, normal)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    direction = (
        (radius * np.cos(angle))[..., None] * tangent[:, None]
        + (radius * np.sin(angle))[..., None] * np.cross(normal, tangent)[:, None]
        + np.sqrt(1 - radius**2)[:, None] * normal[:, None]
    ).reshape(-1, 3)
    hit = tracer.cast(np.repeat(start, _AMBIENT_RAYS, 0), direction)
    behind = np.einsum("ij,ij->i", tracer.normal[hit["primID"]], direction) > 0
    within = (hit["primID"] >= 0) & behind  # the ray meets the back of a surface: it starts inside a solid
    free = np.where(within, 0, np.minimum(hit["tfar"], _AMBIENT_REACH) / _AMBIENT_REACH)
    return free.reshape(len(start), -1).mean(1)


def _direct(tracer: Tracer, lamp: Light, start: np.ndarray, normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light (N, 3) that comes straight from one lamp."""
    total = np.zeros(len(start))
    for _ in range(_LAMP_RAYS):
        towards = lamp.center + lamp.radius * rng.uniform(-0.6, 0.6, (len(start), 3)) - start
        squared = (towards**2).sum(1)
        unit = towards / np.sqrt(squared)[:, None]
        strength = np.maximum((unit * normal).sum(1), 0)
        if lamp.facing is not None:
            strength *= np.maximum(-(unit @ lamp.facing), 0)
        lit = np.flatnonzero(strength > 1e-3)
        seen = lit[tracer.distance(start[lit], towards[lit]) > 0.95]  # nearer the lamp stands its own shade
        total[seen] += strength[seen] / (_SOFTENING + squared[seen])
    return total[:, None] / _LAMP_RAYS * lamp.color
