"""Views of a synthetic room in one frame by matches, from pointmaps and codes of the surface that are right but for
noise, wrong points, smooth errors of depth, wrong matches and scale."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from photographed_room import Knowing, PhotographedRoom, compare, seen_by, world_points

from geo3d.errors import InputError
from geo3d.geometry import Camera, View
from geo3d.reconstruction.pointmaps.alignment import AlignmentOptions, align_views
from geo3d.reconstruction.pointmaps.graph import complete_pairs
from geo3d.reconstruction.pointmaps.match_terms import is_sure, joined_matches
from geo3d.reconstruction.pointmaps.matching import Matches
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction
from geo3d.reconstruction.pointmaps.sparse import align_matches

_CAMERA = Camera.from_fov(64, 48, np.radians(64))
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


def test_codes_match_what_both_views_see() -> None:
    views = _views(2)
    found = Knowing(views, astray=0.0).of(0, 1).matches
    points = world_points(views[0])[found.first[:, 1], found.first[:, 0]]
    pose = views[1].world_from_camera
    apart = views[1].camera.project((points - pose[:3, 3]) @ pose[:3, :3]) - found.second
    sure = found.confidence > 3
    assert sure.sum() > 300
    # Whole pixels: half of one along either axis at best.
    assert apart[sure].norm(dim=1).median() < 0.6
    assert seen_by(views[1], world_points(views[0])).double().mean() > 0.3


# Measured: 2 views 0.03 degrees, 6 mm, points 19 mm (dense: 0.11, 7, 25); 4 views 0.11 degrees, 11 mm, points 31 mm
# (dense: 0.11, 10, 31).
@pytest.mark.parametrize(("count", "noise", "wrong"), [(2, 0.01, 0.1), (4, 0.02, 0.3)])
def test_noise_wrong_points_and_wrong_matches_are_borne(count: int, noise: float, wrong: float) -> None:
    errors = compare(_align(_predictions(count, noise, wrong, 0.0)), _views(count))
    assert errors.degrees < 0.3
    assert errors.places < 0.03
    assert errors.focal < 0.01
    assert errors.points < 0.05


def test_pixels_tell_poses_that_bent_pointmaps_do_not() -> None:
    predictions = _predictions(4, 0.02, 0.1, 0.05)
    found = align_views(predictions, np.random.default_rng(0), _QUICK), _align(predictions)
    dense, sparse = (compare(one, _views(4)) for one in found)
    # Measured: 0.56 and 0.31 degrees, 43 and 19 mm.
    assert sparse.degrees < 0.8 * dense.degrees
    assert sparse.places < 0.7 * dense.places


def test_exact_pointmaps_stay() -> None:
    predictions = _predictions(3, 0.0, 0.0, 0.0)
    found = _align(predictions, AlignmentOptions(steps=0))
    errors = compare(found, _views(3))
    assert errors.degrees < 1e-3
    assert errors.places < 1e-5
    assert torch.allclose(found.similarities[0].scale * predictions[0].first_points[..., 2], found.depths[0], rtol=1e-4)
    scales = np.log([way.scale for way in found.similarities])
    assert abs(scales.mean()) < 1e-6  # the unit is the predictions'


@pytest.mark.parametrize("few", [True, False])
def test_pairs_without_sure_matches_are_held_by_their_pointmaps(few: bool) -> None:
    predictions = _predictions(3, 0.01, 0.1, 0.0)
    changed = [
        (_matching(p, torch.arange(10)) if few else _matching(p, factor=0.3)) if 2 in (p.first, p.second) else p
        for p in predictions
    ]
    found = _align(changed)
    assert "of 1 pairs, pointmaps of 2 without sure ones" in found.told
    errors = compare(found, _views(3))
    # Measured: 0.08 degrees, 4 mm.
    assert errors.degrees < 0.3
    assert errors.places < 0.03


def test_matches_on_a_plane_are_enough() -> None:
    views = _views(3)

    def on_floor(prediction: PairPrediction) -> PairPrediction:
        x, y = prediction.matches.first.unbind(1)
        return _matching(prediction, world_points(views[prediction.first])[y, x, 2] < 0.02)

    errors = compare(_align([on_floor(p) for p in _predictions(3, 0.01, 0.1, 0.0)]), views)
    # Measured: 0.14 degrees, 12 mm.
    assert errors.degrees < 0.5
    assert errors.places < 0.05


def test_focals_that_are_known_stay_and_those_of_one_lens_agree() -> None:
    predictions = _predictions(3, 0.01, 0.1, 0.0)
    given = _align(predictions, focals=[70.0, None, None])
    assert given.focals[0] == pytest.approx(70.0, rel=1e-6)
    assert given.focals[1] != pytest.approx(70.0, rel=1e-3)
    same = _align(predictions, lenses=[0, 0, 1])
    assert same.focals[0] == same.focals[1] != same.focals[2]
    assert same.focals[0] == pytest.approx(_CAMERA.fx, rel=0.01)


def test_both_orders_are_joined() -> None:
    first, second = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]])
    maps = (torch.zeros(9, 9, 3), torch.ones(9, 9), torch.zeros(9, 9, 3), torch.ones(9, 9))
    one = PairPrediction(0, 1, *maps, Matches(first, second, torch.tensor([1.0, 2.0])))
    other = PairPrediction(1, 0, *maps, Matches(second[1:], first[1:], torch.tensor([9.0])))
    ((pair, found),) = joined_matches([one, other]).items()
    assert pair == (0, 1)
    assert torch.equal(found.first, first)
    assert torch.equal(found.second, second)
    assert found.confidence.tolist() == [1.0, 9.0]
    assert not is_sure(found)  # two are not enough


def test_what_cannot_be_aligned_is_told() -> None:
    predictions = Knowing(_views(3), astray=0.0)([(0, 1), (1, 0)])
    with pytest.raises(InputError, match="views 0 and 1 have none"):
        _align([replace(p, matches=None) for p in predictions])
    with pytest.raises(InputError, match="view 1 is in no prediction"):
        _align([replace(predictions[0], second=2)])
    with pytest.raises(InputError, match="3 views, there are 2"):
        _align(predictions, focals=[None] * 3)
