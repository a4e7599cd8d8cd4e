"""Coloured pixels at a depth onto a picture: what geo3d's own drawings are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from geo3d.viz.sheet import BACKGROUND

LARGEST_DOT = 9  # pixels


@dataclass(frozen=True, eq=False)
class Fragments:
    """Coloured pixels at a depth: ``pixels`` (N, 2) int64, ``depth`` (N,), ``colors`` (N, 3) uint8."""

    pixels: np.ndarray
    depth: np.ndarray
    colors: np.ndarray


def paint(fragments: list[Fragments], size: tuple[int, int]) -> np.ndarray:
    """Fragments onto a white picture, (H, W, 3) uint8; of those of one pixel the nearest stays."""
    width, height = size
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    if not fragments:
        return image
    pixels, depth, colors = (np.concatenate([getattr(f, n) for f in fragments]) for n in ("pixels", "depth", "colors"))
    inside = ((pixels >= 0) & (pixels < size)).all(1)
    pixels, depth, colors = pixels[inside], depth[inside], colors[inside]
    # Far ones first, as of equal pixels the last assignment stays. Depth and number are sorted as one whole number,
    # which NumPy does many times faster than argsort; depths above 0 are in the order of their bits.
    ahead = (depth - depth.min(initial=np.inf) + 1.0).astype(np.float32)
    keys = (~ahead.view(np.uint32)).astype(np.uint64) << np.uint64(32) | np.arange(len(ahead), dtype=np.uint64)
    order = (np.sort(keys) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    image[pixels[order, 1], pixels[order, 0]] = colors[order]
    return image


def dots(
    uv: np.ndarray, depth: np.ndarray, colors: np.ndarray, largest: int = LARGEST_DOT, wide: float = 1.5
) -> Fragments:
    """Square dots ``wide`` times as large as points are apart: pixels (N, 2), depth (N,), colours (N, 3) uint8."""
    if not len(uv):
        return Fragments(np.zeros((0, 2), np.int64), depth, colors)
    covered = len(np.unique((uv // 8).astype(np.int64), axis=0)) * 64  # pixels
    dot = int(np.clip(np.ceil(wide * np.sqrt(covered / len(uv))), 1, largest))
    corner = np.round(uv - dot / 2).astype(np.int64)
    steps = np.stack(np.meshgrid(np.arange(dot), np.arange(dot)), -1).reshape(-1, 2)
    pixels = (corner[:, None] + steps).reshape(-1, 2)
    return Fragments(pixels, np.repeat(depth, len(steps)), np.repeat(colors, len(steps), 0))


def ringed(pixels: np.ndarray, place: np.ndarray, color: tuple[int, int, int] = (230, 30, 30)) -> np.ndarray:
    """An image (H, W, 3) uint8 with a ring around a pixel (x, y), seen on any colour."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    radius = max(4, round(0.02 * max(image.size)))
    line = max(2, radius // 3)
    x, y = (float(value) for value in place)
    for beyond, inked, width in ((line, BACKGROUND, 2 * line), (line // 2, color, line)):
        far = radius + beyond
        draw.ellipse((x - far, y - far, x + far, y + far), outline=inked, width=width)
    return np.asarray(image)


__all__ = ["LARGEST_DOT", "Fragments", "dots", "paint", "ringed"]
