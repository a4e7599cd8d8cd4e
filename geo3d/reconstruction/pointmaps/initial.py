"""Where the alignment of many views starts: pointmaps chained along a tree, poses and depth read off them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry.similarity import Similarity, fit_similarity_robustly
from geo3d.reconstruction.pointmaps.focal import robust_focal
from geo3d.reconstruction.pointmaps.graph import spanning_tree
from geo3d.reconstruction.pointmaps.lens import LensCentre, PrincipalPoint, centre, lens_centre, thinned_centre
from geo3d.reconstruction.pointmaps.objective import taken, taken_pixels
from geo3d.reconstruction.pointmaps.pose import find_pose, usual_threshold
from geo3d.reconstruction.pointmaps.prediction import PairPrediction, camera_rays, sizes_of

_STEPS = 10
_PIXELS = 20_000  # that a focal length is read off at most, or some more
_ROUNDS = 2  # in which what predictions say of a view and where they lie are found in turn


@dataclass(frozen=True)
class GivenViews:
    """What is known of views before they are aligned.

    Args:
        sizes: height and width of each.
        middles: principal points.
        focals: pixels, where known.
        lenses: rows of the focal lengths that are looked for: views of one lens have one.
    """

    sizes: list[tuple[int, int]]
    middles: list[LensCentre]
    focals: list[float | None]
    lenses: list[int]

    @classmethod
    def of(
        cls,
        predictions: Sequence[PairPrediction],
        principal_points: Sequence[PrincipalPoint] | None,
        focals: Sequence[float | None] | None,
        lenses: Sequence[int] | None,
    ) -> GivenViews:
        """Of what a caller gives, and the usual for the rest: centres, no focal length, a lens for each view.

        Raises:
            InputError: something is given for another number of views.
        """
        sizes = sizes_of(predictions)
        points = [centre(*size) for size in sizes] if principal_points is None else principal_points
        middles = [lens_centre(one) for one in points]
        known = [None] * len(sizes) if focals is None else list(focals)
        numbers = list(range(len(sizes))) if lenses is None else list(lenses)
        for name, given in (("principal_points", middles), ("focals", known), ("lenses", numbers)):
            if len(given) != len(sizes):
                raise InputError(f"{name} are given for {len(given)} views, there are {len(sizes)}")
        rows = {lens: row for row, lens in enumerate(dict.fromkeys(numbers))}
        return cls(sizes, middles, known, [rows[lens] for lens in numbers])


def find_focals(
    predictions: Sequence[PairPrediction],
    principal_points: Sequence[PrincipalPoint],
    lenses: Sequence[int],
    known: Sequence[float | None],
) -> list[float]:
    """Focal length of each view, pixels: the median over the predictions in whose frame it is, in the logarithm.

    Views of one lens have one. Where no prediction tells that of a view, it is the median of the others', relative to
    the longer side.

    Args:
        predictions: of pairs.
        principal_points: of each view.
        lenses: number of each view's lens.
        known: focal lengths that are given.

    Raises:
        InputError: no prediction tells any.
    """
    sizes = sizes_of(predictions)
    longer = [max(size) for size in sizes]
    told: dict[int, list[float]] = {lens: [] for lens in lenses}
    problem = ""
    for prediction in predictions:
        view = prediction.first
        if known[view] is None:
            try:
                told[lenses[view]].append(_focal(prediction, principal_points[view]) / longer[view])
            except InputError as error:
                problem = str(error)
    every = [value for values in told.values() for value in values]
    if not every and any(focal is None for focal in known):
        raise InputError(problem or "no pair is predicted in the frame of a view whose focal length is looked for")
    found = []
    for view, lens in enumerate(lenses):
        values = told[lens] or every
        found.append(float(known[view] or np.exp(np.median(np.log(values))) * longer[view]))
    return found


def _focal(prediction: PairPrediction, principal_point: PrincipalPoint) -> float:
    """Of the first view, by so many of its pixels as tell it well."""
    height, width = prediction.first_confidence.shape
    every = max(1, math.ceil(math.sqrt(height * width / _PIXELS)))
    start = every // 2
    points, confidence = (
        values[start::every, start::every] for values in (prediction.first_points, prediction.first_confidence)
    )
    return every * robust_focal(points, thinned_centre(principal_point, every), confidence)


def chain(
    predictions: Sequence[PairPrediction],
    focals: Sequence[float],
    principal_points: Sequence[PrincipalPoint],
    every: int,
    rng: np.random.Generator,
) -> tuple[Tensor, list[Similarity]]:
    """Poses of all views and similarities of all predictions, from a spanning tree of the surest.

    Args:
        predictions: of pairs that join all views.
        focals, principal_points: of each view.
        every: distance of the pixels that are used.
        rng: draws what poses are proposed by, where no prediction is in a view's own frame.

    Returns:
        (N, 4, 4) float64 ``world_from_camera``, and the way of each prediction to that world.

    Raises:
        InputError: the pairs do not join all views, or a pose cannot be found.
    """
    sizes = sizes_of(predictions)
    tree = spanning_tree(predictions)
    maps: dict[int, Tensor] = {}
    for number in tree:
        one, other = predictions[number].sides()
        if not maps:
            way = Similarity.none()
        else:
            view, points, confidence = one if one[0] in maps else other
            way = fit(taken(points, every), maps[view], taken(confidence, every), rng)
        for view, points, _ in (one, other):
            if view not in maps:
                maps[view] = way.apply(taken(points, every).double())
    ways: list[Similarity] = []
    for _ in range(_ROUNDS):
        ways = [_to_world(prediction, maps, every, rng) for prediction in predictions]
        maps = {view: _agreed(view, predictions, ways, every) for view in maps}
    poses = []
    for view, size in enumerate(sizes):
        own = [n for n, p in enumerate(predictions) if p.first == view]
        in_tree = [n for n in own if n in tree]
        if own:
            best = max(in_tree or own, key=lambda number: predictions[number].score)
            poses.append(ways[best].pose())
        else:
            pixels = taken_pixels(*size, every).numpy()
            finite = maps[view].isfinite().all(1).numpy()
            points = maps[view].numpy()[finite]
            threshold = usual_threshold(*size)
            found = find_pose(points, pixels[finite], focals[view], principal_points[view], rng, threshold)
            poses.append(torch.from_numpy(found.world_from_camera))
    return torch.stack(poses), ways


def _to_world(prediction: PairPrediction, maps: dict[int, Tensor], every: int, rng: np.random.Generator) -> Similarity:
    sides = prediction.sides()
    source = torch.cat([taken(points, every) for _, points, _ in sides])
    target = torch.cat([maps[view] for view, _, _ in sides])
    return fit(source, target, torch.cat([taken(confidence, every) for *_, confidence in sides]), rng)


def _agreed(view: int, predictions: Sequence[PairPrediction], ways: Sequence[Similarity], every: int) -> Tensor:
    """(P, 3) places of a view's pixels: the median of what all predictions say."""
    told = [
        way.apply(taken(points, every).double())
        for prediction, way in zip(predictions, ways)
        for number, points, _ in prediction.sides()
        if number == view
    ]
    return torch.stack(told).nanmedian(0).values


def fit(source: Tensor, target: Tensor, confidence: Tensor, rng: np.random.Generator) -> Similarity:
    """The similarity between finite points, each weighing by its confidence."""
    finite = source.isfinite().all(1) & target.isfinite().all(1) & confidence.isfinite()
    return fit_similarity_robustly(source[finite], target[finite], confidence[finite].double().clamp_min(0), rng)


def fused_depth(pose: Tensor, focal: float, principal_point: PrincipalPoint, points: Tensor, weights: Tensor) -> Tensor:
    """Depth of a view's pixels of least weighted distance from what several predictions say of them.

    Args:
        pose: (4, 4) ``world_from_camera``.
        focal, principal_point: of the view.
        points: (K, H, W, 3) in the world; what is not finite does not count.
        weights: (K, H, W) 0 or more.

    Returns:
        (H, W) float64 along z, 0 where nothing tells it or it would lie behind the camera.
    """
    pose, points = pose.double(), points.double()
    rays = camera_rays(*points.shape[1:3], focal, principal_point) @ pose[:3, :3].T
    from_eye = points - pose[:3, 3]
    known = from_eye.isfinite().all(-1) & (weights > 0)
    from_eye = torch.where(known[..., None], from_eye, 0)
    weights = torch.where(known, weights.double(), 0)
    length = rays.square().sum(-1)
    along = (from_eye * rays).sum(-1) / length
    depth = torch.where(known, along, torch.nan).nanmedian(0).values.nan_to_num(0)
    for _ in range(_STEPS):
        apart = torch.linalg.vector_norm(from_eye - depth[..., None] * rays, dim=-1)
        pull = weights / apart.clamp_min(1e-6 * depth.abs().mean().clamp_min(1e-12))
        depth = (pull * along).sum(0) / pull.sum(0).clamp_min(1e-300)
    return depth.clamp_min(0)


def depth_of(
    view: int,
    predictions: Sequence[PairPrediction],
    ways: Sequence[Similarity],
    pose: Tensor,
    focal: float,
    principal_point: PrincipalPoint,
    every: int = 1,
) -> Tensor:
    """(H, W) depth of every so many pixels of a view, from all that predictions say of them, each as it is sure.

    Args:
        view: its number.
        predictions: of pairs.
        ways: of each prediction to the world.
        pose, focal, principal_point: of the view.
        every: distance of the pixels.
    """
    points, weights = [], []
    start = every // 2
    for prediction, way in zip(predictions, ways):
        for number, own, confidence in prediction.sides():
            if number == view:
                points.append(way.apply(own[start::every, start::every]))
                weights.append(confidence[start::every, start::every].double().log().clamp_min(0))
    weight = torch.stack(weights)
    if not bool((weight > 0).any()):
        weight = torch.ones_like(weight)  # nothing is surer than anything else
    middle = thinned_centre(principal_point, every)
    return fused_depth(pose, focal / every, middle, torch.stack(points), weight)


__all__ = ["GivenViews", "chain", "depth_of", "find_focals", "fit", "fused_depth"]
