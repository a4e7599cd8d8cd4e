"""Figures that several rooms measure by."""

from __future__ import annotations

import torch
from torch import Tensor

#: Label of what has no class and does not count.
IGNORED = -1


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: points of each true class (row) by predicted class; unlabelled ones are left out."""
    labelled = labels != IGNORED
    pairs = labels[labelled] * classes + predicted[labelled]
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def segmentation_scores(confusion: Tensor) -> dict[str, float]:
    """``miou`` (mean intersection over union of the classes that are there), ``accuracy``, and ``majority``.

    ``majority`` is the accuracy of the baseline that always names the most frequent class. All
    are 0 without a labelled point.
    """
    total = max(int(confusion.sum()), 1)
    hits, truth = confusion.diagonal().double(), confusion.sum(1)
    union = truth + confusion.sum(0) - confusion.diagonal()
    iou = hits[truth > 0] / union[truth > 0]
    return {
        "miou": iou.mean().item() if len(iou) else 0.0,
        "accuracy": hits.sum().item() / total,
        "majority": truth.max().item() / total,
    }
