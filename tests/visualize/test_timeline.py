"""Features of several states in one projection."""

from __future__ import annotations

import numpy as np
import pytest

from geo3d.errors import InputError
from geo3d.visualize.coloring import Coloring, joined, spacing
from geo3d.visualize.timeline import FeatureTimeline
from geo3d.viz.picture import Points, Space

_FEATURES = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)


def _timeline(of: list[np.ndarray], **options: int) -> tuple[FeatureTimeline, list[int]]:
    asked: list[int] = []

    def encode(step: int) -> np.ndarray:
        asked.append(step)
        return of[step]

    names = [f"step {n}" for n in range(len(of))]
    layers = {"all": slice(None), "last": slice(5, 8)}
    return FeatureTimeline(names, range(len(of)), layers, encode, **options), asked


def test_a_state_moved_and_scaled_as_a_whole_keeps_its_colours() -> None:
    timeline, _ = _timeline([_FEATURES, 1000 * _FEATURES + 7])
    for layer in timeline.layers:
        first, second = (timeline.colors(step, layer).astype(int) for step in range(2))
        assert np.abs(first - second).max() <= 1  # float32 of features far from zero
        assert np.ptp(first, axis=0).min() > 200  # and all of each channel is used


def test_colours_of_a_state_are_of_the_same_axes_whatever_other_state_is_looked_at() -> None:
    changed = _FEATURES.copy()
    changed[:250] *= -1
    timeline, _ = _timeline([_FEATURES, changed])
    first, second = (timeline.colors(step, "all").astype(int) for step in range(2))
    assert np.median(np.abs(first - second)[250:]) < 20  # what stayed the same
    assert np.median(np.abs(first - second)[:250]) > 60  # what changed


def test_points_without_features_are_grey_and_layers_are_columns() -> None:
    some = _FEATURES.copy()
    some[3] = np.nan
    timeline, _ = _timeline([some])
    assert timeline.colors(0, "all")[3].tolist() == [190, 190, 190]
    assert (timeline.features(0, "last") == some[:, 5:])[4:].all()
    assert len(timeline) == 500


def test_features_are_kept_while_there_is_room() -> None:
    every = [_FEATURES, _FEATURES + 1, _FEATURES + 2]
    timeline, asked = _timeline(every)
    assert (timeline.features(0, "all") == every[0]).all()
    assert asked == [0, 1, 2]
    timeline, asked = _timeline(every, kept_bytes=2 * _FEATURES.nbytes)
    assert (timeline.features(2, "all") == every[2]).all()
    assert asked == [0, 1, 2]
    assert (timeline.features(0, "all") == every[0]).all()
    assert asked == [0, 1, 2, 0]


def test_what_cannot_be_projected_is_told() -> None:
    with pytest.raises(InputError, match="no row that is finite"):
        _timeline([np.full((4, 8), np.nan)])
    with pytest.raises(ValueError, match="2 steps, 1 numbers"):
        FeatureTimeline(["a", "b"], [0], {"all": slice(None)}, lambda _: _FEATURES)


def test_points_of_a_space_become_one() -> None:
    first, second = (Points(np.full((n, 3), float(n)), features=np.ones((n, 4))) for n in (2, 3))
    assert joined(Space(points=(first,))) is first
    both = joined(Space(points=(first, second)))
    assert both.xyz[:, 0].tolist() == [2, 2, 3, 3, 3]
    assert both.features.shape == (5, 4)
    assert joined(Space(points=(first, Points(np.zeros((1, 3)))))).features is None
    assert len(joined(Space()).xyz) == 0


def test_spacing_is_that_of_a_grid_and_a_colour_has_a_name() -> None:
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20), [0.0]), -1).reshape(-1, 3) * 0.05
    assert spacing(np.concatenate([grid, grid])) == pytest.approx(0.05)  # points twice at one place do not count
    assert spacing(grid[:1]) == 0
    coloring = Coloring("labels", np.array([[1, 2, 3], [4, 5, 6]], np.uint8), (("chair", (1, 2, 3)),))
    assert [coloring.name_of(n) for n in range(2)] == ["chair", ""]
