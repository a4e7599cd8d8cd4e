"""What is taken off points before they become float32."""

from __future__ import annotations

import numpy as np
import pytest

from geo3d.geometry.origin import FAR, find_origin, origin_rows


def test_points_near_zero_stay():
    xyz = np.random.default_rng(0).uniform(-FAR, FAR, (100, 3))
    assert find_origin(xyz).tolist() == [0, 0, 0]
    strays = np.concatenate([xyz, [[1e6, 0, 0], [0, -1e9, 0], [np.nan, 0, 5e5]]])
    assert find_origin(strays).tolist() == [0, 0, 0], "a few points far out move nothing"
    for nothing in (np.zeros((0, 3)), np.full((2, 3), np.nan)):
        assert find_origin(nothing).tolist() == [0, 0, 0]
    assert origin_rows(find_origin(xyz)) is None


@pytest.mark.parametrize("center", [[500000.123, 5400000.456, 300.789], [0, -4510731.4, 4510731.6], [-1100, 0, 0]])
def test_points_far_from_zero_keep_a_tenth_of_a_millimetre(center):
    xyz = np.array(center) + np.random.default_rng(0).uniform(-300, 300, (999, 3))
    origin = find_origin(xyz)
    assert (origin.dtype, origin.tolist()) == (np.float64, np.round(np.median(xyz, 0)).tolist())
    assert np.abs((xyz - origin).astype(np.float32) + origin - xyz).max() < 1e-4
    assert origin_rows(origin).tolist() == [origin.tolist()]


def test_no_point_within_the_bound_loses_more():
    edge = np.nextafter(np.float64(FAR), 0) - np.random.default_rng(0).random(999)
    assert np.abs(edge.astype(np.float32) - edge).max() < 1e-4
