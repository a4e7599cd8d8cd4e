"""A picture of view pairs, to see with one's own eyes that they match."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geo3d.datasets.covisibility import DepthTolerance, matched_pixels
from geo3d.datasets.scene import Scene

_COLUMNS = 3
_TILE = (300, 225)  # room for one image, pixels
_MARGIN = 8
_CAPTION = 34
_DOTS = 8
_BACKGROUND, _INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class PicturedPair:
    """A pair to draw. Overlap and angle (radians) are NaN where unknown."""

    scene: Scene
    first: int
    second: int
    overlap: float
    angle: float
    evidence: str


def draw_pairs(pairs: Sequence[PicturedPair], tolerance: DepthTolerance, path: Path) -> None:
    """Draw pairs side by side with their scores; dots of one colour mark one surface point in both images.

    Args:
        pairs: what to draw, row by row.
        tolerance: how far depths of one surface point may differ.
        path: where to write the PNG.
    """
    columns = min(_COLUMNS, len(pairs))
    cell = (2 * _TILE[0] + 3 * _MARGIN, _TILE[1] + _CAPTION + 2 * _MARGIN)
    sheet = Image.new("RGB", (columns * cell[0], math.ceil(len(pairs) / columns) * cell[1]), _BACKGROUND)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        _draw_pair(sheet, (column * cell[0] + _MARGIN, row * cell[1] + _MARGIN), pair, tolerance)
    sheet.save(path, format="PNG")


def _draw_pair(sheet: Image.Image, corner: tuple[int, int], pair: PicturedPair, tolerance: DepthTolerance) -> None:
    draw = ImageDraw.Draw(sheet)
    names = [pair.scene.view_names[view] for view in (pair.first, pair.second)]
    known = (
        f"overlap {pair.overlap:.2f}   angle {math.degrees(pair.angle):.0f}°   " if pair.evidence != "listed" else ""
    )
    font = ImageFont.load_default(13)
    width = 2 * _TILE[0] + _MARGIN
    for line, text in enumerate((f"{known}evidence {pair.evidence}", f"{pair.scene.name}: {names[0]} | {names[1]}")):
        draw.text((corner[0], corner[1] + 16 * line), _fitted(text, font, width), fill=_INK, font=font)
    try:
        matched = matched_pixels(pair.scene, pair.first, pair.second, pair.evidence, tolerance)
        images = [pair.scene.image(view).convert("RGB") for view in (pair.first, pair.second)]
    except OSError as error:  # Pillow's word for pixels that cannot be decoded
        draw.text((corner[0], corner[1] + _CAPTION), _fitted(f"cannot be read: {error}", font, width), _INK, font)
        return
    shown = np.linspace(0, len(matched[0]) - 1, min(_DOTS, len(matched[0]))).round().astype(np.int64)
    shown = np.argsort(matched[0][:, 0], kind="stable")[shown]  # spread from left to right
    left, top = corner[0], corner[1] + _CAPTION
    for image, uv in zip(images, matched):
        full = np.array(image.size)
        image.thumbnail(_TILE)
        sheet.paste(image, (left, top))
        for number, (x, y) in enumerate((uv[shown] + 0.5) * np.array(image.size) / full + (left, top)):
            color = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(number / _DOTS, 0.9, 1.0))
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color, outline=(0, 0, 0))
        left += image.width + _MARGIN


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, its middle left out where it is wider than ``width`` pixels."""
    kept = len(text)
    fitted = text
    while font.getlength(fitted) > width:
        kept -= 1
        fitted = f"{text[: math.ceil(kept / 2)]}...{text[len(text) - kept // 2 :]}"
    return fitted
