"""Views of a synthetic room in one frame by matches, from pointmaps and codes of the surface that are right but for
noise, wrong points, smooth errors of depth, wrong matches and scale."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from photographed_room import Errors, Knowing, PhotographedRoom, compare, seen_by, world_points

from geo3d.geometry import Camera, View
from geo3d.reconstruction.pointmaps.alignment import AlignmentOptions, align_views
from geo3d.reconstruction.pointmaps.graph import complete_pairs
from geo3d.reconstruction.pointmaps.matching import Matches
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction
from geo3d.reconstruction.pointmaps.sparse import align_matches

_CAMERA = Camera.from_fov(96, 72, np.radians(64))
_QUICK = AlignmentOptions(steps=60)


@cache
def _views(count: int) -> list[View]:
    return PhotographedRoom(1, count, _CAMERA).views()


@cache
def _predictions(count: int, noise: float, wrong: float, bend: float) -> tuple[PairPrediction, ...]:
    return tuple(Knowing(_views(count), noise, wrong, bend=bend, astray=wrong).both(complete_pairs(count)))


def _align(predictions, options: AlignmentOptions = _QUICK, **more) -> AlignedViews:
    return align_matches(predictions, np.random.default_rng(0), options, **more)


def _matching(prediction: PairPrediction, kept: torch.Tensor | None = None, factor: float = 1.0) -> PairPrediction:
    """With some of its matches, or others' confidence."""
    found = prediction.matches
    found = found if kept is None else found.rows(kept)
    return replace(prediction, matches=Matches(found.first, found.second, factor * found.confidence))


def _errors(count: int, *knowing: float) -> tuple[Errors, Errors]:
    """Of the dense alignment and of the sparse one."""
    predictions = _predictions(count, *knowing)
    dense = align_views(predictions, np.random.default_rng(0), _QUICK)
    return compare(dense, _views(count)), compare(_align(predictions), _views(count))


def test_codes_match_what_both_views_see() -> None:
    views = _views(2)
    found = Knowing(views, astray=0.0).of(0, 1).matches
    points = world_points(views[0])[found.first[:, 1], found.first[:, 0]]
    pose = views[1].world_from_camera
    apart = views[1].camera.project((points - pose[:3, 3]) @ pose[:3, :3]) - found.second
    sure = found.confidence > 3
    assert sure.sum() > 500
    # Whole pixels: half of one along either axis at best.
    assert apart[sure].norm(dim=1).median() < 0.6
    assert seen_by(views[1], world_points(views[0])).double().mean() > 0.3
