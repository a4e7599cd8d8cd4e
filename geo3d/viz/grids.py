"""Pictures of radiance grids: slices, and what is seen along an axis."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.viz.points import label_colors

#: What lies behind a grid that lets light through: white.
_BEHIND = 1.0
#: Share of the height to look at from above, so that no ceiling hides a room.
BELOW_CEILING = 0.7


def slice_of(values: Tensor, axis: int, number: int | None = None) -> np.ndarray:
    """A layer of voxels, as opaque as they are, over white.

    Args:
        values: (4, X, Y, Z) red, green, blue and opacity, in [0, 1]; beyond it they are clipped.
        axis: across the layer: 0, 1 or 2 for x, y or z.
        number: of the layer; the middle one when not given.

    Returns:
        (H, W, 3) uint8: columns are the first of the remaining axes, rows the other one from its end down, so that z is
        up, and y is up in a layer across z.
    """
    number = values.shape[axis + 1] // 2 if number is None else number
    return _pixels(_over(values.float().clamp(0, 1).select(axis + 1, number)))


def label_slice(labels: Tensor, classes: int, axis: int, number: int) -> np.ndarray:
    """A layer of voxels by their classes, white where there is none.

    Args:
        labels: (X, Y, Z) int64, -1 where there is none.
        classes: how many there are.
        axis, number: as :func:`slice_of` takes them.

    Returns:
        (H, W, 3) uint8, as :func:`slice_of` lays it out.
    """
    colors = np.array([*label_colors(classes)[:-1].tolist(), (255, 255, 255)], dtype=np.uint8)
    layer = labels.select(axis, number).cpu().numpy()
    return colors[layer].transpose(1, 0, 2)[::-1]


def seen_along(values: Tensor, axis: int, near: float = 0.0, far: float = 1.0) -> np.ndarray:
    """What is seen along an axis from its far end back, by parallel rays, over white.

    Args:
        values: (4, X, Y, Z) as :func:`slice_of` takes them.
        axis: 0, 1 or 2: along x, y or z; along z is from above.
        near, far: shares of the axis between which voxels are looked at, such as 0 and 0.6 to leave out a ceiling.

    Returns:
        (H, W, 3) uint8, as :func:`slice_of` lays it out.
    """
    values = values.float().clamp(0, 1).movedim(axis + 1, 0)
    layers = values[round(near * len(values)) : max(round(near * len(values)) + 1, round(far * len(values)))]
    picture = torch.full_like(layers[0, :3], _BEHIND)
    for layer in layers:
        picture = layer[:3] * layer[3:] + picture * (1 - layer[3:])
    return _pixels(picture)


def _over(layer: Tensor) -> Tensor:
    return layer[:3] * layer[3:] + _BEHIND * (1 - layer[3:])


def _pixels(picture: Tensor) -> np.ndarray:
    """(3, first, second) -> (second, first, 3) uint8, the second axis upwards."""
    return byte_color_tensor(picture).permute(2, 1, 0).flip(0).cpu().numpy()


__all__ = ["BELOW_CEILING", "label_slice", "seen_along", "slice_of"]
