"""Detection in radiance grids: fine-tuning of NeRF-MAE's encoder, and how well objects of held-out scenes are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from geo3d.geometry import VolumeGrid
from geo3d.methods.grid_detection import GridDetection, GridDetectionConfig, draw_found
from geo3d.metrics import detection_scores
from geo3d.nn.oriented_boxes import box_iou
from geo3d.recipes.finetuning import FewLabels
from geo3d.recipes.grids import GridsRecipe, GridsRun, published_training, short_training
from geo3d.recipes.recipe import MEASURED_SCENES
from geo3d.samples.boxed_grids import BoxedGrids
from geo3d.viz.sheet import write_picture


@dataclass(kw_only=True)
class GridDetectionRun(GridsRun):
    """Find objects in radiance grids; `init` names the pre-trained network."""

    method: GridDetectionConfig = field(default_factory=GridDetectionConfig)
    """The task and the network."""


def _tiny() -> GridDetectionRun:
    """Minutes on a CPU: a small network, grids of 64 voxels a side."""
    return GridDetectionRun(train=short_training(800))


def _paper() -> GridDetectionRun:
    """The published fine-tuning on Front3D: 1,000 epochs, batches of 8, one cycle; grids of 160 voxels a side."""
    method = GridDetectionConfig("nerf_mae_detector", side=160, each=False, bounds_weight=0.0, corner_weight=0.0)
    return GridDetectionRun(method=method, grid_side=160, train=published_training(1000, 8, 1e-4))


class GridDetectionRecipe(FewLabels, GridsRecipe):
    """Detection with training scenes, and held-out scenes to measure it on."""

    summary = "NeRF-MAE's encoder, fine-tuned to find objects in radiance grids"
    purpose = "finetune"
    run = GridDetectionRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = GridDetection
    best, higher_is_better = "ap25", True

    def prepare_measuring(self, source: BoxedGrids, measured: BoxedGrids) -> None:
        """Take the first scenes that can be read."""
        self.measured = every = self.method.samples(measured)
        self._grids = self.first_readable(every, self._counted(measured), MEASURED_SCENES)

    def _counted(self, grids: BoxedGrids) -> Callable[[int], VolumeGrid]:
        """Reads a grid with its objects that are not too small."""
        counted = self.config.method.counted

        def read(index: int) -> VolumeGrid:
            grid = grids.grid(index)
            return replace(grid, boxes=counted(grid.boxes))

        return read

    @property
    def measured_count(self) -> int:
        """How many scenes are measured."""
        return len(self._grids)

    def describe(self) -> str:
        """How many objects are to be found in them."""
        return f", {sum(len(grid.boxes) for grid in self._grids)} objects in these"

    def figures(self) -> dict[str, float]:
        """As :func:`geo3d.metrics.detection_scores`, over all objects of the measured scenes, and how many they are."""
        overlaps, scores = [], []
        for grid in self._grids:
            found = self.method.network.detect(grid)[0]
            overlaps.append(box_iou(found.boxes, grid.boxes.to(found.boxes)).cpu())
            scores.append(found.scores.cpu())
        objects = sum(len(grid.boxes) for grid in self._grids)
        return detection_scores(overlaps, scores) | {"objects": objects}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Scores before and after; the first measured scene that has objects is drawn as ``detection.png``."""
        grid = next((grid for grid in self._grids if len(grid.boxes)), self._grids[0])
        network = self.method.network
        with self.method.measuring():
            inputs = network.prepare(grid)
            truth = grid.boxes.to(inputs.values.device)
            picture = draw_found(inputs.values[0], inputs.sizes[0], truth, network(inputs))
        write_picture(self.folder / "detection.png", picture)
        shown = {"AP25": "ap25", "AP50": "ap50", "recall25": "recall25", "recall50": "recall50"}
        lines = ", ".join(f"{name} {100 * before[key]:.1f} -> {100 * after[key]:.1f}" for name, key in shown.items())
        return (
            f"{after['objects']} objects of {self.measured_count} {self.measured_on} scenes, % "
            f"{self.beginning} -> trained: {lines}\n"
            f"a scene from above with its objects and those found: {self.folder / 'detection.png'}"
        )


__all__ = ["GridDetectionRecipe", "GridDetectionRun"]
