"""Layer normalisation over the channels of maps, and paths dropped sample by sample: layers of ConvNeXt and ResNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the channels of every site of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, channels last in memory."""
        rows = x.permute(0, 2, 3, 1)
        return F.layer_norm(rows, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class SampleDropPath(nn.Module):
    """Drops the residual of each sample on its own, and scales up those that stay; the identity in evaluation mode.

    Args:
        rate: probability to drop.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, batch: int, x: Tensor) -> Tensor:
        """(batch,) factors in the dtype of ``x``: 0, or what makes up for those that are 0."""
        kept = 1 - self.rate
        return (torch.rand(batch, device=x.device) < kept).to(x.dtype).div(kept)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0:
            return x
        return x * self.draw(len(x), x).view(-1, *[1] * (x.ndim - 1))
