"""Where a lens looks in an image: its principal point, and how square its pixels are."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Pixels = TypeVar("Pixels", Tensor, np.ndarray)


class LensCentre(NamedTuple):
    """Principal point, and the shape of the pixels.

    Args:
        x, y: pixel where the axis of the lens meets the image; the centre of the first pixel is (0, 0).
        aspect: focal length along x over that along y. Of a photo it is 1; resized to whole pixels, it is a little off.
    """

    x: float
    y: float
    aspect: float = 1.0


#: A :class:`LensCentre`, or pixel (x, y) of a lens whose pixels are square.
PrincipalPoint = LensCentre | tuple[float, float] | Tensor


def centre(height: int, width: int) -> LensCentre:
    """Where the axis of a lens usually meets an image: its middle."""
    return LensCentre((width - 1) / 2, (height - 1) / 2)


def lens_centre(given: PrincipalPoint) -> LensCentre:
    """A principal point in any form."""
    return LensCentre(*(float(value) for value in given))


def thinned_centre(given: PrincipalPoint, every: int) -> LensCentre:
    """Principal point of an image of which every so many pixels are taken, from half of that on."""
    x, y, aspect = lens_centre(given)
    return LensCentre((x - every // 2) / every, (y - every // 2) / every, aspect)


def from_centre(pixels: Pixels, given: PrincipalPoint) -> Pixels:
    """Pixels (..., 2) from the principal point, as the focal length along x counts them."""
    x, y, aspect = lens_centre(given)
    parts = pixels[..., 0] - x, (pixels[..., 1] - y) * aspect
    return torch.stack(parts, -1) if isinstance(pixels, Tensor) else np.stack(parts, -1)


def pixel_centres(height: int, width: int) -> Tensor:
    """(H, W, 2) float64 pixels (x, y) of an image."""
    axes = (torch.arange(size, dtype=torch.float64) for size in (width, height))
    return torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)


__all__ = ["LensCentre", "PrincipalPoint", "centre", "from_centre", "lens_centre", "pixel_centres", "thinned_centre"]
