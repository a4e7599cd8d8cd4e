"""Layers over sparse voxels: convolution, batch norm, and the ways down to coarser voxels and up again."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geo3d.nn.batch_norm import VoxelNorm1d
from geo3d.nn.row_pieces import RowProduct, in_pieces, takes_pieces
from geo3d.nn.topology import Topology
from geo3d.nn.voxel_pyramid import Coarsening
from geo3d.ops.interpolate import interpolate
from geo3d.ops.sparse_conv import sparse_conv

_TAPS = 27
_HALVING = 2


class SubmanifoldConv(nn.Module):
    """Convolution of 3 x 3 x 3 voxels, evaluated at the voxels that there are; no bias.

    ``kernel`` (27, C_in, C_out) is laid out as published: x varies fastest over the taps.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(_TAPS, in_channels, out_channels))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights, uniform within 1 / sqrt(27 C_in)."""
        bound = 1 / math.sqrt(_TAPS * self.kernel.shape[1])
        nn.init.uniform_(self.kernel, -bound, bound, generator=generator)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """(N, C_in) features of the topology's voxels -> (N, C_out)."""
        taps = topology.kernel_map(3)
        return sparse_conv(x, self.kernel.to(x.dtype), taps.neighbours, taps.transposed)


class StridedConv(nn.Module):
    """Convolution of the 2 x 2 x 2 voxels that merge into a coarser one, evaluated where there is any; no bias.

    ``kernel`` (8, C_in, C_out), x fastest.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(_HALVING**3, in_channels, out_channels))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights, uniform within 1 / sqrt(8 C_in)."""
        bound = 1 / math.sqrt(self.kernel.shape[0] * self.kernel.shape[1])
        nn.init.uniform_(self.kernel, -bound, bound, generator=generator)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """(N, C_in) features of the topology's voxels -> (M, C_out) of those of ``topology.coarsen(2)``."""
        taps = topology.strided_kernel_map(_HALVING, _HALVING)
        return sparse_conv(x, self.kernel.to(x.dtype), taps.neighbours, taps.transposed)


class TransposedConv(nn.Module):
    """Transposed convolution from voxels to those inside them: each place inside has a matrix of its own; no bias.

    Args:
        in_channels, out_channels: of the coarse and the fine voxels.
        factor: coarse stride over fine stride; ``kernel`` is (factor ** 3, C_in, C_out), x fastest.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int = 2) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(factor**3, in_channels, out_channels))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights, uniform within 1 / sqrt(C_in): a fine voxel lies inside one coarse voxel."""
        bound = 1 / math.sqrt(self.kernel.shape[1])
        nn.init.uniform_(self.kernel, -bound, bound, generator=generator)

    def forward(self, x: Tensor, coarse: Topology, fine: Topology) -> Tensor:
        """(M, C_in) features of coarse voxels -> (N, C_out) of fine ones, zero for those inside of none.

        ``fine`` are any voxels of the finer stride: ``coarse.refine(factor)`` makes all that there can be.
        """
        taps = coarse.children_map(fine)
        return sparse_conv(x, self.kernel.to(x.dtype), taps.transposed, taps.neighbours)


class VoxelBatchNorm(nn.Module):
    """:class:`VoxelNorm1d` as published checkpoints name it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = VoxelNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        return self.bn(x)


class ConvStem(nn.Module):
    """Submanifold convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList([SubmanifoldConv(in_channels, out_channels), VoxelBatchNorm(out_channels)])

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """(N, C_in) features -> (N, C_out)."""
        conv, norm = self.conv_layers
        return norm(conv(x, topology)).relu()


class ResidualConv(nn.Module):
    """Two submanifold convolutions with batch norm, and what went in added before the last ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = SubmanifoldConv(channels, channels), VoxelBatchNorm(channels)
        self.conv2, self.norm2 = SubmanifoldConv(channels, channels), VoxelBatchNorm(channels)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """(N, C) features -> (N, C)."""
        out = self.norm1(self.conv1(x, topology)).relu()
        return (x + self.norm2(self.conv2(out, topology))).relu()


class BottleneckConv(nn.Module):
    """A submanifold convolution between two matrices, with batch norm, and what went in added before the last ReLU.

    Args:
        channels: in and out.
        width: channels of the convolution.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce, self.norm1 = nn.Linear(channels, width, bias=False), VoxelBatchNorm(width)
        self.conv, self.norm2 = SubmanifoldConv(width, width), VoxelBatchNorm(width)
        self.expand, self.norm3 = nn.Linear(width, channels, bias=False), VoxelBatchNorm(channels)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """(N, C) features -> (N, C)."""
        out = self.norm1(self.reduce(x)).relu()
        out = self.norm2(self.conv(out, topology)).relu()
        return (x + self.norm3(self.expand(out))).relu()


class ResidualStem(nn.Sequential):
    """Convolution stem and a residual block, for networks without attention among the finest voxels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(ConvStem(in_channels, out_channels), ResidualConv(out_channels))

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """(N, C_in) features -> (N, C_out)."""
        for layer in self:
            x = layer(x, topology)
        return x


class MaxDownsample(nn.Module):
    """Features of a coarser level: norm, linear, and the maximum over some of the finer voxels.

    Args:
        in_channels, out_channels: of the finer and the coarser level.
        pooling: the ``neighbors`` nearest to the coarse voxel's representative, or the voxels of its ``cell``.
    """

    def __init__(self, in_channels: int, out_channels: int, pooling: str = "neighbors") -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = nn.LayerNorm(in_channels)
        self.linear = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, x: Tensor, step: Coarsening) -> Tensor:
        """(N, C_in) fine features -> (M, C_out) coarse ones."""
        if not self.training and takes_pieces(x):
            linear = RowProduct(self.linear)
            projected = in_pieces(lambda rows: linear(self.norm(rows)), x)
            if self.pooling == "neighbors":
                return in_pieces(lambda neighbors: _largest(projected, neighbors), step.neighbors)
        else:
            projected = self.linear(self.norm(x))
        if self.pooling == "cell":
            cells = projected.new_full((step.representative.shape[0], projected.shape[1]), -torch.inf)
            return cells.scatter_reduce(0, step.parent.unsqueeze(1).expand_as(projected), projected, "amax")
        row = _largest_row(projected, step.neighbors)
        place = row * projected.shape[1] + torch.arange(projected.shape[1], device=row.device)
        return projected.flatten().gather(0, place.flatten()).view_as(place)


class InterpolationUpsample(nn.Module):
    """Features of a finer level: a projection of its own ones, plus coarse ones interpolated between three neighbours.

    Args:
        coarse_channels: of the level that is left.
        fine_channels: of the level that is reached.
    """

    def __init__(self, coarse_channels: int, fine_channels: int) -> None:
        super().__init__()
        self.linear1 = _norm_linear(fine_channels, fine_channels)
        self.linear2 = _norm_linear(coarse_channels, fine_channels)

    def forward(self, coarse: Tensor, fine: Tensor, step: Coarsening) -> Tensor:
        """(M, C_coarse) and (N, C_fine) features -> (N, C_fine)."""
        projected = self.linear2(coarse)
        index, weight = step.up
        weight = weight.to(torch.promote_types(projected.dtype, torch.float32))
        return self.linear1(fine) + interpolate(projected, index, weight)


@torch.no_grad()
def _largest_row(x: Tensor, neighbors: Tensor) -> Tensor:
    """(M, C) int64: for every cell and channel, which of its neighbours (M, k) has the largest value of (N, C).

    One neighbour after the other, so that memory does not grow with their number; nothing of it is kept for the
    gradient, which goes to the rows that are returned.
    """
    row = neighbors[:, :1].expand(-1, x.shape[1])
    largest = x.index_select(0, neighbors[:, 0])
    for column in neighbors[:, 1:].T:
        candidate = x.index_select(0, column)
        larger = candidate > largest
        largest, row = torch.where(larger, candidate, largest), torch.where(larger, column.unsqueeze(1), row)
    return row


def _largest(x: Tensor, neighbors: Tensor) -> Tensor:
    """(M, C): the largest value of (N, C) among the neighbours (M, k) of every cell, for each channel."""
    first, *others = neighbors.T.contiguous()
    largest = x.index_select(0, first)
    candidate = torch.empty_like(largest)
    for column in others:
        torch.index_select(x, 0, column, out=candidate)
        torch.maximum(largest, candidate, out=largest)
    return largest


def _norm_linear(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_channels), nn.Linear(in_channels, out_channels))
