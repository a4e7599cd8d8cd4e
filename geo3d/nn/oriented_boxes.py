"""Boxes that stand upright and are turned about the vertical: their overlap, the best of many, and how heads code them.

A box is 7 numbers: centre x, y, z, sides w, l, h along its own axes, and yaw, the angle in radians by which its own x
axis is turned from the grid's about z, counter-clockwise seen from above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_QUARTER = math.pi / 2
#: Pairs whose overlap is computed at a time where all of many boxes are compared: some 100 MB of intermediate values.
_PAIRS_AT_A_TIME = 500_000
#: Boxes that are compared with all that are left at a time, where the best of many are chosen.
_BLOCK = 128


def box_corners(boxes: Tensor) -> Tensor:
    """(..., 4, 2) x and y of a box's corners (..., 7), counter-clockwise from the one at (+w / 2, +l / 2)."""
    signs = boxes.new_tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    return boxes[..., None, :2] + _turned(signs * boxes[..., None, 3:5] / 2, boxes[..., 6])


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    """Points (..., P, 2) turned by an angle (...), counter-clockwise."""
    cos, sin = angle.cos().unsqueeze(-1), angle.sin().unsqueeze(-1)
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def bounding_boxes(boxes: Tensor) -> Tensor:
    """(..., 6) lower and upper corner of the axis-aligned box around each of (..., 7)."""
    cos, sin = boxes[..., 6].cos().abs(), boxes[..., 6].sin().abs()
    width, depth, height = boxes[..., 3:6].unbind(-1)
    half = torch.stack([cos * width + sin * depth, sin * width + cos * depth, height], -1) / 2
    return torch.cat([boxes[..., :3] - half, boxes[..., :3] + half], -1)


def canonical_boxes(boxes: Tensor) -> Tensor:
    """The same boxes (..., 7) with yaw in [0, pi / 2), of which each has one such form."""
    turns = torch.floor(boxes[..., 6] / _QUARTER)
    yaw = boxes[..., 6] - turns * _QUARTER
    swapped = (turns.remainder(2) == 1).unsqueeze(-1)
    sides = torch.where(swapped, boxes[..., [4, 3, 5]], boxes[..., 3:6])
    return torch.cat([boxes[..., :3], sides, yaw.unsqueeze(-1)], -1)


def _shared_area(first: Tensor, second: Tensor) -> Tensor:
    """Area (...) that two rectangles share, of boxes (..., 7) of equal leading sizes.

    By Green's theorem it is the integral along the first one's boundary of ``clamp(x, -a, a) dy`` where ``|y| < b``, in
    the frame in which the second one spans -a to a and -b to b. Every edge gives its part in closed form, which changes
    continuously with the boxes, also where edges coincide.
    """
    centred = torch.cat([first[..., :2] - second[..., :2], first[..., 2:]], -1)
    corners = _turned(box_corners(centred), -second[..., 6])
    a, b = (second[..., axis, None] / 2 for axis in (3, 4))
    x0, y0 = corners.unbind(-1)
    x1, y1 = corners.roll(-1, -2).unbind(-1)
    low, high = _clamped(y0, b), _clamped(y1, b)
    rise = y1 - y0
    flat = rise.abs() <= torch.finfo(rise.dtype).eps * (b + rise.abs())
    safe = torch.where(flat, torch.ones_like(rise), rise)
    from_x = x0 + (x1 - x0) * torch.where(flat, torch.zeros_like(rise), ((low - y0) / safe).clamp(0, 1))
    to_x = x0 + (x1 - x0) * torch.where(flat, torch.ones_like(rise), ((high - y0) / safe).clamp(0, 1))
    area = ((high - low) * _mean_clamped(from_x, to_x, a)).sum(-1)
    most = torch.minimum(first[..., 3] * first[..., 4], second[..., 3] * second[..., 4])
    return torch.minimum(area.clamp_min(0), most)


def _clamped(value: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(value, -bound), bound)


def _mean_clamped(start: Tensor, stop: Tensor, bound: Tensor) -> Tensor:
    """Mean of ``clamp(x, -bound, bound)`` over the x from start to stop."""
    low, high = torch.minimum(start, stop), torch.maximum(start, stop)
    length = high - low
    point = length <= torch.finfo(length.dtype).eps * (bound + low.abs() + high.abs())
    safe = torch.where(point, torch.ones_like(length), length)
    below = torch.minimum((-bound - low).clamp_min(0), length)
    above = torch.minimum((high - bound).clamp_min(0), length)
    inner_low, inner_high = _clamped(low, bound), _clamped(high, bound)
    inner = (inner_high - inner_low) * (inner_high + inner_low) / 2
    mean = (bound * (above - below) + inner) / safe
    return torch.where(point, _clamped((low + high) / 2, bound), mean)


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of boxes in pairs: volume that both hold over the volume that either holds.

    Exact for any yaw, and differentiable almost everywhere, in float32 or float64.

    Args:
        first, second: (..., 7) boxes, of sizes that broadcast.

    Returns:
        (...) of 0 to 1; 0 where neither has a volume.
    """
    first, second = torch.broadcast_tensors(first, second)
    area = _shared_area(first, second)
    upper = torch.minimum(first[..., 2] + first[..., 5] / 2, second[..., 2] + second[..., 5] / 2)
    lower = torch.maximum(first[..., 2] - first[..., 5] / 2, second[..., 2] - second[..., 5] / 2)
    both = area * (upper - lower).clamp_min(0)
    either = first[..., 3:6].prod(-1) + second[..., 3:6].prod(-1) - both
    return torch.where(either > 0, both / torch.where(either > 0, either, torch.ones_like(either)), both * 0)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of all pairs of boxes.

    Only pairs whose axis-aligned bounds meet are computed, a part at a time, without gradients.

    Args:
        first: (N, 7).
        second: (M, 7).

    Returns:
        (N, M) of 0 to 1.
    """
    first, second = first.detach(), second.detach()
    iou = first.new_zeros(len(first), len(second))
    rows, columns = _meeting(first, second)
    for start in range(0, len(rows), _PAIRS_AT_A_TIME):
        row, column = rows[start : start + _PAIRS_AT_A_TIME], columns[start : start + _PAIRS_AT_A_TIME]
        iou[row, column] = aligned_iou(first[row], second[column])
    return iou


def _meeting(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the pairs whose axis-aligned bounds meet."""
    one, other = bounding_boxes(first), bounding_boxes(second)
    meet = torch.ones(len(first), len(second), dtype=torch.bool, device=first.device)
    for axis in range(3):
        meet &= one[:, None, axis] < other[None, :, axis + 3]
        meet &= other[None, :, axis] < one[:, None, axis + 3]
    return meet.nonzero(as_tuple=True)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float = 0.3) -> Tensor:
    """The best of boxes that overlap: a box goes where one with a higher score, that stays, overlaps it by more.

    Args:
        boxes: (N, 7).
        scores: (N,); of equal ones the first is better.
        threshold: overlap beyond which the lesser box goes.

    Returns:
        (K,) int64 numbers of those that stay, best first.
    """
    waiting = scores.argsort(descending=True, stable=True)
    kept = [waiting[:0]]
    while len(waiting):
        block, waiting = waiting[:_BLOCK], waiting[_BLOCK:]
        overlapping = (box_iou(boxes[block], boxes[block]) > threshold).cpu()
        stays = torch.ones(len(block), dtype=torch.bool)
        for number in range(len(block)):
            if stays[number]:
                stays[number + 1 :] &= ~overlapping[number, number + 1 :]
        best = block[stays.to(block.device)]
        kept.append(best)
        waiting = waiting[~(box_iou(boxes[best], boxes[waiting]) > threshold).any(0)]
    return torch.cat(kept)


def encode_boxes(boxes: Tensor, locations: Tensor) -> Tensor:
    """How an anchor-free head codes boxes as seen from a location inside their axis-aligned bounds.

    Six distances to the bounds, and where the box touches them: an upright box, seen from above, is told by its bounds
    and by two of its corners, the one of largest y and the one of largest x (the midpoint-offset representation of
    oriented boxes; here the corners' free coordinates are taken from the location). Where an edge lies on a bound,
    the corner of largest y is the right one and the corner of largest x the lower one.

    Args:
        boxes: (..., 7).
        locations: (..., 3), of a size that broadcasts.

    Returns:
        (..., 8): location minus lower corner (3), upper corner minus location (3), x of the corner of largest y and y
        of the corner of largest x, both minus the location's.
    """
    bounds = bounding_boxes(boxes)
    corners = box_corners(canonical_boxes(boxes))
    # with yaw in [0, pi / 2) the first corner is the one of largest y, the last one that of largest x
    touch = torch.stack([corners[..., 0, 0], corners[..., 3, 1]], -1)
    distances = torch.broadcast_tensors(locations - bounds[..., :3], bounds[..., 3:] - locations)
    return torch.cat([*distances, touch - locations[..., :2]], -1)


def decode_boxes(codes: Tensor, locations: Tensor) -> Tensor:
    """Inverse of :func:`encode_boxes`, of any numbers.

    Corners beyond the bounds are moved to their end. Where the two corners and the bounds tell a parallelogram, the
    rectangle with its longer diagonal is meant.

    Args:
        codes: (..., 8).
        locations: (..., 3).

    Returns:
        (..., 7) boxes with yaw in [0, pi / 2].
    """
    low, high = locations - codes[..., :3], locations + codes[..., 3:6]
    centre, half = (low + high) / 2, ((high - low) / 2).clamp_min(0)
    touch = locations[..., :2] + codes[..., 6:] - centre[..., :2]
    x, y = (_clamped(touch[..., axis], half[..., axis]) for axis in (0, 1))
    # half diagonals from the centre to the corner of largest y, and to that of largest x
    up, right = torch.stack([x, half[..., 1]], -1), torch.stack([half[..., 0], y], -1)
    lengths = [_length(diagonal) for diagonal in (up, right)]
    longest = torch.maximum(*lengths)
    up, right = (d * (longest / length).unsqueeze(-1) for d, length in zip((up, right), lengths, strict=True))
    along, across = up + right, up - right  # the rectangle's edges: its own x, turned by the yaw, and its own y
    width, depth = _length(along), _length(across)
    # a rectangle of no width has an edge of no length; its direction is that of the other
    vector = torch.where((width >= depth).unsqueeze(-1), along, torch.stack([across[..., 1], -across[..., 0]], -1))
    yaw = torch.atan2(vector[..., 1], vector[..., 0])
    return torch.cat([centre, torch.stack([width, depth, 2 * half[..., 2], yaw], -1)], -1)


def _length(vector: Tensor) -> Tensor:
    """Length (...) of (..., 2), with a finite gradient where it is 0."""
    return vector.square().sum(-1).clamp_min(torch.finfo(vector.dtype).tiny).sqrt()


__all__ = [
    "aligned_iou",
    "bounding_boxes",
    "box_corners",
    "box_iou",
    "canonical_boxes",
    "decode_boxes",
    "encode_boxes",
    "non_maximum_suppression",
]
