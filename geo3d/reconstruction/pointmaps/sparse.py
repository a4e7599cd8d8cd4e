"""All views in one frame by matches: the sparse alignment of MASt3R-SfM (Duisterhof et al. 2024, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from geo3d.geometry.rotation import nearest_rotations, turn_matrix
from geo3d.geometry.similarity import Similarity
from geo3d.reconstruction.pointmaps.alignment import AlignmentOptions
from geo3d.reconstruction.pointmaps.initial import GivenViews, chain, depth_of, find_focals
from geo3d.reconstruction.pointmaps.lens import PrincipalPoint
from geo3d.reconstruction.pointmaps.match_terms import MatchTerms, SparseUnknowns
from geo3d.reconstruction.pointmaps.objective import descend, usual_step
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction, surest


def align_matches(
    predictions: Sequence[PairPrediction],
    rng: np.random.Generator,
    options: AlignmentOptions | None = None,
    principal_points: Sequence[PrincipalPoint] | None = None,
    focals: Sequence[float | None] | None = None,
    lenses: Sequence[int] | None = None,
    tick: Callable[[int, int, float], None] | None = None,
) -> AlignedViews:
    """Views of predicted pairs in one frame, by the matches of their descriptors.

    Each view has one depth map, that on which all predictions agree, whose cells of 8 pixels move as one. From a
    spanning tree of the surest pairs, a first stage brings matching points together in space, over poses and scales;
    a second brings them to their pixels, over focal lengths and depths too. Pairs without sure matches are held by
    their pointmaps.

    Args:
        predictions: of pairs with matches, which number the views from 0; best in both orders.
        rng, options, principal_points, focals, lenses, tick: as of
            :func:`geo3d.reconstruction.pointmaps.alignment.align_views`.

    Raises:
        InputError: predictions without matches, and as ``align_views``.
    """
    options = options or AlignmentOptions()
    given = GivenViews.of(predictions, principal_points, focals, lenses)
    found = find_focals(predictions, given.middles, given.lenses, given.focals)
    every = options.every or usual_step(predictions, given.sizes)
    poses, ways = chain(predictions, found, given.middles, every, rng)
    depths = [
        depth_of(view, predictions, ways, poses[view], found[view], middle) for view, middle in enumerate(given.middles)
    ]
    terms = MatchTerms(predictions, given, found, ways, depths, every)
    return _Problem(terms, poses, options).solve(predictions, ways, tick)


class _Problem:
    """The optimisation over one set of matches.

    A view moves about the point that it sees along its axis at its usual depth, and so do its points where their scale
    changes and its camera where the focal length does: what one unknown does, no other has to undo. The first view
    stays, and the mean of the logarithms of scales.

    Args:
        terms: what is minimised.
        poses: (N, 4, 4) ``world_from_camera`` at the start.
        options: of the optimisation.
    """

    def __init__(self, terms: MatchTerms, poses: Tensor, options: AlignmentOptions) -> None:
        self.terms, self.options = terms, options
        count, as_float = len(poses), terms.dtype
        self.rotation = poses[:, :3, :3].to(as_float)
        self.pivot = torch.stack([torch.zeros_like(terms.usual)] * 2 + [terms.usual], 1)
        self.middle = poses[:, :3, 3].to(as_float) + self._along(self.rotation, self.pivot)
        given = terms.given
        self.lens = torch.tensor(given.lenses)
        self.fixed = torch.tensor([options.fix_focals or focal is not None for focal in given.focals])
        self.free = torch.ones(count, 1, dtype=as_float)
        self.free[0] = 0
        self.turn, self.place = (nn.Parameter(torch.zeros(count, 3, dtype=as_float)) for _ in range(2))
        self.log_scale = nn.Parameter(torch.zeros(count, dtype=as_float))
        self.log_stretch = nn.Parameter(torch.zeros(int(self.lens.max()) + 1, dtype=as_float))
        self.log_anchor = nn.Parameter(torch.zeros(terms.anchors, dtype=as_float))

    @staticmethod
    def _along(rotations: Tensor, vectors: Tensor) -> Tensor:
        return (rotations @ vectors[..., None])[..., 0]

    def unknowns(self) -> SparseUnknowns:
        """What the parameters stand for."""
        rotation = turn_matrix(self.turn * self.free) @ self.rotation
        scale = (self.log_scale - self.log_scale.mean()).exp()
        stretch = torch.where(self.fixed, 0.0, self.log_stretch[self.lens]).exp()
        anchor = torch.cat([self.log_anchor, self.log_anchor.new_zeros(1)]).exp()
        middle = self.middle + self.place * self.free * self.terms.unit
        translation = middle - self._along(rotation, self.pivot * (scale * stretch)[:, None])
        return SparseUnknowns(rotation, translation, scale, stretch, anchor)

    def solve(
        self,
        predictions: Sequence[PairPrediction],
        ways: Sequence[Similarity],
        tick: Callable[[int, int, float], None] | None,
    ) -> AlignedViews:
        """Both stages; where the first leads away from the pixels, the second sets out from the tree."""
        options, terms = self.options, self.terms
        poses = [self.turn, self.place, self.log_scale]
        every = [*poses, self.log_stretch, self.log_anchor]

        def told(stage: int, step: int, value: float) -> None:
            if tick is not None:
                tick(stage * options.steps + step, 2 * options.steps, value)

        begun = [parameter.detach().clone() for parameter in poses]
        with torch.no_grad():
            before = float(terms.reprojection(self.unknowns(), None))
        rates = options.coarse_rate, options.last_rate
        descend(poses, lambda: terms.distance(self.unknowns()), options.steps, *rates, partial(told, 0))
        with torch.no_grad():
            if float(terms.reprojection(self.unknowns(), None)) > before:  # the tree is the better start
                for parameter, value in zip(poses, begun):
                    parameter.copy_(value)
            leeway = terms.leeway(self.unknowns())
        rates = options.rate, options.last_rate
        objective = descend(
            every, lambda: terms.reprojection(self.unknowns(), leeway), options.steps, *rates, partial(told, 1)
        )
        with torch.no_grad():
            return self._finished(predictions, ways, objective)

    def _finished(
        self, predictions: Sequence[PairPrediction], ways: Sequence[Similarity], objective: tuple[float, float]
    ) -> AlignedViews:
        """Depth at every pixel, and the world in the unit of the predictions: their scales have the mean 1."""
        found, terms, options = self.unknowns(), self.terms, self.options
        given = terms.given
        poses = torch.eye(4, dtype=torch.float64).repeat(len(given.sizes), 1, 1)
        poses[:, :3, :3] = nearest_rotations(found.rotation)
        poses[:, :3, 3] = found.translation.double()
        along = found.axes()[:, 2].double()
        depths = [
            (along[view] * depth * found.anchor[terms.cells[view]].double()).float()
            for view, depth in enumerate(terms.depths)
        ]
        scales = [float(way.scale * along[prediction.first]) for prediction, way in zip(predictions, ways)]
        placed = [
            Similarity(poses[p.first, :3, :3], poses[p.first, :3, 3], scale) for p, scale in zip(predictions, scales)
        ]
        told = (
            f"sparse alignment: {terms.matches:,} matches of {len(terms.sure)} pairs"
            + (f", pointmaps of {len(terms.told_by_points)} without sure ones" if terms.told_by_points else "")
            + f", twice {options.steps} steps: objective {objective[0]:.4g} to {objective[1]:.4g}"
        )
        aligned = AlignedViews(
            poses,
            (terms.focal * found.stretch).double().tolist(),
            given.middles,
            depths,
            [surest(predictions, view) for view in range(len(poses))],
            placed,
            objective,
            told,
        )
        unit = float(np.exp(np.mean(np.log(scales))))
        return aligned.moved(
            Similarity(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1 / unit)
        )


__all__ = ["align_matches"]
