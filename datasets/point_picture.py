"""Pictures and PLY files of labelled points, to see with one's own eyes what a network tells apart."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geo3d.datasets.ply import write_ply

_SIZE = (520, 460)  # of one panel, pixels
_CAPTION, _LEGEND_ROW, _MARGIN = 22, 18, 8
_BACKGROUND, _INK, _UNLABELLED = (255, 255, 255), (30, 30, 30), (190, 190, 190)
_AZIMUTH, _ELEVATION = np.radians(35), np.radians(50)  # from where the scene is seen
_GOLDEN = 0.618034
_LARGEST_DOT = 9  # pixels


def label_colors(classes: int) -> np.ndarray:
    """(classes + 1, 3) uint8: a colour for each class, well apart, and grey at the end for -1."""
    hues = [(_GOLDEN * i) % 1 for i in range(classes)]
    colors = [colorsys.hsv_to_rgb(hue, (0.9, 0.55)[i % 2], (0.95, 0.75)[i // 2 % 2]) for i, hue in enumerate(hues)]
    return np.array([*(np.array(colors) * 255).round().tolist(), _UNLABELLED]).astype(np.uint8)


def write_labelled_points(path: str | Path, xyz: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Write points coloured by label as a PLY file that viewers show as it is.

    Args:
        path: the file to write.
        xyz: (N, 3) metres.
        labels: (N,) class of each point, -1 for none; written as property ``label`` too.
        classes: number of classes.
    """
    colors = label_colors(classes)[labels]
    columns = {axis: xyz[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
    columns |= {name: colors[:, i] for i, name in enumerate(("red", "green", "blue"))}
    write_ply(path, columns | {"label": labels.astype(np.int16)})


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
    uv, depth, facing = _project(xyz, normals)
    shown = [values for values in panels.values() if values.ndim == 1]
    present = [int(c) for c in np.unique(np.concatenate(shown)) if c >= 0] if shown else []
    font = ImageFont.load_default(13)
    columns = max(1, len(panels) * _SIZE[0] // 150)
    legend = -(-len(present) // columns) * _LEGEND_ROW
    sheet = Image.new("RGB", (len(panels) * _SIZE[0], _CAPTION + _SIZE[1] + legend + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (caption, values) in enumerate(panels.items()):
        colors = palette[values] if values.ndim == 1 else values
        panel = _splat(uv[facing], depth[facing], colors[facing])
        sheet.paste(Image.fromarray(panel), (number * _SIZE[0], _CAPTION))
        draw.text((number * _SIZE[0] + _MARGIN, 3), caption, fill=_INK, font=font)
    for place, label in enumerate(present):
        left, top = _MARGIN + place % columns * 150, _CAPTION + _SIZE[1] + place // columns * _LEGEND_ROW
        draw.rectangle((left, top + 2, left + 12, top + 14), fill=tuple(int(c) for c in palette[label]))
        draw.text((left + 18, top), classes[label], fill=_INK, font=font)
    return np.array(sheet)


def _project(xyz: np.ndarray, normals: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (N, 2), depth (N,) away from the eye, and which points are shown."""
    ca, sa, ce, se = np.cos(_AZIMUTH), np.sin(_AZIMUTH), np.cos(_ELEVATION), np.sin(_ELEVATION)
    right, forward = np.array([-sa, ca, 0]), np.array([-ca * ce, -sa * ce, -se])
    axes = np.stack([right, np.cross(forward, right)], 1)  # right and down
    plane = xyz @ axes
    low, high = (plane.min(0), plane.max(0)) if len(plane) else (np.zeros(2), np.ones(2))
    scale = ((np.array(_SIZE) - 2 * _MARGIN) / np.maximum(high - low, 1e-6)).min()
    uv = (plane - (low + high) / 2) * scale + np.array(_SIZE) / 2
    facing = np.ones(len(xyz), dtype=bool) if normals is None else normals @ forward < 0.1
    return uv, xyz @ forward, facing


def _splat(uv: np.ndarray, depth: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Square dots as large as the points are apart; nearer ones cover those behind."""
    width, height = _SIZE
    image = np.full((height, width, 3), _BACKGROUND, np.uint8)
    if len(uv) == 0:
        return image
    covered = len(np.unique((uv // 8).astype(np.int64), axis=0)) * 64  # pixels
    dot = int(np.clip(np.ceil(1.5 * np.sqrt(covered / len(uv))), 1, _LARGEST_DOT))
    corner = np.round(uv - dot / 2).astype(np.int64)
    order = np.argsort(-depth, kind="stable")  # of equal pixels the last assignment stays
    steps = np.stack(np.meshgrid(np.arange(dot), np.arange(dot)), -1).reshape(-1, 2)
    pixels = (corner[order, None] + steps).reshape(-1, 2)
    inside = ((pixels >= 0) & (pixels < _SIZE)).all(1)
    image[pixels[inside, 1], pixels[inside, 0]] = np.repeat(colors[order], len(steps), 0)[inside]
    return image
