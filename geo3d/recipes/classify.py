"""Classification of one's own objects or images: any encoder, folders of classes, and accuracy on held-out ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from geo3d.datasets.synthetic.objects import make_objects, objects_folder
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least
from geo3d.methods.classify import Classify, ClassifyConfig
from geo3d.metrics import confusion_matrix
from geo3d.models import family_of
from geo3d.progress import Log
from geo3d.recipes.finetuning import FewLabels, TaskRun
from geo3d.samples.labelled_objects import LabelledImages, LabelledObjects
from geo3d.train.config import TrainConfig
from geo3d.viz.sheet import write_picture

#: Objects or images that are measured, at most.
_MEASURED = 1024


@dataclass(kw_only=True)
class ClassifyRun(TaskRun):
    """Name the class of objects or images; `init` names the pre-trained encoder."""

    data: tuple[Path, ...] = ()
    """Objects: sets of labelled objects, folders of categories, or scenes with instances. Images: folders with a folder
    for each class. Where they have a test part, that is what is held out. None: synthetic objects are made."""

    objects: int = 1000
    """Synthetic objects to make where `data` is empty (count)."""

    method: ClassifyConfig = field(default_factory=ClassifyConfig)
    """The task and the network."""

    def check(self) -> None:
        """As :meth:`Run.check`."""
        super().check()
        check_at_least(self, 1, "objects")
        if not self.data and family_of(self.settled().model).kind == "image":
            raise InputError("data: give a folder of images, with a folder for each class, to a network over images")


def _tiny() -> ClassifyRun:
    """Minutes on a CPU."""
    train = TrainConfig(
        steps=300, batch_size=16, lr=1e-3, warmup_steps=30, min_lr=1e-5, weight_decay=0.05, clip_norm=1.0, workers=1
    )
    return ClassifyRun(train=train)


def _paper() -> ClassifyRun:
    """I2P-MAE's fine-tuning on ModelNet40: its own classifier, AdamW, 300 epochs, batches of 32."""
    method = ClassifyConfig(model="i2p_mae_modelnet40", smoothing=0.2)
    train = TrainConfig(epochs=300, warmup_epochs=10, batch_size=32, lr=5e-4, min_lr=1e-6, weight_decay=0.05, workers=8)
    return ClassifyRun(method=method, train=train)


class ClassifyRecipe(FewLabels):
    """Any encoder, fine-tuned on labelled objects or images, and held-out ones to measure it on."""

    summary = "the class of one's own objects or images: any encoder of points, voxels or images under a small head"
    purpose = "finetune"
    run = ClassifyRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = Classify
    items, groups, measured_key = "things", "groups", "things"
    best, higher_is_better = "accuracy", True

    @classmethod
    def build_method(
        cls, config: ClassifyRun, source: LabelledObjects | LabelledImages | None, generator: torch.Generator | None
    ) -> Classify:
        """The method with the classes of the data; with a single one where there is no data yet."""
        return Classify(config.settled(), ("any",) if source is None else source.classes, generator)

    @classmethod
    def made_count(cls, config: ClassifyRun) -> int:
        """How many objects are made."""
        return config.objects

    @classmethod
    def made_data(cls, config: ClassifyRun) -> Path:
        """The folder that they are in."""
        return objects_folder(config.objects, config.train.seed)

    @classmethod
    def make_data(cls, config: ClassifyRun, log: Log) -> Path:
        """Make synthetic objects, or find those made before."""
        return make_objects(config.objects, config.train.seed, log)

    def find_source(self) -> LabelledObjects | LabelledImages:
        """Objects, or images for a network that reads them."""
        kind = family_of(self.config.settled().model).kind
        source = LabelledImages if kind == "image" else LabelledObjects
        folders = self.config.data or (self.made_data(self.config),)
        return source.find(folders, strict=self.config.strict)

    def split(self, source: LabelledObjects | LabelledImages) -> tuple[Any, Any]:
        """The data's own training part and test part where it has both; else as :meth:`Recipe.split`."""
        subsets, groups = source.item_subsets, source.items.group
        test = np.unique(groups[subsets == "test"])
        test = test if len(test) else np.unique(groups[subsets == "val"])
        train = np.setdiff1d(groups[subsets == "train"], test)
        return (train, test) if len(train) and len(test) else super().split(source)

    def item_classes(self, source: LabelledObjects | LabelledImages) -> np.ndarray:
        """(N,) class of each item."""
        return source.item_classes

    @property
    def planned_count(self) -> int:
        """How many are measured: up to 1,024."""
        return min(_MEASURED, len(self.measured))

    def describe(self) -> str:
        """The number of classes."""
        return f", {len(self.method.classes)} classes"

    def draw_measured(self, item: int, rng: np.random.Generator) -> dict[str, Any]:
        """A thing as it is, changed by no chance."""
        return self.measured.draw(item, rng, augment=False)

    def figures(self) -> dict[str, float]:
        """``accuracy`` over all that are measured, ``class_accuracy`` the mean over the classes, ``loss``, and
        ``majority``: the accuracy of always naming the most frequent class.
        """
        classes = len(self.method.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)

        def batch_figures(batch: dict[str, Any]) -> dict[str, float]:
            output = self.method(batch)
            confusion.add_(confusion_matrix(batch["label"].cpu(), output.extras["predicted"].cpu(), classes))
            return {"loss": output.loss.item()}

        found = self.means(batch_figures)
        hits, truth = confusion.diagonal().double(), confusion.sum(1)
        return found | {
            "accuracy": float(hits.sum() / truth.sum()),
            "class_accuracy": float((hits[truth > 0] / truth[truth > 0]).mean()),
            "majority": float(truth.max() / truth.sum()),
        }

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Accuracy before and after; some measured things are drawn as ``classes.png``."""
        batch, _ = next(iter(self.batches()))
        with self.method.measuring():
            picture = self.method.picture(batch, self.method(batch))
        write_picture(self.folder / "classes.png", picture)
        return (
            f"accuracy on {self.measured_count} {self.measured_on} {self.items}: {100 * before['accuracy']:.1f} % "
            f"{self.beginning}, {100 * after['accuracy']:.1f} % trained; mean over classes "
            f"{100 * before['class_accuracy']:.1f} % and {100 * after['class_accuracy']:.1f} % (always the most "
            f"frequent class: {100 * after['majority']:.1f} %)\n"
            f"some of them with their class and the network's: {self.folder / 'classes.png'}"
        )


__all__ = ["ClassifyRecipe", "ClassifyRun"]
