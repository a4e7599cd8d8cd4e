"""Pictures of objects in radiance grids: their boxes from above."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from geo3d.viz.grids import BELOW_CEILING, seen_along
from geo3d.viz.sheet import captioned_sheet

_SIDE = 320  # of a panel, pixels
_LINE = (220, 30, 30)


def boxes_from_above(values: Tensor, panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """A grid from above, once for each set of boxes, which are drawn into it as outlines.

    Args:
        values: (4, X, Y, Z) red, green, blue and opacity.
        panels: caption -> (N, 4, 2) corners of boxes, x and y in voxels.

    Returns:
        (H, W, 3) uint8.
    """
    seen = seen_along(values, 2, 0, BELOW_CEILING)
    height, width = seen.shape[:2]
    zoom = max(1, round(_SIDE / max(height, width)))
    drawn = []
    for corners in panels.values():
        picture = Image.fromarray(seen).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(picture)
        for outline in np.asarray(corners, dtype=np.float64):
            places = [(zoom * x, zoom * (height - y)) for x, y in outline]
            draw.line([*places, places[0]], fill=_LINE, width=2)
        drawn.append(np.asarray(picture))
    return captioned_sheet(np.stack(drawn)[None], list(panels))


__all__ = ["boxes_from_above"]
