"""Swin3D's recipe: labelled scenes, and how well scenes that were held out are segmented."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from geo3d.methods.segmentation import Segmentation, SegmentationConfig
from geo3d.recipes.recipe import RoomsRun
from geo3d.recipes.scene_segmentation import SceneSegmentationRecipe
from geo3d.samples.points import LabelledScenes
from geo3d.train.config import TrainConfig


@dataclass(kw_only=True)
class Swin3DRun(RoomsRun):
    """Pre-train Swin3D: name the class of every voxel of labelled scenes."""

    method: SegmentationConfig = field(default_factory=SegmentationConfig)
    """The task and the network."""


def published_training() -> TrainConfig:
    """The published training on ScanNet (section 4): 600 passes, 3 scenes a GPU, mixed precision."""
    return TrainConfig(
        epochs=600,
        batch_size=3,
        lr=6e-3,
        warmup_steps=3000,
        min_lr=1e-6,
        betas=(0.9, 0.999),
        precision="fp16",
        workers=8,
    )


def _tiny() -> Swin3DRun:
    """Minutes on a CPU: a small network on coarse voxels; rougher points and fewer colours, as real scans differ."""
    method = SegmentationConfig(jitter=0.01, color_drop=0.5)
    train = TrainConfig(
        steps=400, batch_size=2, lr=6e-3, warmup_steps=40, min_lr=1e-6, clip_norm=1.0, betas=(0.9, 0.999), workers=1
    )
    return Swin3DRun(rooms=24, method=method, train=train)


def _paper() -> Swin3DRun:
    """The small network on ScanNet with colours and normals: 600 passes, 3 scenes a GPU, mixed precision."""
    method = SegmentationConfig("swin3d_s", decoder="linear_attn", voxel_size=0.02, max_voxels=120_000)
    return Swin3DRun(method=method, train=published_training())


class Swin3DRecipe(SceneSegmentationRecipe):
    """Segmentation with training scenes, and held-out scenes to measure it on."""

    summary = "Swin3D: name the class of every voxel of labelled scenes"
    run = Swin3DRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = Segmentation

    @classmethod
    def build_method(
        cls, config: Swin3DRun, source: LabelledScenes | None, generator: torch.Generator | None
    ) -> Segmentation:
        """The method with the classes of the data; with a single one where there is no data yet."""
        return Segmentation(config.method, ("any",) if source is None else source.classes, generator)
