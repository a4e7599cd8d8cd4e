"""Matches between two views: nearest points in space, and nearest descriptors, wherever both agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.nn.mutual_nearest import comes_back
from geo3d.ops import knn

#: Scalar products that are held at a time.
_AT_ONCE = 2**22
_ROUNDS = 10
#: Distance of starts at the published size, and pixels at the border that are not trusted.
_EVERY, _OF_SIDE, _BORDER = 8, 512, 3


@dataclass(frozen=True)
class Matches:
    """Pixels of two views that show one thing.

    Args:
        first, second: (M, 2) int64 pixels (x, y) of either view, sorted by place in the first, row by row.
        confidence: (M,) of each match, or None.
    """

    first: Tensor
    second: Tensor
    confidence: Tensor | None = None

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, kept: Tensor) -> Matches:
        """Some of the matches, by mask or by numbers."""
        return Matches(*(None if part is None else part[kept] for part in (self.first, self.second, self.confidence)))


def reciprocal_points(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Points of two sets that are each other's nearest: the published matches of pointmaps (DUSt3R, section 3.3).

    Args:
        first, second: (N, 3) and (M, 3) points in one frame, all finite.

    Returns:
        mutual (M,) bool: whether the nearest of the first set has this point as its own nearest; and nearest (M,) int64
        row of the first set for each of the second.

    Raises:
        InputError: points that are not finite, or a set without any.
    """
    if not (len(first) and len(second)):
        raise InputError(f"matches need points in both views, got {len(first)} and {len(second)}")
    one, other = (torch.tensor([0, len(part)], device=part.device) for part in (first, second))
    nearest = knn(second, first, other, one, 1)[0][:, 0]
    back = knn(first, second, one, other, 1)[0][:, 0]
    return comes_back(nearest, back), nearest


def nearest_descriptors(queries: Tensor, descriptors: Tensor, at_once: int = _AT_ONCE) -> Tensor:
    """For each query the descriptor of the largest scalar product, block by block.

    Args:
        queries: (Q, C).
        descriptors: (D, C).
        at_once: products that are held at a time, which bounds the memory.

    Returns:
        (Q,) int64 rows of ``descriptors``, the first among equals.
    """
    block = max(1, at_once // max(1, len(descriptors)))
    found = [(queries[start : start + block] @ descriptors.T).argmax(1) for start in range(0, len(queries), block)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=queries.device)


def grid_starts(height: int, width: int, every: int, device: torch.device | None = None) -> Tensor:
    """Pixels of a grid, as places in the image row by row: every so many pixels from half of it."""
    y, x = (torch.arange(every // 2, size, every, device=device) for size in (height, width))
    return (y[:, None] * width + x).reshape(-1)


def reciprocal_descriptors(
    first: Tensor, second: Tensor, every: int = 8, both_ways: bool = False, at_once: int = _AT_ONCE
) -> Matches:
    """Matches of dense descriptors, from a grid of starts (MASt3R, section 3.3).

    From every start of the first view to its nearest in the second and back, up to ten times; what comes back to where
    it was is a match.

    Args:
        first, second: (H, W, C) and (H', W', C) descriptors.
        every: distance of starts, pixels; 1: from every pixel.
        both_ways: start in the second view too, and join what both find.
        at_once: as :func:`nearest_descriptors`.
    """
    found = [_from_starts(first, second, every, at_once)]
    if both_ways:
        found.append(_from_starts(second, first, every, at_once)[[1, 0]])
    width, other = first.shape[1], second.shape[1]
    pairs = torch.cat(found, 1)
    count = second.shape[0] * other
    both = torch.unique(pairs[0] * count + pairs[1])  # sorted by place in the first view, doubles dropped
    one, two = both // count, both % count
    return Matches(torch.stack([one % width, one // width], 1), torch.stack([two % other, two // other], 1))


def with_confidence(matches: Matches, first: Tensor, second: Tensor, rule: str = "least") -> Matches:
    """Matches with the confidence of each, in the published forms (MASt3R): of its two descriptors' (H, W), (H', W').

    Args:
        matches: any.
        first, second: confidences of the views.
        rule: ``least``: the smaller; ``mean``: the geometric mean.

    Raises:
        InputError: another rule.
    """
    one = first[matches.first[:, 1], matches.first[:, 0]]
    two = second[matches.second[:, 1], matches.second[:, 0]]
    if rule not in ("least", "mean"):
        raise InputError(f"confidence of matches: rules are least and mean, got {rule!r}")
    value = torch.minimum(one, two) if rule == "least" else (one * two).sqrt()
    return Matches(matches.first, matches.second, value)


def within_border(
    matches: Matches, first_size: tuple[int, int], second_size: tuple[int, int], border: int = _BORDER
) -> Matches:
    """Matches that lie in neither image within so many pixels of its border; sizes are (height, width)."""
    kept = torch.ones(len(matches), dtype=torch.bool, device=matches.first.device)
    for pixels, (height, width) in ((matches.first, first_size), (matches.second, second_size)):
        x, y = pixels.unbind(1)
        kept &= (x >= border) & (y >= border) & (x < width - border) & (y < height - border)
    return matches.rows(kept)


def matches_of(first: Tensor, second: Tensor, first_confidence: Tensor, second_confidence: Tensor) -> Matches:
    """What descriptors of one prediction tell: matches from both views, off the borders, with confidences.

    Starts are 8 pixels of 512 apart, as published, and as many in images of other sizes; confidences are geometric
    means.

    Args:
        first, second: (H, W, C) and (H', W', C) descriptors.
        first_confidence, second_confidence: (H, W) and (H', W') of them.
    """
    sizes = [part.shape[:2] for part in (first, second)]
    every = max(1, round(_EVERY * max(map(max, sizes)) / _OF_SIDE))
    matches = reciprocal_descriptors(first, second, every, both_ways=True)
    matches = within_border(matches, *sizes, border=min(_BORDER, every))
    return with_confidence(matches, first_confidence, second_confidence, "mean")


def _from_starts(first: Tensor, second: Tensor, every: int, at_once: int) -> Tensor:
    """(2, M) places in both views, of the starts that come back to themselves."""
    height, width, channels = first.shape
    if second.shape[2] != channels:
        raise InputError(f"descriptors of both views have one length, got {channels} and {second.shape[2]}")
    if every < 1:
        raise InputError(f"starts are 1 pixel or more apart, got {every}")
    one, two = first.reshape(-1, channels), second.reshape(-1, channels)
    here = grid_starts(height, width, every, first.device)
    done = []
    for _ in range(_ROUNDS):
        there = nearest_descriptors(one[here], two, at_once)
        back = nearest_descriptors(two[there], one, at_once)
        stays = back == here
        done.append(torch.stack([here[stays], there[stays]]))
        here = torch.unique(back[~stays])
        if not len(here):
            break
    return torch.cat(done, 1)


__all__ = [
    "Matches",
    "grid_starts",
    "matches_of",
    "nearest_descriptors",
    "reciprocal_descriptors",
    "reciprocal_points",
    "with_confidence",
    "within_border",
]
