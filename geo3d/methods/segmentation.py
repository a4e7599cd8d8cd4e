"""Supervised semantic segmentation of voxelised scenes: how Swin3D is pre-trained (Swin3D, section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.methods.method import Method, MethodOutput
from geo3d.methods.points import PointSamples, rotate_and_scale
from geo3d.metrics import IGNORED
from geo3d.models import create_model
from geo3d.models.swin3d import Swin3DInput, inputs_from_voxels
from geo3d.ops.voxelize import voxelize
from geo3d.samples.points import LabelledScenes
from geo3d.viz.points import draw_labels

_BLOCK_RATE = 0.1
_CUT = 4  # standard deviations


@dataclass(frozen=True)
class SegmentationConfig:
    """How Swin3D is trained to segment."""

    model: str = "swin3d_tiny"
    """Network, one of `geo3d.list_models("swin3d*")`."""
    signals: Literal["XYZ", "XYZ_RGB", "XYZ_NORM", "XYZ_RGB_NORM"] = "XYZ_RGB_NORM"
    """What the network sees of points beside their place: colours, normals, or both."""
    decoder: Literal["linear", "linear_attn"] = "linear"
    """Decoder stages without or with a block of attention each."""
    first_stride: int = 3
    """Voxels that the first step down joins along a side."""
    voxel_size: float = 0.05
    """Edge of a voxel, metres (published: 0.02, and 0.04 for S3DIS)."""
    max_voxels: int = 8_000
    """Voxels of a training crop: the nearest ones to a random one (published: 120000)."""
    scale: tuple[float, float] = (0.8, 1.2)
    """Scenes are scaled by a random factor between these."""
    color_drop: float = 0.2
    """Probability that a scene loses all its colours."""
    jitter: float = 0.0
    """Standard deviation by which each point is moved along each axis, metres, cut at four of them (S3DIS: 0.005)."""

    def __post_init__(self) -> None:
        if not self.voxel_size > 0:
            raise InputError(f"voxel_size must be positive, got {self.voxel_size}")
        if self.max_voxels < 1:
            raise InputError(f"max_voxels must be at least 1, got {self.max_voxels}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"scale must be two positive factors, the smaller one first, got {self.scale}")
        if not 0 <= self.color_drop <= 1:
            raise InputError(f"color_drop must lie in [0, 1], got {self.color_drop}")
        if not 0 <= self.jitter < math.inf:
            raise InputError(f"jitter must be 0 or more metres, got {self.jitter}")


def augment(cloud: PointCloud, config: SegmentationConfig, rng: np.random.Generator) -> PointCloud:
    """Turn a scene about its vertical axis, scale it, move its points a little, and now and then take its colours away.

    Args:
        cloud: one scene, z up.
        config: how far.
        rng: draws angle, factor, whether colours go, and the points' moves; always in this order.

    Returns:
        The scene about the mean of its points; lost colours are the middle grey that the network sees as 0.
    """
    angle, factor, drop = rng.uniform(0, 2 * math.pi), rng.uniform(*config.scale), rng.random() < config.color_drop
    xyz, normals = rotate_and_scale(cloud, angle, factor)
    if config.jitter:
        moves = rng.normal(0, config.jitter, tuple(xyz.shape)).clip(-_CUT * config.jitter, _CUT * config.jitter)
        xyz += torch.from_numpy(moves)
    colors = torch.full_like(cloud.colors, 0.5) if cloud.colors is not None and drop else cloud.colors
    return PointCloud(xyz.float(), colors, normals, cloud.semantic)


def crop_nearest(xyz: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Rows, ascending, of the ``count`` points nearest to a random one of (N, 3); all where there are no more."""
    seed = int(rng.integers(len(xyz)))
    if len(xyz) <= count:
        return torch.arange(len(xyz))
    distance = (xyz.double() - xyz[seed].double()).square().sum(1)
    return distance.argsort(stable=True)[:count].sort().values


class SegmentationSamples(PointSamples):
    """Labelled scenes, augmented, voxelised with a random point a voxel, and cropped."""

    def __init__(self, scenes: LabelledScenes, config: SegmentationConfig, reads: tuple[str, ...]) -> None:
        super().__init__(scenes, reads)
        self.config = config

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One crop: ``xyz`` (N, 3) in voxel units, ``semantic`` (N,), and ``colors`` and ``normals`` where known."""
        cloud = augment(self.cloud(index), self.config, rng)
        scaled = (cloud.xyz - cloud.xyz.amin(0)) / self.config.voxel_size
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        _, _, rows = voxelize(scaled, cloud.offsets, 1.0, None, "random", generator)
        rows = rows[crop_nearest(scaled[rows], self.config.max_voxels, rng)]
        parts = {"xyz": scaled, "semantic": cloud.semantic} | {name: getattr(cloud, name) for name in self.reads}
        return {name: values[rows] for name, values in parts.items()}


class Segmentation(Method):
    """Semantic segmentation on Swin3D.

    Args:
        config: task and network.
        classes: names of the classes, in the order of the labels.
        generator: draws the initial weights.
    """

    name = "swin3d"
    source = LabelledScenes

    def __init__(
        self, config: SegmentationConfig, classes: tuple[str, ...], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        self.network = create_model(
            config.model,
            signals=config.signals,
            decoder=config.decoder,
            first_stride=config.first_stride,
            voxel_size=config.voxel_size,
            num_classes=len(classes),
            generator=generator,
        )

    def samples(self, scenes: LabelledScenes) -> SegmentationSamples:
        """The training items of a set of labelled scenes."""
        return SegmentationSamples(scenes, self.config, self.network.reads)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pack crops one after the other, with ``offsets`` (B + 1,)."""
        sizes = torch.tensor([0, *(len(sample["xyz"]) for sample in samples)])
        packed = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
        return packed | {"offsets": sizes.cumsum(0)}

    def _inputs(self, batch: dict[str, Any]) -> Swin3DInput:
        config = self.network.config
        return inputs_from_voxels(batch["xyz"], batch.get("colors"), batch.get("normals"), batch["offsets"], config)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """Cross-entropy over the labelled voxels; paths are dropped by torch's global generator."""
        logits = self.network(self._inputs(batch))
        labels = batch["semantic"]
        labelled = labels != IGNORED
        count = labelled.sum().clamp_min(1)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / count
        predicted = logits.argmax(1)
        accuracy = ((predicted == labels) & labelled).sum() / count
        return MethodOutput({"cross_entropy": loss}, {"accuracy": accuracy}, {"predicted": predicted})

    def rate_factors(self) -> dict[str, float]:
        """Parameters of attention blocks learn at a tenth of the rate, as published."""
        return {name: _BLOCK_RATE for name, _ in self.named_parameters() if "blocks" in name}

    def model_card(self) -> dict[str, Any]:
        """What a checkpoint must say so that ``create_model`` can load the network."""
        return self.network.card() | {"prefix": "network."}

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """The first crop by its labels, and by the network's."""
        stop = int(batch["offsets"][1])
        parts = {"labels": batch["semantic"], "predicted": output.extras["predicted"]}
        panels = {caption: values[:stop].cpu().numpy() for caption, values in parts.items()}
        normals = batch["normals"][:stop].cpu().numpy() if "normals" in batch else None
        return draw_labels(batch["xyz"][:stop].cpu().numpy(), normals, panels, self.classes)


__all__ = [
    "Segmentation",
    "SegmentationConfig",
    "SegmentationSamples",
    "augment",
    "crop_nearest",
]
