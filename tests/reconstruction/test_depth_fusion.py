"""Depth fusion against surfaces that are known: a sphere, and a room with boxes in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, ROOM, BoxScene, look_at, orbit

from geo3d.datasets import MissingPart
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.reconstruction.depth_fusion import DepthFusionConfig, SignedDistances, fuse_depth, surface_cosines
from geo3d.reconstruction.grid_rendering import render_grid

RADIUS = 0.7
CAMERA = Camera.from_fov(100, 100, 0.9)
ROOM_CAMERA = Camera.from_fov(96, 72, np.pi / 2)


def _sphere_depth(pose: np.ndarray, camera: Camera = CAMERA) -> torch.Tensor:
    """Depth of a sphere around zero, before a wall far behind it."""
    rays = camera.unproject(camera.pixel_grid(), torch.ones(camera.height, camera.width, dtype=torch.float64)).numpy()
    along, eye = rays @ pose[:3, :3].T, pose[:3, 3]
    a, b, c = (along**2).sum(-1), 2 * along @ eye, eye @ eye - RADIUS**2
    inside = b * b - 4 * a * c
    with np.errstate(invalid="ignore"):
        depth = np.where(inside > 0, (-b - np.sqrt(inside)) / (2 * a), 9)
    return torch.from_numpy(depth).float()


def _sphere(longest: int = 32, cameras: int = 12) -> SignedDistances:
    volume = SignedDistances(np.full(3, -1.0), np.full(3, 1.0), (longest,) * 3)
    k = np.arange(cameras) + 0.5
    heights, turns = 1 - 2 * k / cameras, 2.4 * k
    for height, turn in zip(heights, turns):
        flat = np.sqrt(1 - height**2)
        pose = look_at(3 * np.array([flat * np.cos(turn), flat * np.sin(turn), height]), (0, 0, 0))
        colours = torch.full((CAMERA.height, CAMERA.width, 3), 128, dtype=torch.uint8)
        volume.add(_sphere_depth(pose), CAMERA, torch.from_numpy(pose), colours)
    return volume


def test_a_sphere() -> None:
    volume = _sphere()
    grid = volume.grid()
    truth = (grid.centres().norm(dim=-1) - RADIUS) / volume.side  # voxels
    distance, weight = volume.distances()
    near = (truth > -1) & (truth < 0.4)
    assert (weight[near] > 0).all()
    error = (distance / volume.side - truth)[near].abs()
    # Measured: median 0.11, largest 0.49 voxels; the planes that pixels show lie outside of a sphere of 11 voxels.
    assert error.median() < 0.2
    assert error.max() < 0.8
    assert (grid.opacity[truth.abs() < 0.5] > 0.3).all()
    assert (grid.opacity[(truth > 1.6) | (truth < -2.2)] == 0).all()
    assert torch.allclose(grid.rgb[grid.opacity > 0], torch.tensor(128 / 255), atol=1e-3)


def test_cosines_of_a_plane() -> None:
    """A floor seen from above at a slant: the cosine is that between ray and vertical, unknown pixels aside."""
    pose = look_at((0, 0, 2), (2, 0.3, 0))
    rays = CAMERA.unproject(CAMERA.pixel_grid(), torch.ones(100, 100, dtype=torch.float64))
    down = (rays @ torch.from_numpy(pose[:3, :3]).T)[..., 2]
    depth = torch.where(down < 0, -2 / down, 0.0).float()
    depth[40:44, 50] = 0
    expected = (-down / rays.norm(dim=-1)).float()
    found = surface_cosines(depth, CAMERA)
    known = (depth > 0) & (expected > 0.15)
    assert known.float().mean() > 0.8
    assert (found - expected)[known].abs().max() < 2e-3  # float32 differences of neighbouring pixels
    assert (found[40:44, 50] == 1).all()


@pytest.fixture(scope="module")
def room() -> BoxScene:
    poses = orbit(8, 45) + [look_at((1.2 * np.cos(a), 1.2 * np.sin(a), 1.6), (3 * np.cos(a), 3 * np.sin(a), z))
                               for z in (0.2, 2.4) for a in np.arange(5) * np.pi / 2.5 + 0.2]  # fmt: skip
    return BoxScene(poses, BOXES, camera=ROOM_CAMERA)


def _from_surfaces(xyz: np.ndarray) -> np.ndarray:
    """Distance (N,) of points to the surfaces of the room and of the boxes in it."""
    low, high = np.array(ROOM)
    gaps = np.concatenate([xyz - low, high - xyz], 1)
    inside = (gaps > 0).all(1)
    found = np.where(inside, np.abs(gaps).min(1), np.linalg.norm(np.minimum(gaps, 0), axis=1))
    for box_low, box_high in BOXES:
        out = np.maximum(np.maximum(np.array(box_low) - xyz, xyz - np.array(box_high)), 0)
        within = np.minimum(xyz - box_low, np.array(box_high) - xyz).min(1)
        found = np.minimum(found, np.where(within > 0, within, np.linalg.norm(out, axis=1)))
    return found


def test_a_room(room: BoxScene) -> None:
    """Opaque voxels are at surfaces, and surfaces that are seen are opaque; a view that was left out is rendered."""
    held = [3, 12]
    views = [index for index in range(len(room.view_names)) if index not in held]
    grid = fuse_depth(room, DepthFusionConfig(longest_side=48), views)
    side = float(grid.voxel.mean())
    apart = _from_surfaces(grid.centres()[grid.opacity > 0.5].numpy()) / side
    assert np.median(apart) < 1.2
    # Opaque to 1.5 voxels behind a surface; behind edges that of either plane goes on.
    assert np.quantile(apart, 0.95) < 1.7
    for index in held:
        camera, pose = room.camera(index), torch.from_numpy(room.pose(index))
        colour, depth = render_grid(grid, camera, pose)
        truth = torch.from_numpy(room.depth(index))
        seen = depth > 0
        assert seen.float().mean() > 0.98
        error = (depth - truth)[seen].abs() / side
        assert error.median() < 0.3  # measured 0.1
        assert error.quantile(0.9) < 1
        photo = torch.from_numpy(np.array(room.image(index))).float() / 255
        assert (colour - photo)[seen].abs().mean() < 0.06


def test_the_number_of_threads_changes_nothing(room: BoxScene) -> None:
    threads, grids = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            grids.append(fuse_depth(room, DepthFusionConfig(longest_side=16, most_views=2)))
    finally:
        torch.set_num_threads(threads)
    assert (grids[0].values - grids[1].values).abs().max() < 1e-5  # library sums may differ in the last bit


def test_depth_of_another_size_than_the_photos(room: BoxScene) -> None:
    class Coarse(BoxScene):
        def depth_camera(self, index: int) -> Camera:
            return self._cameras[index].resized(48, 36)

        def depth(self, index: int) -> np.ndarray:
            return self.hit_depth(index, self.depth_camera(index).pixel_grid().numpy() * 2 + 0.5).astype(np.float32)

    coarse = Coarse([room.pose(i) for i in range(8)], BOXES, camera=ROOM_CAMERA)
    config = DepthFusionConfig(longest_side=24)
    fine, other = fuse_depth(room, config, list(range(8))), fuse_depth(coarse, config)
    both = (fine.opacity > 0.5) & (other.opacity > 0.5)
    assert both.sum() > 0.85 * (fine.opacity > 0.5).sum()
    assert (fine.rgb - other.rgb)[both].abs().mean() < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest_side": 4}, "longest_side must be at least 8"),
        ({"cut": 1}, "cut must be at least 2 voxels"),
        ({"farthest": 0}, "farthest must be above 0"),
        ({"held_out": 1}, "held_out must be 2 or more"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DepthFusionConfig(**options)


def test_scenes_that_do_not_do(room: BoxScene) -> None:
    with pytest.raises(MissingPart, match="no depth"):
        fuse_depth(BoxScene(orbit(4, 90), parts=("views", "poses")))
    with pytest.raises(InputError, match="has no view"):
        fuse_depth(room, views=[])
