"""The picture of view pairs: images lie side by side, and dots lie where the matched pixels are."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo3d.viz.pairs import PicturedPair, draw_pairs

_GREYS = ((120, 120, 120), (160, 160, 160))


def _drawn(pairs: list[PicturedPair], tmp_path: Path) -> np.ndarray:
    draw_pairs(pairs, tmp_path / "pairs.png")
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.format == "PNG"
        return np.array(picture.convert("RGB")).astype(int)


def _pair(size: tuple[int, int], matched: tuple[np.ndarray, np.ndarray]) -> PicturedPair:
    return PicturedPair(("", ""), tuple(Image.new("RGB", size, grey) for grey in _GREYS), matched)


def _corner(sheet: np.ndarray, grey: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is shown of an image of one grey."""
    rows, columns = np.nonzero((sheet == grey).all(-1))
    left, top = columns.min(), rows.min()
    return left, top, columns.max() - left + 1, rows.max() - top + 1


def _dots(sheet: np.ndarray, count: int) -> list[list[tuple[float, float]]]:
    """Centres (x, y) of the dots of each colour, from left to right."""
    found = []
    for number in range(count):
        color = [int(255 * c) for c in colorsys.hsv_to_rgb(number / 8, 0.9, 1.0)]
        rows, columns = np.nonzero((sheet == color).all(-1))
        middle = (columns.min() + columns.max()) / 2
        sides = [columns < middle, columns > middle]
        found.append([(columns[side].mean(), rows[side].mean()) for side in sides])
    return found


@pytest.mark.parametrize(("size", "scale"), [((300, 225), 1.0), ((600, 450), 0.5), ((450, 900), 0.25)])
def test_dots_of_one_colour_lie_on_the_matched_pixels(size, scale: float, tmp_path: Path) -> None:
    fractions = np.array([[0.2, 0.3], [0.5, 0.6], [0.8, 0.4]])
    first = fractions * size
    second = np.stack([first[:, 0], size[1] - first[:, 1]], 1)  # upside down
    sheet = _drawn([_pair(size, (first, second))], tmp_path)
    for number, centres in enumerate(_dots(sheet, 3)):
        for grey, uv, centre in zip(_GREYS, (first, second), centres):
            left, top, width, height = _corner(sheet, grey)
            assert (width, height) == pytest.approx((size[0] * scale, size[1] * scale), abs=1)
            # A dot's middle lies at most a pixel beside the place; the sheet's pixels are as large as its own.
            assert centre == pytest.approx((left + uv[number, 0] * scale, top + uv[number, 1] * scale), abs=1)


def test_no_more_than_eight_dots_spread_from_left_to_right(tmp_path: Path) -> None:
    xs = np.random.default_rng(0).permutation(np.linspace(10, 290, 57))
    matched = np.stack([xs, np.full(57, 100.0)], 1)
    sheet = _drawn([_pair((300, 225), (matched, matched))], tmp_path)
    places = [centres[0][0] for centres in _dots(sheet, 8)]
    assert places == sorted(places)
    left = _corner(sheet, _GREYS[0])[0]
    assert (places[0] - left, places[-1] - left) == pytest.approx((10, 290), abs=1)
    assert np.diff(places) == pytest.approx([40] * 7, abs=6)


def test_pairs_stand_in_rows_of_three_and_unreadable_ones_say_so(tmp_path: Path) -> None:
    nothing = (np.zeros((0, 2)), np.zeros((0, 2)))
    alone = _drawn([_pair((300, 225), nothing)], tmp_path)
    height, width, _ = alone.shape
    broken = PicturedPair(("a name", "a score"), problem="the file is cut off " * 20)
    sheet = _drawn([*(_pair((300, 225), nothing) for _ in range(3)), broken], tmp_path)
    assert sheet.shape == (2 * height, 3 * width, 3)
    for column in range(3):
        np.testing.assert_array_equal(sheet[:height, column * width :][:, :width], alone)
    last = (sheet[height:] != 255).any(-1)
    assert last[:, :width].any()
    assert not last[:, width:].any()  # a long reason stays in its cell
