"""A feature pyramid over maps of a grid: what coarse maps know is handed down to finer ones (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Maps of several strides made alike in channels, each joined with those coarser than it; published names.

    Args:
        channels: of the maps that come in, the finest first.
        out: of those that go out.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv3d(own, out, 1) for own in channels)
        self.fpn_convs = nn.ModuleList(nn.Conv3d(out, out, 3, padding=1) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, x, y, z) -> as many (B, out, x, y, z); coarse ones are enlarged by the nearest value."""
        joined = [lateral(features) for lateral, features in zip(self.lateral_convs, maps, strict=True)]
        for level in range(len(joined) - 1, 0, -1):
            joined[level - 1] = joined[level - 1] + F.interpolate(joined[level], size=joined[level - 1].shape[2:])
        return [smooth(features) for smooth, features in zip(self.fpn_convs, joined, strict=True)]


__all__ = ["FeaturePyramid"]
