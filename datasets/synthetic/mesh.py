"""The fine, labelled mesh of a stage: what a reconstruction of the scene would be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo3d.datasets.synthetic.shapes import by_shape, edge_lengths, grid_sample
from geo3d.datasets.synthetic.stage import Stage

_HIDDEN = 0.04  # vertices less open than this are covered by something and could not be scanned
_SEGMENT = 0.5  # metres; larger surfaces are over-segmented into blocks of this side
_PIECE = 16384  # vertices coloured at a time, which bounds the memory
_SMALL = 0.04  # square metres; smaller surfaces of one thing share segments


@dataclass(frozen=True)
class FineMesh:
    """Triangle mesh of the visible surfaces.

    Args:
        vertices: (V, 3) float32 metres.
        faces: (F, 3) int32.
        colors: (V, 3) uint8.
        semantic: (V,) int32 nyu40 id.
        instance: (V,) int32 number of the thing.
        segment: (V,) int32 over-segmentation; a segment is named by its first vertex and lies in one instance.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    segment: np.ndarray


def _fractions(cells: np.ndarray) -> np.ndarray:
    """Fractional indices that divide interval i into ``cells[i]`` equal parts."""
    return np.concatenate([i + np.arange(n) / n for i, n in enumerate(cells)] + [[float(len(cells))]])


def fine_mesh(stage: Stage, edge: float) -> FineMesh:
    """Divide every quad to edges of at most ``edge`` metres, colour the vertices and drop what nothing could see."""
    columns: dict[str, list[np.ndarray]] = {k: [] for k in ("xyz", "uv", "light", "patch", "segment", "faces")}
    count = 0
    for index, corners, uv in stage.groups():
        both = np.concatenate([corners, uv], -1)
        row_edges, column_edges = edge_lengths(corners)
        cells = np.maximum(np.ceil(np.concatenate([row_edges, column_edges], 1) / edge), 1).astype(int)
        for key, members in by_shape(cells):
            rows, across = _fractions(key[: row_edges.shape[1]]), _fractions(key[row_edges.shape[1] :])
            grid = grid_sample(both[members], rows, across)
            light = stage.light.coordinates(index[members], rows / rows[-1], across / across[-1])
            n, r, c = grid.shape[:3]
            corner = np.arange(n * r * c).reshape(n, r, c) + count
            a, b, d, e = corner[:, :-1, :-1], corner[:, :-1, 1:], corner[:, 1:, 1:], corner[:, 1:, :-1]
            columns["faces"] += [np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, e], -1).reshape(-1, 3)]
            columns["xyz"].append(grid[..., :3].reshape(-1, 3))
            columns["uv"].append(grid[..., 3:].reshape(-1, 2))
            columns["light"].append(light.reshape(-1, 2))
            columns["patch"].append(np.repeat(index[members], r * c))
            columns["segment"].append(
                _blocks(grid[..., :3], row_edges[members].sum(1), column_edges[members].sum(1)).ravel()
            )
            count += n * r * c
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return _visible(stage, joined, edge)


def _blocks(xyz: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Block number (N, R, C) of every vertex within its patch; -1 - height block where the patch is small."""
    r, c = xyz.shape[1:3]
    rows = np.ceil(height / _SEGMENT).astype(int)[:, None, None]
    across = np.ceil(width / _SEGMENT).astype(int)[:, None, None]
    i = np.minimum(np.arange(r)[:, None] * rows // max(r - 1, 1), rows - 1)
    j = np.minimum(np.arange(c) * across // max(c - 1, 1), across - 1)
    small = (height * width < _SMALL)[:, None, None]
    return np.where(small, -1 - (xyz[..., 2] / _SEGMENT).astype(int), i * across + j)


def _visible(stage: Stage, parts: dict[str, np.ndarray], edge: float) -> FineMesh:
    patch, faces = parts["patch"], parts["faces"]
    open_enough = stage.light.at(patch, parts["light"])[:, 3] > _HIDDEN
    triangle = parts["xyz"][faces]
    area = np.linalg.norm(np.cross(triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]), axis=1)
    faces = faces[open_enough[faces].any(1) & (area > 1e-10)]
    used = np.zeros(len(patch), bool)
    used[faces] = True
    kept = np.flatnonzero(used)
    renumber = np.zeros(len(patch), np.int32)
    renumber[kept] = np.arange(len(kept))
    patch, block = patch[kept], parts["segment"][kept]
    instance = stage.instance[patch]
    owner = np.where(block < 0, instance, len(stage.things) + patch)  # small patches share their thing's segments
    name = owner * (block.max() - block.min() + 1) + block - block.min()
    _, first, member = np.unique(name, return_index=True, return_inverse=True)
    return FineMesh(
        vertices=parts["xyz"][kept].astype(np.float32),
        faces=renumber[faces],
        colors=_vertex_colors(stage, patch, parts["uv"][kept], parts["light"][kept], edge),
        semantic=stage.semantic[instance],
        instance=instance,
        segment=first[member].astype(np.int32),
    )


def _vertex_colors(stage: Stage, patch: np.ndarray, uv: np.ndarray, light: np.ndarray, edge: float) -> np.ndarray:
    """Colours (V, 3) uint8, averaged over about the spacing of the vertices."""
    colors = np.empty((len(patch), 3), np.uint8)
    footprint = np.full(_PIECE, 0.7 * edge, np.float32)
    for start in range(0, len(patch), _PIECE):
        part = slice(start, start + _PIECE)
        at, lit = uv[part].astype(np.float32), light[part].astype(np.float32)
        colors[part] = stage.shade(patch[part], at, lit, footprint[: len(at)])
    return colors
