"""Networks that name the class of every point: any encoder of voxels or points under a small head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.geometry import PointCloud, SparseVoxels
from geo3d.models.clouds import checked_cloud
from geo3d.models.headed import HeadedConfig, HeadedPointEncoder, HeadedVoxelEncoder, declared
from geo3d.models.point_encoder import PointInput, PointTokens
from geo3d.models.voxel_points import points_in_voxels
from geo3d.nn.batch_norm import VoxelNorm1d
from geo3d.nn.point_layers import nearest_weights
from geo3d.ops.interpolate import interpolate


@dataclass(frozen=True)
class _SegmenterConfig(HeadedConfig):
    """Sizes that segmenters share."""

    width: int = 96
    """Channels of the head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise InputError(f"width must be at least 1, got {self.width}")


@dataclass(frozen=True)
class VoxelSegmenterConfig(_SegmenterConfig):
    """Sizes of a segmenter of voxels."""

    encoder: str = "sparse_resnet_tiny"
    """The encoder, one of `geo3d.list_models()` that reads voxels."""
    kind: ClassVar = "voxels"

    @property
    def voxel_size(self) -> float:
        """Edge of the voxels that the network is trained on, metres."""
        return self.inner().voxel_size


@dataclass(frozen=True)
class PointSegmenterConfig(_SegmenterConfig):
    """Sizes of a segmenter of points."""

    encoder: str = "i2p_mae_tiny"
    """The encoder, one of `geo3d.list_models()` that reads points."""
    voxel_size: float = 0.05
    """Scenes are thinned out to a point in each voxel of this edge, metres, and looked at in pieces of as many points
    as the encoder reads."""
    kind: ClassVar = "points"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.voxel_size > 0:
            raise InputError(f"voxel_size must be positive, got {self.voxel_size}")


class StageHead(nn.Module):
    """Features of several stages to class logits: each stage normalised and projected where it lies, then added up.

    Args:
        channels: of the stages.
        width: of what they are projected to.
        classes: that are told apart.
        extra: further columns that are added at the finest places, such as the place of a point.
    """

    def __init__(self, channels: list[int], width: int, classes: int, extra: int = 0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(VoxelNorm1d(c), nn.Linear(c, width)) for c in channels)
        self.extra = nn.Linear(extra, width) if extra else None
        self.mix = nn.Sequential(VoxelNorm1d(width), nn.ReLU(), nn.Linear(width, width), VoxelNorm1d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    def project(self, feats: list[Tensor]) -> list[Tensor]:
        """(N_s, C_s) features of every stage -> (N_s, width)."""
        return [stage(x) for stage, x in zip(self.stages, feats, strict=True)]

    def classify(self, joined: Tensor, extra: Tensor | None = None) -> Tensor:
        """(N, width) sum of the projected stages, and (N, extra) columns -> (N, classes)."""
        joined = joined if self.extra is None else joined + self.extra(extra.to(joined.dtype))
        return self.classifier(self.mix(joined))


class VoxelSegmenter(HeadedVoxelEncoder):
    """An encoder of voxels and a head over all of its stages, which each voxel reads where it lies in them.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "voxel_segmenter"
    task = "segment"

    def __init__(self, config: VoxelSegmenterConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        encoder = self._build_encoder(config or VoxelSegmenterConfig(), generator)
        self.head = StageHead(list(encoder.channels), self.config.width, self.config.num_classes)
        self._reset_head(generator)

    def forward(self, inputs: Any) -> Tensor:
        """(N, classes) logits of every finest voxel, in the order of the voxels; ``[inputs.inverse]`` of the points."""
        stages = self.features(inputs)
        projected = self.head.project([stage.feats for stage in stages])
        return self.head.classify(_summed(stages, projected, inputs.voxels))

    @torch.no_grad()
    def predict(self, cloud: PointCloud, voxel_size: float | None = None) -> Tensor:
        """Class logits of every point: those of its voxel, of which the first point is read.

        Args:
            cloud: points with the colours and normals that the network reads, on any device.
            voxel_size: edge of a voxel, metres; that of the training when not given.

        Returns:
            (P, classes) on the CPU.
        """
        inputs = self.prepare(cloud, voxel_size)
        return self(inputs)[inputs.inverse].cpu()


def _summed(stages: list[SparseVoxels], values: list[Tensor], finest: SparseVoxels) -> Tensor:
    """(N, C) sums over the stages of what the voxels have that a finest one lies in."""
    topology, row, total = finest.topology, None, None
    for stage, value in zip(stages, values):
        if stage.stride > topology.stride:
            topology, parent = topology.coarsen(stage.stride // topology.stride)
            row = parent if row is None else parent[row]
        own = value if row is None else value[row]
        total = own if total is None else total + own
    return total


class PointSegmenter(HeadedPointEncoder):
    """An encoder of points and a head over its levels, of which each point reads the three nearest tokens.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "point_segmenter"
    task = "segment"

    def __init__(self, config: PointSegmenterConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        encoder = self._build_encoder(config or PointSegmenterConfig(), generator)
        channels = [stage.channels for stage in encoder.feature_info]
        self.head = StageHead(channels, self.config.width, self.config.num_classes, extra=3)
        self._reset_head(generator)

    #: Fields of points that the network reads beside their place: none.
    reads: ClassVar[tuple[str, ...]] = ()

    def forward(self, inputs: PointInput) -> Tensor:
        """(P, classes) logits of every point of the clouds."""
        levels: list[PointTokens] = self.features(inputs)
        joined = None
        for level, values in zip(levels, self.head.project([level.feats for level in levels])):
            index, weights = nearest_weights(inputs.xyz, level.xyz.to(inputs.xyz), inputs.offsets, level.offsets)
            own = interpolate(values, index, weights.to(values))
            joined = own if joined is None else joined + own
        return self.head.classify(joined, inputs.xyz)

    @torch.no_grad()
    def predict(self, cloud: PointCloud, voxel_size: float | None = None) -> Tensor:
        """Class logits of every point: means over the pieces that its voxel is in.

        A piece is as many points as the encoder reads, those nearest to a voxel that no piece holds yet.

        Args:
            cloud: one scene, on any device.
            voxel_size: a point of each voxel of this edge is looked at, metres; as in training when not given.

        Returns:
            (P, classes) on the CPU.
        """
        thinned = points_in_voxels(checked_cloud(self, cloud), voxel_size or self.config.voxel_size)
        xyz = thinned.xyz
        total = xyz.new_zeros(len(xyz), self.config.num_classes)
        seen = torch.zeros(len(xyz), dtype=torch.bool, device=xyz.device)
        while not seen.all():
            centre = xyz[int((~seen).to(torch.uint8).argmax())]
            distance = (xyz - centre).square().sum(1)
            rows = distance.topk(min(self.points_read, len(xyz)), largest=False).indices.sort().values
            logits = self(self.prepare(xyz[rows], points=0))
            total[rows] += logits.float().log_softmax(1).to(total)
            seen[rows] = True
        return total[thinned.inverse].cpu()


VOXEL_FAMILY = declared(VoxelSegmenter, "segmenter of voxels", VoxelSegmenterConfig)
POINT_FAMILY = declared(PointSegmenter, "segmenter of points", PointSegmenterConfig, free=("voxel_size",))

__all__ = [
    "POINT_FAMILY",
    "VOXEL_FAMILY",
    "PointSegmenter",
    "PointSegmenterConfig",
    "StageHead",
    "VoxelSegmenter",
    "VoxelSegmenterConfig",
]
