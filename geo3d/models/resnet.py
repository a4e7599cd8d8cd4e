"""ResNet with bottleneck blocks (He et al., CVPR 2016), under the parameter names that timm and torchvision share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.models.image_encoder import PyramidEncoder
from geo3d.nn.channel_norm import SampleDropPath

_EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet; the defaults are those of ResNet-50."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each of the four stages."""
    width: int = 64
    """Channels of the stem; a stage's output has 4, 8, 16 and 32 times as many."""
    drop_path_rate: float = 0.0
    """Probability to drop the residual of the last block; earlier ones less, in proportion."""

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise InputError(f"ResNet: depths must be four whole numbers from 1 on, got {self.depths}")
        if self.width < 1:
            raise InputError(f"ResNet: width must be a whole number from 1 on, got {self.width!r}")
        if not 0 <= self.drop_path_rate < 1:
            raise InputError(f"ResNet: drop_path_rate must lie in [0, 1), got {self.drop_path_rate}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps of strides 4, 8, 16 and 32."""
        return tuple(self.width * _EXPANSION * 2**stage for stage in range(4))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, drop_path: float) -> None:
        super().__init__()
        out = width * _EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = SampleDropPath(drop_path)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 x width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.drop_path(self.bn3(self.conv3(x))) + shortcut)


class ResNet(PyramidEncoder):
    """A ResNet without classifier.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "resnet"

    def __init__(self, config: ResNetConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or ResNetConfig()
        self.conv1 = nn.Conv2d(3, config.width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        total, number, channels = sum(config.depths), 0, config.width
        for stage, depth in enumerate(config.depths):
            blocks = []
            for block in range(depth):
                rate = config.drop_path_rate * number / max(1, total - 1)
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(channels, config.width * 2**stage, stride, rate))
                channels, number = config.channels[stage], number + 1
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: He-normal kernels by their outputs; a block's last norm begins at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The stem, then the blocks of all stages."""
        blocks = [(f"layer{n}.{b}.",) for n, depth in enumerate(self.config.depths, 1) for b in range(depth)]
        return [("conv1.", "bn1."), *blocks]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> the maps of strides 4, 8, 16 and 32."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps
