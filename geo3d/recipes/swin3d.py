"""Swin3D's recipe: labelled scenes, and how well scenes that were held out are segmented."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from geo3d.geometry import PointCloud
from geo3d.methods.segmentation import Segmentation, SegmentationConfig
from geo3d.metrics import confusion_matrix, segmentation_scores
from geo3d.recipes.recipe import MEASURED_SCENES, Recipe, RoomsRun
from geo3d.samples.points import LabelledScenes
from geo3d.train.config import TrainConfig
from geo3d.viz.points import draw_labels, write_labelled_points
from geo3d.viz.sheet import write_picture


@dataclass(kw_only=True)
class Swin3DRun(RoomsRun):
    """Pre-train Swin3D: name the class of every voxel of labelled scenes."""

    method: SegmentationConfig = field(default_factory=SegmentationConfig)
    """The task and the network."""


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
    train = TrainConfig(
        epochs=600,
        batch_size=3,
        lr=6e-3,
        warmup_steps=3000,
        min_lr=1e-6,
        betas=(0.9, 0.999),
        precision="fp16",
        workers=8,
    )
    return Swin3DRun(method=method, train=train)


class Swin3DRecipe(Recipe):
    """Segmentation with training scenes, and held-out scenes to measure it on."""

    summary = "Swin3D: name the class of every voxel of labelled scenes"
    run = Swin3DRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = Segmentation
    best, higher_is_better = "miou", True

    @classmethod
    def build_method(
        cls, config: Swin3DRun, source: LabelledScenes | None, generator: torch.Generator | None
    ) -> Segmentation:
        """The method with the classes of the data; with a single one where there is no data yet."""
        return Segmentation(config.method, ("any",) if source is None else source.classes, generator)

    def prepare_measuring(self, source: LabelledScenes, measured: LabelledScenes) -> None:
        """Take the first scenes that can be read."""
        self.measured = every = self.method.samples(measured)
        self._clouds = self.first_readable(every, every.cloud, MEASURED_SCENES)

    @property
    def measured_count(self) -> int:
        """How many scenes are measured."""
        return len(self._clouds)

    def describe(self) -> str:
        """The number of classes."""
        return f", {len(self.method.classes)} classes"

    def _predict(self, cloud: PointCloud) -> Tensor:
        """The class named for each of a scene's points."""
        return self.method.network.predict(cloud).argmax(1)

    def figures(self) -> dict[str, float]:
        """Mean intersection over union and accuracy over all points of the measured scenes."""
        classes = len(self.method.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        for cloud in self._clouds:
            confusion += confusion_matrix(cloud.semantic, self._predict(cloud), classes)
        return segmentation_scores(confusion) | {"points": int(confusion.sum())}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Scores before and after; the first measured scene is drawn as ``segmentation.png`` and ``.ply``."""
        cloud = self._clouds[0]
        with self.method.measuring():
            predicted = self._predict(cloud)
        xyz, labels = cloud.xyz.numpy(), predicted.numpy()
        normals = None if cloud.normals is None else cloud.normals.numpy()
        panels = {"labels": cloud.semantic.numpy(), "predicted": labels}
        write_picture(self.folder / "segmentation.png", draw_labels(xyz, normals, panels, self.method.classes))
        origin = None if cloud.origin is None else cloud.origin[0].numpy()
        write_labelled_points(self.folder / "segmentation.ply", xyz, labels, len(self.method.classes), origin)
        return (
            f"mean IoU on {self.measured_count} {self.measured_on} scenes: {100 * before['miou']:.1f} % "
            f"{self.beginning}, {100 * after['miou']:.1f} % trained; accuracy {100 * before['accuracy']:.1f} % and "
            f"{100 * after['accuracy']:.1f} % (always the most frequent class: {100 * after['majority']:.1f} %)\n"
            f"a scene by its labels and by the network's: {self.folder / 'segmentation.png'}"
        )
