"""Camera: projections that can be computed by hand, round trips, and what resizing and cropping an image does."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d.geometry import Camera

PINHOLE = Camera(64, 48, 50.0, 60.0, 31.0, 25.0)
OPENCV = Camera(64, 48, 50.0, 60.0, 31.0, 25.0, "OPENCV", (0.1, -0.05, 0.002, -0.003))
RATIONAL = Camera(  # as of a depth camera that is sold
    64, 48, 30.0, 30.0, 31.0, 25.0, "FULL_OPENCV", (0.51, -2.75, 5e-4, -2e-4, 1.58, 0.38, -2.56, 1.5)
)
FISHEYE = Camera(64, 48, 30.0, 33.0, 31.0, 25.0, "OPENCV_FISHEYE", (0.05, -0.01, 0.002, -0.0004))
CAMERAS = [PINHOLE, OPENCV, RATIONAL, FISHEYE]
EXACT = 1e-12  # float64 arithmetic on pixel-sized numbers


def project(camera: Camera, *xyz: float) -> list[float]:
    return camera.project(torch.tensor(xyz, dtype=torch.float64)).tolist()


def test_pinhole_projects_by_similar_triangles():
    assert project(PINHOLE, 1.0, -0.5, 2.0) == pytest.approx([50 * 0.5 + 31, 60 * -0.25 + 25], abs=EXACT)


def test_opencv_follows_its_polynomial():
    x, y = 0.3, -0.2
    k1, k2, p1, p2 = OPENCV.distortion
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    assert project(OPENCV, 2 * x, 2 * y, 2.0) == pytest.approx([50 * u + 31, 60 * v + 25], abs=EXACT)


def test_full_opencv_is_a_ratio_of_polynomials():
    x, y = 0.3, -0.2
    k1, k2, p1, p2, k3, k4, k5, k6 = RATIONAL.distortion
    r2 = x**2 + y**2
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    assert project(RATIONAL, 2 * x, 2 * y, 2.0) == pytest.approx([30 * u + 31, 30 * v + 25], abs=EXACT)


def test_fisheye_radius_is_a_polynomial_of_the_angle():
    angle, azimuth = 0.7, 0.4
    ray = [math.sin(angle) * math.cos(azimuth), math.sin(angle) * math.sin(azimuth), math.cos(angle)]
    radius = angle * (1 + sum(k * angle ** (2 * i + 2) for i, k in enumerate(FISHEYE.distortion)))
    expected = [30 * radius * math.cos(azimuth) + 31, 33 * radius * math.sin(azimuth) + 25]
    assert project(FISHEYE, *ray) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: c.model)
def test_the_optical_axis_meets_the_principal_point(camera):
    assert project(camera, 0.0, 0.0, 3.0) == pytest.approx([31, 25], abs=EXACT)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: c.model)
def test_unproject_inverts_project_over_the_image(camera):
    uv = camera.pixel_grid()
    depth = torch.linspace(0.5, 4.0, camera.width * camera.height, dtype=torch.float64).reshape(uv.shape[:2])
    xyz = camera.unproject(uv, depth)
    assert torch.equal(xyz[..., 2], depth)
    # The iterations have converged far below what matters, at the image's corners too.
    torch.testing.assert_close(camera.project(xyz), uv, atol=1e-6, rtol=0)


def test_field_of_view_reaches_from_edge_to_edge():
    fov = 1.2
    camera = Camera.from_fov(80, 60, fov)
    edges = torch.tensor([[-0.5, 29.5], [79.5, 29.5]], dtype=torch.float64)  # outer borders of the outer pixels
    rays = camera.unproject(edges, torch.ones(2, dtype=torch.float64))
    angles = torch.atan2(rays[:, 0], rays[:, 2])
    assert angles.tolist() == pytest.approx([-fov / 2, fov / 2], abs=EXACT)
    assert rays[:, 1].tolist() == pytest.approx([0, 0], abs=EXACT)
    assert camera.fx == camera.fy


def test_matrix_projects_like_the_pinhole():
    xyz = torch.tensor([0.4, -0.3, 1.7], dtype=torch.float64)
    homogeneous = PINHOLE.matrix @ xyz
    torch.testing.assert_close(homogeneous[:2] / homogeneous[2], PINHOLE.project(xyz))


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: c.model)
def test_resized_follows_the_resampled_image(camera):
    # An image that shows its own column and row: after box resampling by two each pixel holds the mean of its block,
    # which is where the smaller image's pixel lies in the larger.
    grid = camera.pixel_grid().float().numpy()
    small = camera.resized(camera.width // 2, camera.height // 2)
    halved = [Image.fromarray(grid[..., i]).resize((small.width, small.height), Image.Resampling.BOX) for i in (0, 1)]
    where = torch.from_numpy(np.stack([np.asarray(h) for h in halved], -1)).double()
    rays = small.unproject(small.pixel_grid(), torch.ones(small.height, small.width, dtype=torch.float64))
    torch.testing.assert_close(camera.project(rays), where, atol=1e-4, rtol=0)  # the ramp images are float32


def test_cropped_follows_the_cut_out_image():
    cut = OPENCV.cropped(10, 5, 40, 30)
    xyz = torch.tensor([0.2, 0.1, 2.0], dtype=torch.float64)
    assert (cut.width, cut.height) == (40, 30)
    torch.testing.assert_close(cut.project(xyz), OPENCV.project(xyz) - torch.tensor([10.0, 5.0], dtype=torch.float64))


def test_resized_there_and_back_is_the_camera():
    there = OPENCV.resized(33, 97)
    back = there.resized(OPENCV.width, OPENCV.height)
    for name in ("fx", "fy", "cx", "cy"):
        assert getattr(back, name) == pytest.approx(getattr(OPENCV, name), abs=EXACT)


def test_pixel_grid_counts_columns_then_rows():
    grid = Camera.from_fov(3, 2, 1.0).pixel_grid()
    assert grid.tolist() == [[[0, 0], [1, 0], [2, 0]], [[0, 1], [1, 1], [2, 1]]]


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: c.model)
def test_numpy_round_trip_through_a_file(camera):
    file = io.BytesIO()
    np.savez(file, **camera.to_numpy())
    file.seek(0)
    assert Camera.from_numpy(dict(np.load(file))) == camera


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 48, 1.0, 1.0, 0.0, 0.0), "image size must be positive, got 0 x 48"),
        ((64, 48, -1.0, 1.0, 0.0, 0.0), "focal lengths must be positive"),
        ((64, 48, math.nan, 1.0, 0.0, 0.0), "finite"),
        ((64, 48, 1.0, 1.0, math.inf, 0.0), "finite"),
        ((64, 48, 1.0, 1.0, 0.0, 0.0, "FOV", (0.9,)), "unknown model 'FOV', known: PINHOLE"),
        ((64, 48, 1.0, 1.0, 0.0, 0.0, "OPENCV", (0.1,)), "model OPENCV takes 4 coefficients, got 1"),
        ((64, 48, 1.0, 1.0, 0.0, 0.0, "OPENCV", (0.1, float("nan"), 0, 0)), "distortion must be finite"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Camera(*arguments)
