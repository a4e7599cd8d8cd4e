"""Flights through a scene: poses that look where they should, and files that open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scenes import CAMERA, look_at, orbit
from PIL import Image

from geo3d.errors import InputError
from geo3d.geometry import Camera, View
from geo3d.reconstruction.turn_table import turn_table_poses, write_turn_table
from geo3d.viz.animation import depth_picture, write_gif


def _azimuth(poses: np.ndarray) -> np.ndarray:
    return np.degrees(np.unwrap(np.arctan2(poses[:, 1, 3], poses[:, 0, 3])))


def test_it_goes_all_round_where_the_cameras_do() -> None:
    poses = turn_table_poses(np.stack(orbit(12, 30.0)), 8)
    np.testing.assert_allclose(np.diff(_azimuth(poses)), 45, atol=1e-6)
    np.testing.assert_allclose(np.hypot(poses[:, 0, 3], poses[:, 1, 3]), 2, atol=1e-6)
    towards = np.array([0, 0, 1]) - poses[:, :3, 3]
    np.testing.assert_allclose(towards / np.linalg.norm(towards, axis=1)[:, None], poses[:, :3, 2], atol=1e-6)
    turn = poses[:, :3, :3]
    np.testing.assert_allclose(turn.transpose(0, 2, 1) @ turn, np.broadcast_to(np.eye(3), (8, 3, 3)), atol=1e-9)


def test_it_keeps_to_the_arc_of_the_cameras() -> None:
    azimuth = _azimuth(turn_table_poses(np.stack(orbit(10, 10.0)), 20))
    assert azimuth.min() == pytest.approx(0, abs=1e-6)
    assert azimuth.max() == pytest.approx(90, abs=1e-6)
    assert np.abs(np.diff(azimuth)).max() < 20


def test_it_turns_round_where_the_cameras_look_about() -> None:
    eyes = [(0.1 * i, 0.0, 1.5) for i in range(6)]
    cameras = np.stack([look_at(eye, (np.cos(i), np.sin(i), 1.2)) for i, eye in enumerate(eyes)])
    poses = turn_table_poses(cameras, 12)
    assert np.ptp(poses[:, :3, 3], axis=0).max() == 0
    assert np.linalg.norm(poses[:, :2, 2].sum(0)) < 1e-9


class _Gradient:
    """Red is where a camera stands, in place of a field."""

    def render(self, camera: Camera, world_from_camera: torch.Tensor) -> View:
        red = float(world_from_camera[0, 3]) / 4 + 0.5
        image = torch.tensor([red, 0.5, 0.25]).expand(camera.height, camera.width, 3)
        return View("", camera, world_from_camera, image.contiguous())


def test_frames_and_gif_open(tmp_path: Path) -> None:
    path = write_turn_table(
        _Gradient(), [CAMERA], np.stack(orbit(12, 30.0)), tmp_path / "made", frames=4, longest_side=40
    )
    frames = sorted((tmp_path / "made" / "frames").glob("*.png"))
    assert len(frames) == 4
    with Image.open(path) as gif, Image.open(frames[0]) as first:
        assert (gif.size, first.size, gif.n_frames) == ((40, 30), (40, 30), 4)
        assert np.array(first)[0, 0].tolist() == [255, 128, 64]
    with pytest.raises(InputError, match="2 frames or more"):
        write_turn_table(_Gradient(), [CAMERA], np.stack(orbit(3, 9.0)), tmp_path, frames=1)
    with pytest.raises(ValueError, match="no frame"):
        write_gif(tmp_path / "none.gif", [])


def test_near_is_light_and_unknown_is_grey() -> None:
    depth = np.array([[0.0, 1.0, 2.0, 4.0]])
    picture = depth_picture(depth, 1, 4).astype(int)
    brightness = picture.sum(-1)[0]
    assert picture[0, 0].tolist() == [60, 60, 60]
    assert brightness[1] > brightness[2] > brightness[3]
    assert (depth_picture(np.zeros((2, 2))) == 60).all()
