"""A sheet of images in rows and columns, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

_CAPTION = 14  # pixels
_SIDE = 224  # to which smaller images are enlarged, pixels


def captioned_sheet(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """(rows, columns, H, W, 3) uint8 -> one sheet, a caption a column, small images enlarged to be looked at."""
    rows, columns, height, width, _ = images.shape
    zoom = max(1, round(_SIDE / height))
    sheet = images.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    picture = Image.fromarray(sheet).resize((columns * width * zoom, rows * height * zoom), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (picture.width, picture.height + _CAPTION), "white")
    framed.paste(picture, (0, _CAPTION))
    draw = ImageDraw.Draw(framed)
    for column, caption in enumerate(captions):
        draw.text((column * width * zoom + 4, 1), caption, fill="black")
    return np.array(framed)
