"""A picture of view pairs, to see with one's own eyes that they match."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.viz.sheet import MARGIN, Sheet

_COLUMNS = 3
_TILE = (300, 225)  # room for one image, pixels
_CAPTION = 34
_DOTS = 8


@dataclass(frozen=True)
class PicturedPair:
    """A pair to draw.

    Args:
        captions: two lines above it.
        images: both views; none where they cannot be read.
        matched: (M, 2) pixels of the first and of the second image that show one surface point.
        problem: why there are no images.
    """

    captions: tuple[str, str]
    images: tuple[Image.Image, Image.Image] | None = None
    matched: tuple[np.ndarray, np.ndarray] = (np.zeros((0, 2)), np.zeros((0, 2)))
    problem: str = ""


def draw_pairs(pairs: Sequence[PicturedPair], path: Path) -> None:
    """Draw pairs side by side under their captions; dots of one colour mark one surface point in both images.

    Args:
        pairs: what to draw, row by row.
        path: where to write the PNG.
    """
    Image.fromarray(pairs_sheet(pairs)).save(path, format="PNG")


def pairs_sheet(pairs: Sequence[PicturedPair]) -> np.ndarray:
    """The same as (H, W, 3) uint8."""
    columns = min(_COLUMNS, len(pairs))
    cell = (2 * _TILE[0] + 3 * MARGIN, _TILE[1] + _CAPTION + 2 * MARGIN)
    sheet = Sheet(columns * cell[0], math.ceil(len(pairs) / columns) * cell[1])
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        _draw_pair(sheet, column * cell[0] + MARGIN, row * cell[1] + MARGIN, pair)
    return sheet.pixels()


def _draw_pair(sheet: Sheet, left: int, top: int, pair: PicturedPair) -> None:
    width = 2 * _TILE[0] + MARGIN
    for line, text in enumerate(pair.captions):
        sheet.write(text, left, top + 16 * line, width)
    top += _CAPTION
    if pair.images is None:
        sheet.write(f"cannot be read: {pair.problem}", left, top, width)
        return
    first = pair.matched[0]
    shown = np.linspace(0, len(first) - 1, min(_DOTS, len(first))).round().astype(np.int64)
    shown = np.argsort(first[:, 0], kind="stable")[shown]  # spread from left to right
    for image, uv in zip(pair.images, pair.matched):
        full = np.array(image.size)
        image.thumbnail(_TILE)
        sheet.put(image, left, top)
        for number, (x, y) in enumerate((uv[shown] + 0.5) * np.array(image.size) / full + (left, top)):
            color = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(number / _DOTS, 0.9, 1.0))
            sheet.draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color, outline=(0, 0, 0))
        left += image.width + MARGIN
