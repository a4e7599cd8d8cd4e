"""What sources of labelled items share: all are labelled with the same classes; and few of the labels, drawn."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.samples.source import SampleSource, folders


def common_classes(source: SampleSource) -> tuple[str, ...]:
    """Names of the classes of a source's scenes, in the order of the labels.

    Raises:
        InputError: datasets that do not name their classes, or are labelled with different ones.
    """
    used = [source.datasets[number] for number in sorted({number for number, _ in source.scenes})]
    for dataset in used:
        if not dataset.classes:
            raise InputError(
                f"{dataset.root}: its scenes are labelled, but {type(dataset).__name__} does not name the classes; "
                "set its attribute classes, as docs/datasets.md says"
            )
    named = {tuple(dataset.classes) for dataset in used}
    if len(named) > 1:
        raise InputError(f"{folders(used)}: labelled with different classes; give datasets of the same classes")
    return named.pop()


def require_labels(labels: Tensor, classes: tuple[str, ...], scene: Scene) -> None:
    """Raise InputError unless a scene's labels, of any shape, are those of classes, or -1."""
    if not -1 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(f"scene {scene.name} ({scene.root}) has labels outside -1 to {len(classes) - 1}")


def label_count(labels: float, there: int) -> int:
    """How many labelled things a setting stands for: a share of those that are there up to 1, a count above; 1 or more.

    Args:
        labels: positive.
        there: how many there are.
    """
    return min(there, max(1, round(labels * there if labels <= 1 else labels)))


def few_of(labels: float, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some of many labelled things, of all classes alike; those of a smaller number are among those of a larger one.

    Args:
        labels: as :func:`label_count` takes it.
        classes: (N,) class of each thing; all the same where they have none. One of every class comes first, where so
            many are taken, and every class keeps its share.
        rng: draws which ones.

    Returns:
        (K,) int64 ascending rows.
    """
    order = rng.permutation(len(classes))
    rank, size = np.empty(len(classes)), np.empty(len(classes))
    for found in np.unique(classes):
        members = order[classes[order] == found]
        rank[members], size[members] = np.arange(len(members)), len(members)
    share = np.where(rank == 0, -1, rank / size)
    place = np.empty(len(classes), np.int64)
    place[order] = np.arange(len(classes))
    return np.sort(np.lexsort((place, share))[: label_count(labels, len(classes))])


__all__ = ["common_classes", "few_of", "label_count", "require_labels"]
