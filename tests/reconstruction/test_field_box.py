"""Boxes of fields: where cameras look, what is known of a scene, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from analytic_scenes import BOXES, ROOM, BoxScene, look_at, orbit

from geo3d.errors import InputError
from geo3d.reconstruction.field_box import BORDER, MARGIN, FieldBox, camera_box, find_box, meeting_point
from geo3d.reconstruction.scene_rays import gather_rays


def _looking_about(count: int) -> np.ndarray:
    """Cameras within a metre that look outwards."""
    angles = np.arange(count) * 2.4
    eyes = np.stack([0.5 * np.cos(angles), 0.5 * np.sin(angles), np.full(count, 1.5)], 1)
    return np.stack([look_at(eye, (5 * eye[0], 5 * eye[1], 1.3)) for eye in eyes])


def test_cameras_that_go_round_something_meet_there() -> None:
    poses = np.stack(orbit(12, 17.0))
    np.testing.assert_allclose(meeting_point(poses[:, :3, 3], poses[:, :3, 2]), [0, 0, 1], atol=1e-9)
    box = camera_box(poses)
    np.testing.assert_allclose(box.centre, [0, 0, 1], atol=1e-9)
    assert box.border == BORDER
    distance = np.hypot(2.0, 0.5)  # of every camera of the orbit from the point
    np.testing.assert_allclose(box.half, 0.55 * distance, atol=1e-9)


def test_cameras_that_look_about_have_a_box_around_them() -> None:
    poses = _looking_about(10)
    assert meeting_point(poses[:, :3, 3], poses[:, :3, 2]) is None
    box = camera_box(poses)
    places = poses[:, :3, 3]
    np.testing.assert_allclose(box.centre, (places.max(0) + places.min(0)) / 2)
    assert (np.abs(places - box.centre) < box.half).all()


def test_a_known_box_gets_a_margin_and_no_surroundings() -> None:
    scene = BoxScene(orbit(4, 30.0), BOXES)
    rays = gather_rays(scene, 16)
    box, whence = find_box(scene, rays, *ROOM)
    assert (whence, box.border) == ("given", 0)
    np.testing.assert_allclose(box.low, [-3 - 6 * MARGIN, -3 - 6 * MARGIN, -3 * MARGIN])
    np.testing.assert_allclose(box.high, [3 + 6 * MARGIN, 3 + 6 * MARGIN, 3 + 3 * MARGIN])
    assert box.sides(160) == (160, 160, 80)
    assert find_box(scene, rays, *ROOM, border=0.25)[0].border == 0.25


def test_depth_and_sparse_points_come_before_the_cameras() -> None:
    poses = orbit(8, 45.0)
    with_depth = BoxScene(poses, BOXES)
    box, whence = find_box(with_depth, gather_rays(with_depth, 32, depth=True))
    assert (whence, box.border) == ("of its depth", BORDER)
    assert np.abs(np.array([box.low, box.high]) - np.array(ROOM)).max() < 0.9  # quantiles of what is seen, and margin
    points = np.random.default_rng(0).uniform([-1, -2, 0], [1, 2, 1], (5000, 3))
    sparse = BoxScene(poses, BOXES, parts=("views", "poses", "tracks"), points=points)
    box, whence = find_box(sparse, gather_rays(sparse, 16))
    assert (whence, box.border) == ("of its sparse points", BORDER)
    np.testing.assert_allclose(box.half, [1 + 2 * MARGIN, 2 + 4 * MARGIN, 0.5 + MARGIN], rtol=0.03)
    bare = BoxScene(poses, BOXES, parts=("views", "poses"))
    assert find_box(bare, gather_rays(bare, 16))[1] == "of its cameras"


def test_what_makes_no_box_is_one_line() -> None:
    with pytest.raises(InputError, match="high must lie beyond low"):
        FieldBox((0, 0, 0), (1, 1, 0))
    with pytest.raises(InputError, match="border must lie in 0 to 4"):
        FieldBox((0, 0, 0), (1, 1, 1), -0.1)
    scene = BoxScene(orbit(3, 30.0))
    with pytest.raises(InputError, match="give both corners"):
        find_box(scene, gather_rays(scene, 16), low=(0, 0, 0))
    with pytest.raises(InputError, match="from one place"):
        camera_box(np.stack([look_at((1, 0, 0), (0, 0, 0)), look_at((1, 0, 0), (0, 1, 0))]))
