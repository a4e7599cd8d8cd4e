"""Semantic voxels of radiance grids: fine-tuning of NeRF-MAE's network, and how well held-out scenes are segmented."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from geo3d.geometry import VolumeGrid
from geo3d.methods.grid_segmentation import GridSegmentation, GridSegmentationConfig, draw_classes
from geo3d.metrics import confusion_matrix, segmentation_scores
from geo3d.recipes.finetuning import FewLabels
from geo3d.recipes.grids import GridsRecipe, GridsRun, published_training, short_training
from geo3d.recipes.recipe import MEASURED_SCENES
from geo3d.samples.grids import LabelledGrids
from geo3d.viz.sheet import write_picture


@dataclass(kw_only=True)
class GridSegmentationRun(GridsRun):
    """Name the class of every voxel of radiance grids; `init` names the pre-trained network."""

    method: GridSegmentationConfig = field(default_factory=GridSegmentationConfig)
    """The task and the network."""


def _tiny() -> GridSegmentationRun:
    """Minutes on a CPU: a small network, grids of 64 voxels a side."""
    return GridSegmentationRun(train=short_training(200))


def _paper() -> GridSegmentationRun:
    """The published fine-tuning: 1,000 epochs, batches of 8, one cycle; grids of 160 voxels a side."""
    method = GridSegmentationConfig("nerf_mae_semantic", side=160, published_loss=True)
    return GridSegmentationRun(method=method, grid_side=160, train=published_training(1000, 8, 3e-4))


class GridSegmentationRecipe(FewLabels, GridsRecipe):
    """Segmentation with training scenes, and held-out scenes to measure it on."""

    summary = "NeRF-MAE's network, fine-tuned to name the class of every voxel of radiance grids"
    purpose = "finetune"
    run = GridSegmentationRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = GridSegmentation
    best, higher_is_better = "miou", True

    @classmethod
    def build_method(
        cls, config: GridSegmentationRun, source: LabelledGrids | None, generator: torch.Generator | None
    ) -> GridSegmentation:
        """The method with the classes of the data; with a single one where there is no data yet."""
        return GridSegmentation(config.method, ("any",) if source is None else source.classes, generator)

    def prepare_measuring(self, source: LabelledGrids, measured: LabelledGrids) -> None:
        """Take the first scenes that can be read."""
        self.measured = every = self.method.samples(measured)
        self._grids = self.first_readable(every, measured.grid, MEASURED_SCENES)

    @property
    def measured_count(self) -> int:
        """How many scenes are measured."""
        return len(self._grids)

    def describe(self) -> str:
        """The number of classes."""
        return f", {len(self.method.classes)} classes"

    def _predict(self, grid: VolumeGrid) -> Tensor:
        """(X, Y, Z) class named for each voxel, on the CPU."""
        return self.method.predict(grid.values).cpu()

    def figures(self) -> dict[str, float]:
        """Mean intersection over union and accuracy over all labelled voxels of the measured scenes."""
        classes = len(self.method.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        for grid in self._grids:
            confusion += confusion_matrix(grid.labels.flatten(), self._predict(grid).flatten(), classes)
        return segmentation_scores(confusion) | {"voxels": int(confusion.sum())}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Scores before and after; a slice of the first measured scene is drawn as ``segmentation.png``."""
        grid = self._grids[0]
        with self.method.measuring():
            predicted = self._predict(grid)
        picture = draw_classes(grid.values, grid.labels, predicted, len(self.method.classes))
        write_picture(self.folder / "segmentation.png", picture)
        return (
            f"mean IoU on {self.measured_count} {self.measured_on} scenes: {100 * before['miou']:.1f} % "
            f"{self.beginning}, {100 * after['miou']:.1f} % trained; accuracy {100 * before['accuracy']:.1f} % and "
            f"{100 * after['accuracy']:.1f} % (always the most frequent class: {100 * after['majority']:.1f} %)\n"
            f"a slice of a scene by its labels and by the network's: {self.folder / 'segmentation.png'}"
        )


__all__ = ["GridSegmentationRecipe", "GridSegmentationRun"]
