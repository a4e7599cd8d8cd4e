"""A dense twin of the sparse residual network: Conv3d over the whole grid, times the mask of occupied cells.

This is how SparK emulates sparse convolution in 2D. It takes the weights of a
:class:`geo3d.models.sparse_resnet.SparseResNet`, and computes the same at occupied cells: peer of the benchmark, and
oracle of the tests.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.models.sparse_resnet import SparseResNet
from geo3d.nn.sparse_layers import BottleneckConv, ConvStem, ResidualConv, StridedConv, SubmanifoldConv, VoxelBatchNorm


def to_grid(coords: Tensor, feats: Tensor, shape: tuple[int, int, int], scenes: int, stride: int = 1) -> Tensor:
    """(B, C, z, y, x) grid of ``shape`` (x, y, z) cells with features at their voxels and zeros elsewhere."""
    batch, x, y, z = coords.long().unbind(1)
    grid = feats.new_zeros(scenes, *shape[::-1], feats.shape[1])
    return grid.index_put((batch, z // stride, y // stride, x // stride), feats).permute(0, 4, 1, 2, 3)


def from_grid(grid: Tensor, coords: Tensor, stride: int = 1) -> Tensor:
    """(N, C) features of a grid at voxels."""
    batch, x, y, z = coords.long().unbind(1)
    return grid.permute(0, 2, 3, 4, 1)[batch, z // stride, y // stride, x // stride]


class DenseTwin(nn.Module):
    """The twin; ``forward(grid, occupied)`` gives the grids of all stages, finest first.

    Args:
        network: whose weights and statistics are copied.
    """

    def __init__(self, network: SparseResNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)

    @staticmethod
    def _conv(x: Tensor, layer: SubmanifoldConv | StridedConv, mask: Tensor) -> Tensor:
        size, stride = (2, 2) if isinstance(layer, StridedConv) else (3, 1)
        # (K, Cin, Cout) with x fastest, as conv3d takes it: (Cout, Cin, z, y, x).
        weight = layer.kernel.unflatten(0, (size, size, size)).permute(4, 3, 0, 1, 2)
        return F.conv3d(x, weight, stride=stride, padding=size // 2 if stride == 1 else 0) * mask

    @staticmethod
    def _norm(x: Tensor, layer: VoxelBatchNorm, mask: Tensor) -> Tensor:
        """Statistics over occupied cells alone."""
        rows = x.movedim(1, -1)
        active = mask[:, 0].bool()
        return torch.zeros_like(rows).masked_scatter(active.unsqueeze(-1), layer(rows[active])).movedim(-1, 1)

    @staticmethod
    def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
        return F.conv3d(x, layer.weight[:, :, None, None, None])

    def _block(self, x: Tensor, block: ResidualConv | BottleneckConv, mask: Tensor) -> Tensor:
        if isinstance(block, ResidualConv):
            out = self._norm(self._conv(x, block.conv1, mask), block.norm1, mask).relu()
            return (x + self._norm(self._conv(out, block.conv2, mask), block.norm2, mask)).relu()
        out = self._norm(self._linear(x, block.reduce), block.norm1, mask).relu()
        out = self._norm(self._conv(out, block.conv, mask), block.norm2, mask).relu()
        return (x + self._norm(self._linear(out, block.expand), block.norm3, mask)).relu()

    def _stem(self, x: Tensor, stem: ConvStem, mask: Tensor) -> Tensor:
        conv, norm = stem.conv_layers
        return self._norm(self._conv(x, conv, mask), norm, mask).relu()

    def forward(self, grid: Tensor, occupied: Tensor) -> list[Tensor]:
        """(B, C, Z, Y, X) features, zero where ``occupied`` (B, 1, Z, Y, X) is; sides are multiples of the stride."""
        mask = occupied.to(grid.dtype)
        x = self._block(self._stem(grid, self.network.stem, mask), self.network.stem_block, mask)
        stages = [x]
        for stage in self.network.stages:
            mask = F.max_pool3d(mask, 2)
            x = self._norm(self._conv(x, stage.down, mask), stage.norm, mask).relu()
            for block in stage.blocks:
                x = self._block(x, block, mask)
            stages.append(x)
        return stages
