"""Figures by hand, and over random labels by counting one row at a time."""

from __future__ import annotations

import pytest
import torch

from geo3d.metrics import (
    IGNORED,
    accuracy,
    confusion_matrix,
    intersection_and_union,
    intersection_over_union,
    segmentation_scores,
)

LABELS = torch.tensor([0, 0, 0, 1, 1, -1, -1])
PREDICTED = torch.tensor([0, 0, 1, 1, 2, 0, 2])


def test_scores_by_hand() -> None:
    confusion = confusion_matrix(LABELS, PREDICTED, 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    scores = segmentation_scores(confusion)
    # Class 0: 2 of 3; class 1: 1 of 3; class 2 is not there.
    assert scores == pytest.approx({"miou": (2 / 3 + 1 / 3) / 2, "accuracy": 3 / 5, "majority": 3 / 5})


def test_nothing_that_is_labelled_scores_nothing() -> None:
    empty = {"miou": 0, "accuracy": 0, "majority": 0}
    assert segmentation_scores(torch.zeros(3, 3, dtype=torch.int64)) == empty
    nothing = torch.full((4,), IGNORED)
    assert segmentation_scores(confusion_matrix(nothing, torch.zeros(4, dtype=torch.int64), 3)) == empty
    assert accuracy(nothing, torch.zeros(4, dtype=torch.int64)).item() == 0


def test_figures_of_random_labels_are_those_of_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 4, (500,), generator=generator)  # of 5 classes, one of which is not there
    predicted = torch.randint(0, 5, (500,), generator=generator)
    rows = [(true, named) for true, named in zip(labels.tolist(), predicted.tolist()) if true != IGNORED]
    confusion = confusion_matrix(labels, predicted, 5)
    assert confusion.tolist() == [[rows.count((true, named)) for named in range(5)] for true in range(5)]
    overlaps = []
    for label in range(4):
        both = sum(true == named == label for true, named in rows)
        overlaps.append(both / sum(label in row for row in rows))
    right = sum(true == named for true, named in rows) / len(rows)
    most = max(sum(true == label for true, _ in rows) for label in range(5)) / len(rows)
    expected = {"miou": sum(overlaps) / 4, "accuracy": right, "majority": most}
    assert segmentation_scores(confusion) == pytest.approx(expected, abs=1e-12)
    assert accuracy(labels, predicted).item() == pytest.approx(right, rel=1e-6)


def test_accuracy_by_hand() -> None:
    assert accuracy(LABELS, PREDICTED).item() == pytest.approx(3 / 5)
    assert accuracy(LABELS, LABELS.clamp_min(0)).item() == 1


def test_overlap_by_hand() -> None:
    predicted, truth = torch.tensor([1, 1, 1, 0, 0, 0]).bool(), torch.tensor([1, 0, 0, 1, 0, 0]).bool()
    assert [count.item() for count in intersection_and_union(predicted, truth)] == [1, 4]
    assert intersection_over_union(predicted, truth).item() == 0.25
    assert intersection_over_union(truth, predicted).item() == 0.25
    assert intersection_over_union(truth, truth).item() == 1
    assert intersection_over_union(truth, ~truth).item() == 0
    assert intersection_over_union(truth & ~truth, truth & ~truth).item() == 0
