"""Rays of photos: against cameras' own projection, analytic depth, and averages by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, BoxScene, look_at, orbit

from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.reconstruction.scene_rays import area_average, depth_of_pixels, gather_rays, shrunk_size

_BENT = replace(Camera.from_fov(40, 30, 1.2), model="OPENCV", distortion=(-0.2, 0.05, 0.01, -0.01))


def test_rays_hit_what_the_camera_sees_through_a_bent_lens() -> None:
    scene = BoxScene(orbit(3, 40.0), BOXES, camera=_BENT)
    rays = gather_rays(scene, depth=True)
    assert (rays.photos, rays.pixels) == (3, 3 * 40 * 30)
    for photo in range(3):
        found = rays.of_photo(photo)
        assert (found.photo == photo).all()
        points = found.origins.double() + found.distances[:, None] * found.directions.double()
        pose = torch.from_numpy(scene.pose(photo))
        inside = (points - pose[:3, 3]) @ pose[:3, :3]
        # float32 directions and distances of some metres: a few 1e-5 pixels.
        torch.testing.assert_close(_BENT.project(inside), _BENT.pixel_grid().reshape(-1, 2), atol=1e-3, rtol=0)
        depth = torch.from_numpy(scene.depth(photo)).double().reshape(-1)
        torch.testing.assert_close(inside[:, 2], depth, atol=1e-5, rtol=1e-6)
        image = torch.from_numpy(np.array(scene.image(photo))).float() / 255
        torch.testing.assert_close(found.colours.reshape(30, 40, 3), image, atol=1e-7, rtol=0)
        torch.testing.assert_close(rays.image(photo), image, atol=1e-7, rtol=0)


def test_depth_of_a_camera_with_another_field_of_view() -> None:
    """A depth map that is the column's tangent, looked up by a wider camera of other pixels; beyond it nothing."""
    narrow, wide = Camera.from_fov(200, 100, 1.0), Camera.from_fov(60, 40, 1.4)
    tangent = (narrow.pixel_grid()[..., 0] - narrow.cx) / narrow.fx
    found = depth_of_pixels((2 + tangent).numpy(), narrow, wide)
    expected = 2 + (wide.pixel_grid()[..., 0] - wide.cx) / wide.fx
    known = found > 0
    assert (known == (((expected - 2).abs() < np.tan(0.5)) & (_rows(wide, narrow)))).all()
    torch.testing.assert_close(found[known].double(), expected[known], atol=0.6 / narrow.fx, rtol=0)  # half a pixel
    same = torch.rand(100, 200)
    assert torch.equal(depth_of_pixels(same.numpy(), narrow, narrow), same)


def _rows(camera: Camera, other: Camera) -> torch.Tensor:
    """Which pixels look neither above nor below another camera's picture."""
    slope = (camera.pixel_grid()[..., 1] - camera.cy) / camera.fy
    return slope.abs() < 0.5 * other.height / other.fy


def test_some_photos_keep_their_rays() -> None:
    cameras = [Camera.from_fov(12, 8, 1.0), Camera.from_fov(9, 7, 1.1), Camera.from_fov(12, 8, 1.0)]
    rays = gather_rays(BoxScene(orbit(3, 40.0), BOXES, camera=cameras), depth=True)
    part = rays.some([2, 1])
    for new, old in enumerate((2, 1)):
        for a, b in zip(part.of_photo(new)[:4], rays.of_photo(old)[:4], strict=True):
            assert torch.equal(a, b)


def test_photos_are_shrunk_by_the_area_of_a_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    halved = image.reshape(6, 2, 9, 2, 3).mean((1, 3))
    assert np.array_equal(area_average(image, 9, 6), np.rint(halved).astype(np.uint8))
    # 18 -> 4: a pixel is 4.5 wide; the second takes half of number 4, 5 to 8, and all of none else.
    row = image[:3, :, :].astype(np.float64).mean(0)
    second = (0.5 * row[4] + row[5:9].sum(0)) / 4.5
    assert np.abs(area_average(image, 4, 4)[0, 1] - second).max() <= 0.5 + 1e-9
    assert area_average(image, 18, 12) is image
    assert shrunk_size(960, 540, 480) == (480, 270)
    assert shrunk_size(100, 50, 480) == (100, 50)
    assert shrunk_size(5000, 2, 100) == (100, 1)


def test_a_shrunk_photo_has_the_rays_of_its_camera() -> None:
    scene = BoxScene(orbit(2, 40.0), BOXES)
    rays = gather_rays(scene, longest_side=80)
    assert (rays.cameras[0].width, rays.cameras[0].height) == (80, 60)
    # The corner of the image is the same in both: half a pixel beyond the centre of the first one.
    full = scene.camera(0).unproject(torch.tensor([[-0.5, -0.5]]), torch.ones(1))
    torch.testing.assert_close(rays.cameras[0].unproject(torch.tensor([[-0.5, -0.5]]), torch.ones(1)), full)


def test_at_most_so_many_photos_evenly_spread() -> None:
    assert gather_rays(BoxScene(orbit(7, 10.0)), most=3, longest_side=16).names == ["0000", "0003", "0006"]


def test_what_cannot_be_used_is_one_line() -> None:
    with pytest.raises(InputError, match="has no poses"):
        gather_rays(BoxScene(orbit(3, 10.0), parts=("views",)))
    with pytest.raises(InputError, match="has no depth"):
        gather_rays(BoxScene(orbit(3, 10.0), parts=("views", "poses")), depth=True)
    with pytest.raises(InputError, match="has 1 usable photos, at least 2 are needed"):
        gather_rays(BoxScene(orbit(1, 10.0)))
    crooked = look_at((2.0, 0.0, 1.5), (0.0, 0.0, 1.0))
    crooked[0, 0] += 0.1
    with pytest.raises(BrokenScene, match="not a rotation and a place"):
        gather_rays(BoxScene([*orbit(2, 10.0), crooked]))
