"""Figures by hand, and over random labels by counting one row at a time."""

from __future__ import annotations

import pytest
import torch

from geo3d.metrics import (
    IGNORED,
    accuracy,
    average_precision,
    box_recall,
    confusion_matrix,
    detection_scores,
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


def test_average_precision_by_hand() -> None:
    # two scenes, three true objects; from the highest score: right, wrong (its object was found), right, wrong
    overlaps = [torch.tensor([[0.6, 0.0], [0.3, 0.2], [0.0, 0.55]]), torch.tensor([[0.1]])]
    scores = [torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.1])]
    # recall 1/3 at precision 1, recall 2/3 at precision 2/3, never 1
    assert average_precision(overlaps, scores, 0.5) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision(overlaps, scores, 0.25) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision(overlaps, scores, 0.58) == pytest.approx(1 / 3)
    assert average_precision(overlaps, scores, 0.7) == 0
    assert box_recall(overlaps, 0.5) == pytest.approx(2 / 3)
    assert box_recall(overlaps, 0.1) == 1


def test_precision_is_the_highest_at_a_recall_or_beyond() -> None:
    # wrong, right, right: precisions 0, 1/2, 2/3, so that both recalls count with 2/3
    overlaps, scores = [torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])], [torch.tensor([0.3, 0.2, 0.1])]
    assert average_precision(overlaps, scores, 0.5) == pytest.approx(2 / 3)


def test_all_found_and_nothing_else_scores_one() -> None:
    overlaps, scores = [torch.eye(3), torch.eye(2), torch.zeros(0, 0)], [torch.rand(3), torch.rand(2), torch.rand(0)]
    assert detection_scores(overlaps, scores) == dict.fromkeys(
        ("ap25", "ap50", "ap75", "recall25", "recall50", "ar"), pytest.approx(1)
    )
    assert detection_scores([torch.eye(2) * 0.62], [torch.rand(2)])["ar"] == pytest.approx(3 / 10)


def test_without_objects_or_finds_detection_scores_nothing() -> None:
    for overlap in (torch.zeros(3, 0), torch.zeros(0, 3), torch.zeros(0, 0)):
        assert set(detection_scores([overlap], [torch.rand(len(overlap))]).values()) == {0.0}
    # finds in a scene without objects are wrong
    overlaps, scores = [torch.zeros(1, 0), torch.ones(1, 1)], [torch.tensor([0.9]), torch.tensor([0.8])]
    assert average_precision(overlaps, scores, 0.5) == pytest.approx(1 / 2)
