"""Sheets: images and captions in their places on a white picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geo3d.writing import replacing

MARGIN = 8  # pixels
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
_CAPTION = 14  # pixels
_SIDE = 224  # to which smaller images are enlarged, pixels


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as a PNG.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="PNG")


class Sheet:
    """A white picture to put images and captions on; places are pixels from its upper left corner.

    Args:
        width, height: pixels.
        font_size: of the captions, pixels.
        ink: their colour.
    """

    def __init__(self, width: int, height: int, font_size: int = 13, ink: tuple[int, int, int] = INK) -> None:
        self.image = Image.new("RGB", (width, height), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        self._font, self._ink = ImageFont.load_default(font_size), ink

    def put(self, image: Image.Image | np.ndarray, left: int, top: int) -> None:
        """Put an image, or its (H, W, 3) uint8 pixels, with its upper left corner at a place."""
        self.image.paste(image if isinstance(image, Image.Image) else Image.fromarray(image), (left, top))

    def write(self, text: str, left: int, top: int, width: int | None = None) -> None:
        """Write a line; its middle is left out where it is wider than ``width`` pixels."""
        fitted, kept = text, len(text)
        while width is not None and self._font.getlength(fitted) > width:
            kept -= 1
            fitted = f"{text[: math.ceil(kept / 2)]}...{text[len(text) - kept // 2 :]}"
        self.draw.text((left, top), fitted, fill=self._ink, font=self._font)

    def length(self, text: str) -> float:
        """Pixels that a line takes."""
        return self._font.getlength(text)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.array(self.image)


def captioned_sheet(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """(rows, columns, H, W, 3) uint8 -> one sheet, a caption a column, small images enlarged to be looked at."""
    rows, columns, height, width, _ = images.shape
    zoom = max(1, round(_SIDE / height))
    tiles = images.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    picture = Image.fromarray(tiles).resize((columns * width * zoom, rows * height * zoom), Image.Resampling.NEAREST)
    sheet = Sheet(picture.width, picture.height + _CAPTION, font_size=10, ink=(0, 0, 0))
    sheet.put(picture, 0, _CAPTION)
    for column, caption in enumerate(captions):
        sheet.write(caption, column * width * zoom + 4, 1)
    return sheet.pixels()
