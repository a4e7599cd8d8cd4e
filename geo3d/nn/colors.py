"""Colours as networks for images read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geo3d.geometry.byte_colors import byte_color_tensor


class ColorScale(NamedTuple):
    """What is taken off the colours in [0, 1] that a network reads, and by what they are then divided."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


#: ImageNet's mean and standard deviation of colours in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
IMAGENET = ColorScale(IMAGE_MEAN, IMAGE_STD)
#: Colours in [-1, 1], as DUSt3R reads them.
CENTRED = ColorScale((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def normalise(images: Tensor, scale: ColorScale = IMAGENET) -> Tensor:
    """(B, H, W, 3), uint8 or floats in [0, 1] -> normalised float32 (B, 3, H, W)."""
    mean, std = (torch.tensor(v, device=images.device) for v in scale)
    colors = images if images.is_floating_point() else images.float() / 255
    return ((colors - mean) / std).permute(0, 3, 1, 2)


def denormalise(images: Tensor, scale: ColorScale = IMAGENET) -> Tensor:
    """Inverse of :func:`normalise`, clipped to what a screen shows: (B, 3, H, W) -> uint8 (B, H, W, 3)."""
    mean, std = (torch.tensor(v, device=images.device) for v in scale)
    return byte_color_tensor(images.permute(0, 2, 3, 1) * std + mean)
