"""A scene with some of its views alone: views, observations and pairs are numbered anew, all else is the scene's."""

from __future__ import annotations

import numpy as np
import pytest
from analytic_scenes import BOXES, BoxScene, orbit
from dataset_builders import BUILDERS

from geo3d.datasets import open_dataset
from geo3d.datasets.view_subset import ViewSubset

_KEPT = [1, 3]


def test_views_are_those_that_stay() -> None:
    scene = BoxScene(orbit(5, 40), BOXES)
    subset = ViewSubset(scene, _KEPT)
    assert (subset.name, subset.root, subset.parts, subset.metric) == (
        scene.name,
        scene.root,
        scene.parts,
        scene.metric,
    )
    assert list(subset.view_names) == [scene.view_names[index] for index in _KEPT]
    for number, index in enumerate(_KEPT):
        ours, theirs = subset.view(number).to_numpy(), scene.view(index).to_numpy()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name])
    with pytest.raises(IndexError):
        subset.pose(2)


def test_observations_and_pairs_are_those_of_views_that_stay(tmp_path) -> None:
    BUILDERS["mvimgnet"](tmp_path)
    scene = next(iter(open_dataset(tmp_path).readable("tracks")))
    whole, tracks = scene.tracks(), ViewSubset(scene, _KEPT).tracks()
    rows = np.isin(whole.view, _KEPT)
    assert 0 < rows.sum() < len(rows)
    np.testing.assert_array_equal(np.array(_KEPT)[tracks.view], whole.view[rows])
    np.testing.assert_array_equal(tracks.point, whole.point[rows])
    np.testing.assert_array_equal(tracks.uv, whole.uv[rows])
    np.testing.assert_array_equal(tracks.xyz, whole.xyz)

    class Paired(BoxScene):
        def pairs(self) -> np.ndarray:
            return np.array([[0, 1], [1, 3], [3, 1], [3, 4]])

    assert ViewSubset(Paired(orbit(5, 40)), _KEPT).pairs().tolist() == [[0, 1], [1, 0]]
