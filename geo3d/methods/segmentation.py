"""Supervised semantic segmentation of voxelised scenes: how Swin3D is pre-trained (Swin3D, section 4.1)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.methods.checks import check_at_least, check_share
from geo3d.methods.method import Method, MethodOutput
from geo3d.methods.points import PointSamples, VoxelCropConfig, random_point_a_voxel, rotate_and_scale
from geo3d.metrics import IGNORED, accuracy
from geo3d.models import create_model, model_options
from geo3d.models.voxel_points import VoxelPoints
from geo3d.samples.packing import pack
from geo3d.samples.points import LabelledScenes
from geo3d.viz.points import draw_labels

_CUT = 4  # standard deviations


@dataclass(frozen=True)
class LabelledCropConfig(VoxelCropConfig):
    """How crops of labelled scenes are changed at random."""

    color_drop: float = 0.2
    """Probability that a scene loses all its colours."""
    jitter: float = 0.0
    """Standard deviation by which each point is moved along each axis, metres, cut at four of them (S3DIS: 0.005)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "color_drop")
        check_at_least(self, 0, "jitter")


@dataclass(frozen=True)
class SegmentationConfig(LabelledCropConfig):
    """How Swin3D is trained to segment; published with voxels of 0.02 m (0.04 for S3DIS), 120,000 of them a crop."""

    model: str = "swin3d_tiny"
    """Network, one of `geo3d.list_models("swin3d*")`."""
    decoder: Literal["linear", "linear_attn"] = "linear"
    """Decoder stages without or with a block of attention each."""
    first_stride: int = 3
    """Voxels that the first step down joins along a side."""


def augment(cloud: PointCloud, config: LabelledCropConfig, rng: np.random.Generator) -> PointCloud:
    """Rotate a scene about its vertical axis, scale it, move its points a little, and sometimes drop its colours.

    Args:
        cloud: one scene, z up.
        config: how far.
        rng: draws angle, factor, whether colours go, and the points' moves; always in this order.

    Returns:
        The scene about the mean of its points; dropped colours are the middle grey that the network sees as 0.
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
    """Labelled scenes, augmented, voxelised with a random point a voxel, and cropped.

    Args:
        source: where scenes come from.
        config: of the crops and of what is changed at random.
        reads: fields of points that the network cannot do without.
    """

    def __init__(self, source: LabelledScenes, config: LabelledCropConfig, reads: tuple[str, ...]) -> None:
        super().__init__(source, reads)
        self.config = config

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One crop: ``xyz`` (N, 3) in voxel units, ``semantic`` (N,), and ``colors`` and ``normals`` where known."""
        cloud = augment(self.cloud(index), self.config, rng)
        scaled = (cloud.xyz - cloud.xyz.amin(0)) / self.config.voxel_size
        rows = random_point_a_voxel(scaled, rng)
        rows = rows[crop_nearest(scaled[rows], self.config.max_voxels, rng)]
        parts = {"xyz": scaled, "semantic": cloud.semantic} | {name: getattr(cloud, name) for name in self.reads}
        return {name: values[rows] for name, values in parts.items()}


class SceneSegmentation(Method):
    """A method that names the class of every voxel of labelled scenes: subclasses have a ``network`` that does."""

    source = LabelledScenes
    classes: tuple[str, ...]

    @abstractmethod
    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(N, classes) of the points of a batch of packed crops."""

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pack crops one after the other, with ``offsets`` (B + 1,)."""
        return pack(samples)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """Cross-entropy over the labelled voxels; paths are dropped by torch's global generator."""
        logits = self.logits(batch)
        labels = batch["semantic"]
        count = (labels != IGNORED).sum().clamp_min(1)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / count
        predicted = logits.argmax(1)
        return MethodOutput(
            {"cross_entropy": loss}, {"accuracy": accuracy(labels, predicted)}, {"predicted": predicted}
        )

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """The first crop by its labels, and by the network's."""
        stop = int(batch["offsets"][1])
        parts = {"labels": batch["semantic"], "predicted": output.extras["predicted"]}
        panels = {caption: values[:stop].cpu().numpy() for caption, values in parts.items()}
        normals = batch["normals"][:stop].cpu().numpy() if "normals" in batch else None
        return draw_labels(batch["xyz"][:stop].cpu().numpy(), normals, panels, self.classes)


class Segmentation(SceneSegmentation):
    """Semantic segmentation on Swin3D.

    Args:
        config: task and network.
        classes: names of the classes, in the order of the labels.
        generator: draws the initial weights.
    """

    name = "swin3d"

    def __init__(
        self, config: SegmentationConfig, classes: tuple[str, ...], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        if not {"num_classes", "first_stride"} <= model_options(config.model).keys():
            raise InputError(f"model must be a Swin3D, such as swin3d_tiny; {config.model} is none")
        self.network = create_model(
            config.model,
            signals=config.signals,
            decoder=config.decoder,
            first_stride=config.first_stride,
            voxel_size=config.voxel_size,
            num_classes=len(classes),
            generator=generator,
        )
        self.network.classes = classes

    def samples(self, source: LabelledScenes) -> SegmentationSamples:
        """The training items of a set of labelled scenes."""
        return SegmentationSamples(source, self.config, self.network.reads)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """As :meth:`SceneSegmentation.logits`."""
        parts = batch["xyz"], batch.get("colors"), batch.get("normals"), batch["offsets"]
        return self.network(self.network.voxel_inputs(VoxelPoints(*parts)))

    def rate_factors(self) -> dict[str, float]:
        """Parameters of attention blocks learn at a tenth of the rate, as published."""
        return {f"network.{name}": factor for name, factor in self.network.rate_factors().items()}


__all__ = [
    "LabelledCropConfig",
    "SceneSegmentation",
    "Segmentation",
    "SegmentationConfig",
    "SegmentationSamples",
    "augment",
    "crop_nearest",
]
