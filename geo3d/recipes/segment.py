"""Segmentation of one's own scenes: any encoder of voxels or points, labelled scenes, and mean IoU on held-out ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from geo3d.methods.segment import Segment, SegmentConfig
from geo3d.recipes.finetuning import FewLabels, TaskRun
from geo3d.recipes.recipe import RoomsRun
from geo3d.recipes.scene_segmentation import SceneSegmentationRecipe
from geo3d.recipes.swin3d import published_training
from geo3d.samples.points import LabelledScenes
from geo3d.train.config import TrainConfig


@dataclass(kw_only=True)
class SegmentRun(TaskRun, RoomsRun):
    """Name the class of every point of labelled scenes; `init` names the pre-trained encoder."""

    method: SegmentConfig = field(default_factory=SegmentConfig)
    """The task and the network."""


def _tiny() -> SegmentRun:
    """Minutes on a CPU."""
    train = TrainConfig(
        steps=300, batch_size=2, lr=2e-3, warmup_steps=30, min_lr=1e-5, weight_decay=0.05, clip_norm=1.0, workers=1
    )
    return SegmentRun(rooms=24, train=train)


def _paper() -> SegmentRun:
    """Swin3D's published fine-tuning on ScanNet (section 5): voxels of 2 cm, 600 passes, its own decoder."""
    method = SegmentConfig(
        model="swin3d_s", model_options=("decoder=linear_attn",), voxel_size=0.02, max_voxels=120_000, jitter=0.0
    )
    return SegmentRun(method=method, train=published_training())


class SegmentRecipe(FewLabels, SceneSegmentationRecipe):
    """Any encoder, fine-tuned on labelled scenes, and held-out ones to measure it on."""

    summary = "the class of every point of one's own scenes: any encoder of voxels or points under a small head"
    purpose = "finetune"
    run = SegmentRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = Segment

    @classmethod
    def build_method(
        cls, config: SegmentRun, source: LabelledScenes | None, generator: torch.Generator | None
    ) -> Segment:
        """The method with the classes of the data; with a single one where there is no data yet."""
        classes = ("any",) if source is None else source.classes
        return Segment(config.settled(), classes, generator, config.train.seed)


__all__ = ["SegmentRecipe", "SegmentRun"]
