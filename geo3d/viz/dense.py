"""Maps of numbers as pictures: depth, disparity and errors by a scale of colours, optical flow by a wheel of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from geo3d.viz.sheet import MARGIN, Sheet

_UNKNOWN = 153  # grey
#: Of legends, pixels: widest panel, narrowest room for one, height of a line, side of the wheel.
_PANEL, _NARROWEST, _LINE, _WHEEL = 640, 200, 16, 56


def coloured(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(h, w) numbers -> (h, w, 3) uint8 colours, from yellow at ``low`` to dark blue at ``high``; grey where NaN."""
    import matplotlib

    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    colours = matplotlib.colormaps["viridis_r"](np.nan_to_num(share))[..., :3]
    colours[np.isnan(values)] = _UNKNOWN / 255
    return (255 * colours).astype(np.uint8)


def flow_colours(flow: np.ndarray, longest: float) -> np.ndarray:
    """(h, w, 2) flow -> (h, w, 3) uint8: direction as hue, length as saturation up to ``longest``; grey where NaN."""
    from matplotlib.colors import hsv_to_rgb

    known = np.isfinite(flow).all(-1)
    x, y = np.moveaxis(np.where(known[..., None], flow, 0), -1, 0)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1.0
    saturation = np.clip(np.hypot(x, y) / max(longest, 1e-9), 0, 1)
    colours = (255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1))).astype(np.uint8)
    return np.where(known[..., None], colours, np.uint8(_UNKNOWN))


def with_legend(panels: Mapping[str, np.ndarray], legends: Mapping[str, tuple[str, str] | str]) -> np.ndarray:
    """Pictures side by side, each under its caption and over a legend of its colours.

    Args:
        panels: caption -> (h, w, 3) uint8, all of one size; wide ones are shrunk.
        legends: caption -> what the two ends of :func:`coloured` stand for, or what the rim of the wheel of
            :func:`flow_colours` does; panels that are not named have none.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = next(iter(panels.values())).shape[:2]
    zoom = min(_PANEL / width, 1.0)
    size = max(round(width * zoom), 1), max(round(height * zoom), 1)
    left, room = MARGIN, max(size[0], _NARROWEST)
    tall = any(isinstance(legend, str) for legend in legends.values())
    sheet = Sheet(
        len(panels) * (room + MARGIN) + MARGIN, size[1] + _LINE + (_WHEEL if tall else 2 * _LINE) + 3 * MARGIN
    )
    for caption, pixels in panels.items():
        sheet.write(caption, left, MARGIN, room)
        sheet.put(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), left, MARGIN + _LINE)
        below, legend = 2 * MARGIN + _LINE + size[1], legends.get(caption)
        if isinstance(legend, str):
            sheet.put(_wheel(), left, below)
            sheet.write(legend, left + _WHEEL + MARGIN, below + _WHEEL // 2 - _LINE // 2, room - _WHEEL - MARGIN)
        elif legend is not None:
            bar = coloured(np.tile(np.linspace(0, 1, room), (_LINE - 4, 1)), 0, 1)
            sheet.put(bar, left, below)
            sheet.write(legend[0], left, below + _LINE, room // 2)
            sheet.write(legend[1], left + room - round(sheet.length(legend[1])), below + _LINE)
        left += room + MARGIN
    return sheet.pixels()


def _wheel() -> np.ndarray:
    """Directions of flow as they are coloured, on white."""
    y, x = np.mgrid[:_WHEEL, :_WHEEL] - (_WHEEL - 1) / 2
    colors = flow_colours(np.stack([x, y], -1), _WHEEL / 2)
    return np.where((np.hypot(x, y) <= _WHEEL / 2)[..., None], colors, np.uint8(255))


__all__ = ["coloured", "flow_colours", "with_legend"]
