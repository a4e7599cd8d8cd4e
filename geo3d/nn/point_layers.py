"""Layers over points and groups of points: small PointNets, attention among tokens of clouds, and the way back down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.batch_norm import VoxelNorm1d
from geo3d.nn.channel_norm import SampleDropPath
from geo3d.nn.product_max import normalised_product_max, product_max
from geo3d.nn.transformer import Mlp, SelfAttention
from geo3d.ops import interpolate, knn

_EPSILON = 1e-8  # keeps the weight of a point at the query finite
_NEAREST = 3
_FEW = 8  # channels


class PointwiseConv(nn.Conv1d):
    """A convolution over single points, whose weight (out, in, 1) is that of ``nn.Conv1d``, applied to rows.

    Args:
        inputs, outputs: channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    @property
    def matrix(self) -> Tensor:
        """(out, in)."""
        return self.weight.squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        matrix = self.matrix
        if self.in_channels < _FEW:  # of a matrix that lies in memory the other way the gradient takes a seventh
            matrix = matrix.t().contiguous().t()
        return F.linear(x, matrix, self.bias)


def _small_network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        PointwiseConv(inputs, hidden), VoxelNorm1d(hidden), nn.ReLU(inplace=True), PointwiseConv(hidden, outputs)
    )


class GroupEmbedding(nn.Module):
    """A token of each group of points: two small networks a member, the second of which sees the group's maximum too.

    Args:
        inputs: channels of a member.
        first: hidden and output channels of the first network.
        second: hidden and output channels of the second.
    """

    def __init__(self, inputs: int, first: tuple[int, int], second: tuple[int, int]) -> None:
        super().__init__()
        self.first_conv = _small_network(inputs, *first)
        self.second_conv = _small_network(2 * first[1], *second)

    def forward(self, members: Tensor) -> Tensor:
        """(M, k, inputs) members of groups -> (M, outputs)."""
        groups, k = members.shape[:2]
        *begin, deepen = self.first_conv
        widen, norm, _, narrow = self.second_conv
        x = members.flatten(0, 1)
        for layer in begin:
            x = layer(x)
        # The group's maximum is the same for all of its members: its half of the product is taken once. The members'
        # half follows another product directly: the two are one, of fewer channels.
        of_group, of_member = widen.matrix.chunk(2, dim=1)
        bias = F.linear(deepen.bias, of_group + of_member, widen.bias)
        shared = F.linear(product_max(x, deepen.matrix, k), of_group, bias)
        x = F.linear(x.view(groups, k, -1), of_member @ deepen.matrix).add_(shared.unsqueeze(1)).flatten(0, 1)
        x = normalised_product_max(x, norm, narrow.matrix, k)
        return x + narrow.bias.to(x.dtype)


class PointBlock(nn.Module):
    """Pre-norm self-attention among the tokens of a cloud, and MLP.

    Args:
        dim: channels.
        heads: number of heads.
        mlp_ratio: hidden channels of the MLP over its channels.
        drop_path: probability that the residuals of a cloud are dropped.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = SampleDropPath(drop_path)

    def forward(
        self, x: Tensor, lengths: Sequence[int] | None = None, masks: Sequence[Tensor] | Tensor | None = None
    ) -> Tensor:
        """(B, N, C) -> (B, N, C); or (1, sum of ``lengths``, C), the tokens of clouds one after the other.

        Args:
            x: tokens.
            lengths: of the clouds, where these are of different ones.
            masks: as :meth:`SelfAttention.forward` takes them.
        """
        x = x + self._dropped(self.attn(self.norm1(x), lengths=lengths, masks=masks), lengths)
        return x + self._dropped(self.mlp(self.norm2(x)), lengths)

    def _dropped(self, residual: Tensor, lengths: Sequence[int] | None) -> Tensor:
        if lengths is None or not self.training or self.drop_path.rate == 0:
            return self.drop_path(residual)
        factors = self.drop_path.draw(len(lengths), residual)
        return residual * factors.repeat_interleave(torch.tensor(lengths, device=residual.device)).view(1, -1, 1)


class PointBlocks(nn.Module):
    """Blocks of one level, before each of which the embedding of positions is added again.

    Args:
        dim, heads, mlp_ratio: as :class:`PointBlock` takes them.
        drop_paths: of each block.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PointBlock(dim, heads, mlp_ratio, rate) for rate in drop_paths)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        lengths: Sequence[int] | None = None,
        masks: Sequence[Tensor] | Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) tokens and (B, N, C) embedded positions -> (B, N, C)."""
        for block in self.blocks:
            x = block(x + positions, lengths, masks)
        return x


def position_embedding(dim: int) -> nn.Sequential:
    """(..., 3) positions -> (..., dim)."""
    return nn.Sequential(nn.Linear(3, dim), nn.GELU(), nn.Linear(dim, dim))


class _Conv(nn.Module):
    """Pointwise convolution, batch normalisation and, but for the last of a residual, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(PointwiseConv(inputs, outputs), VoxelNorm1d(outputs), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        return self.net(x)


class _Residual(nn.Module):
    """Two pointwise convolutions around which the input is led."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net1 = nn.Sequential(PointwiseConv(channels, channels), VoxelNorm1d(channels), nn.GELU())
        self.net2 = nn.Sequential(PointwiseConv(channels, channels), VoxelNorm1d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        return F.gelu(self.net2(self.net1(x)) + x)


class _Residuals(nn.Module):
    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.operation = nn.Sequential(*(_Residual(channels) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        return self.operation(x)


def nearest_weights(queries: Tensor, points: Tensor, query_offsets: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The three points nearest to each query, and weights 1 / (squared distance + 1e-8) of a sum of one.

    Args:
        queries: (Q, 3).
        points: (P, 3).
        query_offsets, offsets: (B + 1,) int64 of both.

    Returns:
        (Q, 3) int64 rows of ``points``, -1 where there are fewer; and (Q, 3) weights.
    """
    index, squared = knn(queries, points, query_offsets, offsets, _NEAREST)
    weights = 1 / (squared + _EPSILON)
    return index, weights / weights.sum(1, keepdim=True)


class FeaturePropagation(nn.Module):
    """Features of fine points from those of coarse ones nearby and their own (PointNet++, section 3.4).

    Args:
        fine, coarse: channels of both.
        outputs: channels of the result.
        residuals: blocks after the two are joined.
    """

    def __init__(self, fine: int, coarse: int, outputs: int, residuals: int) -> None:
        super().__init__()
        self.fuse = _Conv(fine + coarse, outputs)
        self.extraction = _Residuals(outputs, residuals)

    def forward(self, fine: Tensor, coarse: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """(Q, fine) and (P, coarse) features -> (Q, outputs); index and weights of :func:`nearest_weights`."""
        return self.extraction(self.fuse(torch.cat([fine, interpolate(coarse, index, weights)], 1)))


__all__ = [
    "FeaturePropagation",
    "GroupEmbedding",
    "PointBlock",
    "PointBlocks",
    "PointwiseConv",
    "nearest_weights",
    "position_embedding",
]
