"""Focal lengths, matches, poses and pairs, against what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geo3d.errors import InputError
from geo3d.geometry.rotation import random_rotation
from geo3d.reconstruction.pointmaps.focal import robust_focal, weiszfeld_focal
from geo3d.reconstruction.pointmaps.graph import complete_pairs, largest_group, similar_pairs, window_pairs
from geo3d.reconstruction.pointmaps.lens import centre
from geo3d.reconstruction.pointmaps.matching import Matches, reciprocal_descriptors, within_border
from geo3d.reconstruction.pointmaps.pose import find_pose
from geo3d.reconstruction.pointmaps.prediction import camera_rays
from geo3d.reconstruction.pointmaps.upright import upright

HEIGHT, WIDTH = 48, 64


def _map(focal: float, wrong: float, kind: str, seed: int = 0) -> torch.Tensor:
    """A pointmap of a slanted, wavy surface with noise of 1 % and wrong points of a kind."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    depth = 2 + 0.02 * u + 0.3 * np.sin(v / 5)
    points = camera_rays(HEIGHT, WIDTH, focal, centre(HEIGHT, WIDTH)).numpy() * depth[..., None]
    points = points * (1 + 0.01 * rng.normal(size=points.shape))
    astray = rng.random((HEIGHT, WIDTH)) < wrong
    count = int(astray.sum())
    if kind == "near":  # beside the camera, at hardly any depth
        points[astray] = rng.uniform(-2, 2, (count, 3)) * (1, 1, 0.01)
    elif kind == "anywhere":
        points[astray] = rng.uniform(-3, 3, (count, 3))
    elif kind == "behind":
        points[astray] *= -1
    elif kind == "shift":  # all towards one side
        points[astray] += (1.0, 0.5, -1.0)
    else:
        points[astray] = np.nan
    return torch.from_numpy(points)


@pytest.mark.parametrize("kind", ["near", "anywhere", "behind", "shift", "not finite"])
@pytest.mark.parametrize("focal", [30.0, 60.0, 200.0])
def test_the_robust_focal_bears_wrong_points(kind: str, focal: float) -> None:
    # Measured: 0.08 % at most, over three seeds.
    for wrong in (0.0, 0.1, 0.2, 0.3):
        assert robust_focal(_map(focal, wrong, kind)) == pytest.approx(focal, rel=0.005), wrong


def test_the_published_focal_collapses() -> None:
    points = _map(60.0, 0.12, "near")
    assert weiszfeld_focal(points, centre(HEIGHT, WIDTH)) < 10
    assert robust_focal(points) == pytest.approx(60, rel=0.01)


def test_a_map_that_tells_no_focal_is_refused() -> None:
    with pytest.raises(InputError, match="focal length"):
        robust_focal(-_map(60.0, 0, "near"))


@pytest.mark.parametrize("plane", [False, True])
def test_a_pose_is_found_among_as_many_wrong_points(plane: bool) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pixels = np.c_[rng.uniform(0, WIDTH, 300), rng.uniform(0, HEIGHT, 300)]
        depth = 1 / (0.3 + pixels @ (0.002, 0.001)) if plane else rng.uniform(1, 5, 300)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = random_rotation(rng), 5 * rng.normal(size=3)
        seen = np.c_[(pixels - (31.5, 23.5)) / 60, np.ones(300)] * depth[:, None]
        world = seen @ pose[:3, :3].T + pose[:3, 3]
        astray = rng.random(300) < 0.5
        world[astray] += rng.normal(size=(int(astray.sum()), 3))
        found = find_pose(100 * world, pixels, 60, (31.5, 23.5), rng, 0.6)
        pose[:3, 3] *= 100
        assert np.abs(found.world_from_camera - pose).max() < 1e-9
        assert found.inliers[~astray].all()


def test_no_pose_is_made_up() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="6 points"):
        find_pose(rng.normal(size=(5, 3)), rng.uniform(0, 50, (5, 2)), 60, (31, 23), rng, 1)
    with pytest.raises(InputError, match="do not belong together"):
        find_pose(np.zeros((50, 3)), rng.uniform(0, 50, (50, 2)), 60, (31, 23), rng, 1e-9)


def test_matches_of_a_shifted_view() -> None:
    rows = torch.nn.functional.normalize(torch.randn(20, 30, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    found = reciprocal_descriptors(rows[:, :25], rows[:, 5:], every=1, both_ways=True)
    shared = found.first[:, 0] >= 5
    assert int(shared.sum()) == 20 * 20
    assert torch.equal(found.first[shared] - found.second[shared], torch.tensor([5, 0]).expand(400, 2))
    inner = within_border(found, (20, 25), (20, 25), 3)
    assert 0 < len(inner) < len(found)
    assert int(inner.second.min()) == 3
    assert isinstance(inner, Matches)


def test_pairs() -> None:
    assert complete_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert window_pairs(4, 1) == [(0, 1), (1, 2), (2, 3)]
    assert window_pairs(4, 1, closed=True) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert window_pairs(3, 5, closed=True) == complete_pairs(3)
    assert largest_group(5, [(0, 1), (3, 4), (2, 4)]) == [2, 3, 4]
    # Two clusters that look alike within: each finds its neighbours, and one pair more joins both.
    rng = np.random.default_rng(0)
    rows = np.repeat([[5.0, 0, 0], [0, 5.0, 0]], 4, 0) + rng.normal(size=(8, 3))
    pairs = similar_pairs(torch.from_numpy(rows), 1)
    assert largest_group(8, pairs) == list(range(8))
    assert sum((i < 4) != (j < 4) for i, j in pairs) == 1


def test_up_is_what_level_cameras_say() -> None:
    rng = np.random.default_rng(0)
    true = torch.from_numpy(random_rotation(rng))
    poses = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    for number, pose in enumerate(poses):  # level, looking around and down by 20 degrees
        turn, down = 0.4 * number, 0.35
        forward = torch.tensor([np.cos(turn) * np.cos(down), np.sin(turn) * np.cos(down), -np.sin(down)])
        right = torch.tensor([np.sin(turn), -np.cos(turn), 0.0])
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
        pose[:3, 3] = torch.from_numpy(rng.normal(size=3))
    poses[:, :3] = true @ poses[:, :3]
    way = upright(poses)
    level = torch.stack([way.of_pose(pose) for pose in poses])
    # The cameras' own up, which is off by 20 degrees, counts a little: the world's was measured 0.9 degrees off.
    assert level[:, 2, 0].abs().max() < 0.03
    assert (level[:, 2, 1] < 0).all()
    assert level[0, :3, 3].abs().max() < 1e-12
    assert abs(float(level[0, 0, 2])) < 1e-12
    assert float(level[0, 1, 2]) > 0
