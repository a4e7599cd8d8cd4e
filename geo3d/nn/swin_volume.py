"""A Swin transformer over dense grids of voxels (Swin, section 3; NeRF-MAE, section 3.2 and its supplement)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.channel_norm import SampleDropPath
from geo3d.ops import voxel_attention

#: Voxels along a side of a token, and tokens along a side of a window.
PATCH, WINDOW = 4, 4
#: Tokens along a side of a block that is masked as a whole.
BLOCK = 4
#: Differences of two places in a window along one axis.
_SPAN = 2 * WINDOW - 1
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
    parts = []
    for axis in (1, 0, 2):
        angle = torch.arange(sides[axis], dtype=torch.float64)[:, None] * frequency
        rows = torch.cat([angle.sin(), angle.cos()], 1).float()
        shape = [sides[axis] if other == axis else 1 for other in range(3)]
        parts.append(rows.view(*shape, -1).expand(*sides, -1))
    return torch.cat(parts, -1)


@lru_cache(maxsize=1)
def relative_position_index() -> Tensor:
    """(64, 64) int64: row of a window's bias table for each pair of its tokens, of the differences of their places."""
    axis = torch.arange(WINDOW)
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    difference = places.unsqueeze(1) - places + WINDOW - 1
    return (difference * torch.tensor([_SPAN * _SPAN, _SPAN, 1])).sum(-1)


def shifted(sides: Sides) -> Sides:
    """Tokens by which windows are shifted along each axis: half a window, where there is more than one."""
    return tuple(torch.sym_min((side - 1) // WINDOW, 1) * (WINDOW // 2) for side in sides)


def padded(sides: Sides) -> Sides:
    """Sides rounded up to whole windows."""
    return tuple(-(-side // WINDOW) * WINDOW for side in sides)


def to_windows(x: Tensor) -> Tensor:
    """(B, x, y, z, C) of whole windows -> (B, W, 64, C)."""
    b, *sides, c = x.shape
    counts = [side // WINDOW for side in sides]
    split = x.view(b, counts[0], WINDOW, counts[1], WINDOW, counts[2], WINDOW, c)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, WINDOW**3, c)


@dataclass(frozen=True)
class WindowTable:
    """Which tokens see each other, of tokens that lie as rows in any order, as ``voxel_attention`` takes it.

    Args:
        order: (T + P,) int64 rows of all windows, window after window; those from T on are of zeros.
        offsets: (W + 1,) int64 where each window starts in ``order``.
        places: (T + P, 1) float32 place of each row in its window, as one number of which the difference of two tells
            the row of the bias table, see :func:`relative_position_index`.
        filled: P, how many tokens of zeros fill windows up.
    """

    order: Tensor
    offsets: Tensor
    places: Tensor
    filled: int


def window_table(places: Tensor, batch: int, sides: Sides, shift: bool) -> WindowTable:
    """Put tokens into windows of 4 x 4 x 4.

    Sides are filled up to whole windows with tokens of zeros, which take part, as published. Where windows are shifted,
    some hold tokens from both ends of the grid; published logits between these are lowered by 100, which leaves of
    their weights nothing that a float holds: they are windows of their own here.

    Args:
        places: (T, 4) int64 sample and x, y, z of each token, in a grid of which any may be missing.
        batch: samples.
        sides: of the grid.
        shift: whether windows are shifted by half their sides, where there is more than one along an axis.
    """
    whole, device, count = padded(sides), places.device, places.shape[0]
    move = shifted(whole) if shift else (0, 0, 0)
    filled = _traced(sides) or whole != sides
    if filled:
        every = dense_places(batch, whole, device)
        beyond = (every[:, 1] >= sides[0]) | (every[:, 2] >= sides[1]) | (every[:, 3] >= sides[2])
        places = torch.cat([places, every[beyond]])
    window, inside = places[:, 0], torch.zeros_like(places[:, 0])
    for axis in range(3):
        along = (places[:, axis + 1] - move[axis]) % whole[axis]
        end = along >= whole[axis] - move[axis]  # come from the grid's beginning
        window = 2 * (window * (whole[axis] // WINDOW) + along.div(WINDOW, rounding_mode="floor")) + end
        inside = inside * _SPAN + along % WINDOW
    # Windows of zeros alone are left out.
    kept = torch.arange(places.shape[0], device=device)
    empty = torch.zeros(batch * math.prod(2 * (side // WINDOW) for side in whole), dtype=torch.int64, device=device)
    if filled:
        kept = kept[empty.index_fill(0, window[:count], 1)[window] == 1]
    order = kept[(window[kept] * _SPAN**3 + inside[kept]).argsort(stable=True)]
    sizes = empty.index_add(0, window[kept], torch.ones_like(kept))
    number = torch.empty(places.shape[0], dtype=torch.int64, device=device)
    number[kept] = torch.arange(kept.shape[0], device=device)
    offsets = F.pad(sizes[sizes > 0].cumsum(0), (1, 0))
    return WindowTable(number[order], offsets, inside[kept].float().unsqueeze(1), kept.shape[0] - count)


def dense_window_table(batch: int, sides: Sides, shift: bool, device: torch.device) -> WindowTable:
    """:func:`window_table` of a grid of which no token is missing, row-major; made once where sizes are known."""
    if _traced((batch, *sides)):
        return window_table(dense_places(batch, sides, device), batch, sides, shift)
    return _kept_window_table(batch, sides, shift, device)


@lru_cache(maxsize=16)
def _kept_window_table(batch: int, sides: Sides, shift: bool, device: torch.device) -> WindowTable:
    return window_table(dense_places(batch, sides, device), batch, sides, shift)


def dense_places(batch: int, sides: Sides, device: torch.device) -> Tensor:
    """(T, 4) int64 of all tokens of a grid, row-major."""
    axes = [torch.arange(count, device=device) for count in (batch, *sides)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _traced(sizes: Sequence[int]) -> bool:
    """Whether sizes are symbols, as they are while a program is exported."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


class VolumeAttention(nn.Module):
    """Multi-head self-attention inside windows of 4 x 4 x 4 tokens, with a learnt bias by relative position.

    Through the operator ``voxel_attention``, of which dense windows are the case in which all are full: it takes tokens
    as they lie, windows of any number of tokens, and the bias as a table of 343 rows. It was faster than
    ``F.scaled_dot_product_attention`` over gathered windows at every size that was measured (docs/benchmarks.md).
    ``geo3d.ops.explain("voxel_attention", qkv)`` tells which of its kernels runs.

    Args:
        dim: channels.
        heads: number of heads; divides ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros(_SPAN**3, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, table: WindowTable) -> Tensor:
        """(T, C) -> (T, C)."""
        qkv = self.qkv(x)
        if isinstance(table.filled, torch.SymInt) or table.filled:  # of zeros, queries, keys and values are the biases
            qkv = torch.cat([qkv, self.qkv.bias.to(qkv.dtype).expand(table.filled, -1)])
        q, k, v = qkv.view(qkv.shape[0], 3, self.heads, -1).unbind(1)
        bias = self.relative_position_bias_table.to(q.dtype)
        out = voxel_attention(q, k, v, table.order, table.offsets, table.places, bins=(len(bias),), bias_table=bias)
        return self.proj(out.narrow(0, 0, x.shape[0]).flatten(1))


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

    def forward(self, x: Tensor, table: WindowTable, samples: Tensor, batch: int) -> Tensor:
        """Tokens as rows (T, C), of samples (T,) -> (T, C)."""
        x = x + self._dropped(self.attn(self.norm1(x), table), samples, batch)
        return x + self._dropped(self.mlp(self.norm2(x)), samples, batch)

    def _dropped(self, residual: Tensor, samples: Tensor, batch: int) -> Tensor:
        if not self.training or self.drop_path.rate == 0:
            return residual
        return residual * self.drop_path.draw(batch, residual)[samples].unsqueeze(1)


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
        b, *sides, c = x.shape
        halves = [(side + 1) // 2 for side in sides]
        if _traced(sides) or any(side % 2 for side in sides):
            x = F.pad(x, [0, 0, *(n for side, half in zip(sides[::-1], halves[::-1]) for n in (0, 2 * half - side))])
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
            self.stages.append(nn.ModuleList(modules))

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
        return volume_positions_of(self.patch_partition["0"].out_channels, sides)

    def run_stages(self, tokens: Tensor) -> list[Tensor]:
        """(B, x, y, z, C) placed tokens -> the four stages' (B, x, y, z, C), channels last."""
        maps: list[Tensor] = []
        for stage in self.stages:
            if maps:
                tokens = stage[0](tokens)
            tokens = self._dense_blocks(stage[1:] if maps else stage, tokens)
            maps.append(tokens)
        return maps

    def run_visible(self, tokens: Tensor, visible: Tensor, fill: Callable[[int, Sides], Tensor]) -> list[Tensor]:
        """As :meth:`run_stages`, of the tokens of visible blocks alone, until blocks are merged into one another.

        Blocks are of 4 x 4 x 4 tokens: 2 x 2 x 2 at the second stage, one token at the third. Windows are those of the
        whole grid, without the tokens that are hidden. What the last stage merges are the third's tokens and, in place
        of hidden ones, those of ``fill``.

        Args:
            tokens: (B, x, y, z, C), sides multiples of 4.
            visible: (B, x / 4, y / 4, z / 4) bool, somewhere true.
            fill: number of a stage and its sides -> (B, x, y, z, C), what its map holds where blocks are hidden.
        """
        blocks, batch = visible.nonzero(), len(tokens)
        rows, maps, side = to_windows(tokens)[visible.flatten(1)], [], BLOCK
        for number, stage in enumerate(self.stages):
            sides = tuple(count * side for count in visible.shape[1:]) if side else ()
            if number:
                if not side:
                    maps.append(self._dense_blocks(stage[1:], stage[0](maps[-1])))
                    break
                rows = stage[0](rows.view(len(blocks), 2 * side, 2 * side, 2 * side, -1))
            local = torch.ones(side, side, side, device=rows.device).nonzero()
            places = (blocks[:, 1:].unsqueeze(1) * side + local).flatten(0, 1)
            samples = blocks[:, 0].repeat_interleave(side**3)
            placed = torch.cat([samples.unsqueeze(1), places], 1)
            tables = [window_table(placed, batch, sides, shift) for shift in (False, True)]
            rows = rows.reshape(len(placed), -1)
            for block in stage[1:] if number else stage:
                rows = block(rows, tables[block.shift], samples, batch)
            flat = samples
            for axis in range(3):
                flat = flat * sides[axis] + places[:, axis]
            whole = fill(number, sides).to(rows.dtype)
            maps.append(whole.flatten(0, 3).index_copy(0, flat, rows).view(whole.shape))
            side //= 2
        return maps

    @staticmethod
    def _dense_blocks(blocks: Iterable[nn.Module], tokens: Tensor) -> Tensor:
        """(B, x, y, z, C) -> (B, x, y, z, C)."""
        batch, *sides, _ = tokens.shape
        rows = tokens.flatten(0, 3)
        samples = torch.arange(batch, device=rows.device).repeat_interleave(math.prod(sides))
        tables: dict[bool, WindowTable] = {}
        for block in blocks:
            if block.shift not in tables:
                tables[block.shift] = dense_window_table(batch, tuple(sides), block.shift, rows.device)
            rows = block(rows, tables[block.shift], samples, batch)
        return rows.view(tokens.shape)


def volume_positions_of(dim: int, sides: Sides) -> Tensor:
    """:func:`volume_positions`, made once where sizes are known; not to be written to."""
    return volume_positions(dim, sides) if _traced(sides) else _kept_volume_positions(dim, sides)


@lru_cache(maxsize=8)
def _kept_volume_positions(dim: int, sides: Sides) -> Tensor:
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
    "Sides",
    "SwinVolume",
    "VolumeAttention",
    "VolumeBlock",
    "WindowTable",
    "block_sides",
    "padded",
    "relative_position_index",
    "shifted",
    "spread",
    "to_windows",
    "volume_positions",
    "volume_positions_of",
    "window_table",
]
