"""The sheet that a picture is drawn on: title, panels, images, legend, scale and notes in their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geo3d.viz.feature_colors import value_colors
from geo3d.viz.picture import ImagePanel, Picture3D, Scale, Space
from geo3d.viz.sheet import BACKGROUND, INK, MARGIN, Sheet
from geo3d.viz.viewpoint import Viewpoint

#: Width and height of a panel, pixels, by how many there are.
_SIZES = {1: (860, 600), 2: (600, 480)}
_SMALL = (460, 400)
_TITLE, _LINE, _SWATCH = 30, 20, 13
_NARROWEST = 640
_SPACES_IN_A_ROW = 4
_LEGEND_COLUMN = 150
_MARK = 7  # radius of a ring, pixels
_SCALE_WIDTH = 220
_LARGEST_IMAGE = (520, 420)


def panel_size(picture: Picture3D) -> tuple[int, int]:
    """Width and height of each panel in 3D, pixels."""
    return _SIZES.get(len(picture.spaces), _SMALL)


def compose(picture: Picture3D, cells: Sequence[np.ndarray], title: bool = True) -> np.ndarray:
    """A picture on one sheet.

    Args:
        picture: what it says.
        cells: (H, W, 3) uint8 of its spaces, drawn; none: the sheet shows the rest.
        title: whether its title is written.

    Returns:
        (H, W, 3) uint8.
    """
    drawn = [(space.caption, Image.fromarray(cell)) for space, cell in zip(picture.spaces, cells)]
    images = [(panel.caption, _fitted(panel, picture.columns == 1)) for panel in picture.images]
    rows = [*_rows(drawn, _SPACES_IN_A_ROW), *_rows(images, picture.columns)]
    width = max([_NARROWEST, *(sum(image.width + MARGIN for _, image in row) + MARGIN for row in rows)])
    inner = width - 2 * MARGIN
    columns = max(1, inner // _LEGEND_COLUMN)
    legend_rows = -(-len(picture.legend) // columns)
    notes = [line for note in picture.notes for line in _wrapped(note, inner)]
    height = MARGIN + (_TITLE if title else 0) + sum(_LINE + _height(row) + MARGIN for row in rows)
    height += (legend_rows + (picture.scale is not None) + len(notes)) * _LINE + MARGIN
    sheet = Sheet(width, height)
    top = MARGIN
    if title:
        sheet.draw.text((MARGIN, top), picture.title, fill=INK, font=ImageFont.load_default(17))
        top += _TITLE
    for row in rows:
        left = MARGIN
        for caption, image in row:
            sheet.write(caption, left, top, image.width)
            sheet.put(image, left, top + _LINE)
            left += image.width + MARGIN
        top += _LINE + _height(row) + MARGIN
    for number, (name, color) in enumerate(picture.legend):
        left = MARGIN + number % columns * _LEGEND_COLUMN
        at = top + number // columns * _LINE
        sheet.draw.rectangle((left, at + 2, left + _SWATCH, at + 2 + _SWATCH), fill=tuple(map(int, color)))
        sheet.write(name, left + _SWATCH + 6, at, _LEGEND_COLUMN - _SWATCH - 12)
    top += legend_rows * _LINE
    if picture.scale is not None:
        _draw_scale(sheet, picture.scale, top)
        top += _LINE
    for line in notes:
        sheet.write(line, MARGIN, top)
        top += _LINE
    return sheet.pixels()


def _rows(panels: list[tuple[str, Image.Image]], columns: int) -> list[list[tuple[str, Image.Image]]]:
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def _height(row: list[tuple[str, Image.Image]]) -> int:
    return max(image.height for _, image in row)


def draw_markers(cell: np.ndarray, space: Space, viewpoint: Viewpoint) -> np.ndarray:
    """A drawn panel with the markers of its space on top: a ring and a text each."""
    if not space.markers:
        return cell
    image = Image.fromarray(cell)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    uv, _ = viewpoint.project(np.array([m.place for m in space.markers], float), image.size)
    for marker, (u, v) in zip(space.markers, uv):
        if not np.isfinite([u, v]).all():
            continue
        for radius, color, line in ((_MARK + 2, BACKGROUND, 6), (_MARK, marker.color, 3)):
            draw.ellipse((u - radius, v - radius, u + radius, v + radius), outline=color, width=line)
        if marker.text:
            wide = font.getlength(marker.text)
            left = u + _MARK + 5 if u + _MARK + 5 + wide < image.width else u - _MARK - 5 - wide
            draw.text((left, v - 9), marker.text, INK, font, stroke_width=3, stroke_fill=BACKGROUND)
    return np.asarray(image)


def _draw_scale(sheet: Sheet, scale: Scale, top: int) -> None:
    ramp = value_colors(np.linspace(0, 1, _SCALE_WIDTH), 0, 1)
    low, high = (f"{value:.3g}" for value in (scale.low, scale.high))
    sheet.write(low, MARGIN, top)
    left = MARGIN + int(ImageFont.load_default(13).getlength(low)) + 6
    sheet.put(np.tile(ramp, (_SWATCH, 1, 1)), left, top + 2)
    sheet.write(f"{high}   {scale.label}", left + _SCALE_WIDTH + 6, top)


def _fitted(panel: ImagePanel, alone: bool) -> Image.Image:
    """An image in the room that it gets: small ones are made larger, so that their pixels are seen."""
    image = Image.fromarray(panel.pixels)
    share = min(_LARGEST_IMAGE[0] / image.width, _LARGEST_IMAGE[1] / image.height)
    if share >= 2:
        whole = int(share)
        return image.resize((whole * image.width, whole * image.height), Image.Resampling.NEAREST)
    if share < 1 and alone:  # a sheet of its own, which has to stay readable
        share = min(1.0, 2 * _LARGEST_IMAGE[0] / image.width)
    if share < 1:
        return image.resize((max(1, round(share * image.width)), max(1, round(share * image.height))))
    return image


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a text that are no wider than so many pixels, broken between words."""
    font, lines = ImageFont.load_default(13), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


__all__ = ["compose", "draw_markers", "panel_size"]
