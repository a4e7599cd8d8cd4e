"""All views in one frame: two by one prediction and a pose, more by a common optimisation (DUSt3R, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.geometry.rotation import turn_matrix
from geo3d.geometry.similarity import Similarity
from geo3d.reconstruction.pointmaps.initial import chain, find_focals, fit, fused_depth
from geo3d.reconstruction.pointmaps.lens import PrincipalPoint, centre, lens_centre, thinned_centre
from geo3d.reconstruction.pointmaps.objective import Terms, Unknowns, normalised
from geo3d.reconstruction.pointmaps.pose import find_pose, usual_threshold
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction, sizes_of

#: Places of all predictions together at which the objective is taken: more make it slower and hardly better.
_TERMS, _FEWEST_OF_A_VIEW = 400_000, 300
_NEAREST = 1e-3
_USED_CONFIDENCE = 3.0  # from which points tell a pose, as published


@dataclass(frozen=True)
class AlignmentOptions:
    """How views are aligned; what is not said otherwise is as published.

    Args:
        steps: of the optimisation; 0: its start is the result.
        rate: learning rate, which falls as a cosine to ``last_rate``.
        last_rate: at the last step.
        every: distance of the pixels that the objective is taken at; None: so that all predictions together have some
            400,000. Depth is found for every pixel afterwards.
        fix_focals: leave focal lengths as they were found at the start.
    """

    steps: int = 300
    rate: float = 0.01
    last_rate: float = 1e-6
    every: int | None = None
    fix_focals: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"steps of the alignment must be 0 or more, got {self.steps}")
        if self.every is not None and self.every < 1:
            raise InputError(f"every must be 1 pixel or more, got {self.every}")
        if not 0 < self.last_rate <= self.rate:
            raise InputError(f"rates must be positive and fall, got {self.rate} to {self.last_rate}")


def align_views(
    predictions: Sequence[PairPrediction],
    rng: np.random.Generator,
    options: AlignmentOptions | None = None,
    principal_points: Sequence[PrincipalPoint] | None = None,
    focals: Sequence[float | None] | None = None,
    lenses: Sequence[int] | None = None,
    tick: Callable[[int, int, float], None] | None = None,
) -> AlignedViews:
    """Views of predicted pairs in one frame.

    Two views: the order of the higher score sets frame and scale, nothing is optimised. More: focal lengths, poses,
    depth and one similarity a prediction of least distance to all predictions. Where the optimisation ends above its
    start, the start is the result.

    Args:
        predictions: of pairs, which number the views from 0; best in both orders.
        rng: draws what poses are proposed by.
        options: of the optimisation.
        principal_points: of each view; its centre when not given.
        focals: of each view, pixels, where known; they stay as they are.
        lenses: number of each view's lens: views of one have one focal length; each has its own when not given.
        tick: told step, steps and objective now and then.

    Raises:
        InputError: views that no pair joins to the others, or predictions that tell no focal length or pose.
    """
    options = options or AlignmentOptions()
    sizes = sizes_of(predictions)
    given = [centre(*size) for size in sizes] if principal_points is None else principal_points
    middles = [lens_centre(one) for one in given]
    known = [None] * len(sizes) if focals is None else list(focals)
    of_lens = list(range(len(sizes))) if lenses is None else list(lenses)
    for name, given in (("principal_points", middles), ("focals", known), ("lenses", of_lens)):
        if len(given) != len(sizes):
            raise InputError(f"{name} are given for {len(given)} views, there are {len(sizes)}")
    if len(sizes) == 2:
        return align_pair(predictions, rng, middles, find_focals(predictions, middles, of_lens, known))
    every = options.every or _usual_step(predictions, sizes)
    found = find_focals(predictions, middles, of_lens, known)
    poses, ways = chain(predictions, found, middles, every, rng)
    return _Problem(predictions, middles, every, options, known, of_lens).solve(found, poses, ways, tick)


def align_pair(
    predictions: Sequence[PairPrediction],
    rng: np.random.Generator,
    principal_points: Sequence[PrincipalPoint],
    focals: Sequence[float],
) -> AlignedViews:
    """Two views, from the order of the higher score: the other's pose by its points and pixels.

    Points count from confidence 3, that of both orders taken together, or from the median where fewer than a tenth
    have it.

    Args:
        predictions: one order or both.
        rng: draws what poses are proposed by.
        principal_points, focals: of both views.

    Raises:
        InputError: no pose explains the points.
    """
    best = max(predictions, key=lambda p: p.score)
    confidences: list[Tensor] = [torch.zeros(0)] * 2
    for prediction in predictions:
        for view, _, confidence in prediction.sides():
            confidences[view] = torch.maximum(confidences[view], confidence) if len(confidences[view]) else confidence
    first, second = best.first, best.second
    confidence, size = confidences[second], best.second_points.shape[:2]
    used = confidence > _USED_CONFIDENCE
    if used.double().mean() < 0.1:
        used = confidence >= confidence.median()
    used &= best.second_points.isfinite().all(-1)
    y, x = used.nonzero().unbind(1)
    pixels, points = torch.stack([x, y], 1).numpy(), best.second_points[used].double().numpy()
    pose = find_pose(points, pixels, focals[second], principal_points[second], rng, usual_threshold(*size))
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[second] = torch.from_numpy(pose.world_from_camera)
    inside = (best.second_points.double() - poses[second, :3, 3]) @ poses[second, :3, :3]
    depths = [torch.zeros(0)] * 2
    depths[first], depths[second] = _known_depth(best.first_points[..., 2]), _known_depth(inside[..., 2])
    ways = [Similarity.none() if p is best else _way(p, best, rng) for p in predictions]
    return AlignedViews(
        poses,
        list(focals),
        [lens_centre(one) for one in principal_points],
        depths,
        confidences,
        ways,
        told=f"one pair, of which {100 * pose.inliers.mean():.0f} % of the second view's points fit its pose",
    )


def _way(prediction: PairPrediction, best: PairPrediction, rng: np.random.Generator) -> Similarity:
    """From the frame of the swapped order to that of the best."""
    target = {view: points for view, points, _ in best.sides()}
    sides = prediction.sides()
    source = torch.cat([points.flatten(0, 1) for _, points, _ in sides])
    weights = torch.cat([confidence.flatten() for *_, confidence in sides])
    return fit(source, torch.cat([target[view].flatten(0, 1) for view, *_ in sides]), weights, rng)


def _known_depth(depth: Tensor) -> Tensor:
    return torch.where(depth.isfinite(), depth, 0).clamp_min(0).float()


def _usual_step(predictions: Sequence[PairPrediction], sizes: Sequence[tuple[int, int]]) -> int:
    """Distance of pixels at which all predictions together have about so many terms."""
    most = max(_FEWEST_OF_A_VIEW, _TERMS // (2 * len(predictions)))
    return max(1, math.ceil(math.sqrt(max(h * w for h, w in sizes) / most)))


class _Problem:
    """The optimisation of one set of predictions."""

    def __init__(
        self,
        predictions: Sequence[PairPrediction],
        principal_points: Sequence[PrincipalPoint],
        every: int,
        options: AlignmentOptions,
        known: Sequence[float | None],
        lenses: Sequence[int],
    ) -> None:
        self.predictions, self.options = predictions, options
        self.middles = [lens_centre(one) for one in principal_points]
        self.sizes = sizes_of(predictions)
        self.terms = Terms(predictions, principal_points, every, torch.float32)
        self.terms.weight.clamp_(min=0)  # below confidence 1 a point would be pushed away
        numbers = {lens: row for row, lens in enumerate(dict.fromkeys(lenses))}
        self.lens = torch.tensor([numbers[lens] for lens in lenses])
        self.fixed = torch.tensor([options.fix_focals or focal is not None for focal in known])

    def solve(
        self,
        focals: Sequence[float],
        poses: Tensor,
        ways: Sequence[Similarity],
        tick: Callable[[int, int, float], None] | None,
    ) -> AlignedViews:
        """From a start to the end."""
        self._set_out(focals, poses, ways)
        with torch.no_grad():
            start = float(self.terms.value(self._unknowns()))
        begun = [parameter.detach().clone() for parameter in self.parameters]
        steps = self.options.steps
        optimizer = torch.optim.Adam(self.parameters, lr=self.options.rate, betas=(0.9, 0.9))
        for step in range(steps):
            share = step / max(1, steps - 1)
            rate = (
                self.options.last_rate
                + (self.options.rate - self.options.last_rate) * (1 + math.cos(math.pi * share)) / 2
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            value = self.terms.value(self._unknowns())
            value.backward()
            optimizer.step()
            if tick is not None and (step % 10 == 0 or step == steps - 1):
                tick(step + 1, steps, float(value.detach()))
        with torch.no_grad():
            unknowns = self._unknowns()
            last = float(self.terms.value(unknowns))
            if not math.isfinite(last):
                raise InputError("the alignment went astray: its objective is no number; lower its rate")
            if last > start:  # too few steps to settle, from a start that was right already
                for parameter, value in zip(self.parameters, begun):
                    parameter.copy_(value)
                unknowns, last = self._unknowns(), start
            return self._finished(unknowns, (start, last))

    def _set_out(self, focals: Sequence[float], poses: Tensor, ways: Sequence[Similarity]) -> None:
        """Parameters, all near 0 or logarithms: turns and moves beside the start's, in a world of the usual scale."""
        scales = torch.tensor([way.scale for way in ways], dtype=torch.float64)
        world = float(normalised(scales)[0] / scales[0])
        scale = scales * world
        as_float = self.terms.dtype
        self.rotation = poses[:, :3, :3].to(as_float)
        self.pair_rotation = torch.stack([way.rotation for way in ways]).to(as_float)
        log_focal = torch.tensor(focals, dtype=torch.float64).log()
        self.start_focal = log_focal.to(as_float)
        depth = torch.ones(self.terms.pixels.shape[:2], dtype=as_float)
        for view in range(len(self.sizes)):
            fused = self._depth_of(view, poses[view], focals[view], ways, self.terms.every) * world
            usual = fused[fused > 0].median() if bool((fused > 0).any()) else torch.tensor(1.0)
            depth[view, : self.terms.counts[view]] = fused.clamp_min(float(_NEAREST * usual)).flatten().to(as_float)
        moved = torch.stack([way.translation / way.scale for way in ways])
        self.turn = nn.Parameter(torch.zeros(len(poses), 3))
        self.place = nn.Parameter((poses[:, :3, 3] * world).to(as_float))
        self.log_depth = nn.Parameter(depth.log())
        self.focal_change = nn.Parameter(torch.zeros(int(self.lens.max()) + 1))
        self.pair_turn = nn.Parameter(torch.zeros(len(ways), 3))
        self.pair_place = nn.Parameter(moved.to(as_float))
        self.pair_log_scale = nn.Parameter(scale.log().to(as_float))
        self.parameters = [
            self.turn,
            self.place,
            self.log_depth,
            self.focal_change,
            self.pair_turn,
            self.pair_place,
            self.pair_log_scale,
        ]

    def _unknowns(self) -> Unknowns:
        change = torch.where(self.fixed, 0.0, self.focal_change[self.lens])
        return Unknowns(
            turn_matrix(self.turn) @ self.rotation,
            self.place,
            self.log_depth.exp(),
            (self.start_focal + change).exp(),
            turn_matrix(self.pair_turn) @ self.pair_rotation,
            self.pair_place,
            self.pair_log_scale.exp(),
        )

    def _depth_of(self, view: int, pose: Tensor, focal: float, ways: Sequence[Similarity], every: int) -> Tensor:
        """(H, W) depth of a view's pixels that are taken, in the unit of the ways' world."""
        points, weights = [], []
        for prediction, way in zip(self.predictions, ways):
            for number, own, confidence in prediction.sides():
                if number == view:
                    start = every // 2
                    points.append(way.apply(own[start::every, start::every]))
                    weights.append(confidence[start::every, start::every].double().log().clamp_min(0))
        weight = torch.stack(weights)
        if not bool((weight > 0).any()):
            weight = torch.ones_like(weight)  # nothing is surer than anything else
        middle = thinned_centre(self.middles[view], every)
        return fused_depth(pose, focal / every, middle, torch.stack(points), weight)

    def _finished(self, unknowns: Unknowns, objective: tuple[float, float]) -> AlignedViews:
        """Depth at every pixel, and the world in the unit of the predictions: their scales have the mean 1."""
        scale = normalised(unknowns.pair_scale.double())
        unit = float(scale.log().mean().exp())
        ways = [
            Similarity(rotation, one / unit * translation, float(one / unit))
            for rotation, translation, one in zip(
                _orthogonal(unknowns.pair_rotation), unknowns.pair_translation.detach().double(), scale
            )
        ]
        poses = torch.eye(4, dtype=torch.float64).repeat(len(self.sizes), 1, 1)
        poses[:, :3, :3] = _orthogonal(unknowns.rotation)
        poses[:, :3, 3] = unknowns.translation.detach().double() / unit
        focals = unknowns.focal.double().tolist()
        depths, confidences = [], []
        for view in range(len(self.sizes)):
            depths.append(self._depth_of(view, poses[view], focals[view], ways, 1).float())
            own = [c for p in self.predictions for number, _, c in p.sides() if number == view]
            confidences.append(torch.stack(own).amax(0))
        told = (
            f"{len(self.predictions)} predictions, {self.options.steps} steps at every "
            f"{self.terms.every}. pixel: objective {objective[0]:.4g} to {objective[1]:.4g}"
        )
        return AlignedViews(poses, focals, list(self.middles), depths, confidences, ways, objective, told)


def _orthogonal(rotations: Tensor) -> Tensor:
    """The nearest rotations, in float64: float32 leaves them a little off."""
    u, _, vt = torch.linalg.svd(rotations.double())
    return u @ vt


__all__ = ["AlignmentOptions", "align_pair", "align_views"]
