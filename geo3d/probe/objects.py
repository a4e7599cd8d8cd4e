"""What the probes of objects share: labelled objects, splits of them, and features of whole clouds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from geo3d.datasets.quarantine import log_broken
from geo3d.datasets.synthetic.objects import make_objects
from geo3d.errors import InputError
from geo3d.linear_svm import PUBLISHED_C, Split, object_splits, require_scikit_learn
from geo3d.methods.checks import check_at_least, check_positive
from geo3d.models import Encoder
from geo3d.probe.probe import Probe, ProbeConfig, Representation, load_encoder
from geo3d.probe.shape_histograms import local_histograms, whole_shape_histograms
from geo3d.progress import Log, progress_line
from geo3d.samples.objects import ObjectClouds
from geo3d.samples.posed_objects import PosedObjects, mean_features, pooled_features
from geo3d.samples.readable import Readable
from geo3d.samples.source import folders


@dataclass(frozen=True, kw_only=True)
class ObjectProbeConfig(ProbeConfig):
    """What probes that tell objects apart say; they add their own fields."""

    data: tuple[Path, ...] = ()
    """Folders of labelled objects. None: synthetic ones, as `geo3d pretrain` makes where it is given none."""
    objects: int = 1044
    """Synthetic objects where `data` is empty (count), of 87 kinds in turn: 12 of each; `seed` draws them."""
    splits: int | Literal["published"] = 5
    """Random splits (count), or `published`: the training and test objects that the data itself names."""
    per_class: int = 10
    """Objects of each class to learn from in a random split; of the others at most as many are measured on."""
    points: int = 1024
    """Points of a cloud, drawn from those of the object or evenly from its surface; repeated where it has fewer."""
    pooling: Literal["max", "mean", "max+mean"] = "max"
    """How the features of the last stage's tokens become those of a cloud; max is the published one."""
    C: float = PUBLISHED_C
    """Penalty of the linear SVM: 0.01 while training in the published code, 0.0093 and 0.018 in its final figures."""
    standardise: bool = True
    """Shift and scale features to mean 0 and deviation 1 over what is learnt from."""
    batch: int = 32
    """Clouds shown to a network at once; does not change the figures but by rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for path in self.data:
            if not path.exists():
                raise InputError(f"{path} is not there; give the root of a dataset of objects")
        if self.splits != "published":
            check_at_least(self, 1, "splits")
        check_at_least(self, 1, "per_class", "points", "batch", "objects")
        check_positive(self, "C")


@dataclass(frozen=True)
class Protocol:
    """All that one must know to measure the same: without it an accuracy of a linear SVM says little.

    Args:
        pooling, C, standardise, points, seed, splits: as in the config.
        split_count: how many there are.
        per_class: objects of each class to learn from; None where the data itself names its split.
        classes, objects: how many there are in the splits, all together.
        train, test: mean number of objects to learn from, and to measure on.
        left_out: objects that could not be read.
        majority: accuracy of naming the most frequent class always.
    """

    pooling: str
    C: float
    standardise: bool
    points: int
    seed: int
    splits: int | str
    split_count: int
    per_class: int | None
    classes: int
    objects: int
    train: float
    test: float
    left_out: int
    majority: float

    def __str__(self) -> str:
        features = "standardised" if self.standardise else "as they are"
        sizes = f"{self.train:g} objects to learn from, {self.test:g} to measure on"
        if self.per_class is None:
            split = f"the data's own split: {sizes}"
        else:
            split = (
                f"mean ± sample deviation over {self.split_count} random splits of seed {self.seed}: {sizes} "
                f"({self.per_class} a class to learn from)"
            )
        lost = f"\n{self.left_out} objects cannot be read and are left out, as named above" if self.left_out else ""
        return (
            f"linear SVM, C = {self.C:g}, features {features}, {self.pooling} pooling of the last stage's tokens, "
            f"{self.points} points a cloud\n{split}; {self.classes} classes; "
            f"always the most frequent class: {100 * self.majority:.1f} %{lost}"
        )


class ObjectProbe(Probe):
    """A checkpoint's features of whole clouds, and labelled objects to learn from and to measure on."""

    config: ObjectProbeConfig

    def __init__(self, config: ObjectProbeConfig, log: Log) -> None:
        super().__init__(config, log)
        require_scikit_learn()
        self.network = load_encoder(config.checkpoint, config.model, "points", "an encoder of points, such as i2p_mae")
        self.source = find_objects(config, log)
        self._readable = Readable(config.strict, log, "left out")
        self.labels = self._labels()
        self.splits = self._splits()
        self.rows = np.unique(np.concatenate([part for split in self.splits for part in (split.train, split.test)]))
        log(f"{len(self.rows)} objects of {len(np.unique(self.labels[self.rows]))} classes")

    def representations(self) -> dict[str, Representation]:
        """What every probe compares, and stronger features that no network makes."""
        return super().representations() | {"local histograms": local_histograms}

    def network_features(self, network: Encoder) -> Representation:
        """Pooled features of the last stage's tokens."""
        return pooled_features(network, self.config.pooling, self.config.device)

    def input_features(self) -> Representation:
        """Histograms over the whole cloud."""
        return whole_shape_histograms

    def posed(self, resamplings: int, rotations: int) -> PosedObjects:
        """The objects, as the config has them drawn."""
        return PosedObjects(self.source, self.config.points, resamplings, rotations, self.config.seed)

    def features(
        self,
        representations: dict[str, Representation],
        rows: Iterable[int],
        clouds: Callable[[int], dict[Hashable, list[Tensor]]],
    ) -> dict[str, dict[Any, np.ndarray]]:
        """Features of objects, each in several ways; of those that can be read.

        Args:
            representations: name -> features.
            rows: of the objects.
            clouds: of an object, by way; the features of those of a way are averaged.

        Returns:
            Name -> (row, way) -> (C,).

        Raises:
            InputError: none can be read, or one cannot and the config is strict.
        """
        rows = list(rows)

        def drawn() -> Iterator[tuple[Hashable, list[Tensor]]]:
            show = progress_line("object")
            for done, row in enumerate(rows, 1):
                ways = self._readable.read(row, lambda row=row: clouds(row), lambda row=row: self.source.describe(row))
                for way, several in (ways or {}).items():
                    yield (row, way), several
                show(done, len(rows), self.source.describe(row))

        found = mean_features(drawn(), representations, self.config.batch)
        if not next(iter(found.values())):
            raise InputError("none of the objects can be read; the reasons are named above")
        return found

    def readable_rows(self) -> np.ndarray:
        """(R,) rows of the objects in the splits that could be read so far."""
        return np.setdiff1d(self.rows, list(self._readable.left_out))

    def protocol(self, splits: list[Split], labels: np.ndarray) -> Protocol:
        """What was measured, of the splits of (R,) labels."""
        config, tests = self.config, [labels[split.test] for split in splits]
        return Protocol(
            **{name: getattr(config, name) for name in ("pooling", "C", "standardise", "points", "seed", "splits")},
            split_count=len(splits),
            per_class=None if config.splits == "published" else config.per_class,
            classes=len(np.unique(labels)),
            objects=len(labels),
            train=float(np.mean([len(split.train) for split in splits])),
            test=float(np.mean([len(split.test) for split in splits])),
            left_out=len(self._readable.left_out),
            majority=float(np.mean([np.unique(test, return_counts=True)[1].max() / len(test) for test in tests])),
        )

    def _labels(self) -> np.ndarray:
        """(N,) int64 class of each object, -1 where it has none or cannot be read."""
        source = self.source
        read = (
            self._readable.read(row, lambda row=row: source.category(row), lambda row=row: source.describe(row))
            for row in range(len(source))
        )
        labels = np.array([-1 if label is None else label for label in read], dtype=np.int64)
        if not source.categories or (labels < 0).all():
            raise InputError(
                f"{folders(source.datasets)}: the objects have no classes to be told apart; give objects by class, as "
                "docs/datasets.md says"
            )
        return labels

    def _splits(self) -> list[Split]:
        config = self.config
        if config.splits != "published":
            return object_splits(self.labels, config.splits, config.per_class, config.seed, self.source.categories)
        labelled = np.flatnonzero(self.labels >= 0)
        subsets = np.array([self.source.subset(row) for row in labelled.tolist()])
        train, test = (labelled[subsets == name] for name in ("train", "test"))
        if not len(train) or not len(test):
            raise InputError(
                f"{folders(self.source.datasets)}: {len(train)} objects are named as training and {len(test)} as test "
                "objects, and a published split has both; draw random ones: --splits 5"
            )
        return [Split(train, test)]


def find_objects(config: ObjectProbeConfig, log: Log) -> ObjectClouds:
    """The objects that a config names."""
    source = ObjectClouds.find(config.data or (make_objects(config.objects, config.seed, log),), config.strict)
    log_broken(source.datasets, log)
    return source


def mean_and_spread(accuracies: np.ndarray) -> tuple[float, float | None]:
    """Mean and sample deviation over splits; None of a single one."""
    return float(accuracies.mean()), float(accuracies.std(ddof=1)) if len(accuracies) > 1 else None


def percent(mean: float, spread: float | None) -> str:
    """A cell of the table."""
    return f"{100 * mean:.1f}" + (" %" if spread is None else f" ± {100 * spread:.1f} %")


__all__ = ["ObjectProbe", "ObjectProbeConfig", "Protocol", "find_objects", "mean_and_spread", "percent"]
