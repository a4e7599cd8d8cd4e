"""The linear SVM by which encoders of objects are compared: splits drawn by class, and the accuracy on each.

It is read off frozen features, by probes and while training. Needs the extra ``svm`` (scikit-learn).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geo3d.errors import InputError, require_extra
from geo3d.random import Stream, stream_generator

#: Penalty of the published pre-training runs.
PUBLISHED_C = 0.01


@dataclass(frozen=True)
class Split:
    """Objects to learn from, and others to measure on.

    Args:
        train: (T,) int64 ascending rows of the objects.
        test: (M,) int64 ascending rows, none of them in ``train``.
    """

    train: np.ndarray
    test: np.ndarray

    def among(self, rows: np.ndarray) -> Split:
        """The same split, of some of the objects alone, in the order of ``rows`` (R,), by which they are counted."""
        place = {int(row): number for number, row in enumerate(rows)}
        train, test = ([place[int(row)] for row in part if int(row) in place] for part in (self.train, self.test))
        return Split(np.array(train, dtype=np.int64), np.array(test, dtype=np.int64))


def object_splits(
    labels: np.ndarray, count: int = 5, per_class: int = 10, seed: int = 0, names: Sequence[str] = ()
) -> list[Split]:
    """Random splits that hold every class: ``per_class`` objects to learn from, as many of the rest to measure on.

    Args:
        labels: (N,) int class of each object; those below 0 are in no split.
        count: of splits.
        per_class: objects of each class to learn from; of the others at most as many are measured on.
        seed: of the draws; a split depends on it, on its number and on the labels, nothing else.
        names: of the classes, for messages.

    Raises:
        InputError: no labelled object, a single class, or a class with fewer than ``per_class + 1`` objects.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    if len(classes) < 2:
        raise InputError(
            f"a linear SVM tells classes apart, and the {len(labels)} objects are of {len(classes)}; "
            "give objects that are labelled with two classes or more"
        )
    if (sizes <= per_class).any():
        few = int(sizes.argmin())
        name = names[classes[few]] if len(names) else f"class {classes[few]}"
        raise InputError(
            f"{name} has {sizes[few]} objects: too few to learn from {per_class} and to measure on others; "
            f"at most {sizes[few] - 1} a class can be learnt from (per_class)"
            if sizes[few] > 1
            else f"{name} has a single object, which cannot be both learnt from and measured on; leave the class out"
        )
    splits = []
    for number in range(count):
        rng = stream_generator(seed, Stream.PROBE_SPLITS, number)
        orders = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
        train = np.concatenate([order[:per_class] for order in orders])
        test = np.concatenate([order[per_class : 2 * per_class] for order in orders])
        splits.append(Split(np.sort(train), np.sort(test)))
    return splits


class LinearSvm:
    """Classes from features by ``SVC(kernel="linear")``, one machine for every two classes.

    Args:
        features: (N, D) of the objects to learn from.
        labels: (N,) int class of each.
        C: penalty of what lies on the wrong side; the smaller, the wider the margin.
        standardise: whether features are shifted and scaled to mean 0 and deviation 1 over what is learnt from;
            columns that do not vary are only shifted. The published protocol does not say.

    Raises:
        InputError: features that are not finite, or of a single class.
        MissingExtra: scikit-learn is not installed.
    """

    def __init__(self, features: Any, labels: Any, C: float = PUBLISHED_C, standardise: bool = True) -> None:
        features, labels = _rows(features), np.asarray(labels)
        if len(np.unique(labels)) < 2:
            raise InputError("linear SVM: the objects to learn from are of fewer than two classes")
        self._mean, self._scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
        if standardise:
            deviation = features.std(0)
            varies = deviation > _CONSTANT * np.abs(features).max(0)
            self._mean, self._scale = features.mean(0), np.where(varies, deviation, 1)
        require_scikit_learn()
        from sklearn.svm import SVC

        self._machine = SVC(kernel="linear", C=C).fit(self._standardised(features), labels)

    def predict(self, features: Any) -> np.ndarray:
        """(N, D) features -> (N,) labels.

        Raises:
            InputError: features that are not finite.
        """
        return self._machine.predict(self._standardised(_rows(features)))

    def accuracy(self, features: Any, labels: Any) -> float:
        """Share of (N, D) features whose label is told right."""
        return float((self.predict(features) == np.asarray(labels)).mean())

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return (features - self._mean) / self._scale


def svm_accuracy(
    features: Any, labels: Any, splits: Sequence[Split], C: float = PUBLISHED_C, standardise: bool = True
) -> np.ndarray:
    """Accuracy of a linear SVM on each split.

    Args:
        features: (N, D) of objects, an array or a tensor on the CPU.
        labels: (N,) int class of each.
        splits: rows to learn from, and rows to measure on, such as :func:`object_splits` draws.
        C, standardise: as :class:`LinearSvm` takes them.

    Returns:
        (S,) float64 in [0, 1]: their mean is the figure, their standard deviation its spread.

    Raises:
        InputError: features that are not finite, or a split without anything to learn from or to measure on.
        MissingExtra: scikit-learn is not installed.
    """
    features, labels = _rows(features), np.asarray(labels)
    found = []
    for number, split in enumerate(splits):
        if not len(split.train) or not len(split.test):
            raise InputError(f"linear SVM: split {number} has nothing to learn from or nothing to measure on")
        machine = LinearSvm(features[split.train], labels[split.train], C, standardise)
        found.append(machine.accuracy(features[split.test], labels[split.test]))
    return np.array(found)


def require_scikit_learn() -> None:
    """What the linear SVM needs, so that its lack is told before the work.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    require_extra("sklearn", "svm", "the linear SVM")


#: A column that varies by less than this share of its greatest value does not vary but for rounding in float32.
_CONSTANT = 1e-7


def _rows(features: Any) -> np.ndarray:
    """Features as (N, D) float64, checked."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2:
        raise InputError(f"linear SVM: features are (N, D), got {features.shape}")
    if not np.isfinite(features).all():
        raise InputError("linear SVM: features hold NaN or infinite values; the network has diverged, or is damaged")
    return features


__all__ = ["PUBLISHED_C", "LinearSvm", "Split", "object_splits", "require_scikit_learn", "svm_accuracy"]
