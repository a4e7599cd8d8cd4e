"""The light U-Net that decodes SparK's maps into pixels (SparK, section 3.2 and appendix)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.batch_norm import SyncBatchNorm2d

_STD = 0.02
#: From so many channels on a CPU turns kernels round for channels-last maps for longer than it convolves.
WIDE = 512
_HALF = (torch.bfloat16, torch.float16)


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

    def forward(self, x: Tensor, plain: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, C / 2, 2 h, 2 w); see :meth:`UNetDecoder.forward`."""
        if plain or x.device.type != "cpu":
            return self.conv(self.up_sample(x))
        if x.shape[1] < WIDE:
            return self.conv(self.up_sample(x.contiguous(memory_format=torch.channels_last)))
        half = x.dtype in _HALF or torch.is_autocast_enabled("cpu")
        up = _up_sample_by_product(x, self.up_sample) if half else self.up_sample(x.contiguous())
        return self.conv(up.contiguous())


def _up_sample_by_product(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """The transposed convolution as one matrix product whose (C, 4, 4) results are added up where they overlap."""
    b, c, height, width = x.shape
    weight = layer.weight.flatten(1)
    columns = torch.matmul(x.permute(0, 2, 3, 1).reshape(b, height * width, c), weight).transpose(1, 2)
    y = F.fold(columns, (2 * height, 2 * width), layer.kernel_size, padding=layer.padding, stride=layer.stride)
    return y + layer.bias.to(y.dtype).view(-1, 1, 1)


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

    def forward(self, maps: Sequence[Tensor], plain: bool = False) -> Tensor:
        """Decode maps of several scales.

        Args:
            maps: (B, C, h, w), coarsest first, each of half the channels and twice the sides of the one before.
            plain: layer after layer as PyTorch has them. Otherwise each block on a CPU has the layout in memory, and
                in half precision the algorithm, that is quickest for its width; the numbers are the same.

        Returns:
            (B, 3, H, W).
        """
        x = 0
        for number, block in enumerate(self.dec):
            x = block(x + maps[number] if number < len(maps) else x, plain)
        return self.proj(x)
