"""geo3d's own small renderer: points, lines and triangles as pixels, nearer ones over those behind; numpy alone."""

from __future__ import annotations

import numpy as np
from PIL import Image

from geo3d.viz.picture import Lines, Space, Surface
from geo3d.viz.raster import Fragments, dots, paint
from geo3d.viz.viewpoint import Viewpoint

_FINER = 2  # pixels of the drawing along a side of one of the picture's
_LARGEST_DOT = 32  # pixels of the drawing; points that lie farther apart are voxels
_LINE_WIDTH = 3  # pixels of the drawing
#: Samples along a triangle's longest edge at most, and as many samples at a time.
_MOST_STEPS, _AT_A_TIME = 4000, 4_000_000
#: Share of a surface's colour that does not depend on how it is turned to the eye.
_AMBIENT = 0.7
#: Width of dots over the distance between points, which are not everywhere as dense.
DOT = 2.0


def draw_space(space: Space, viewpoint: Viewpoint, size: tuple[int, int]) -> np.ndarray:
    """A space as a picture; what faces away has to be left out before, by :meth:`Viewpoint.sees`.

    Args:
        space: what to draw; its markers and captions are not drawn here.
        viewpoint: from where.
        size: width and height, pixels.

    Returns:
        (H, W, 3) uint8.
    """
    finer = (_FINER * size[0], _FINER * size[1])
    drawn = [_surface(surface, viewpoint, finer) for surface in space.surfaces]
    for points in space.points:
        uv, depth = viewpoint.project(points.xyz, finer)
        known = np.isfinite(uv).all(1)
        drawn.append(dots(uv[known], depth[known], points.colors[known], _LARGEST_DOT, DOT))
    drawn.append(_lines(space.every_line(), viewpoint, finer))
    return np.asarray(Image.fromarray(paint(drawn, finer)).resize(size, Image.Resampling.BOX))


def shaded(surface: Surface, viewpoint: Viewpoint) -> np.ndarray:
    """(V, 3) uint8 colours of a surface's vertices, darker where they are turned away from the eye."""
    corners = surface.vertices[surface.faces].astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros((len(surface.vertices), 3))
    for corner in range(3):
        np.add.at(normals, surface.faces[:, corner], across)
    rays = surface.vertices - viewpoint.eye
    lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(rays, axis=1)
    light = _AMBIENT + (1 - _AMBIENT) * np.abs((normals * rays).sum(1)) / np.maximum(lengths, 1e-12)
    return (surface.colors * light[:, None]).round().clip(0, 255).astype(np.uint8)


def _lines(lines: Lines, viewpoint: Viewpoint, size: tuple[int, int]) -> Fragments:
    """Lines, a little nearer than they are, so that they are seen on the surface that they lie on."""
    behind = viewpoint.eye + 0.02 * np.linalg.norm(viewpoint.target - viewpoint.eye) * viewpoint.axes[:, 2]
    ends = _in_front(lines.ends.astype(np.float64), behind, viewpoint.axes[:, 2])
    if not len(ends):
        return Fragments(np.zeros((0, 2), np.int64), np.zeros(0), np.zeros((0, 3), np.uint8))
    uv, depth = viewpoint.project(ends.reshape(-1, 3), size)
    uv, inverse = uv.reshape(-1, 2, 2), 1 / depth.reshape(-1, 2)
    lengths = np.abs(uv[:, 1] - uv[:, 0]).max(1)
    counts = np.minimum(np.ceil(lengths).astype(np.int64) + 2, 4 * max(size))
    owner = np.repeat(np.arange(len(ends)), counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    part = (np.arange(len(owner)) - start) / np.repeat(counts - 1, counts)
    at = uv[owner, 0] + part[:, None] * (uv[owner, 1] - uv[owner, 0])
    far = 1 / (inverse[owner, 0] + part * (inverse[owner, 1] - inverse[owner, 0]))  # 1 / z is what is even in pixels
    wide = np.arange(_LINE_WIDTH) - _LINE_WIDTH // 2
    steps = np.stack(np.meshgrid(wide, wide), -1).reshape(-1, 2)
    pixels = (np.round(at).astype(np.int64)[:, None] + steps).reshape(-1, 2)
    nearer = 0.995 * far
    return Fragments(pixels, np.repeat(nearer, len(steps)), np.repeat(lines.colors[owner], len(steps), 0))


def _in_front(ends: np.ndarray, place: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Lines (L, 2, 3), those that reach behind a plane cut off there; wholly behind ones shrink to a point on it."""
    ahead = (ends - place) @ forward
    span = ahead[:, 1] - ahead[:, 0]
    cut = ends[:, 0] - ends[:, 1]
    part = (ahead[:, :1] / np.where(np.abs(span) < 1e-12, 1e-12, -span)[:, None]).clip(0, 1)
    crossing = ends[:, 0] - part * cut
    moved = np.where((ahead < 0)[..., None], crossing[:, None], ends)
    hidden = (ahead < 0).all(1)
    moved[hidden] = place - 1e6 * forward
    return moved


def _surface(surface: Surface, viewpoint: Viewpoint, size: tuple[int, int]) -> Fragments:
    """Triangles as samples that lie less than a pixel apart, lighter where they face the eye."""
    corners = surface.vertices[surface.faces].astype(np.float64)
    uv, depth = viewpoint.project(corners.reshape(-1, 3), size)
    uv, depth = uv.reshape(-1, 3, 2), depth.reshape(-1, 3)
    in_view = np.isfinite(uv).all((1, 2))
    in_view &= (uv.max(1) >= 0).all(1) & (uv.min(1) <= size).all(1)
    corners, uv, depth = corners[in_view], uv[in_view], depth[in_view]
    colors = shaded(surface, viewpoint)[surface.faces[in_view]].astype(np.float32)
    edges = np.linalg.norm(uv - np.roll(uv, 1, axis=1), axis=2).max(1, initial=0)
    powers = np.ceil(2 * np.log2(np.maximum(1.2 * edges, 1))) / 2  # few numbers of steps, so that many go at once
    steps = np.minimum(np.ceil(2**powers).astype(np.int64), _MOST_STEPS)
    drawn = [Fragments(np.zeros((0, 2), np.int64), np.zeros(0), np.zeros((0, 3), np.uint8))]
    for count in np.unique(steps):
        first, second = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        kept = first + second <= count
        weights = np.stack([first[kept], second[kept], count - first[kept] - second[kept]], 1) / count
        rows = np.flatnonzero(steps == count)
        for part in np.array_split(rows, -(-len(rows) * len(weights) // _AT_A_TIME)):
            at = np.round(weights @ uv[part]).astype(np.int64).reshape(-1, 2)
            far = 1 / (weights @ (1 / depth[part]).T).T.reshape(-1)
            shade = (weights.astype(np.float32) @ colors[part]).reshape(-1, 3)
            inside = ((at >= 0) & (at < size)).all(1)
            drawn.append(Fragments(at[inside], far[inside], shade[inside].round().clip(0, 255).astype(np.uint8)))
    every = (np.concatenate([getattr(f, name) for f in drawn]) for name in ("pixels", "depth", "colors"))
    return Fragments(*every)


__all__ = ["DOT", "draw_space", "shaded"]
