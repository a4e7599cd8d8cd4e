"""The light U-Net that decodes SparK's maps into pixels (SparK, section 3.2 and appendix)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geo3d.nn.batch_norm import SyncBatchNorm2d

_STD = 0.02


class UNetBlock(nn.Module):
    """Doubles the sides and halves the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(channels, channels, 4, 2, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            SyncBatchNorm2d(channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False),
            SyncBatchNorm2d(channels // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C / 2, 2 h, 2 w)."""
        return self.conv(self.up_sample(x))


class UNetDecoder(nn.Module):
    """Blocks from the coarsest scale to the pixels; maps of finer scales are added on the way.

    Args:
        width: channels of the coarsest map.
        blocks: how many times the sides are doubled.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.dec = nn.ModuleList(UNetBlock(width // 2**number) for number in range(blocks))
        self.proj = nn.Conv2d(width // 2**blocks, 3, 1)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: truncated normal kernels, He-normal ones where sides are doubled, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w), coarsest first, each of half the channels and twice the sides -> (B, 3, H, W)."""
        x = 0
        for number, block in enumerate(self.dec):
            x = block(x + maps[number] if number < len(maps) else x)
        return self.proj(x)
