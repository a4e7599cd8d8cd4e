"""Gains of photos: how much brighter each is than the field, a number for each channel."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

#: Pixels of a photo after which its sums have forgotten: many enough to be sure of, few enough to follow the field.
_PIXELS = 1000.0
#: Weight of the belief in a gain of 1: as many pixels of squared brightness 1.
_BELIEF = 5.0
_LARGEST = 4.0


class Exposure:
    """Gains that fit the field's colours to the photos' by least squares, the mean of their logarithms 0.

    Args:
        photos: how many.
    """

    def __init__(self, photos: int) -> None:
        self.products = torch.zeros(photos, 3, dtype=torch.float64)  # of colours seen and of the photo
        self.squares = torch.zeros(photos, 3, dtype=torch.float64)  # of colours seen

    def gains(self) -> Tensor:
        """(V, 3) float32."""
        gain = ((self.products + _BELIEF) / (self.squares + _BELIEF)).clamp(1 / _LARGEST, _LARGEST)
        logarithm = gain.log()
        return (logarithm - logarithm.mean(0)).exp().float()

    def update(self, photo: Tensor, seen: Tensor, target: Tensor) -> None:
        """Take in a step: photos (R,), colours of the field (R, 3) and of the photos, as they are (R, 3)."""
        kept = math.exp(-len(photo) / (_PIXELS * len(self.products)))
        self.products *= kept
        self.squares *= kept
        numbers, seen, target = photo.cpu().numpy(), seen.cpu().double().numpy(), target.cpu().double().numpy()
        for sums, values in ((self.products, seen * target), (self.squares, seen * seen)):
            # numpy's sums go in order, whatever the number of threads.
            columns = [np.bincount(numbers, values[:, channel], len(sums)) for channel in range(3)]
            sums += torch.from_numpy(np.stack(columns, 1))


def best_gain(seen: Tensor, target: Tensor) -> Tensor:
    """(3,) gain a channel that brings colours (..., 3) nearest to a photo's, by least squares."""
    seen, target = seen.reshape(-1, 3), target.reshape(-1, 3)
    return (seen * target).sum(0) / seen.square().sum(0).clamp_min(1e-12)


__all__ = ["Exposure", "best_gain"]
