"""Features as colours: axes, signs and scales that are known, and cosines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geo3d.errors import InputError
from geo3d.viz.feature_colors import Projection, likeness_ends, similarity, similarity_colors, value_colors


def _features(rng: np.random.Generator, count: int = 4000) -> np.ndarray:
    """(N, 6) whose axes are those of the coordinates, 3 long, 1 long, 0.3 long, with a longer tail towards plus."""
    tails = rng.exponential(1.0, (count, 3)) * (3.0, 1.0, 0.3)
    return np.c_[tails[:, 1], tails[:, 0], np.zeros(count), tails[:, 2], np.full((count, 2), 7.0)]


def test_axes_signs_and_ends_are_those_of_the_data() -> None:
    features = _features(np.random.default_rng(0))
    projection = Projection.fit(features)
    # Three times as long axes are found to a few hundredths by as many draws, and the longer tail is up.
    np.testing.assert_allclose(projection.axes[[1, 0, 3], range(3)], 1, atol=0.02)
    colors = projection.colors(features)
    low, high = np.quantile(features[:, 1], (0.02, 0.98))
    expected = (255 * ((features[:, 1] - low) / (high - low)).clip(0, 1)).round()
    assert np.abs(colors[:, 0] - expected).mean() < 4


def test_colours_do_not_depend_on_signs_that_are_free() -> None:
    features = _features(np.random.default_rng(1))
    turned = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    once, again = Projection.fit(features).colors(features), Projection.fit(features @ turned).colors(features @ turned)
    assert np.abs(once.astype(int) - again).max() <= 1  # of rounding
    np.testing.assert_array_equal(once, Projection.fit([features]).colors(features))
    scaled = Projection.fit(1000 * features).colors(1000 * features)
    assert np.abs(once.astype(int) - scaled).max() <= 1


def test_one_projection_for_several_sets_and_tensors() -> None:
    features = _features(np.random.default_rng(3))
    projection = Projection.fit([features[:1000], torch.from_numpy(features[1000:])])
    np.testing.assert_array_equal(projection.colors(features[:1000]), projection.colors(features)[:1000])


def test_odd_rows_move_nothing_and_unknown_ones_are_grey() -> None:
    features = _features(np.random.default_rng(4))
    plain = Projection.fit(features).colors(features)
    spoilt = features.copy()
    spoilt[:20], spoilt[20] = 1e4, np.nan
    colors = Projection.fit(spoilt).colors(spoilt)
    assert np.abs(colors[21:].astype(int) - plain[21:]).mean() < 3
    assert (colors[20] == 190).all()


def test_features_of_one_value_and_of_one_channel_have_colours() -> None:
    assert (Projection.fit(np.ones((5, 4))).colors(np.ones((5, 4))) == 128).all()
    single = Projection.fit(np.arange(10.0)[:, None]).colors(np.arange(10.0)[:, None])
    assert single[0, 0] == 0
    assert single[-1, 0] == 255
    assert (single[:, 1:] == 128).all()


def test_a_projection_survives_its_file(tmp_path: Path) -> None:
    features = _features(np.random.default_rng(5))
    projection = Projection.fit(features)
    projection.save(tmp_path / "projection.npz")
    read = Projection.load(tmp_path / "projection.npz")
    np.testing.assert_array_equal(read.colors(features), projection.colors(features))


def test_what_cannot_be_projected_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row that is finite"):
        Projection.fit(np.full((3, 4), np.nan))
    with pytest.raises(InputError, match="as many columns, got 3, 4"):
        Projection.fit([np.ones((2, 3)), np.ones((2, 4))])
    with pytest.raises(InputError, match=r"\(N, C\)"):
        Projection.fit(np.ones(3))
    with pytest.raises(InputError, match="fitted to features of 4 channels, got 3"):
        Projection.fit(np.eye(4)).colors(np.ones((2, 3)))
    with pytest.raises(InputError, match="holds no projection"):
        Projection.load(tmp_path / "none.npz")
    np.savez(tmp_path / "odd.npz", centre=np.zeros(3), axes=np.zeros((4, 3)), low=np.zeros(3), high=np.ones(3))
    with pytest.raises(InputError, match="do not fit each other"):
        Projection.load(tmp_path / "odd.npz")


def test_cosines_are_those_of_angles() -> None:
    angles = np.radians([0, 30, 60, 90, 180])
    features = np.c_[np.cos(angles), np.sin(angles)] * np.array([1, 2, 3, 4, 5])[:, None]
    features = np.r_[features, [[np.nan, 0], [0, 0]]]
    values, colors = similarity_colors(features, 0)
    np.testing.assert_allclose(values[:5], np.cos(angles), atol=1e-15)
    assert np.isnan(values[5])
    assert values[6] == 0
    assert (colors[5] == 190).all()
    assert tuple(colors[0]) == (253, 231, 37)
    assert tuple(colors[4]) == (48, 18, 90)
    np.testing.assert_array_equal(similarity(torch.from_numpy(features), np.array([7.0, 0]))[:5], values[:5])
    with pytest.raises(InputError, match="no row 9 among 7"):
        similarity(features, 9)
    with pytest.raises(InputError, match=r"query must be \(2,\)"):
        similarity(features, np.ones(3))


def test_colours_of_values_are_monotonous_and_clipped() -> None:
    brightness = value_colors(np.linspace(-1, 2, 50), 0, 1).astype(float) @ (0.3, 0.59, 0.11)
    assert (np.diff(brightness) >= -1e-9).all()
    assert (np.diff(brightness)[18:32] > 1).all()
    assert likeness_ends(np.array([np.nan])) == (0, 1)
