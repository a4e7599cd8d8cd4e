"""Normals of triangle surfaces, and points drawn evenly from them."""

from __future__ import annotations

import numpy as np
import pytest

from geo3d.geometry.surface import sample_surface, unit_normals, vertex_normals


def test_vertex_normals_weigh_by_area():
    # A vertex shared by a face of area 2 that looks up and one of area 1/2 that looks along x.
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 1, 0], [0, 0, 1], [9, 9, 9]], dtype=np.float32)
    normals = vertex_normals(vertices, np.array([[0, 1, 2], [0, 3, 4]]))
    expected = np.array([1, 0, 4]) / np.sqrt(17)
    np.testing.assert_allclose(normals[0], expected, atol=1e-7)  # float32
    np.testing.assert_allclose(normals[1], [0, 0, 1], atol=1e-7)
    np.testing.assert_allclose(normals[3], [1, 0, 0], atol=1e-7)
    assert normals[5].tolist() == [0, 0, 1], "no face: upright"
    assert vertex_normals(vertices, np.zeros((0, 3), np.int64)).tolist() == [[0, 0, 1]] * 6


def test_unit_normals():
    given = np.array([[0, 0, 5.0], [3, 4, 0], [1e-30, 0, 0], [0, 0, 0], [np.nan, 0, 1], [np.inf, 0, 0]])
    normals = unit_normals(given)
    assert normals.dtype == np.float32
    expected = [[0, 0, 1], [0.6, 0.8, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(normals, expected, atol=1e-7)  # float32


def test_samples_lie_on_the_surface_in_proportion_to_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 1], [5, 3, 1], [5, 0, 3]], dtype=np.float64)
    faces = np.array([[0, 1, 2], [3, 3, 4], [3, 4, 5]])  # of area 1/2, 0 and 3
    face, weights = sample_surface(vertices, faces, 700, np.random.default_rng(0))
    assert np.bincount(face, minlength=3).tolist() == [100, 0, 600], "each has its share, to within one point"
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-15)
    # Uniform in each triangle: every corner weighs a third on average, with standard deviation sqrt(1/18).
    np.testing.assert_allclose(weights[face == 2].mean(0), 1 / 3, atol=5 * np.sqrt(1 / 18 / 600))
    np.testing.assert_allclose(weights[face == 2].var(0), 1 / 18, rtol=0.2)
    again = sample_surface(vertices, faces, 700, np.random.default_rng(0))
    assert np.array_equal(face, again[0])
    assert np.array_equal(weights, again[1])


@pytest.mark.parametrize("faces", [np.zeros((0, 3), np.int64), np.array([[0, 0, 1]])], ids=["none", "flat"])
def test_faces_without_area_cannot_be_sampled(faces):
    with pytest.raises(ValueError, match="no area"):
        sample_surface(np.eye(3), faces, 5, np.random.default_rng(0))
