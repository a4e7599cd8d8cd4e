"""The decoder of SparK over sparse voxels: fills masked cells with tokens and predicts every voxel inside of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.geometry.sparse_voxels import SparseVoxels
from geo3d.nn.sparse_layers import ResidualConv, SubmanifoldConv, TransposedConv, VoxelBatchNorm
from geo3d.nn.topology import Topology

_TOKEN_STD = 0.02
_NARROWEST = 16  # channels


class Densify(nn.Module):
    """An encoder's features of a level, with a learnt token wherever a site is masked (SparK, section 3.2).

    Args:
        channels: of the encoder's stage.
        width: of the decoder's level.
        pointwise: project by a matrix (the coarsest level) instead of a convolution.
    """

    def __init__(self, channels: int, width: int, pointwise: bool) -> None:
        super().__init__()
        self.norm = VoxelBatchNorm(channels)
        self.token = nn.Parameter(torch.empty(1, channels))
        self.proj = nn.Linear(channels, width) if pointwise else SubmanifoldConv(channels, width)

    def forward(self, x: Tensor, level: Topology) -> Tensor:
        """(V, C) features of the visible sites, which are the level's first rows -> (N, width) of all sites."""
        tokens = self.token.to(x.dtype).expand(level.size - len(x), -1)
        filled = torch.cat([self.norm(x).to(x.dtype), tokens])
        return self.proj(filled) if isinstance(self.proj, nn.Linear) else self.proj(filled, level)


class UpBlock(nn.Module):
    """Sites of the next finer level: a transposed convolution, the densified features added, two convolutions.

    Args:
        coarse_width, fine_width: channels of the two levels.
        factor: coarse stride over fine stride.
    """

    def __init__(self, coarse_width: int, fine_width: int, factor: int) -> None:
        super().__init__()
        self.up = TransposedConv(coarse_width, fine_width, factor)
        self.conv1, self.norm1 = SubmanifoldConv(fine_width, fine_width), VoxelBatchNorm(fine_width)
        self.conv2, self.norm2 = SubmanifoldConv(fine_width, fine_width), VoxelBatchNorm(fine_width)

    def forward(self, x: Tensor, coarse: Topology, fine: Topology, densified: Tensor) -> Tensor:
        """(M, coarse width) features and (N, fine width) densified ones -> (N, fine width)."""
        x = self.up(x, coarse, fine) + densified
        x = self.norm1(self.conv1(x, fine)).relu()
        return self.norm2(self.conv2(x, fine))


class MaskedVoxelDecoder(nn.Module):
    """From an encoder's features of visible voxels to predictions at every voxel of masked cells.

    A level's sites are the visible voxels of its stride and *all* voxels of that stride inside masked cells, made by
    generative transposed convolution. Which of them are truly occupied enters nowhere, so nothing can leak; and nothing
    is pruned. The coarsest level looks around itself with residual blocks; finer ones, down to stride 2 or 3, are
    reached by :class:`UpBlock`; the finest voxels by one more transposed convolution and a matrix.

    Args:
        strides, channels: of the encoder's stages, finest first.
        width: channels of the coarsest level; halved at each finer one, down to 16.
        context: residual blocks at the coarsest level.
        outputs: predicted numbers a voxel.
        generator: draws the initial weights; torch's global one when not given.

    Raises:
        InputError: an encoder of one stage, which has no coarse cells to mask.
    """

    def __init__(
        self,
        strides: Sequence[int],
        channels: Sequence[int],
        width: int,
        context: int,
        outputs: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(strides) < 2:
            raise InputError("MaskedVoxelDecoder: the encoder needs two stages or more, for cells that hold voxels")
        coarse_first = list(zip(strides, channels, strict=True))[:0:-1]
        widths = [max(_NARROWEST, width // 2**level) for level in range(len(coarse_first) + 1)]
        self.densify = nn.ModuleList(
            Densify(c, w, pointwise=level == 0) for level, ((_, c), w) in enumerate(zip(coarse_first, widths))
        )
        self.context = nn.ModuleList(ResidualConv(widths[0]) for _ in range(context))
        factors = [coarse // fine for coarse, fine in pairwise([*(stride for stride, _ in coarse_first), 1])]
        self.factors = factors
        self.blocks = nn.ModuleList(UpBlock(a, b, f) for (a, b), f in zip(pairwise(widths[:-1]), factors))
        self.last_up, self.last_norm = TransposedConv(*widths[-2:], factors[-1]), VoxelBatchNorm(widths[-1])
        self.head = nn.Linear(widths[-1], outputs)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: uniform convolutions, cut normal tokens and matrices, zero biases."""
        for module in self.modules():
            if isinstance(module, SubmanifoldConv | TransposedConv):
                module.reset_parameters(generator)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_TOKEN_STD, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Densify):
                a = _TOKEN_STD
                nn.init.trunc_normal_(module.token, std=_TOKEN_STD, a=-a, b=a, generator=generator)

    def forward(self, stages: Sequence[SparseVoxels], masked: Topology) -> tuple[Topology, Tensor]:
        """Predictions inside masked cells.

        Args:
            stages: the encoder's features of the visible voxels, finest first.
            masked: the masked cells, of the coarsest stride.

        Returns:
            Every voxel of stride 1 inside the masked cells, sorted by (batch, x, y, z), and (Q, outputs) for each.
        """
        visible = list(stages)[:0:-1]
        level = _join(visible[0], masked)
        x = self.densify[0](visible[0].feats, level)
        for block in self.context:
            x = block(x, level)
        for stage, densify, block, factor in zip(visible[1:], self.densify[1:], self.blocks, self.factors):
            masked = masked.refine(factor)
            fine = _join(stage, masked)
            x = block(x, level, fine, densify(stage.feats, fine))
            level = fine
        sites = masked.refine(self.factors[-1])
        x = self.last_norm(self.last_up(x, level, sites)).relu()
        return sites, self.head(x)


def _join(visible: SparseVoxels, masked: Topology) -> Topology:
    """The visible sites of a level, then the masked ones."""
    return Topology(torch.cat([visible.coords, masked.coords]), masked.stride, masked.batch_size)
