"""Views of a synthetic room in one frame, from pointmaps that are right but for noise, wrong points and scale."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from photographed_room import Errors, Knowing, PhotographedRoom, compare

from geo3d.errors import InputError
from geo3d.geometry import Camera, View
from geo3d.reconstruction.pointmaps.alignment import AlignmentOptions, align_views
from geo3d.reconstruction.pointmaps.cleaning import without_floaters
from geo3d.reconstruction.pointmaps.graph import complete_pairs
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction

_CAMERA = Camera.from_fov(48, 36, np.radians(64))
_QUICK = AlignmentOptions(steps=60)


@cache
def _views(count: int) -> list[View]:
    return PhotographedRoom(1, count, _CAMERA).views()


def _align(predictions: list[PairPrediction], options: AlignmentOptions = _QUICK, **more) -> AlignedViews:
    return align_views(predictions, np.random.default_rng(0), options, **more)


def _found(count: int, options: AlignmentOptions = _QUICK, pairs=None, noise=0.0, wrong=0.0, **more) -> Errors:
    views = _views(count)
    predictions = Knowing(views, noise, wrong).both(pairs or complete_pairs(count))
    return compare(_align(predictions, options, **more), views)


@pytest.mark.parametrize("count", [2, 5])
def test_exact_pointmaps_give_the_place_back(count: int) -> None:
    errors = _found(count, AlignmentOptions(steps=0))
    # float32 of the pointmaps: 2e-6 degrees, 4e-8 metres were measured.
    assert errors.degrees < 1e-3
    assert errors.places < 1e-5
    assert errors.focal < 1e-5
    assert errors.points < 1e-5


# Measured, with noise of 1 % and 10 % of wrong points, and with 2 % and 30 %, in rooms of 4 to 6 metres:
#   2 views: 0.11 and 0.15 degrees, 7 and 29 mm, focal lengths 0.3 and 1.0 %, points 26 and 60 mm
#   5 views: 0.03 and 0.14 degrees, 6 and 14 mm, focal lengths 0.2 and 0.4 %, points 9 and 26 mm
#  12 views: 0.09 and 0.14 degrees, 9 and 20 mm, focal lengths 0.2 and 0.9 %, points 5 and 14 mm
@pytest.mark.parametrize(("noise", "wrong", "worse"), [(0.01, 0.1, 1), (0.02, 0.3, 3)])
@pytest.mark.parametrize("count", [2, 5, pytest.param(12, marks=pytest.mark.slow)])
def test_noise_and_wrong_points_are_borne(count: int, noise: float, wrong: float, worse: int) -> None:
    errors = _found(count, AlignmentOptions() if count > 5 else _QUICK, noise=noise, wrong=wrong)
    assert errors.degrees < 0.25 * worse
    assert errors.places < 0.02 * worse
    assert errors.focal < 0.005 * worse
    assert errors.points < 0.04 * worse


def test_the_optimisation_improves_on_its_start() -> None:
    views = _views(5)
    predictions = Knowing(views, 0.02, 0.3).both(complete_pairs(5))
    begun, done = (_align(predictions, AlignmentOptions(steps=steps)) for steps in (0, 60))
    assert done.objective[1] < begun.objective[1] == begun.objective[0]
    start, end = (compare(found, views) for found in (begun, done))
    assert end.degrees < start.degrees
    assert end.places < start.places


def test_every_other_pixel_is_enough() -> None:
    assert _found(5, replace(_QUICK, every=4), noise=0.01).degrees < 0.3


def test_focals_that_are_known_stay() -> None:
    views = _views(3)
    predictions = Knowing(views, 0.02).both(complete_pairs(3))
    found = _align(predictions, focals=[70.0, None, None])
    assert found.focals[0] == pytest.approx(70.0, rel=1e-6)
    assert found.focals[1] != pytest.approx(70.0, rel=1e-3)
    fixed = _align(predictions, replace(_QUICK, fix_focals=True))
    assert fixed.focals == pytest.approx(_align(predictions, AlignmentOptions(steps=0)).focals, rel=1e-6)


def test_views_of_one_lens_have_one_focal() -> None:
    found = _align(Knowing(_views(3), 0.02).both(complete_pairs(3)), lenses=[0, 0, 1])
    assert found.focals[0] == found.focals[1] != found.focals[2]
    assert found.focals[0] == pytest.approx(_CAMERA.fx, rel=0.01)


def test_a_view_that_is_in_no_frame_of_its_own_gets_its_pose_by_its_pixels() -> None:
    views = _views(3)
    predictions = Knowing(views, 0.005)([(0, 1), (1, 0), (0, 2), (1, 2)])
    errors = compare(_align(predictions), views)
    # Measured: 0.04 degrees, 10 mm; the focal length begins as that of the others.
    assert errors.degrees < 0.3
    assert errors.places < 0.03


def test_one_order_of_two_views() -> None:
    views = _views(2)
    (prediction,) = Knowing(views, 0.005)([(1, 0)])
    errors = compare(_align([prediction]), views)
    assert errors.degrees < 0.2
    assert errors.places < 0.02


def test_the_unit_is_the_predictions() -> None:
    views = _views(3)
    knowing = Knowing(views, scales=(1.0, 1.0000001))
    found = _align(knowing.both(complete_pairs(3)), AlignmentOptions(steps=0))
    assert torch.allclose(found.depths[1], views[1].depth, rtol=1e-4)


def test_views_apart_are_named() -> None:
    predictions = Knowing(_views(5)).both([(0, 1), (2, 3), (3, 4)])
    with pytest.raises(InputError, match="joined to the others by no pair"):
        _align(predictions)
    with pytest.raises(InputError, match="view 1 is in no prediction"):
        _align([replace(predictions[0], second=2)])
    with pytest.raises(InputError, match="3 views, there are 2"):
        _align(predictions[:2], focals=[None] * 3)


def test_floaters_lose_their_confidence() -> None:
    views = _views(3)
    found = _align(Knowing(views).both(complete_pairs(3)), AlignmentOptions(steps=0))
    sure = [torch.full_like(depth, 5.0) for depth in found.depths]
    floating = found.depths[0].clone()
    floating[20:24, 30:34] *= 0.5
    sure[0][20:24, 30:34] = 2.0
    found = replace(found, depths=[floating, *found.depths[1:]], confidences=sure)
    kept, lost = without_floaters(found, complete_pairs(3))
    assert lost >= 8  # those that fall into the picture of another view
    assert lost == sum(int((c == 0).sum()) for c in kept)
    assert int((kept[0][20:24, 30:34] == 0).sum()) == lost
