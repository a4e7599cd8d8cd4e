"""Figures that several rooms measure by."""

from __future__ import annotations

import math

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


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio of colours in [0, 1], dB; at most 100, of equal images.

    Args:
        image, truth: of the same shape.
    """
    error = (image.double() - truth.double()).square().mean().item()
    return -10 * math.log10(max(error, 1e-10))


def accuracy(labels: Tensor, predicted: Tensor) -> Tensor:
    """Share of the labelled rows that are named right, a scalar; 0 where nothing is labelled."""
    labelled = labels != IGNORED
    return ((predicted == labels) & labelled).sum() / labelled.sum().clamp_min(1)


def intersection_and_union(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How many entries of two bool tensors are set in both, and how many in either; sums over batches are allowed."""
    return (predicted & truth).sum(), (predicted | truth).sum()


def intersection_over_union(predicted: Tensor, truth: Tensor) -> Tensor:
    """Overlap of two bool tensors, a scalar of 0 to 1; 0 where both are empty."""
    both, either = intersection_and_union(predicted, truth)
    return both / either.clamp_min(1)
