"""The cloud that benchmarks of point operators share."""

from __future__ import annotations

import torch
from torch import Tensor


def surface_points(count: int, seed: int = 0) -> Tensor:
    """(count, 3) float32 points in random order on a wavy surface of 5 by 4 m, with 2 cm of noise."""
    u, v, noise = torch.rand(3, count, generator=torch.Generator().manual_seed(seed))
    return torch.stack([5 * u, 4 * v, (6 * u).sin() + (5 * v).cos() + 0.02 * noise], 1)
