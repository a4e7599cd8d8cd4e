"""Overlap, coding and suppression of upright boxes with yaw, against closed forms, counted points and gradcheck."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from geo3d.nn.oriented_boxes import (
    aligned_iou,
    bounding_boxes,
    box_corners,
    box_iou,
    canonical_boxes,
    decode_boxes,
    encode_boxes,
    non_maximum_suppression,
)

_GRID = 400


def _boxes(count: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    return torch.cat([drawn[:, :3] * spread, 0.2 + 4 * drawn[:, 3:6], 12 * drawn[:, 6:] - 6], 1)


def _one(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        ((0, 0, 0, 2, 2, 2, 0), (0, 0, 0, 2, 2, 2, 0), 1.0),
        ((0, 0, 0, 2, 2, 2, 0), (1, 0, 0, 2, 2, 2, 0), 1 / 3),
        ((0, 0, 0, 2, 2, 2, 0), (1, 1, 1, 2, 2, 2, 0), 1 / 15),
        ((0, 0, 0, 2, 2, 2, 0), (2, 0, 0, 2, 2, 2, 0), 0.0),  # they touch
        ((0, 0, 0, 2, 2, 2, 0), (0, 0, 5, 2, 2, 2, 0), 0.0),
        ((0, 0, 0, 4, 2, 1, 0), (0, 0, 0, 2, 4, 1, math.pi / 2), 1.0),  # the same box
        ((0, 0, 0, 4, 2, 1, 0.3), (0, 0, 0, 4, 2, 1, 0.3 + math.pi), 1.0),
        ((0, 0, 0, 4, 4, 1, 0), (0, 0, 0, 1, 1, 1, 0.7), 1 / 16),  # one within the other
        # a square and itself by an eighth of a turn share a regular octagon: 2 (sqrt(2) - 1) of the square
        ((3, 1, 0, 2, 2, 1, 0), (3, 1, 0, 2, 2, 1, math.pi / 4), 2 * (2**0.5 - 1) / (2 - 2 * (2**0.5 - 1))),
        # a cross of two bars
        ((0, 0, 0, 6, 1, 1, 0.2), (0, 0, 0, 6, 1, 1, 0.2 + math.pi / 2), 1 / 11),
        ((0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0), 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_overlaps_known_in_closed_form(first: tuple, second: tuple, iou: float, dtype: torch.dtype) -> None:
    one, other = _one(*first).to(dtype), _one(*second).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert aligned_iou(one, other).item() == pytest.approx(iou, abs=tolerance)
    assert aligned_iou(other, one).item() == pytest.approx(iou, abs=tolerance)
    assert box_iou(one, other).item() == pytest.approx(iou, abs=tolerance)


def _counted(first: Tensor, second: Tensor) -> float:
    """Overlap of two boxes of equal height and depth, by counting the points of a fine grid."""
    bounds = bounding_boxes(torch.stack([first, second]))
    low, high = bounds[:, :2].amin(0), bounds[:, 3:5].amax(0)
    steps = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
    points = low + torch.cartesian_prod(steps, steps) * (high - low)
    held = []
    for box in (first, second):
        cos, sin = box[6].cos(), box[6].sin()
        x, y = (points - box[:2]).unbind(1)
        held.append(((cos * x + sin * y).abs() < box[3] / 2) & ((cos * y - sin * x).abs() < box[4] / 2))
    return float((held[0] & held[1]).sum() / (held[0] | held[1]).sum())


def test_overlaps_as_counted_on_a_fine_grid() -> None:
    first, second = _boxes(20, 1, spread=1.5), _boxes(20, 2, spread=1.5)
    for boxes in (first, second):
        boxes[:, 2], boxes[:, 5] = 0.0, 1.0
    iou = aligned_iou(first, second)
    assert int((iou > 0.05).sum()) > 5
    for number in range(20):
        # 160,000 points: 2e-3 off was measured at most
        assert _counted(first[number], second[number]) == pytest.approx(iou[number].item(), abs=5e-3)


def test_overlap_is_symmetric_continuous_and_as_good_in_float32() -> None:
    first, second = _boxes(500, 3), _boxes(500, 4)
    iou = aligned_iou(first, second)
    assert (iou - aligned_iou(second, first)).abs().max() < 1e-14
    assert (iou - aligned_iou(first.float(), second.float())).abs().max() < 1e-6
    nearly = first + 1e-9 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (aligned_iou(first, nearly) - 1).abs().max() < 1e-7  # equal edges, up to rounding
    assert (aligned_iou(first.float(), first.float()) - 1).abs().max() < 1e-5
    assert torch.allclose(aligned_iou(first, canonical_boxes(first)), torch.ones(500, dtype=torch.float64))


def test_all_pairs_as_one_by_one() -> None:
    first, second = _boxes(30, 5, spread=8), _boxes(40, 6, spread=8)
    expected = torch.stack([aligned_iou(box[None], second) for box in first])
    assert torch.allclose(box_iou(first, second), expected, atol=1e-12)
    assert box_iou(first[:0], second).shape == (0, 40)


def test_gradients() -> None:
    first, second = _boxes(20, 7, spread=1.5).requires_grad_(), _boxes(20, 8, spread=1.5).requires_grad_()
    torch.autograd.gradcheck(aligned_iou, (first, second))
    upright = _one(0, 0, 0, 4, 2, 1, 0).requires_grad_()  # edges along the other's, within it
    torch.autograd.gradcheck(aligned_iou, (upright, _one(0.1, 0.2, 0.1, 9, 9, 3, 0)))
    locations = first.detach()[:, :3] + 0.1
    codes = (encode_boxes(first.detach(), locations) + 0.05).requires_grad_()
    torch.autograd.gradcheck(decode_boxes, (codes, locations))
    nothing = torch.zeros(1, 8, dtype=torch.float64, requires_grad=True)
    decode_boxes(nothing, torch.zeros(1, 3, dtype=torch.float64)).sum().backward()
    assert nothing.grad.isfinite().all()


def test_bounds_hold_the_corners_and_touch_them() -> None:
    boxes = _boxes(100, 9)
    corners, bounds = box_corners(boxes), bounding_boxes(boxes)
    assert torch.allclose(corners.amin(1), bounds[:, :2])
    assert torch.allclose(corners.amax(1), bounds[:, 3:5])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_codes_tell_the_box(dtype: torch.dtype) -> None:
    boxes = _boxes(500, 10).to(dtype)
    boxes[:100, 6] = 0
    boxes[100:120, 6] = math.pi / 2
    locations = boxes[:, :3] + 0.05
    codes = encode_boxes(boxes, locations)
    assert codes.shape == (500, 8)
    decoded = decode_boxes(codes, locations)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    assert (aligned_iou(decoded, boxes) - 1).abs().max() < tolerance
    assert torch.allclose(decoded[:100], boxes[:100], atol=1e-4)


def test_a_code_of_a_parallelogram_is_the_rectangle_of_its_longer_diagonal() -> None:
    # bounds of 4 x 4 about the origin, corners at (1, 2) and (2, 0): diagonals of length 2 sqrt(5) and 4
    code = torch.tensor([[2.0, 2, 1, 2, 2, 1, 1, 0]])
    box = decode_boxes(code, torch.zeros(1, 3))
    corners = box_corners(box)[0]
    assert torch.allclose(box[0, :3], torch.zeros(3))
    assert corners.norm(dim=1).tolist() == pytest.approx([5**0.5] * 4)
    assert (corners - torch.tensor([1.0, 2.0])).norm(dim=1).min() < 1e-5
    beyond = decode_boxes(torch.tensor([[2.0, 2, 1, 2, 2, 1, 9, -9]]), torch.zeros(1, 3))
    assert torch.allclose(beyond, torch.tensor([[0.0, 0, 0, 4, 4, 2, 0]]), atol=1e-6)


def test_of_boxes_that_overlap_the_best_stays() -> None:
    boxes = torch.stack([_one(x, 0, 0, 2, 2, 2, 0)[0] for x in (0.0, 0.5, 1.0, 10.0, 1.5)])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1, 0.2])
    # 1 overlaps 0 and 2 by 0.6, 4 by a third
    assert non_maximum_suppression(boxes, scores, 0.3).tolist() == [1, 3]
    assert non_maximum_suppression(boxes, scores, 0.4).tolist() == [1, 4, 3]
    assert non_maximum_suppression(boxes[:0], scores[:0]).tolist() == []


def test_suppression_as_by_the_plain_rule() -> None:
    boxes, scores = _boxes(300, 11, spread=6), torch.rand(300, generator=torch.Generator().manual_seed(1))
    iou, kept = box_iou(boxes, boxes), []
    for number in scores.argsort(descending=True, stable=True).tolist():
        if all(iou[number, other] <= 0.3 for other in kept):
            kept.append(number)
    assert non_maximum_suppression(boxes, scores).tolist() == kept
