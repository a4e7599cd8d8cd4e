"""What recipes over labelled scenes of points share: how well scenes that were held out are segmented."""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.geometry import PointCloud
from geo3d.methods.segmentation import SceneSegmentation
from geo3d.metrics import confusion_matrix, segmentation_scores
from geo3d.recipes.recipe import MEASURED_SCENES, Recipe
from geo3d.samples.points import LabelledScenes
from geo3d.viz.points import draw_labels, write_labelled_points
from geo3d.viz.sheet import write_picture


class SceneSegmentationRecipe(Recipe):
    """Segmentation with training scenes, and held-out scenes to measure it on."""

    best, higher_is_better = "miou", True
    method: SceneSegmentation

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


__all__ = ["SceneSegmentationRecipe"]
