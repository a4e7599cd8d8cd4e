"""Matches of all pairs as arrays, and what the sparse alignment minimises over them (MASt3R-SfM, sections 4.2, 4.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry.similarity import Similarity
from geo3d.reconstruction.pointmaps.initial import GivenViews
from geo3d.reconstruction.pointmaps.lens import from_centre
from geo3d.reconstruction.pointmaps.matching import Matches
from geo3d.reconstruction.pointmaps.objective import taken, taken_pixels
from geo3d.reconstruction.pointmaps.pose import usual_threshold
from geo3d.reconstruction.pointmaps.prediction import PairPrediction
from geo3d.spread import evenly_spread

#: Confidence that a pair's best match has to exceed for its matches to be used, as published; and how many have to:
#: pairs that share little have hardly any right ones.
SURE, FEWEST = 5.0, 100
#: Distance of anchors, pixels: the depth of a cell of so many moves as one.
ANCHORS = 8
#: Matches of all pairs together: more make it slower and hardly better.
_MOST = 60_000
#: Error of a match, pixels: beyond it a residual counts by its logarithm.
_PIXELS = 0.5
#: Error of a depth relative to it that the residual of a match leaves open.
_DEPTH = 0.05
#: What anchors' depths are held by, as so many matches: usual steps between neighbours, and usual changes.
_STEP, _STEP_WEIGHT, _CHANGE, _CHANGE_WEIGHT = 0.02, 30.0, 0.1, 0.1
#: And focal lengths: a usual change.
_FOCAL, _FOCAL_WEIGHT = 0.05, 100.0
#: Nearest depth at which a point is projected, relative to the usual depth.
_NEAREST = 0.01


@dataclass(frozen=True, eq=False)
class SparseUnknowns:
    """What is looked for.

    Args:
        rotation, translation: (N, 3, 3) and (N, 3) of ``world_from_camera``.
        scale: (N,) of each view's points; they leave what the view sees along its axis where it is.
        stretch: (N,) focal length over that at the start; depth is stretched by it, so that things keep their width.
        anchor: (A + 1,) factor of the depth of each anchor's cell, the last one 1.
    """

    rotation: Tensor
    translation: Tensor
    scale: Tensor
    stretch: Tensor
    anchor: Tensor

    def axes(self) -> Tensor:
        """(N, 3) factors from a view's points at the start to those now, but for the anchors'."""
        return self.scale[:, None] * torch.stack([torch.ones_like(self.stretch)] * 2 + [self.stretch], 1)


class _Row(NamedTuple):
    """Points of one view and where another sees them.

    Args:
        source, target: the views.
        points: (P, 3) in the frame of the source.
        anchors: (P,) of these points.
        there: (P, 3) the same points as the target's own depth has them, in its frame.
        anchors_there: (P,) of those.
        pixels: (P, 2) where the target sees them, from its centre.
        weight: (P,).
        allowed: error of a pixel.
    """

    source: int
    target: int
    points: Tensor
    anchors: Tensor
    there: Tensor
    anchors_there: Tensor
    pixels: Tensor
    weight: Tensor
    allowed: float


class Leeway(NamedTuple):
    """What errors of depth leave open of a match.

    Args:
        along: (D, P, 2) direction in which the target sees a point move as its depth changes.
        left: (D, P) what is left of the weight of a squared residual along it.
    """

    along: Tensor
    left: Tensor


class MatchTerms:
    """Pairs of pixels that show one thing, seen from either: every row is a pair of views in one order.

    Pairs with sure matches have a row in both orders. Of the others, each prediction says where the second view's
    pixels lie in the first one's frame: these points stand in for the first view's.

    Args:
        predictions: of pairs.
        given: of the views.
        focals: at the start, pixels.
        ways: of each prediction to the world, at the start.
        depths: of each view (H, W), in the world's unit; 0 where unknown.
        every: distance of the pixels at which predictions without sure matches are taken.
        dtype: of what is computed.
    """

    def __init__(
        self,
        predictions: Sequence[PairPrediction],
        given: GivenViews,
        focals: Sequence[float],
        ways: Sequence[Similarity],
        depths: Sequence[Tensor],
        every: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.given, self.depths, self.dtype = given, depths, dtype
        self.focal = torch.tensor(focals, dtype=dtype)
        self.usual = torch.tensor([usual_depth(depth) for depth in depths], dtype=dtype)
        self.unit = float(self.usual.median())
        self._lay_anchors()
        joined = {
            pair: found.rows(self._known(pair[0], found.first) & self._known(pair[1], found.second))
            for pair, found in joined_matches(predictions).items()
        }
        self.sure = {pair: found for pair, found in joined.items() if is_sure(found)}
        share = min(1.0, _MOST / max(1, sum(map(len, self.sure.values()))))
        rows = [self._row_of_matches(*pair, found, share) for pair, found in self.sure.items()]
        self.matches = sum(len(row.points) for row in rows)
        back = [self._turned(row) for row in rows]
        self.told_by_points = {pair for pair in joined if pair not in self.sure}
        for prediction, way in zip(predictions, ways):
            if _pair(prediction) in self.told_by_points:
                rows.append(self._row_of_points(prediction, way, every))
        self._stack(rows + back, len(rows))

    def _lay_anchors(self) -> None:
        """Numbers of the anchors of every view's pixels, and neighbours among them."""
        self.cells: list[Tensor] = []
        neighbours, begin = [], 0
        for height, width in self.given.sizes:
            high, wide = math.ceil(height / ANCHORS), math.ceil(width / ANCHORS)
            numbers = begin + torch.arange(high * wide).view(high, wide)
            neighbours += [torch.stack([numbers[1:].flatten(), numbers[:-1].flatten()])]
            neighbours += [torch.stack([numbers[:, 1:].flatten(), numbers[:, :-1].flatten()])]
            whole = numbers.repeat_interleave(ANCHORS, 0).repeat_interleave(ANCHORS, 1)
            self.cells.append(whole[:height, :width])
            begin += high * wide
        self.anchors, self.neighbours = begin, torch.cat(neighbours, 1)

    def _known(self, view: int, pixels: Tensor) -> Tensor:
        return self.depths[view][pixels[:, 1], pixels[:, 0]] > 0

    def _points(self, view: int, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points of pixels in the frame of their view, at the start; their anchors; and pixels from the centre."""
        x, y = pixels.unbind(1)
        place = from_centre(pixels.double(), self.given.middles[view])
        rays = torch.cat([place / self.focal[view].double(), torch.ones_like(place[:, :1])], 1)
        return rays * self.depths[view][y, x, None].double(), self.cells[view][y, x], place

    def _row_of_matches(self, one: int, other: int, found: Matches, share: float) -> _Row:
        found = found.rows(torch.tensor(evenly_spread(len(found), max(FEWEST, round(share * len(found))))))
        points, anchors, _ = self._points(one, found.first)
        return _Row(one, other, points, anchors, *self._points(other, found.second), found.confidence, _PIXELS)

    def _turned(self, row: _Row) -> _Row:
        """The same matches from the other view."""
        pixels = row.points[:, :2] / row.points[:, 2:] * self.focal[row.source].double()
        return row._replace(
            source=row.target, target=row.source, points=row.there, anchors=row.anchors_there, there=row.points,
            anchors_there=row.anchors, pixels=pixels,
        )  # fmt: skip

    def _row_of_points(self, prediction: PairPrediction, way: Similarity, every: int) -> _Row:
        other, size = prediction.second, self.given.sizes[prediction.second]
        pixels = taken_pixels(*size, every)
        points = way.scale * taken(prediction.second_points, every).double()
        weight = taken(prediction.second_confidence, every).double().log().clamp_min(0)
        known = self._known(other, pixels) & points.isfinite().all(1) & weight.isfinite()
        there = self._points(other, pixels[known])
        none = torch.full_like(there[1], self.anchors)
        return _Row(prediction.first, other, points[known], none, *there, weight[known], usual_threshold(*size))

    def _stack(self, rows: list[_Row], forward: int) -> None:
        """Arrays (D, P, ...) of all rows, padded to the longest; the first so many have each match once."""
        most = max(len(row.points) for row in rows)
        self.forward = forward
        self.source, self.target = torch.tensor([[row.source, row.target] for row in rows]).T
        self.allowed = torch.tensor([row.allowed for row in rows], dtype=self.dtype)[:, None]

        def padded(name: str, value: float, dtype: torch.dtype) -> Tensor:
            parts = [getattr(row, name) for row in rows]
            array = torch.full((len(rows), most, *parts[0].shape[1:]), value, dtype=dtype)
            for line, part in zip(array, parts):
                line[: len(part)] = part.to(dtype)
            return array

        self.points, self.there = (padded(name, 1, self.dtype) for name in ("points", "there"))
        self.anchor, self.anchor_there = (padded(n, self.anchors, torch.int64) for n in ("anchors", "anchors_there"))
        self.pixels, self.weight = (padded(name, 0, self.dtype) for name in ("pixels", "weight"))
        self.count = int((self.weight[:forward] > 0).sum())
        self.weight /= self.weight[:forward].sum().clamp_min(1e-30)

    def _seen(self, unknowns: SparseUnknowns, rows: slice) -> tuple[Tensor, Tensor]:
        """(D, P, 3) points in the frame of the target, and the source's place there (D, 1, 3)."""
        source, target = self.source[rows], self.target[rows]
        back = unknowns.rotation[target].mT
        turned = back @ unknowns.rotation[source] * unknowns.axes()[source][:, None]
        away = unknowns.translation[source] - unknowns.translation[target]
        place = (back @ away[..., None]).mT
        points = self.points[rows] * unknowns.anchor[self.anchor[rows]][..., None]
        return points @ turned.mT + place, place

    def distance(self, unknowns: SparseUnknowns) -> Tensor:
        """The first stage: mean distance of what matches, weighted by confidence, relative to the usual depth."""
        rows = slice(0, self.forward)
        seen, _ = self._seen(unknowns, rows)
        own = self.there[rows] * unknowns.anchor[self.anchor_there[rows]][..., None]
        apart = seen - own * unknowns.axes()[self.target[rows]][:, None]
        # Not quite a root at 0, where it has no gradient.
        return (self.weight[rows] * (apart.square().sum(-1) + (1e-6 * self.unit) ** 2).sqrt()).sum() / self.unit

    def leeway(self, unknowns: SparseUnknowns) -> Leeway:
        """What errors of depth leave open, where the unknowns are now."""
        seen, place = self._seen(unknowns, slice(None))
        at, focal, z = self._projected(seen, unknowns)
        ray = seen - place
        moves = (focal * ray[..., :2] - at * ray[..., 2:]) / z  # as the logarithm of the depth grows
        length = torch.linalg.vector_norm(moves, dim=-1)
        still = length < 1e-6 * float(self.focal.max())
        along = torch.where(still[..., None], moves.new_tensor([1.0, 0.0]), moves / length.clamp_min(1e-30)[..., None])
        return Leeway(along, self.allowed**2 / (self.allowed**2 + (_DEPTH * length) ** 2))

    def _projected(self, seen: Tensor, unknowns: SparseUnknowns) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels from the centre, focal lengths and depths of what targets see."""
        focal = (self.focal * unknowns.stretch)[self.target][:, None, None]
        z = seen[..., 2:].clamp_min(_NEAREST * self.unit)
        return focal * seen[..., :2] / z, focal, z

    def reprojection(self, unknowns: SparseUnknowns, leeway: Leeway | None) -> Tensor:
        """The second stage: logarithm of errors of pixels, weighted by confidence, and what holds the unknowns.

        Depth is known to a few percent only, which moves a point along the line that the target sees the source's ray
        as: along it a residual counts by what is left beside that error, across it in full; without ``leeway`` in full
        anywhere, as published.
        """
        seen, _ = self._seen(unknowns, slice(None))
        residual = self._projected(seen, unknowns)[0] - self.pixels
        squared = residual.square().sum(-1)
        if leeway is not None:
            squared = squared - (1 - leeway.left) * (residual * leeway.along).sum(-1).square()
        squared = squared.clamp_min(0) / self.allowed**2  # rounding
        return (self.weight * squared.log1p()).sum() + self._held(unknowns) / max(1, self.count)

    def _held(self, unknowns: SparseUnknowns) -> Tensor:
        """What matches alone leave open, above all those of two views: depth of cells, and focal lengths."""
        change = unknowns.anchor.log()
        steps = change[self.neighbours[0]] - change[self.neighbours[1]]
        smooth = _STEP_WEIGHT * (steps / _STEP).square().log1p().sum()
        near = _CHANGE_WEIGHT * (change / _CHANGE).square().log1p().sum()
        focals = _FOCAL_WEIGHT * (unknowns.stretch.log() / _FOCAL).square().sum()
        return smooth + near + focals


def joined_matches(predictions: Sequence[PairPrediction]) -> dict[tuple[int, int], Matches]:
    """Matches of every pair (i, j), i < j, of both its orders; of doubles the surer.

    Raises:
        InputError: a prediction has none, or some without confidence.
    """
    parts: dict[tuple[int, int], list[Matches]] = {}
    for prediction in predictions:
        found = prediction.matches
        if found is None or found.confidence is None:
            raise InputError(
                f"the sparse alignment needs matches with confidences, views {prediction.first} and "
                f"{prediction.second} have none: the network has no descriptors; take the dense one"
            )
        if prediction.first > prediction.second:
            found = Matches(found.second, found.first, found.confidence)
        parts.setdefault(_pair(prediction), []).append(found)
    joined = {}
    for pair, orders in parts.items():
        places = torch.cat([torch.cat([found.first, found.second], 1) for found in orders])
        values = torch.cat([found.confidence for found in orders]).double()
        places, number = torch.unique(places, dim=0, return_inverse=True)
        best = torch.zeros(len(places), dtype=torch.float64).scatter_reduce(0, number, values, "amax")
        joined[pair] = Matches(places[:, :2], places[:, 2:], best)
    return joined


def is_sure(matches: Matches) -> bool:
    """Whether a pair is told by its matches: enough of them have a confidence of more than 5."""
    return int((matches.confidence > SURE).sum()) >= FEWEST


def usual_depth(depth: Tensor) -> float:
    """Median of a depth map where it is known; 1 where nothing is."""
    known = depth[depth > 0]
    return float(known.median()) if len(known) else 1.0


def _pair(prediction: PairPrediction) -> tuple[int, int]:
    return min(prediction.first, prediction.second), max(prediction.first, prediction.second)


__all__ = ["ANCHORS", "FEWEST", "SURE", "MatchTerms", "SparseUnknowns", "is_sure", "joined_matches", "usual_depth"]
