"""A skip decoder over dense grids of voxels (UNETR, section 3.2, as NeRF-MAE has it)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Of leaky ReLUs below zero.
SLOPE = 0.01


class VolumeResidual(nn.Module):
    """Two 3 x 3 x 3 convolutions with instance norms and a shortcut, with published names.

    Norms have neither weights nor running statistics; where the channels change, the shortcut is a 1 x 1 x 1
    convolution with a norm.

    Args:
        channels: that come in.
        out: that go out.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv3d(out, out, 3, padding=1)
        if channels != out:
            self.conv3 = nn.Conv3d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> (B, out, x, y, z)."""
        y = F.leaky_relu(F.instance_norm(self.conv1(x)), SLOPE)
        y = F.instance_norm(self.conv2(y))
        shortcut = F.instance_norm(self.conv3(x)) if hasattr(self, "conv3") else x
        return F.leaky_relu(y + shortcut, SLOPE)


class VolumeUp(nn.Module):
    """Raises the sides, joins a finer map where there is one, and refines.

    Args:
        channels: that come in.
        out: that go out, and of the map that is joined.
        stride: by which sides are multiplied.
        skip: whether a finer map is joined.
    """

    def __init__(self, channels: int, out: int, stride: int = 2, skip: bool = True) -> None:
        super().__init__()
        self.transp_conv = nn.ConvTranspose3d(channels, out, stride, stride)
        self.conv_block = VolumeResidual(2 * out if skip else out, out)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, C, x, y, z) and the finer map (B, out, s x, s y, s z) -> (B, out, s x, s y, s z)."""
        up = self.transp_conv(x)
        return self.conv_block(up if skip is None else torch.cat([up, skip], 1))


@torch.no_grad()
def draw_convolutions(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw fresh weights of all convolutions in a module, evenly between bounds that keep the scale of what they read.

    Args:
        module: its own weights too, where it is a convolution.
        generator: draws; torch's global one when not given.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            fan = layer.in_channels * math.prod(layer.kernel_size)
            if isinstance(layer, nn.ConvTranspose3d):  # kernels do not overlap: each output reads one cell
                fan = layer.in_channels
            bound = fan**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


__all__ = ["SLOPE", "VolumeResidual", "VolumeUp", "draw_convolutions"]
