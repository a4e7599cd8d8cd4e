"""Sheets: images lie where they should, captions fit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from geo3d.viz.sheet import BACKGROUND, Sheet, captioned_sheet


def _tiles(rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """Images of noise that is never white."""
    return np.random.default_rng(0).integers(0, 200, (rows, columns, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width", "zoom"), [(64, 48, 4), (224, 200, 1), (300, 320, 1), (1, 2, 224)])
def test_every_image_lies_in_its_row_and_column_enlarged_by_whole_pixels(height: int, width: int, zoom: int) -> None:
    images = _tiles(2, 3, height, width)
    sheet = captioned_sheet(images, ["a", "b", "c"])
    assert sheet.dtype == np.uint8
    tall, wide = zoom * height, zoom * width
    caption = len(sheet) - 2 * tall
    assert sheet.shape == (caption + 2 * tall, 3 * wide, 3)
    for row in range(2):
        for column in range(3):
            tile = sheet[caption + row * tall :][:tall, column * wide :][:, :wide]
            expected = images[row, column].repeat(zoom, 0).repeat(zoom, 1)
            np.testing.assert_array_equal(tile, expected)


def test_a_caption_stands_above_its_column() -> None:
    sheet = captioned_sheet(_tiles(1, 3, 64, 64), ["", "hidden", ""])
    strip = (sheet[: len(sheet) - 256] != 255).any(-1).any(0)
    assert strip[256:512].any()
    assert not strip[:256].any()
    assert not strip[512:].any()


def test_images_and_pixels_are_put_where_they_are_told() -> None:
    sheet = Sheet(20, 10)
    pixels = _tiles(1, 1, 3, 4)[0, 0]
    sheet.put(pixels, 5, 2)
    sheet.put(Image.fromarray(pixels), 15, 6)
    expected = np.full((10, 20, 3), BACKGROUND, np.uint8)
    expected[2:5, 5:9] = expected[6:9, 15:19] = pixels
    np.testing.assert_array_equal(sheet.pixels(), expected)


def _written(text: str, width: int | None) -> np.ndarray:
    sheet = Sheet(400, 20)
    sheet.write(text, 10, 2, width)
    return np.flatnonzero((sheet.pixels() != 255).any(-1).any(0))


def test_a_long_line_is_fitted_and_a_short_one_is_left() -> None:
    long = "word " * 12
    assert _written(long, None).max() > 150
    assert _written(long, 100).max() <= 10 + 100
    assert _written(long, 100).max() > 10 + 80  # no more is left out than must be
    np.testing.assert_array_equal(_written("word", 100), _written("word", None))


def test_both_ends_of_a_long_line_stay() -> None:
    fitted, begun = Sheet(400, 20), Sheet(400, 20)
    fitted.write("first " * 20 + "last", 0, 0, 120)
    begun.write("first", 0, 0)
    np.testing.assert_array_equal(fitted.pixels()[:, :20], begun.pixels()[:, :20])
    other = Sheet(400, 20)
    other.write("first " * 20 + "tail", 0, 0, 120)
    assert (fitted.pixels() != other.pixels()).any()
