"""Dense prediction from tokens of a vision transformer: DPT (Ranftl et al., ICCV 2021) as CroCo and DUSt3R have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.errors import InputError

#: Channels of the four levels, and of what they are joined in, as published.
LEVELS, WIDTH = (96, 192, 384, 768), 256
#: Standard deviation of the weights of a fresh head's last layer.
_SMALL = 0.01


def hook_layers(depth: int) -> tuple[int, int, int, int]:
    """Entries, of a list of ``depth + 1``, that the four levels read where the first is the encoder's output."""
    return 0, depth // 2, depth * 3 // 4, depth


@torch.no_grad()
def draw_head(head: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights of a fresh head: PyTorch's own, as the published ones begin, and in the last layer near 0.

    Larger values are soon all shrunk to one constant, which it takes a small network a hundred steps and more to leave
    again; and confidences as large as Xavier's are beyond what criteria bound.

    Args:
        head: a :class:`DPTHead` or :class:`PixelHead`.
        generator: draws the weights.
    """
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    nn.init.normal_(head.last_layer.weight, std=_SMALL, generator=generator)
    nn.init.zeros_(head.last_layer.bias)


class ResidualUnit(nn.Module):
    """Two pre-activated convolutions and what they began with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """Joins a level to what comes from the coarser ones, and doubles its sides.

    Args:
        width: channels.
        alone: nothing comes from coarser levels: the unit for it stays unused, and out of training.
    """

    def __init__(self, width: int, alone: bool = False) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = ResidualUnit(width).requires_grad_(not alone)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, coarser: Tensor | None, level: Tensor) -> Tensor:
        """(B, C, H, W), both -> (B, C, 2 H, 2 W)."""
        x = level if coarser is None else coarser + self.resConfUnit1(level)
        x = F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class _Scratch(nn.Module):
    """Under the published name, what brings the levels to one width and joins them."""

    def __init__(self, levels: Sequence[int], width: int) -> None:
        super().__init__()
        for number, channels in enumerate(levels, 1):
            self.add_module(f"layer{number}_rn", nn.Conv2d(channels, width, 3, padding=1, bias=False))
        for number in range(1, len(levels) + 1):
            self.add_module(f"refinenet{number}", FusionBlock(width, alone=number == len(levels)))


class DPTHead(nn.Module):
    """Four levels of tokens -> a map at the image's size.

    The tokens become maps of strides 1/4, 1/2, 1 and 2 patches, which are joined from coarse to fine. Parameters have
    the published names, each once; published files list some twice, see ``geo3d.checkpoints.dpt``.

    Args:
        inputs: channels of the tokens of the four levels.
        channels: of the map.
        patch_size: pixels along a side of a token, a multiple of 4.
        levels, width, last: channels within; ``last`` are those before the last layer (CroCo: 32, DUSt3R: 128).
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        patch_size: int = 16,
        levels: Sequence[int] = LEVELS,
        width: int = WIDTH,
        last: int = 32,
    ) -> None:
        super().__init__()
        if patch_size % 4:
            raise InputError(f"DPTHead: patch_size must be a multiple of 4, got {patch_size}")
        self.patch_size = patch_size
        a, b, _, d = levels
        self.act_postprocess = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, level, 1), *steps)
            for dim, level, steps in zip(
                inputs,
                levels,
                (
                    [nn.ConvTranspose2d(a, a, 4, 4)],
                    [nn.ConvTranspose2d(b, b, 2, 2)],
                    [],
                    [nn.Conv2d(d, d, 3, 2, 1)],
                ),
                strict=True,
            )
        )
        self.scratch = _Scratch(levels, width)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(width // 2, last, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last, channels, 1),
        )

    @property
    def last_layer(self) -> nn.Conv2d:
        """The layer whose output is the map."""
        return self.head[-1]

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Have a fresh head begin with these values (up to ``channels``) at every pixel: biases of its last layer."""
        self.last_layer.bias[: len(values)] = values

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Predict.

        Args:
            tokens: four (B, N, C) of one image, row-major.
            grid: their rows and columns; odd ones too.

        Returns:
            (B, channels, rows * patch_size, columns * patch_size).
        """
        maps = [level.transpose(1, 2).unflatten(2, grid) for level in tokens]
        maps = [step(level) for step, level in zip(self.act_postprocess, maps, strict=True)]
        levels = [getattr(self.scratch, f"layer{n}_rn")(level) for n, level in enumerate(maps, 1)]
        x = None
        for number in range(len(levels), 0, -1):
            level = levels[number - 1]
            if x is not None:  # of an odd grid the coarsest level, doubled, is one row or column larger
                x = x[..., : level.shape[2], : level.shape[3]]
            x = getattr(self.scratch, f"refinenet{number}")(x, level)
        if self.patch_size != 16:  # the last doubling leads to a patch's pixels, whatever their number
            sides = [side * self.patch_size // 2 for side in grid]
            x = F.interpolate(x, sides, mode="bilinear", align_corners=True)
        return self.head(x)


class PixelHead(nn.Module):
    """Tokens -> a map at the image's size, each token its patch of pixels by one linear layer.

    Args:
        dim: channels of the tokens.
        channels: of the map.
        patch_size: pixels along a side of a token.
        channels_last: what is fastest in a token's output: the channels (CroCo), or the pixels of a row (DUSt3R).
    """

    def __init__(self, dim: int, channels: int, patch_size: int = 16, channels_last: bool = False) -> None:
        super().__init__()
        self.patch_size, self.channels_last = patch_size, channels_last
        self.proj = nn.Linear(dim, channels * patch_size**2)

    @property
    def last_layer(self) -> nn.Linear:
        """The layer whose output is the map."""
        return self.proj

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """As :meth:`DPTHead.start_at`."""
        bias = self.proj.bias
        by_channel = bias.view(self.patch_size**2, -1).T if self.channels_last else bias.view(-1, self.patch_size**2)
        by_channel[: len(values)] = values[:, None]

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, channels, rows * patch_size, columns * patch_size)."""
        out = self.proj(tokens)
        if self.channels_last:
            out = out.unflatten(2, (self.patch_size**2, -1)).transpose(2, 3).flatten(2)
        return tokens_to_pixels(out, grid, self.patch_size)


def tokens_to_pixels(tokens: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """(B, N, channels * patch_size^2), channels slowest -> (B, channels, rows * patch_size, columns * patch_size)."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), patch_size)


__all__ = [
    "LEVELS",
    "WIDTH",
    "DPTHead",
    "FusionBlock",
    "PixelHead",
    "ResidualUnit",
    "draw_head",
    "hook_layers",
    "tokens_to_pixels",
]
