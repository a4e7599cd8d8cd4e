"""Boxes of scenes: the rules, and how voxels are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, ROOM, BoxScene, orbit

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.reconstruction.scene_box import MARGIN, WIDE_MARGIN, grid_sides, scene_box


@pytest.mark.parametrize(
    ("extent", "longest", "sides"),
    [
        ((1, 1, 1), 160, (160, 160, 160)),
        ((4.0, 3.1, 2.5), 160, (160, 124, 100)),
        ((4.0, 3.09, 2.51), 160, (160, 124, 100)),  # 123.6 and 100.4, rounded down, and one more where odd
        ((1.0, 2.0, 0.001), 64, (32, 64, 2)),
        ((3.0, 1.0, 1.0), 33, (33, 12, 12)),
        ((0.1, 0.3, 0.2), 30, (10, 30, 20)),  # shares that come out a hair below whole numbers
    ],
)
def test_sides_are_counted_as_in_published_grids(extent, longest, sides) -> None:
    low = np.array([-1.0, 5, 0.25])
    assert grid_sides(low, low + extent, longest) == sides


def test_bad_boxes() -> None:
    with pytest.raises(InputError, match="must lie beyond low"):
        grid_sides(np.zeros(3), np.array([1.0, 0, 1]), 64)
    with pytest.raises(InputError, match="at least 2 voxels"):
        grid_sides(np.zeros(3), np.ones(3), 1)
    with pytest.raises(InputError, match="box rule 'rooms' is unknown; known: auto, published"):
        scene_box(BoxScene(orbit(4, 90)), "rooms")


def test_depth_tells_of_the_room() -> None:
    low, high = scene_box(BoxScene(orbit(8, 45), BOXES))
    extent = np.array(ROOM[1]) - ROOM[0]
    # The outermost 1 % of the depth are left out, which see less of walls and ceiling than of the floor.
    assert (np.abs(low - ROOM[0]) < 0.07 * extent).all()
    assert (np.abs(high - ROOM[1]) < 0.07 * extent).all()
    assert (low < ROOM[0]).all()


def test_cameras_alone_and_sparse_points() -> None:
    scene = BoxScene(orbit(8, 45, radius=2.0), parts=("views", "poses"))
    low, high = scene_box(scene)
    assert low[:2] == pytest.approx([-2 - WIDE_MARGIN * 4] * 2)
    assert high[2] - low[2] == pytest.approx(0.4 * (1 + 2 * WIDE_MARGIN))  # all at one height: a tenth as thick
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 3)) * [2, 1, 0.5] + [0, 0, 1]
    sparse = BoxScene(orbit(8, 45), parts=("views", "poses", "tracks"), points=points)
    low, high = scene_box(sparse)
    assert high - low == pytest.approx(np.array([4, 2, 1]) * 0.98 * (1 + 2 * MARGIN), rel=0.02)
    with pytest.raises(InputError, match="at one place"):
        scene_box(BoxScene([orbit(1, 0)[0]] * 3, parts=("views", "poses")))
    with pytest.raises(InputError, match="nothing tells of its extent"):
        scene_box(BoxScene(orbit(2, 90), parts=("views",)))


class _Labelled(BoxScene):
    """Points of a room, and of one object in it."""

    def points(self) -> PointCloud:
        rng = np.random.default_rng(0)
        walls, thing = rng.uniform(*ROOM, (4000, 3)), rng.uniform(0, 1, (4000, 3))
        labels = torch.arange(2).repeat_interleave(4000)
        return PointCloud(torch.from_numpy(np.concatenate([walls, thing])).float(), semantic=labels, instance=labels)


def test_the_published_rule_goes_by_objects() -> None:
    scene = _Labelled(orbit(4, 90), parts=("views", "poses", "points", "labels"))
    low, high = scene_box(scene, "published", classes=("wall", "chair"))
    assert low == pytest.approx([-WIDE_MARGIN] * 3, abs=0.01)
    assert high == pytest.approx([1 + WIDE_MARGIN] * 3, abs=0.01)
    room = scene_box(scene)
    assert (room[0] < ROOM[0]).all()
    assert (room[1] > ROOM[1]).all()
    cameras = scene_box(BoxScene(orbit(4, 90), parts=("views", "poses", "depth")), "published")
    assert cameras[0][0] == pytest.approx(-2 - 4 * WIDE_MARGIN)
