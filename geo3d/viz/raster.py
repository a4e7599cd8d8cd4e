"""Coloured pixels at a depth onto a picture: what geo3d's own drawings are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    order = np.argsort(-depth, kind="stable")  # of equal pixels the last assignment stays
    image[pixels[order, 1], pixels[order, 0]] = colors[order]
    return image


def dots(uv: np.ndarray, depth: np.ndarray, colors: np.ndarray, largest: int = LARGEST_DOT) -> Fragments:
    """Square dots as large as the points are apart: ``uv`` (N, 2) pixels, ``depth`` (N,), ``colors`` (N, 3) uint8."""
    if not len(uv):
        return Fragments(np.zeros((0, 2), np.int64), depth, colors)
    covered = len(np.unique((uv // 8).astype(np.int64), axis=0)) * 64  # pixels
    dot = int(np.clip(np.ceil(1.5 * np.sqrt(covered / len(uv))), 1, largest))
    corner = np.round(uv - dot / 2).astype(np.int64)
    steps = np.stack(np.meshgrid(np.arange(dot), np.arange(dot)), -1).reshape(-1, 2)
    pixels = (corner[:, None] + steps).reshape(-1, 2)
    return Fragments(pixels, np.repeat(depth, len(steps)), np.repeat(colors, len(steps), 0))


__all__ = ["LARGEST_DOT", "Fragments", "dots", "paint"]
