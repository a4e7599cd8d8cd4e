"""Pictures and PLY files of points, to see with one's own eyes what a network tells apart or fills in."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geo3d.geometry import PointCloud
from geo3d.geometry.byte_colors import byte_colors
from geo3d.geometry.origin import find_origin
from geo3d.viz.ply import write_ply
from geo3d.viz.raster import dots, paint
from geo3d.viz.sheet import MARGIN, Sheet

_SIZE = (520, 460)  # of one panel, pixels
_CAPTION, _LEGEND_ROW = 22, 18
_UNLABELLED = (190, 190, 190)
_AZIMUTH, _ELEVATION = np.radians(35), np.radians(50)  # from where the scene is seen
_GOLDEN = 0.618034


def label_colors(classes: int) -> np.ndarray:
    """(classes + 1, 3) uint8: a colour for each class, well apart, and grey at the end for -1."""
    hues = [(_GOLDEN * i) % 1 for i in range(classes)]
    colors = [colorsys.hsv_to_rgb(hue, (0.9, 0.55)[i % 2], (0.95, 0.75)[i // 2 % 2]) for i, hue in enumerate(hues)]
    return np.array([*(np.array(colors) * 255).round().tolist(), _UNLABELLED]).astype(np.uint8)


def write_labelled_points(
    path: str | Path, xyz: np.ndarray, labels: np.ndarray, classes: int, origin: np.ndarray | None = None
) -> None:
    """Write points coloured by label as a PLY file that viewers show as it is.

    Args:
        path: the file to write.
        xyz: (N, 3) metres.
        labels: (N,) class of each point, -1 for none; written as property ``label`` too.
        classes: number of classes.
        origin: (3,) or (1, 3), put back before the points are written, then as float64; None: as float32.
    """
    colors = label_colors(classes)[labels]
    columns = _coordinates(xyz, origin)
    columns |= {name: colors[:, i] for i, name in enumerate(("red", "green", "blue"))}
    write_ply(path, columns | {"label": labels.astype(np.int16)})


def write_points(path: str | Path, cloud: PointCloud, **more: np.ndarray) -> None:
    """Write the coloured points of one scene as a PLY file.

    Args:
        path: the file to write.
        cloud: points, with colours where known; an origin is put back, and coordinates are then float64.
        more: further properties (N,), written in their own types.

    Raises:
        ValueError: more than one scene, with origins.
    """
    if cloud.origin is not None and cloud.batch_size != 1:
        raise ValueError(f"write_points: scenes with an origin are written one by one, got {cloud.batch_size}")
    columns = _coordinates(cloud.xyz.cpu().numpy(), None if cloud.origin is None else cloud.origin.cpu().numpy())
    colors = _bytes(cloud)
    columns |= {name: colors[:, i] for i, name in enumerate(("red", "green", "blue"))}
    write_ply(path, columns | more)


def draw_clouds(panels: dict[str, PointCloud]) -> np.ndarray:
    """Several clouds seen obliquely from above, at one scale, side by side.

    Args:
        panels: caption -> points, z up; colours and normals may be NaN or missing: such points are grey, and shown from
            behind too.

    Returns:
        (H, W, 3) uint8.
    """
    xyz = np.concatenate([cloud.xyz.cpu().numpy() for cloud in panels.values()])
    view = _View(xyz)
    drawn = {}
    for caption, cloud in panels.items():
        normals = None if cloud.normals is None else cloud.normals.cpu().numpy()
        uv, depth, facing = view.project(cloud.xyz.cpu().numpy(), normals)
        drawn[caption] = _splat(uv[facing], depth[facing], _bytes(cloud)[facing])
    return _panels(drawn).pixels()


def draw_labels(
    xyz: np.ndarray, normals: np.ndarray | None, panels: dict[str, np.ndarray], classes: Sequence[str]
) -> np.ndarray:
    """The points seen obliquely from above, once for each set of labels, with a legend.

    Args:
        xyz: (N, 3), z up.
        normals: (N, 3) unit vectors: surfaces that face away are left out, so that one looks into a room; or None.
        panels: caption -> (N,) labels, or (N, 3) uint8 colours.
        classes: names of the classes.

    Returns:
        (H, W, 3) uint8.
    """
    palette = label_colors(len(classes))
    uv, depth, facing = _View(xyz).project(xyz, normals)
    shown = [values for values in panels.values() if values.ndim == 1]
    present = [int(c) for c in np.unique(np.concatenate(shown)) if c >= 0] if shown else []
    columns = max(1, len(panels) * _SIZE[0] // 150)
    drawn = {}
    for caption, values in panels.items():
        colors = palette[values] if values.ndim == 1 else values
        drawn[caption] = _splat(uv[facing], depth[facing], colors[facing])
    sheet = _panels(drawn, -(-len(present) // columns) * _LEGEND_ROW)
    for place, label in enumerate(present):
        left, top = MARGIN + place % columns * 150, _CAPTION + _SIZE[1] + place // columns * _LEGEND_ROW
        sheet.draw.rectangle((left, top + 2, left + 12, top + 14), fill=tuple(int(c) for c in palette[label]))
        sheet.write(classes[label], left + 18, top)
    return sheet.pixels()


def _coordinates(xyz: np.ndarray, origin: np.ndarray | None) -> dict[str, np.ndarray]:
    """Columns x, y and z as they are written: float64 where an origin is put back, or float32 would lose places."""
    if origin is not None and origin.any():
        xyz = xyz.astype(np.float64) + origin.reshape(1, 3)
    elif xyz.dtype != np.float64 or not find_origin(xyz).any():
        xyz = xyz.astype(np.float32)
    return {axis: xyz[:, i] for i, axis in enumerate("xyz")}


def _bytes(cloud: PointCloud) -> np.ndarray:
    """(N, 3) uint8 colours; grey where they are unknown."""
    if cloud.colors is None:
        return np.tile(np.array(_UNLABELLED, np.uint8), (len(cloud), 1))
    colors = cloud.colors.cpu().numpy()
    known = np.isfinite(colors).all(1, keepdims=True)
    return np.where(known, byte_colors(np.nan_to_num(colors)), np.uint8(_UNLABELLED))


def _panels(panels: dict[str, np.ndarray], below: int = 0) -> Sheet:
    """Panels side by side under their captions, with so many pixels of room below."""
    sheet = Sheet(len(panels) * _SIZE[0], _CAPTION + _SIZE[1] + below + MARGIN)
    for number, (caption, panel) in enumerate(panels.items()):
        sheet.put(panel, number * _SIZE[0], _CAPTION)
        sheet.write(caption, number * _SIZE[0] + MARGIN, 3)
    return sheet


def draw_points(
    xyz: np.ndarray, colors: np.ndarray | None, size: tuple[int, int], frame: np.ndarray | None = None
) -> np.ndarray:
    """Points seen obliquely from above, as a small panel of a larger sheet.

    Args:
        xyz: (N, 3), z up.
        colors: (N, 3) uint8; None: grey.
        size: width and height, pixels.
        frame: (M, 3) points that are to fill the panel; ``xyz`` when not given.

    Returns:
        (H, W, 3) uint8.
    """
    view = _View(xyz if frame is None else frame, size)
    uv, depth, _ = view.project(xyz, None)
    grey = np.tile(np.array(_UNLABELLED, np.uint8), (len(xyz), 1))
    return _splat(uv, depth, grey if colors is None else colors, size)


class _View:
    """Where points are seen: obliquely from above, at the scale at which ``xyz`` (N, 3) fills a panel of a size."""

    def __init__(self, xyz: np.ndarray, size: tuple[int, int] = _SIZE) -> None:
        self.size = np.array(size)
        ca, sa, ce, se = np.cos(_AZIMUTH), np.sin(_AZIMUTH), np.cos(_ELEVATION), np.sin(_ELEVATION)
        right, self.forward = np.array([-sa, ca, 0]), np.array([-ca * ce, -sa * ce, -se])
        self.axes = np.stack([right, np.cross(self.forward, right)], 1)  # right and down
        plane = xyz @ self.axes
        self.low, self.high = (plane.min(0), plane.max(0)) if len(plane) else (np.zeros(2), np.ones(2))
        self.scale = ((self.size - 2 * MARGIN) / np.maximum(self.high - self.low, 1e-6)).min()

    def project(self, xyz: np.ndarray, normals: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels (N, 2), depth (N,) away from the eye, and which points are shown: not those that face away."""
        uv = (xyz @ self.axes - (self.low + self.high) / 2) * self.scale + self.size / 2
        facing = np.ones(len(xyz), dtype=bool)
        if normals is not None:
            facing = ~(normals @ self.forward >= 0.1)  # unknown ones are shown
        return uv, xyz @ self.forward, facing


def _splat(uv: np.ndarray, depth: np.ndarray, colors: np.ndarray, size: tuple[int, int] = _SIZE) -> np.ndarray:
    """Square dots as large as the points are apart; nearer ones cover those behind."""
    return paint([dots(uv, depth, colors)], size)
