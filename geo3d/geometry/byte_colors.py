"""Colours in [0, 1] as bytes, as files and screens hold them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def byte_colors(colors: np.ndarray) -> np.ndarray:
    """Colours in [0, 1], of any shape, as uint8; those that were made of 8 bits come back exactly.

    What lies beyond is clipped; not-a-number is the caller's to replace.
    """
    return (colors.clip(0, 1) * 255).round().astype(np.uint8)


def byte_color_tensor(colors: Tensor) -> Tensor:
    """:func:`byte_colors` of a tensor, on its device."""
    return (colors.clamp(0, 1) * 255).round().to(torch.uint8)


__all__ = ["byte_color_tensor", "byte_colors"]
