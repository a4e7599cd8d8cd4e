"""A Swin transformer over dense grids of voxels (Swin, section 3; NeRF-MAE, section 3.2 and its supplement)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.channel_norm import SampleDropPath

#: Voxels along a side of a token, and tokens along a side of a window.
PATCH, WINDOW = 4, 4
#: Tokens along a side of a block that is masked as a whole.
BLOCK = 4
#: Added to logits of tokens that do not see each other.
_HIDDEN = -100.0
_STD = 0.02
_FREQUENCY_BASE = 10000.0

Sides = tuple[int, int, int]


def volume_positions(dim: int, sides: Sides) -> Tensor:
    """Fixed sine-cosine embedding of the tokens of a grid.

    The first third of the channels encodes the index along the *second* axis, the next third that along the first, the
    last that along the third, as published. Each third is ``dim / 6`` sines, then as many cosines, at frequencies
    ``10000 ** (-k / (dim / 6))``. A token's row does not depend on the grid's sides.

    Args:
        dim: channels, a multiple of 6.
        sides: tokens along x, y and z.

    Returns:
        (x, y, z, dim) float32, computed in float64.

    Raises:
        ValueError: ``dim`` is not a multiple of 6.
    """
    if dim % 6:
        raise ValueError(f"volume_positions: dim must be a multiple of 6, got {dim}")
    sixth = dim // 6
    frequency = _FREQUENCY_BASE ** (-torch.arange(sixth, dtype=torch.float64) / sixth)
    table = torch.empty(*sides, dim)
    for part, axis in enumerate((1, 0, 2)):
        angle = torch.arange(sides[axis], dtype=torch.float64)[:, None] * frequency
        rows = torch.cat([angle.sin(), angle.cos()], 1).float()
        shape = [sides[axis] if other == axis else 1 for other in range(3)]
        table[..., 2 * part * sixth : 2 * (part + 1) * sixth] = rows.view(*shape, -1)
    return table


@lru_cache(maxsize=1)
def relative_position_index() -> Tensor:
    """(64, 64) int64: row of a window's bias table for each pair of its tokens, of the differences of their places."""
    axis = torch.arange(WINDOW)
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    difference = places.unsqueeze(1) - places + WINDOW - 1
    span = 2 * WINDOW - 1
    return (difference * torch.tensor([span * span, span, 1])).sum(-1)


def shifted(sides: Sides) -> Sides:
    """Tokens by which windows are shifted along each axis: half a window, where there is more than one."""
    return tuple(0 if side <= WINDOW else WINDOW // 2 for side in sides)


def padded(sides: Sides) -> Sides:
    """Sides rounded up to whole windows."""
    return tuple(-(-side // WINDOW) * WINDOW for side in sides)


def to_windows(x: Tensor) -> Tensor:
    """(B, x, y, z, C) of whole windows -> (B, W, 64, C)."""
    b, *sides, c = x.shape
    counts = [side // WINDOW for side in sides]
    split = x.view(b, counts[0], WINDOW, counts[1], WINDOW, counts[2], WINDOW, c)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, WINDOW**3, c)


def from_windows(windows: Tensor, sides: Sides) -> Tensor:
    """Inverse of :func:`to_windows`."""
    b, _, _, c = windows.shape
    counts = [side // WINDOW for side in sides]
    split = windows.view(b, *counts, WINDOW, WINDOW, WINDOW, c)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, *sides, c)


@lru_cache(maxsize=32)
def window_mask(sides: Sides, shift: Sides) -> Tensor | None:
    """What is added to the logits of shifted windows, where tokens from both ends of the grid lie side by side.

    Args:
        sides: of the grid, whole windows.
        shift: of the windows.

    Returns:
        (W, 64, 64) float32, 0 or -100; None where no window is shifted.
    """
    if not any(shift):
        return None
    region = torch.zeros(1, *sides, 1)
    for axis, (side, move) in enumerate(zip(sides, shift), 1):
        along = torch.zeros(side)
        if move:
            along[-WINDOW:-move], along[-move:] = 1, 2
        region += 3 ** (3 - axis) * along.view(*(side if other == axis else 1 for other in range(5)))
    numbers = to_windows(region)[0, :, :, 0]
    return _HIDDEN * (numbers.unsqueeze(1) != numbers.unsqueeze(2)).float()


class VolumeAttention(nn.Module):
    """Multi-head self-attention inside windows of 4 x 4 x 4 tokens, with a learnt bias by relative position.

    Args:
        dim: channels.
        heads: number of heads; divides ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 3, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def bias(self) -> Tensor:
        """(heads, 64, 64) of each pair of a window's tokens."""
        index = relative_position_index().to(self.relative_position_bias_table.device)
        return self.relative_position_bias_table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)

    def forward(self, x: Tensor, shift: bool) -> Tensor:
        """(B, x, y, z, C) -> (B, x, y, z, C).

        Sides are filled up to whole windows with tokens of zeros, which take part, as published.
        """
        sides = tuple(x.shape[1:4])
        whole = padded(sides)
        move = shifted(whole) if shift else (0, 0, 0)
        if whole != sides:
            x = F.pad(x, [0, 0, *(n for w, s in zip(whole[::-1], sides[::-1]) for n in (0, w - s))])
        if any(move):
            x = x.roll([-m for m in move], (1, 2, 3))
        windows = to_windows(x)
        b, count, tokens, c = windows.shape
        q, k, v = self.qkv(windows.flatten(0, 1)).view(b, count, tokens, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias().to(q.dtype)
        mask = window_mask(whole, move)
        if mask is not None:
            bias = bias + mask.to(q).unsqueeze(1)
        out = F.scaled_dot_product_attention(q, k, v, bias.expand(b, count, -1, -1, -1))
        x = from_windows(self.proj(out.transpose(2, 3).reshape(b, count, tokens, c)), whole)
        if any(move):
            x = x.roll(move, (1, 2, 3))
        return x[:, : sides[0], : sides[1], : sides[2]]


class VolumeBlock(nn.Module):
    """Pre-norm window attention and MLP; residuals are dropped by sample.

    Args:
        dim: channels.
        heads: number of heads.
        mlp_ratio: hidden channels of the MLP over its channels.
        drop_path: probability that a sample's residual is dropped.
        shift: whether windows are shifted by half their sides.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float, shift: bool) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = VolumeAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            OrderedDict({"0": nn.Linear(dim, hidden), "1": nn.GELU(), "3": nn.Linear(hidden, dim)})
        )
        self.drop_path = SampleDropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, x, y, z, C) -> (B, x, y, z, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), self.shift))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Halves the sides and doubles the channels: eight neighbours side by side, norm, linear.

    Args:
        dim: channels that come in.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, x, y, z, C) -> (B, x / 2, y / 2, z / 2, 2 C), sides rounded up: odd ones are filled with zeros."""
        if any(side % 2 for side in x.shape[1:4]):
            x = F.pad(x, [0, 0, *(n for side in reversed(x.shape[1:4]) for n in (0, side % 2))])
        b, *sides, c = x.shape
        halves = [side // 2 for side in sides]
        split = x.view(b, halves[0], 2, halves[1], 2, halves[2], 2, c)
        # As published, the parity along the first axis varies fastest.
        return self.reduction(self.norm(split.permute(0, 1, 3, 5, 6, 4, 2, 7).reshape(b, *halves, 8 * c)))


class SwinVolume(nn.Module):
    """The encoder: patches of 4 x 4 x 4 voxels, fixed positions, stages of window attention, with published names.

    Args:
        embed_dim: channels of the first stage, a multiple of 6; doubled by each further stage.
        depths: blocks of each stage.
        heads: of each stage.
        mlp_ratio: hidden channels of the MLPs over their channels.
        drop_path_rate: of the last block; it rises evenly from 0 at the first.
    """

    def __init__(
        self, embed_dim: int, depths: Sequence[int], heads: Sequence[int], mlp_ratio: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.patch_partition = nn.ModuleDict({"0": nn.Conv3d(4, embed_dim, PATCH, PATCH), "2": nn.LayerNorm(embed_dim)})
        total, number = sum(depths), 0
        self.stages = nn.ModuleList()
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            dim = embed_dim * 2**stage
            modules: list[nn.Module] = [PatchMerging(dim // 2)] if stage else []
            for block in range(depth):
                rate = drop_path_rate * number / max(1, total - 1)
                modules.append(VolumeBlock(dim, count, mlp_ratio, rate, block % 2 == 1))
                number += 1
            self.stages.append(nn.Sequential(*modules))

    @torch.no_grad()
    def reset_encoder(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: truncated normal matrices and tables, zero biases."""
        conv = self.patch_partition["0"]
        nn.init.trunc_normal_(conv.weight, std=conv.weight[0].numel() ** -0.5, generator=generator)
        nn.init.zeros_(conv.bias)
        for module in self.stages.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, VolumeAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=_STD, generator=generator)

    def embed(self, values: Tensor) -> Tensor:
        """(B, 4, X, Y, Z), sides multiples of 4 -> (B, x, y, z, C) tokens, before their positions are added."""
        return self.patch_partition["2"](self.patch_partition["0"](values).permute(0, 2, 3, 4, 1))

    def place(self, tokens: Tensor) -> Tensor:
        """(B, x, y, z, C) tokens with their positions added."""
        return tokens + self.positions(tuple(tokens.shape[1:4])).to(tokens)

    def positions(self, sides: Sides) -> Tensor:
        """(x, y, z, C) float32 of :func:`volume_positions`."""
        return _kept_positions(self.patch_partition["0"].out_channels, sides)

    def run_stages(self, tokens: Tensor) -> list[Tensor]:
        """(B, x, y, z, C) placed tokens -> the four stages' (B, x, y, z, C), channels last."""
        maps = []
        for stage in self.stages:
            tokens = stage(tokens)
            maps.append(tokens)
        return maps


@lru_cache(maxsize=8)
def _kept_positions(dim: int, sides: Sides) -> Tensor:
    return volume_positions(dim, sides)


def block_sides(sides: Sequence[int]) -> Sides:
    """Blocks of 16 voxels along the sides of a grid of voxels, rounded up."""
    return tuple(-(-side // (PATCH * BLOCK)) for side in sides)


def spread(blocks: Tensor, sides: Sides, cells: int) -> Tensor:
    """Blocks' flags (..., bx, by, bz) at each of their cells: (..., x, y, z), cut to ``sides``.

    Args:
        blocks: one value a block.
        sides: of the result.
        cells: along a side of a block.
    """
    for axis in (-3, -2, -1):
        blocks = blocks.repeat_interleave(cells, axis)
    return blocks[..., : sides[0], : sides[1], : sides[2]]


__all__ = [
    "BLOCK",
    "PATCH",
    "WINDOW",
    "PatchMerging",
    "SwinVolume",
    "VolumeAttention",
    "VolumeBlock",
    "block_sides",
    "from_windows",
    "padded",
    "relative_position_index",
    "shifted",
    "spread",
    "to_windows",
    "volume_positions",
    "window_mask",
]
