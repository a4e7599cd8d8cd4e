"""The anchor-free head: which location tells what, losses at known values, and what is found again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from geo3d.nn.anchor_free import (
    CODES,
    AnchorFreeHead,
    HeadOutput,
    assign_boxes,
    bounds_loss,
    box_loss,
    central,
    corner_loss,
    detection_losses,
    focal_loss,
    found_boxes,
)
from geo3d.nn.oriented_boxes import aligned_iou, decode_boxes, encode_boxes

_STRIDES = (4, 8, 16, 32)
#: Of a grid of 64 x 64 x 32: one of every size.
_BOXES = torch.tensor(
    [
        [20.0, 20, 10, 8, 12, 9, 0.4],
        [44.0, 40, 12, 40, 30, 20, 0.1],
        [50.0, 12, 16, 16, 18, 15, 0],
        [10.0, 50, 5, 9, 9, 1, 0.2],  # a board thinner than a stride
    ]
)
_SIZE = torch.tensor([[64, 64, 32]])


def _maps(channels: int = 8, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, 64 // s, 64 // s, 64 // s, generator=generator) for s in _STRIDES]


def _head(channels: int = 8) -> AnchorFreeHead:
    head = AnchorFreeHead(channels, depth=1)
    head.reset_parameters(torch.Generator().manual_seed(0))
    return head


def _output(batch: int = 1) -> HeadOutput:
    return _head()(_maps(batch=batch), _STRIDES)


def test_a_head_says_something_at_every_location() -> None:
    output = _output(2)
    count = sum((64 // s) ** 3 for s in _STRIDES)
    assert output.logits.shape == output.centrality.shape == (2, count)
    assert output.codes.shape == (2, count, CODES)
    assert output.codes[..., :6].min() >= 0
    first = output.levels == 1
    assert output.locations[first][:2].tolist() == [[4, 4, 4], [4, 4, 12]]
    assert torch.equal(output.strides[first], torch.full((512,), 8.0))
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.002)  # an object hardly expected
    expected = _STRIDES[0] * 2.0  # distances of two strides
    assert output.codes[:, output.levels == 0, :6].mean().item() == pytest.approx(expected, abs=0.3)
    within = output.within(torch.tensor([[64, 64, 64], [10, 64, 64]]))
    assert bool(within[0].all())
    assert torch.equal(within[1], output.locations[:, 0] < 10)


def test_corners_told_from_bounds_are_zeros_along_the_axes() -> None:
    head = AnchorFreeHead(8, depth=1, from_bounds=True)
    head.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.bbox_pred.weight[6:] = 0
    output = head(_maps(), _STRIDES)
    boxes = decode_boxes(output.codes, output.locations)
    assert boxes[..., 6].abs().max() < 1e-5
    torch.testing.assert_close(boxes[..., 3:6], output.codes[..., :3] + output.codes[..., 3:6], rtol=1e-4, atol=1e-4)


def test_places_are_exact_in_half_precision() -> None:
    head, maps = _head(), [m.bfloat16() for m in _maps()]
    with torch.autocast("cpu", torch.bfloat16):
        output = head(maps, (5, 10, 20, 40))
    assert output.locations.dtype == output.codes.dtype == torch.float32
    assert output.locations[output.levels == 0].max() == 77.5
    assert all(loss.isfinite() for loss in detection_losses(output, _SIZE, [_BOXES]).values())


def _told(output: HeadOutput, matched: Tensor, box: int) -> tuple[Tensor, Tensor]:
    rows = matched == box
    return output.locations[rows], output.levels[rows]


def test_locations_tell_the_objects_of_their_level_near_the_centre() -> None:
    output = _output()
    within = output.within(_SIZE)[0]
    matched = assign_boxes(_BOXES, output, within)
    for box, expected in ((0, {0}), (1, {1, 2}), (2, {0, 1})):
        locations, levels = _told(output, matched, box)
        assert set(levels.tolist()) == expected
        offset = (locations - _BOXES[box, :3]).abs()
        assert (offset <= 1.5 * 4.0 * 2 ** levels[:, None]).all()
        codes = encode_boxes(_BOXES[box], locations)
        assert codes[:, :6].min() > 0
        reach = codes[:, :6].amax(1)
        assert (reach <= 16.0 * 2**levels).all()
        assert (reach > 8.0 * 2**levels)[levels > 0].all()
    # the board has no location inside: the nearest one tells it, unless it is to tell nobody
    locations, levels = _told(output, matched, 3)
    assert (locations.tolist(), levels.tolist()) == ([[10, 50, 6]], [0])
    assert not len(_told(output, assign_boxes(_BOXES, output, within, each=False), 3)[0])
    assert assign_boxes(_BOXES[:0], output, within).tolist() == [-1] * len(matched)


def test_the_smaller_of_two_objects_is_told() -> None:
    output = _output()
    within = output.within(_SIZE)[0]
    around = torch.tensor([[20.0, 20, 10, 14, 14, 14, 0]])
    small = torch.tensor([[20.0, 20, 10, 10, 10, 10, 0]])
    alone = assign_boxes(around, output, within) >= 0
    matched = assign_boxes(torch.cat([around, small]), output, within)
    assert int((matched == 1).sum())
    assert set(matched[alone].tolist()) <= {0, 1}
    assert not (matched[assign_boxes(small, output, within) >= 0] != 1).any()


def test_what_lies_in_the_padding_is_not_told() -> None:
    output = _output()
    within = output.within(torch.tensor([[16, 16, 16]]))[0]
    matched = assign_boxes(_BOXES, output, within)
    assert (matched[~within] == -1).all()
    assert set(matched[within].tolist()) - {-1} == {0, 1, 2, 3}  # each by somebody


def _perfect(boxes: Tensor, sure: float = 20.0) -> HeadOutput:
    """What a head would say that knows the answer."""
    output = _output()
    matched = assign_boxes(boxes, output, output.within(_SIZE)[0])
    tells = matched >= 0
    codes = torch.zeros_like(output.codes)
    codes[0, tells] = encode_boxes(boxes[matched[tells]], output.locations[tells])
    logits = torch.where(tells, sure, -sure)[None]
    centrality = torch.full_like(output.centrality, -sure)
    centrality[0, tells] = central(codes[0, tells]).clamp(1e-6, 1 - 1e-6).logit()
    return replace(output, logits=logits, codes=codes, centrality=centrality)


def test_losses_of_a_head_that_knows_the_answer_and_of_one_that_does_not() -> None:
    boxes = _BOXES[:3]
    known = detection_losses(_perfect(boxes), _SIZE, [boxes])
    assert known["objectness"] < 1e-6
    assert known["box"] < 1e-4
    matched = assign_boxes(boxes, _output(), _output().within(_SIZE)[0])
    share = central(_perfect(boxes).codes[0, matched >= 0])
    least = -(share * share.log() + (1 - share) * (1 - share).log()).nansum() / len(share)
    assert known["centrality"].item() == pytest.approx(least.item(), rel=1e-3)
    fresh = detection_losses(_output(), _SIZE, [boxes])
    assert all(fresh[name] > known[name] for name in known)


def test_losses_of_no_objects_at_all() -> None:
    head = _head()
    output = head(_maps(batch=2), _STRIDES)
    losses = detection_losses(output, _SIZE.expand(2, 3), [_BOXES[:0], _BOXES[:0]])
    assert (losses["box"], losses["centrality"]) == (0, 0)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_objects_are_found_again_and_each_once() -> None:
    boxes = _BOXES[:3]
    (found,) = found_boxes(_perfect(boxes), _SIZE)
    assert (found.scores[:3] > 0.3).all()
    assert not (found.scores[3:] > 1e-3).any()
    overlap = aligned_iou(found.boxes[:3, None], boxes[None])
    assert sorted(overlap.argmax(1).tolist()) == [0, 1, 2]
    assert overlap.amax(1).min() > 1 - 1e-4
    assert len(found_boxes(_output(), _SIZE, after=5)[0].boxes) == 5
    assert (found.scores.diff() <= 0).all()


def test_focal_loss_and_centrality_by_hand() -> None:
    # sure by 0.8 and right: alpha (1 - 0.8)^2 times -log(0.8); and wrong: (1 - alpha) 0.8^2 times -log(0.2)
    logit = torch.tensor([math.log(4.0)] * 2)
    expected = [0.25 * 0.2**2 * -math.log(0.8), 0.75 * 0.8**2 * -math.log(0.2)]
    assert focal_loss(logit, torch.tensor([1.0, 0.0])).tolist() == pytest.approx(expected, rel=1e-5)
    codes = torch.tensor([[1.0, 2, 3, 1, 2, 3], [1, 1, 1, 2, 4, 1], [-1, 1, 1, 1, 1, 1]])
    assert central(codes).tolist() == pytest.approx([1, (1 / 8) ** (1 / 3), 0], abs=1e-6)


def test_box_loss_by_hand_and_its_gradient() -> None:
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]])
    far = torch.tensor([[4.0, 0, 0, 2, 2, 2, 0]])
    assert box_loss(box, box).item() == pytest.approx(0, abs=1e-6)
    assert box_loss(box, far).item() == pytest.approx(1 + 16 / (36 + 4 + 4))
    generator = torch.Generator().manual_seed(3)
    found = (_BOXES.double() + torch.rand(_BOXES.shape, generator=generator)).requires_grad_()
    torch.autograd.gradcheck(box_loss, (found, _BOXES.double()))


def test_corners_tell_the_yaw_and_do_not_jump_along_the_axes() -> None:
    places = _BOXES[:, :3] + 0.3
    turned = torch.cat([_BOXES[:, :6], torch.tensor([[0.4], [0.9], [-0.5], [2.0]])], 1)
    codes = encode_boxes(turned, places)
    assert corner_loss(codes, turned, places).abs().max() < 1e-6
    for wrong in (codes + 1.0, codes - 1.0):
        assert (corner_loss(wrong, turned, places) > 1e-3).all()
    upright = torch.cat([_BOXES[:, :6], torch.zeros(4, 1)], 1)
    codes = encode_boxes(upright, places)
    # the corners of largest y and of largest x: the right one and the lower one
    half = upright[:, 3:5] / 2
    torch.testing.assert_close(codes[:, 6:], torch.stack([half[:, 0], -half[:, 1]], 1) - 0.3)
    for yaw in (0.0, 1e-7, -1e-7, 0.04, -0.04, math.pi, math.pi - 1e-6):
        nearly = torch.cat([upright[:, :6], torch.full((4, 1), yaw)], 1)
        assert corner_loss(codes, nearly, places).max() < 0.02, yaw  # bounds widen a little with the yaw


def test_bounds_by_hand_and_their_gradient() -> None:
    wanted = torch.tensor([[4.0, 4, 4, 4, 4, 4, 9, 9]])
    found = wanted.clone()
    found[0, 0] += 0.5  # half of its square
    found[0, 4] -= 3  # less a half beyond one voxel
    found[0, 6] += 5  # no bound
    assert bounds_loss(found, wanted).item() == pytest.approx((0.125 + 2.5) / 6)
    generator = torch.Generator().manual_seed(4)
    codes = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    moved = (codes + torch.randn(5, 8, generator=generator, dtype=torch.float64)).requires_grad_()
    torch.autograd.gradcheck(bounds_loss, (moved, codes))


def test_a_head_learns_one_scene() -> None:
    """Overlaps grow when codes are moved along the gradient: nothing is shut."""
    output = _output()
    codes = output.codes.detach().clone().requires_grad_()
    logits, centrality = (x.detach().clone().requires_grad_() for x in (output.logits, output.centrality))
    optimizer = torch.optim.Adam([codes, logits, centrality], lr=0.3)
    for _ in range(120):
        optimizer.zero_grad()
        said = replace(output, logits=logits, codes=codes, centrality=centrality)
        sum(detection_losses(said, _SIZE, [_BOXES]).values()).backward()
        optimizer.step()
    (found,) = found_boxes(replace(output, logits=logits, codes=codes, centrality=centrality), _SIZE)
    overlap = aligned_iou(found.boxes[:8, None], _BOXES[None]).amax(0)
    assert (overlap[:3] > 0.8).all()
    assert overlap[3] > 0.25  # the board, told from beside itself
