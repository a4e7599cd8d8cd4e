"""ConvNeXt (Liu et al., CVPR 2022), under its authors' parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.models.image_encoder import PyramidEncoder
from geo3d.nn.channel_norm import ChannelNorm, SampleDropPath

_EPS = 1e-6
_LAYER_SCALE = 1e-6
_STD = 0.02


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Sizes of a ConvNeXt; the defaults are those of the small one."""

    depths: tuple[int, ...] = (3, 3, 27, 3)
    """Blocks of each of the four stages."""
    channels: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of each stage."""
    drop_path_rate: float = 0.0
    """Probability to drop the residual of the last block; earlier ones less, in proportion."""

    def __post_init__(self) -> None:
        for name in ("depths", "channels"):
            sizes = getattr(self, name)
            if len(sizes) != 4 or min(sizes) < 1:
                raise InputError(f"ConvNeXt: {name} must be four whole numbers from 1 on, got {sizes}")
        if not 0 <= self.drop_path_rate < 1:
            raise InputError(f"ConvNeXt: drop_path_rate must lie in [0, 1), got {self.drop_path_rate}")


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7 convolution and an MLP at every site, scaled, beside a shortcut."""

    interior: ClassVar = ("pwconv1",)

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), _LAYER_SCALE))
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.drop_path = SampleDropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        sites = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        sites = self.gamma * self.pwconv2(self.act(self.pwconv1(sites)))
        return x + self.drop_path(sites.permute(0, 3, 1, 2))


class ConvNeXt(PyramidEncoder):
    """A ConvNeXt without last norm and classifier.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "convnext"

    def __init__(self, config: ConvNeXtConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or ConvNeXtConfig()
        channels = config.channels
        stem = nn.Sequential(nn.Conv2d(3, channels[0], 4, 4), ChannelNorm(channels[0], eps=_EPS))
        steps = [
            nn.Sequential(ChannelNorm(fine, eps=_EPS), nn.Conv2d(fine, coarse, 2, 2))
            for fine, coarse in pairwise(channels)
        ]
        self.downsample_layers = nn.ModuleList([stem, *steps])
        total = sum(config.depths)
        rates = iter([config.drop_path_rate * number / max(1, total - 1) for number in range(total)])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width, next(rates)) for _ in range(depth)))
            for width, depth in zip(channels, config.depths)
        )
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: truncated normal kernels and matrices, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD, generator=generator)
                nn.init.zeros_(module.bias)

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The stem, then the blocks of all stages; the way down belongs to the first block after it."""
        layers: list[tuple[str, ...]] = [("downsample_layers.0.",)]
        for stage, depth in enumerate(self.config.depths):
            blocks = [(f"stages.{stage}.{block}.",) for block in range(depth)]
            layers += blocks if stage == 0 else [(f"downsample_layers.{stage}.", *blocks[0]), *blocks[1:]]
        return layers

    def maps(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> the maps of strides 4, 8, 16 and 32."""
        x, maps = images, []
        for downsample, stage in zip(self.downsample_layers, self.stages):
            x = stage(downsample(x))
            maps.append(x)
        return maps
