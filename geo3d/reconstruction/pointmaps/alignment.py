"""All views in one frame: two by one prediction and a pose, more by a common optimisation (DUSt3R, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.geometry.rotation import nearest_rotations, turn_matrix
from geo3d.geometry.similarity import Similarity
from geo3d.reconstruction.pointmaps.initial import GivenViews, chain, depth_of, find_focals, fit
from geo3d.reconstruction.pointmaps.lens import PrincipalPoint, lens_centre
from geo3d.reconstruction.pointmaps.objective import Terms, Unknowns, descend, normalised, usual_step
from geo3d.reconstruction.pointmaps.pose import find_pose, usual_threshold
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction, surest

_NEAREST = 1e-3
_USED_CONFIDENCE = 3.0  # from which points tell a pose, as published


@dataclass(frozen=True)
class AlignmentOptions:
    """How views are aligned; what is not said otherwise is as published.

    Args:
        steps: of the optimisation, and of each stage of the sparse one; 0: its start is the result.
        rate: learning rate, which falls as a cosine to ``last_rate``; of the sparse alignment that of its second stage.
        coarse_rate: of the first stage of the sparse alignment.
        last_rate: at the last step.
        every: distance of the pixels that the objective is taken at; None: so that all predictions together have some
            400,000. Depth is found for every pixel afterwards.
        fix_focals: leave focal lengths as they were found at the start.
    """

    steps: int = 300
    rate: float = 0.01
    coarse_rate: float = 0.07
    last_rate: float = 1e-6
    every: int | None = None
    fix_focals: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"steps of the alignment must be 0 or more, got {self.steps}")
        if self.every is not None and self.every < 1:
            raise InputError(f"every must be 1 pixel or more, got {self.every}")
        for rate in (self.rate, self.coarse_rate):
            if not 0 < self.last_rate <= rate:
                raise InputError(f"rates must be positive and fall, got {rate} to {self.last_rate}")


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
    given = GivenViews.of(predictions, principal_points, focals, lenses)
    found = find_focals(predictions, given.middles, given.lenses, given.focals)
    if len(given.sizes) == 2:
        return align_pair(predictions, rng, given.middles, found)
    every = options.every or usual_step(predictions, given.sizes)
    poses, ways = chain(predictions, found, given.middles, every, rng)
    return _Problem(predictions, given, every, options).solve(found, poses, ways, tick)


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
    confidences = [surest(predictions, view) for view in (0, 1)]
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
        told="dense alignment: one pair, of which "
        f"{100 * pose.inliers.mean():.0f} % of the second view's points fit its pose",
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


class _Problem:
    """The optimisation of one set of predictions."""

    def __init__(
        self,
        predictions: Sequence[PairPrediction],
        given: GivenViews,
        every: int,
        options: AlignmentOptions,
    ) -> None:
        self.predictions, self.options, self.given = predictions, options, given
        self.terms = Terms(predictions, given.middles, every, torch.float32)
        self.terms.weight.clamp_(min=0)  # below confidence 1 a point would be pushed away
        self.lens = torch.tensor(given.lenses)
        self.fixed = torch.tensor([options.fix_focals or focal is not None for focal in given.focals])

    def solve(
        self,
        focals: Sequence[float],
        poses: Tensor,
        ways: Sequence[Similarity],
        tick: Callable[[int, int, float], None] | None,
    ) -> AlignedViews:
        """From a start to the end."""
        self._set_out(focals, poses, ways)
        steps = self.options.steps
        objective = descend(
            self.parameters,
            lambda: self.terms.value(self._unknowns()),
            steps,
            self.options.rate,
            self.options.last_rate,
            None if tick is None else lambda step, value: tick(step, steps, value),
        )
        with torch.no_grad():
            return self._finished(self._unknowns(), objective)

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
        for view, middle in enumerate(self.given.middles):
            fused = world * depth_of(view, self.predictions, ways, poses[view], focals[view], middle, self.terms.every)
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

    def _finished(self, unknowns: Unknowns, objective: tuple[float, float]) -> AlignedViews:
        """Depth at every pixel, and the world in the unit of the predictions: their scales have the mean 1."""
        scale = normalised(unknowns.pair_scale.double())
        unit = float(scale.log().mean().exp())
        ways = [
            Similarity(rotation, one / unit * translation, float(one / unit))
            for rotation, translation, one in zip(
                nearest_rotations(unknowns.pair_rotation), unknowns.pair_translation.detach().double(), scale
            )
        ]
        poses = torch.eye(4, dtype=torch.float64).repeat(len(self.given.sizes), 1, 1)
        poses[:, :3, :3] = nearest_rotations(unknowns.rotation)
        poses[:, :3, 3] = unknowns.translation.detach().double() / unit
        focals = unknowns.focal.double().tolist()
        middles = self.given.middles
        depths = [
            depth_of(view, self.predictions, ways, poses[view], focals[view], middle).float()
            for view, middle in enumerate(middles)
        ]
        confidences = [surest(self.predictions, view) for view in range(len(middles))]
        told = (
            f"dense alignment: {len(self.predictions)} predictions, {self.options.steps} steps at every "
            f"{self.terms.every}. pixel: objective {objective[0]:.4g} to {objective[1]:.4g}"
        )
        return AlignedViews(poses, focals, list(middles), depths, confidences, ways, objective, told)


__all__ = ["AlignmentOptions", "align_pair", "align_views"]
