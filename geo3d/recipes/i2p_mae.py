"""I2P-MAE's recipe: objects of any datasets, and how well a linear machine reads their classes off the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from geo3d.checkpoints.hub import absolute
from geo3d.datasets.synthetic.objects import make_objects, objects_folder
from geo3d.errors import InputError, MissingExtra
from geo3d.linear_svm import Split, object_splits, require_scikit_learn, svm_accuracy
from geo3d.methods.checks import check_at_least
from geo3d.methods.i2p_mae import GuidedMasking, GuidedMaskingConfig
from geo3d.methods.objects import ObjectAugmentation
from geo3d.progress import Log
from geo3d.recipes.recipe import Recipe, Run
from geo3d.samples.objects import ObjectClouds
from geo3d.samples.posed_objects import PosedObjects, mean_features, pooled_features
from geo3d.train.config import TrainConfig

#: Objects that are told apart while training; and of each class, how many are learnt from at most, and at least.
_JUDGED, _PER_CLASS, _FEWEST = 1000, 10, 2
_SPLITS = 5


@dataclass(kw_only=True)
class I2PMAERun(Run):
    """Pre-train I2P-MAE: fill in masked groups of points, guided by an image network."""

    objects: int = 5000
    """Synthetic objects to make where `data` is empty (count)."""

    probe_data: tuple[Path, ...] = ()
    """Labelled objects whose classes a linear SVM reads off the encoder, before, while and after training; they are not
    trained on unless `data` holds them too. None: those held out, where they are labelled. Needs the extra `svm`."""

    pooling: Literal["max", "mean", "max+mean"] = "max"
    """How tokens become the features of an object, for that: max (published), mean or max+mean."""

    method: GuidedMaskingConfig = field(default_factory=GuidedMaskingConfig)
    """The task and the network."""

    def resolved(self) -> I2PMAERun:
        """As :meth:`Run.resolved`; the folder of what a teacher says stays where the run is started, as `data` does."""
        checkpoint = self.method.teacher_checkpoint
        method = replace(self.method, teacher_checkpoint=None if checkpoint is None else absolute(checkpoint))
        return replace(super().resolved(), probe_data=tuple(path.resolve() for path in self.probe_data), method=method)

    def check(self) -> None:
        """As :meth:`Run.check`."""
        super().check()
        check_at_least(self, 1, "objects")
        for path in self.probe_data:
            if not path.exists():
                raise InputError(f"probe_data: {path} is not there; give the root of a dataset of labelled objects")
        if self.probe_data:
            require_scikit_learn()


def _tiny() -> I2PMAERun:
    """Minutes on a CPU: a small network, any pose."""
    method = GuidedMaskingConfig(
        stored_views=True,
        relative_saliency=True,
        normalise_targets=True,
        points_weight=45.0,
        shape_weight=1.0,
        view_size=112,
        augmentation=ObjectAugmentation(rotation="any", shift=0.0),
        recentre=True,
    )
    train = TrainConfig(steps=1500, batch_size=32, lr=2e-3, warmup_steps=75, min_lr=1e-5, clip_norm=1.0, workers=1)
    return I2PMAERun(method=method, train=train)


def _paper() -> I2PMAERun:
    """The published recipe: 300 epochs of a cosine over 400, batches of 64; `clip_vit_b16` guides, from a file."""
    method = GuidedMaskingConfig("i2p_mae_base", teacher="clip_vit_b16")
    train = TrainConfig(
        epochs=300, schedule_epochs=400, warmup_epochs=10, batch_size=64, lr=1e-3, min_lr=1e-6, workers=8
    )
    return I2PMAERun(method=method, train=train)


class I2PMAERecipe(Recipe):
    """Filling in with training objects, and other ones to measure it on."""

    summary = "I2P-MAE: fill in masked groups of an object's points, guided by an image network"
    run = I2PMAERun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = GuidedMasking
    items, groups = "objects", "scenes"

    @classmethod
    def made_count(cls, config: I2PMAERun) -> int:
        """How many objects are made."""
        return config.objects

    @classmethod
    def made_data(cls, config: I2PMAERun) -> Path:
        """The folder that they are in."""
        return objects_folder(config.objects, config.train.seed)

    @classmethod
    def make_data(cls, config: I2PMAERun, log: Log) -> Path:
        """Make synthetic objects, or find those made before."""
        return make_objects(config.objects, config.train.seed, log)

    def prepare_measuring(self, source: ObjectClouds, measured: ObjectClouds) -> None:
        """Measure held-out objects; and choose labelled ones for the linear SVM, and its splits."""
        super().prepare_measuring(source, measured)
        judged = ObjectClouds.find(self.config.probe_data, self.config.strict) if self.config.probe_data else measured
        self._judged, self._labels, self._splits = judged, np.zeros(0, np.int64), []
        labels = _common(np.array([judged.category(index) for index in range(len(judged))]))
        if len(np.unique(labels[labels >= 0])) < 2:
            if self.config.probe_data:
                raise InputError(
                    f"probe_data: no two classes have {2 * _FEWEST} objects each, so that no SVM can tell them apart"
                )
            return
        try:
            require_scikit_learn()
        except MissingExtra as missing:
            self.log(f"the objects are labelled, but their classes are not read off: {missing}")
            return
        sizes = np.unique(labels[labels >= 0], return_counts=True)[1]
        per_class = min(_PER_CLASS, int(sizes.min()) // 2)
        self._labels, self._splits = labels, object_splits(labels, _SPLITS, per_class, self.seed, judged.categories)
        self._per_class = per_class
        self.best, self.higher_is_better = "svm", True

    def describe(self) -> str:
        """Whose classes are read off."""
        if not self._splits:
            return ""
        count = len(self._rows())
        return (
            f"; a linear SVM learns from {self._per_class} a class of {count} labelled ones, over {_SPLITS} splits, "
            f"{self.config.pooling} pooling, C = 0.01"
        )

    def _rows(self) -> np.ndarray:
        """The labelled objects that some split holds."""
        return np.unique(np.concatenate([part for split in self._splits for part in (split.train, split.test)]))

    def figures(self) -> dict[str, float]:
        """The mean losses; and of the SVM accuracy and spread over the splits, where objects are labelled."""
        found = self.means(self._losses)
        return found | (self._svm() if self._splits else {})

    def _losses(self, batch: dict[str, Any]) -> dict[str, float]:
        output = self.method(batch)
        return {"loss": output.loss.item()} | {f"{name}_loss": value.item() for name, value in output.losses.items()}

    def _svm(self) -> dict[str, float]:
        network, posed = self.method.network, PosedObjects(self._judged, self.method.points, seed=self.seed)
        device = next(network.parameters()).device

        def clouds() -> Iterator[tuple[int, list[Any]]]:
            for row in self._rows():
                drawn = self.readable.read(
                    ("judged", int(row)),
                    lambda row=row: posed.drawn(int(row), 0),
                    lambda row=row: self._judged.describe(int(row)),
                )
                if drawn is not None:
                    yield int(row), [drawn]

        judge = pooled_features(network, self.config.pooling, device)
        features = mean_features(clouds(), {"network": judge})["network"]
        rows = np.array(list(features))
        splits: list[Split] = [split.among(rows) for split in self._splits]
        accuracies = svm_accuracy(np.stack(list(features.values())), self._labels[rows], splits)
        return {"svm": float(accuracies.mean()), "svm_spread": float(accuracies.std(ddof=1))}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Losses, and what the SVM reads off, before and after."""
        parts = {
            "points_loss": "of masked points",
            "features_loss": "of the teacher's features",
            "shape_loss": "of local shape",
        }
        told = ", ".join(
            f"{what} {before[key]:.4f} and {after[key]:.4f}" for key, what in parts.items() if key in after
        )
        lines = f"{super().text(before, after)} ({told})"
        if "svm" not in after:
            return lines
        return (
            f"{lines}\nclasses read off by a linear SVM: {100 * before['svm']:.1f} % {self.beginning}, "
            f"{100 * after['svm']:.1f} % trained (± {100 * after['svm_spread']:.1f} over the splits)"
        )


def _common(labels: np.ndarray) -> np.ndarray:
    """Labels of which those of rare classes, and of objects beyond so many, are -1."""
    labels = labels.copy()
    labels[_JUDGED:] = -1
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    labels[~np.isin(labels, classes[sizes >= 2 * _FEWEST])] = -1
    return labels


__all__ = ["I2PMAERecipe", "I2PMAERun"]
