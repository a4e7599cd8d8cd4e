"""A Swin transformer over dense grids of voxels (Swin, section 3; NeRF-MAE, section 3.2 and its supplement)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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


@dataclass(frozen=True)
class WindowTable:
    """Which tokens share a window, of tokens that lie as rows in any order.

    A window has ``K`` slots: 64, or as many as the fullest window holds where tokens are missing.

    Args:
        rows: (W * K,) int64 row of each slot; the number of rows itself where a token of zeros fills the window up; any
            where a slot is empty.
        slots: (T,) int64 slot of each row.
        filled: (P,) int64 slots that hold tokens of zeros.
        shape: W and K.
        added: (W, K, K) float32 added to logits: 0, -100 where tokens are from both ends of the grid, -inf where a slot
            is empty. None where there are neither.
        relative: (W, K, K) int64 rows of the bias table. None: all windows are whole, with their tokens in order.
        whole: whether every slot holds a row.
    """

    rows: Tensor
    slots: Tensor
    filled: Tensor
    shape: tuple[int, int]
    added: Tensor | None
    relative: Tensor | None
    whole: bool


def window_table(places: Tensor, batch: int, sides: Sides, shift: bool) -> WindowTable:
    """Put tokens into windows of 4 x 4 x 4.

    Sides are filled up to whole windows with tokens of zeros, which take part, as published.

    Args:
        places: (T, 4) int64 sample and x, y, z of each token, in a grid of which any may be missing.
        batch: samples.
        sides: of the grid.
        shift: whether windows are shifted by half their sides, where there is more than one along an axis.
    """
    whole, device = padded(sides), places.device
    move = shifted(whole) if shift else (0, 0, 0)
    counts = [side // WINDOW for side in whole]

    def slot_of(x: Tensor) -> Tensor:
        """(n, 4) places -> numbers of slots of all windows."""
        number, inside = x[:, 0], 0
        for axis in range(3):
            along = (x[:, axis + 1] - move[axis]) % whole[axis]
            number = number * counts[axis] + along.div(WINDOW, rounding_mode="floor")
            inside = inside * WINDOW + along % WINDOW
        return number * WINDOW**3 + inside

    empty, count = -1, len(places)
    table = torch.full((batch * math.prod(counts) * WINDOW**3,), empty, device=device)
    slots = slot_of(places)
    if whole != sides:
        beyond = torch.ones(batch, *whole, dtype=torch.bool, device=device)
        beyond[:, : sides[0], : sides[1], : sides[2]] = False
        table[slot_of(beyond.nonzero())] = count
    table[slots] = torch.arange(count, device=device)
    table = table.view(-1, WINDOW**3)
    kept = ((table >= 0) & (table < count)).any(1)
    present = table >= 0
    most = int(present[kept].sum(1).max())
    region = _regions(whole, move).to(device).repeat(batch, 1) if any(move) else None
    relative, every = None, bool(present[kept].all())
    if every:
        chosen = torch.arange(WINDOW**3, device=device).expand(len(table), -1)
    else:
        chosen = present.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    number = torch.full((len(table),), empty, device=device)
    number[kept] = torch.arange(int(kept.sum()), device=device)
    back = torch.empty_like(table).scatter_(1, chosen, torch.arange(chosen.shape[1], device=device).expand_as(chosen))
    slots = number[slots // WINDOW**3] * chosen.shape[1] + back[slots // WINDOW**3, slots % WINDOW**3]
    rows, chosen, present = table.gather(1, chosen)[kept], chosen[kept], present.gather(1, chosen)[kept]
    added = None
    if region is not None:
        region = region[kept].gather(1, chosen)
        added = _HIDDEN * (region.unsqueeze(1) != region.unsqueeze(2)).float()
    if not every:
        relative = relative_position_index().to(device)[chosen.unsqueeze(2), chosen.unsqueeze(1)]
        added = torch.zeros(relative.shape, device=device) if added is None else added
        added = added.masked_fill(~present.unsqueeze(1), -torch.inf)
    filled = (rows.flatten() == count).nonzero().squeeze(1)
    return WindowTable(
        rows.clamp_min(0).flatten(), slots, filled, tuple(rows.shape), added, relative, every and not len(filled)
    )


@lru_cache(maxsize=16)
def dense_window_table(batch: int, sides: Sides, shift: bool, device: torch.device) -> WindowTable:
    """:func:`window_table` of a grid of which no token is missing, in row-major order."""
    return window_table(dense_places(batch, sides, device), batch, sides, shift)


def dense_places(batch: int, sides: Sides, device: torch.device) -> Tensor:
    """(T, 4) int64 of all tokens of a grid, row-major."""
    return torch.ones(batch, *sides, dtype=torch.bool, device=device).nonzero()


@lru_cache(maxsize=32)
def _regions(sides: Sides, shift: Sides) -> Tensor:
    """(W, 64) which of the 27 regions of a shifted grid the tokens of its windows are of."""
    region = torch.zeros(1, *sides, 1)
    for axis, (side, move) in enumerate(zip(sides, shift), 1):
        along = torch.zeros(side)
        if move:
            along[-WINDOW:-move], along[-move:] = 1, 2
        region += 3 ** (3 - axis) * along.view(*(side if other == axis else 1 for other in range(5)))
    return to_windows(region)[0, :, :, 0]


class _ToSlots(torch.autograd.Function):
    """Rows (T or T + 1, C) -> (W * K, C); each row stands in one slot, which its gradient is read from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: WindowTable) -> Tensor:
        ctx.table = table
        return rows.index_select(0, table.rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        of_rows = gradient.index_select(0, ctx.table.slots)
        if len(ctx.table.filled):
            of_filled = gradient.index_select(0, ctx.table.filled).sum(0, keepdim=True)
            of_rows = torch.cat([of_rows, of_filled])
        return of_rows, None


class _FromSlots(torch.autograd.Function):
    """Slots (W * K, C) -> rows (T, C)."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, table: WindowTable) -> Tensor:
        ctx.table = table
        return slots.index_select(0, table.slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        table = ctx.table
        if table.whole:
            return gradient.index_select(0, table.rows), None
        of_slots = gradient.new_zeros(table.shape[0] * table.shape[1], gradient.shape[1])
        return of_slots.index_copy_(0, table.slots, gradient), None


class VolumeAttention(nn.Module):
    """Multi-head self-attention inside windows of 4 x 4 x 4 tokens, with a learnt bias by relative position.

    Always through ``F.scaled_dot_product_attention``, over windows of as many slots as the fullest one needs: the
    operator ``voxel_attention`` adds terms that it looks up axis by axis and multiplies with queries and keys, of which
    a bias by all three axes together would be the costly case of one axis of 343 rows and a further channel.

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

    def bias(self, table: WindowTable) -> Tensor:
        """(heads, 64, 64), or (W, heads, K, K): what is added to the logits of each pair of a window's tokens."""
        index = table.relative
        if index is None:
            index = relative_position_index().to(self.relative_position_bias_table.device)
        bias = self.relative_position_bias_table[index.flatten()].view(*index.shape, -1).movedim(-1, -3)
        return bias if table.added is None else bias + table.added.to(bias.dtype).unsqueeze(1)

    def forward(self, x: Tensor, table: WindowTable) -> Tensor:
        """(T, C) -> (T, C)."""
        qkv = self.qkv(x)
        if len(table.filled):  # of zeros, queries, keys and values are the biases
            qkv = torch.cat([qkv, self.qkv.bias.to(qkv.dtype).unsqueeze(0)])
        windows = _ToSlots.apply(qkv, table)
        q, k, v = windows.view(*table.shape, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias(table).to(q.dtype).expand(len(q), -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(windows.shape[0], -1)
        return self.proj(_FromSlots.apply(out, table))


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
        for block in blocks:
            rows = block(rows, dense_window_table(batch, tuple(sides), block.shift, rows.device), samples, batch)
        return rows.view(tokens.shape)


@lru_cache(maxsize=8)
def volume_positions_of(dim: int, sides: Sides) -> Tensor:
    """:func:`volume_positions`, made once; not to be written to."""
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
