"""Sparse residual networks over voxels: encoders of submanifold and strided sparse convolutions (SparK, section 3).

The finest voxels pass a stem; each stage then merges 2 x 2 x 2 voxels by a strided convolution and goes through
residual blocks of submanifold convolutions, which keep the set of voxels as it is. Only the voxels that are handed in
are computed on, so what was masked away has no influence on any feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.geometry.sparse_voxels import SparseVoxels
from geo3d.models.encoder import require_prepared
from geo3d.models.family import Family
from geo3d.models.voxel_encoder import VoxelEncoder
from geo3d.models.voxel_points import VoxelPoints, points_in_voxels
from geo3d.nn.sparse_layers import (
    BottleneckConv,
    ConvStem,
    ResidualConv,
    StridedConv,
    SubmanifoldConv,
    VoxelBatchNorm,
)
from geo3d.nn.topology import Topology

#: Signals by name -> parts of the points that they are read from, beside their place in the voxel.
SIGNALS = {
    "XYZ": (),
    "XYZ_RGB": ("colors",),
    "XYZ_NORM": ("normals",),
    "XYZ_RGB_NORM": ("colors", "normals"),
}
BLOCKS = ("basic", "bottleneck")
_BOTTLENECK = 4  # channels of a bottleneck block over those of its convolution


@dataclass(frozen=True)
class SparseResNetConfig:
    """Sizes of a sparse residual network; the defaults are those of `sparse_resnet18`."""

    stem: int = 32
    """Channels of the finest voxels, stride 1."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks of the stages of stride 2, 4, 8, ..."""
    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of these stages."""
    block: str = "basic"
    """Residual block: basic (two convolutions) or bottleneck (one of a quarter of the channels, between matrices)."""
    signals: str = "XYZ_RGB_NORM"
    """What is read of points: XYZ (their place in the voxel), XYZ_RGB, XYZ_NORM or XYZ_RGB_NORM."""
    voxel_size: float = 0.02
    """Edge of the voxels that the network is trained on, metres."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.channels) or not self.depths:
            raise InputError(f"sparse ResNet: depths {self.depths} and channels {self.channels} must be of one length")
        if self.signals not in SIGNALS:
            raise InputError(f"sparse ResNet: signals must be one of {', '.join(SIGNALS)}, got {self.signals!r}")
        if self.block not in BLOCKS:
            raise InputError(f"sparse ResNet: block must be one of {', '.join(BLOCKS)}, got {self.block!r}")
        if min(self.stem, *self.depths, *self.channels) < 1 or not 0 < self.voxel_size < math.inf:
            raise InputError(f"sparse ResNet: sizes must be at least 1 and voxel_size positive, got {self}")
        if self.block == "bottleneck" and any(c % _BOTTLENECK for c in self.channels):
            raise InputError(
                f"sparse ResNet: bottlenecks need channels that {_BOTTLENECK} divides, got {self.channels}"
            )

    @property
    def in_channels(self) -> int:
        """Input features a voxel: one that is 1, its point's place in it, then colour and normal where read."""
        return 4 + 3 * len(SIGNALS[self.signals])


@dataclass
class SparseResNetInput:
    """Voxels as the network takes them.

    Args:
        voxels: stride 1, features (N, C).
        index: (N,) int64 row of the point that each voxel was made of, where it was made of points.
        inverse: (P,) int64 voxel of every point.
    """

    voxels: SparseVoxels
    index: Tensor | None = None
    inverse: Tensor | None = None

    def to(self, device: torch.device | str) -> SparseResNetInput:
        """Copy to a device."""
        others = (None if t is None else t.to(device) for t in (self.index, self.inverse))
        return SparseResNetInput(self.voxels.to(device), *others)


class ResidualStage(nn.Module):
    """Merges voxels by a strided convolution, and residual blocks among the coarser ones.

    Args:
        in_channels, out_channels: of the finer and the coarser voxels.
        depth: blocks.
        block: one of :data:`BLOCKS`.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, block: str) -> None:
        super().__init__()
        self.down, self.norm = StridedConv(in_channels, out_channels), VoxelBatchNorm(out_channels)
        make = ResidualConv if block == "basic" else lambda c: BottleneckConv(c, c // _BOTTLENECK)
        self.blocks = nn.ModuleList(make(out_channels) for _ in range(depth))

    def forward(self, x: Tensor, topology: Topology) -> tuple[Tensor, Topology]:
        """(N, C_in) features of the topology's voxels -> (M, C_out) of the coarser ones, and these."""
        x = self.norm(self.down(x, topology)).relu()
        coarse, _ = topology.coarsen(2)
        for block in self.blocks:
            x = block(x, coarse)
        return x, coarse


class SparseResNet(VoxelEncoder):
    """A residual network over sparse voxels.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "sparse_resnet"

    def __init__(self, config: SparseResNetConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or SparseResNetConfig()
        self.stem, self.stem_block = ConvStem(config.in_channels, config.stem), ResidualConv(config.stem)
        widths = zip(self.channels, config.channels, config.depths)
        self.stages = nn.ModuleList(ResidualStage(c_in, c_out, depth, config.block) for c_in, c_out, depth in widths)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: uniform convolutions and matrices."""
        for module in self.modules():
            if isinstance(module, SubmanifoldConv | StridedConv):
                module.reset_parameters(generator)
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The stem, then the blocks of all stages; the way down belongs to the first block after it."""
        layers: list[tuple[str, ...]] = [("stem.", "stem_block.")]
        for stage, depth in enumerate(self.config.depths):
            way_down = f"stages.{stage}.down.", f"stages.{stage}.norm."
            blocks = [(f"stages.{stage}.blocks.{block}.",) for block in range(depth)]
            layers += [(*way_down, *blocks[0]), *blocks[1:]]
        return layers

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every stage, finest first."""
        return (self.config.stem, *self.config.channels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Voxel edge of every stage, in input voxels."""
        return tuple(2**stage for stage in range(len(self.channels)))

    @property
    def reads(self) -> tuple[str, ...]:
        """Fields of points that the network reads beside their place: ``colors``, ``normals``, both or none."""
        return SIGNALS[self.config.signals]

    def inputs(self, cloud: PointCloud, voxel_size: float | None = None) -> SparseResNetInput:
        """What this network reads of points, in voxels of its own size or another; the first point of each is read.

        Raises:
            InputError: the points lack colours or normals that the network reads.
        """
        points = points_in_voxels(cloud, self.config.voxel_size if voxel_size is None else voxel_size)
        return self.voxel_inputs(points)

    def voxel_inputs(self, points: VoxelPoints) -> SparseResNetInput:
        """What this network reads of points of which each has a voxel to itself.

        Raises:
            InputError: the points lack colours or normals that the network reads.
        """
        columns = [torch.ones_like(points.xyz[:, :1]), 2 * (points.xyz - points.xyz.floor()) - 1]
        for part in self.reads:
            values = getattr(points, part)
            if values is None:
                raise InputError(
                    f"sparse ResNet: a network of signals {self.config.signals} reads {part}, but the points have none"
                )
            columns.append(2 * values.float() - 1 if part == "colors" else values.float())
        voxels = SparseVoxels(points.coords, torch.cat(columns, 1), batch_size=points.batch_size)
        return SparseResNetInput(voxels, points.index, points.inverse)

    def features(self, inputs: SparseResNetInput, layers: Sequence[int | str] | None = None) -> list[SparseVoxels]:
        """Voxels with features of every stage, finest first, with :attr:`channels` at :attr:`strides`.

        Args:
            inputs: of :meth:`prepare`, :meth:`inputs` or :meth:`voxel_inputs`.
            layers: stages; all when not given.

        Raises:
            InputError: voxels of another stride, or features that do not fit the network.
        """
        require_prepared(self, inputs, SparseResNetInput)
        voxels = inputs.voxels
        if voxels.stride != 1 or voxels.feats.shape[1] != self.config.in_channels:
            raise InputError(
                f"sparse ResNet: voxels must have stride 1 and {self.config.in_channels} features, "
                f"got {voxels.stride} and {voxels.feats.shape[1]}"
            )
        topology = voxels.topology
        x = self.stem_block(self.stem(voxels.feats, topology), topology)
        stages = [topology.voxels(x)]
        for stage in self.stages:
            x, topology = stage(x, topology)
            stages.append(topology.voxels(x))
        return [stages[n] for n in self.stage_numbers(layers)]

    def forward(self, inputs: SparseResNetInput) -> list[SparseVoxels]:
        """The same as :meth:`features`."""
        return self.features(inputs)


_18 = SparseResNetConfig()
#: Named configurations.
PRESETS = {
    "sparse_resnet_tiny": SparseResNetConfig(stem=32, depths=(1, 1, 1), channels=(48, 96, 128), voxel_size=0.05),
    "sparse_resnet18": _18,
    "sparse_resnet34": replace(_18, depths=(3, 4, 6, 3)),
    "sparse_resnet50": replace(_18, depths=(3, 4, 6, 3), channels=(256, 512, 1024, 2048), block="bottleneck"),
}

FAMILY = Family(
    name="sparse_resnet",
    title="sparse ResNet",
    network=SparseResNet,
    config=SparseResNetConfig,
    presets={"sparse_resnet18": _18, **PRESETS},
    published="spark3d",
    named=("stem", "depths", "channels", "block"),
    free=("voxel_size",),
)

__all__ = ["BLOCKS", "FAMILY", "PRESETS", "SIGNALS", "SparseResNet", "SparseResNetConfig", "SparseResNetInput"]
