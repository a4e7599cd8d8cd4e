"""View and ViewPair: depth lifted to known points, round trips, and shapes that contradict each other."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from geo3d.geometry import Camera, View, ViewPair

COLOR = Camera.from_fov(8, 6, 1.0)
DEPTH = Camera.from_fov(4, 3, 1.0)


def turned(angle: float, translation: tuple[float, float, float]) -> torch.Tensor:
    """Pose turned about the y axis."""
    pose = torch.eye(4, dtype=torch.float64)
    c, s = np.cos(angle), np.sin(angle)
    pose[:3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    pose[:3, 3] = torch.tensor(translation)
    return pose


def full_view() -> View:
    rng = torch.Generator().manual_seed(0)
    return View(
        "0007",
        COLOR,
        turned(0.3, (1.0, 2.0, 3.0)),
        image=torch.rand(6, 8, 3, generator=rng),
        depth=torch.rand(3, 4, generator=rng),
        depth_camera=DEPTH,
        mask=torch.rand(6, 8, generator=rng) > 0.5,
    )


def test_world_points_of_a_wall():
    # A camera at (0, 0, -2) that looks along +x sees the wall x = 5 in every pixel at depth 5.
    pose = turned(np.pi / 2, (0.0, 0.0, -2.0))
    view = View("wall", DEPTH, pose, depth=torch.full((3, 4), 5.0))
    xyz, pixel = view.world_points()
    assert pixel.tolist() == list(range(12))
    torch.testing.assert_close(xyz[:, 0], torch.full((12,), 5.0, dtype=torch.float64))
    # Image right is the camera's +x, which is the world's -z here; image down is the world's +y.
    column, row = (pixel % 4).double(), (pixel // 4).double()
    torch.testing.assert_close(xyz[:, 2], -2 - 5 * (column - 1.5) / DEPTH.fx)
    torch.testing.assert_close(xyz[:, 1], 5 * (row - 1.0) / DEPTH.fy)


def test_world_points_leave_out_unknown_depth():
    depth = torch.ones(3, 4)
    depth[1, 2] = 0
    _, pixel = View("hole", DEPTH, torch.eye(4), depth=depth).world_points()
    assert pixel.tolist() == [i for i in range(12) if i != 1 * 4 + 2]


def test_world_points_use_the_depth_camera():
    view = full_view()
    xyz, pixel = view.world_points()
    camera_from_world = torch.linalg.inv(view.world_from_camera)
    local = xyz @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    expected = torch.stack([pixel % 4, pixel // 4], -1).double()
    torch.testing.assert_close(DEPTH.project(local), expected, atol=1e-9, rtol=0)  # float64, pixels


@pytest.mark.parametrize("missing", ["depth", "camera", "world_from_camera"])
def test_world_points_say_what_they_need(missing):
    fields = {"camera": DEPTH, "world_from_camera": torch.eye(4), "depth": torch.ones(3, 4), missing: None}
    with pytest.raises(ValueError, match="world_points needs depth, camera and pose"):
        View("v", **fields).world_points()


def test_numpy_round_trip_through_a_file():
    view = full_view()
    file = io.BytesIO()
    np.savez(file, **view.to_numpy())
    file.seek(0)
    back = View.from_numpy(dict(np.load(file)))
    assert (back.name, back.camera, back.depth_camera) == (view.name, view.camera, view.depth_camera)
    for field in ("world_from_camera", "image", "depth", "mask"):
        assert torch.equal(getattr(back, field), getattr(view, field)), field
        assert getattr(back, field).dtype == getattr(view, field).dtype


def test_numpy_round_trip_of_a_bare_view():
    back = View.from_numpy(View("bare").to_numpy())
    assert back == View("bare")


def test_pair_numpy_round_trip():
    pair = ViewPair(full_view(), View("other", DEPTH), overlap=0.6, angle=0.2)
    back = ViewPair.from_numpy(pair.to_numpy())
    assert (back.overlap, back.angle) == (0.6, 0.2)
    assert torch.equal(back.first.image, pair.first.image)
    assert back.second == pair.second
    unscored = ViewPair.from_numpy(ViewPair(View("a"), View("b")).to_numpy())
    assert unscored == ViewPair(View("a"), View("b"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"world_from_camera": torch.eye(3)}, r"world_from_camera must be \(4, 4\), got \(3, 3\)"),
        ({"camera": COLOR, "image": torch.zeros(8, 6, 3)}, r"image is \(8, 6\).* its camera says"),
        ({"camera": COLOR, "depth": torch.zeros(3, 4)}, r"depth is \(3, 4\).* its camera says"),
        ({"camera": COLOR, "mask": torch.zeros(3, 4)}, r"mask is \(3, 4\)"),
    ],
)
def test_shapes_that_contradict_each_other(fields, message):
    with pytest.raises(ValueError, match=f"View v: {message}"):
        View("v", **fields)


def test_points_of_a_depth_map_find_their_pixels_and_normals():
    # A wall across the view, and a depth map at half the image's size, whose pixels' middles lie between the image's.
    parts = {"image": torch.rand(6, 8, 3), "depth": torch.full((3, 4), 5.0), "depth_camera": COLOR.resized(4, 3)}
    view = View("wall", COLOR, turned(0.3, (1.0, 2.0, 3.0)), **parts)
    xyz, _ = view.world_points()
    uv = view.image_pixels(xyz)
    expected = 2 * DEPTH.pixel_grid().reshape(-1, 2) + 0.5
    assert (uv - expected).abs().max() < 1e-9
    normals = view.world_normals().reshape(3, 4, 3)
    assert (normals[1, 1:3] + view.world_from_camera[:3, 2]).abs().max() < 1e-12  # towards the camera
    assert not normals[0].any()  # the rim has no neighbours
    assert view.image_pixels(xyz + 100 * view.world_from_camera[:3, 0]).isnan().all()
