"""Few labels: classes that are painted on, shares that are counted, and patches of labelled views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, BoxScene, look_at
from test_voxels import CLASSES, PaintedScenes

from geo3d import InputError
from geo3d.geometry import PointCloud
from geo3d.models.voxel_points import VoxelPoints
from geo3d.probe.labelled_views import ViewPatches
from geo3d.probe.segment import SegmentConfig, SegmentScore
from geo3d.probe.views import colour_and_place
from geo3d.probe.voxels import CloudVoxels, VoxelProbe

_SHARES = (0.01, 0.1, 1.0)


def _colours(points: VoxelPoints) -> torch.Tensor:
    return points.colors


def _probe(most: int = 1000, labels: str = "true") -> VoxelProbe:
    train, held = (CloudVoxels(PaintedScenes(count, labels), 0.02) for count in (6, 2))
    return VoxelProbe(train, held, most, 0, lambda line: None)


def test_painted_classes_are_read_off_from_a_hundredth_of_the_labels() -> None:
    found = _probe().measure_shares({"colours": _colours}, _SHARES)["colours"]
    score = SegmentScore.of_shares(_SHARES, found)
    assert score.miou == [1, 1, 1]
    assert score.learnt_from[2] == found[0].labelled
    assert score.learnt_from[1] == pytest.approx(0.1 * score.learnt_from[2], rel=0.02)
    assert score.learnt_from[0] == pytest.approx(0.01 * score.learnt_from[2], rel=0.2)  # five of each scene
    assert not any(score.cut)


def test_shares_beyond_the_largest_number_are_cut_and_said_to_be() -> None:
    found = _probe(most=100).measure_shares({"colours": _colours}, _SHARES)["colours"]
    score = SegmentScore.of_shares(_SHARES, found)
    assert score.learnt_from[2] == 600
    assert score.cut == [False, False, True]


def test_all_labels_are_the_linear_probe() -> None:
    """The same rows in the same order: the whole share learns as the probe without shares does."""
    probe = _probe(most=100)
    whole = probe.measure_shares({"colours": _colours}, (1.0,))
    assert probe.measure({"colours": _colours})["colours"] == whole["colours"][0]


@pytest.mark.parametrize("labels", [(), (0.1, 0.01), (0.0, 1.0), (0.5, 2.0)])
def test_wrong_shares_are_named(labels: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="labels must be shares above 0 and up to 1, ascending"):
        SegmentConfig(checkpoint=Path("weights"), labels=labels)


class _LabelledBoxes:
    """A scene of boxes whose floor is of class 0 and whose walls up to 2 m are of class 1; nothing else is labelled."""

    classes = CLASSES[:2]

    def __init__(self) -> None:
        self.scene = BoxScene([look_at((2.0, -0.5, 1.5), (0, 0, 1))], BOXES)
        across = np.arange(-3, 3.01, 0.05)
        floor = np.stack([*(part.ravel() for part in np.meshgrid(across, across)), np.zeros(len(across) ** 2)], 1)
        wall = np.stack([part.ravel() for part in np.meshgrid([-3.0], across, across[across >= 0])], 1)
        xyz = np.concatenate([floor, wall]).astype(np.float32)
        labels = np.repeat([0, 1], [len(floor), len(wall)])
        self.scene.cloud = lambda: PointCloud(torch.from_numpy(xyz), semantic=torch.from_numpy(labels))

    def __len__(self) -> int:
        return 1

    def describe(self, index: int) -> str:
        return "boxes"

    def opened(self, index: int) -> BoxScene:
        return self.scene


def test_patches_of_views_are_of_the_class_of_the_surface_that_they_show() -> None:
    views, labels = ViewPatches(_LabelledBoxes(), 60).voxels(0)
    (looked_at,) = views
    assert looked_at.step == 5
    assert len(labels) == len(looked_at.pixels) == 16 * 12
    places = looked_at.shown.lifted(looked_at.pixels, looked_at.shown.depth_at(looked_at.pixels))
    floor = places[:, 2] < 0.01
    assert floor.any()
    assert (labels[floor] == 0).all()
    behind = (places[:, 0] < -2.99) & (places[:, 2] > 0.2)
    assert (labels[behind] == 1).all()
    far = (places[:, 2] > 0.2) & (places[:, 0] > -2.8)
    assert (labels[far] == -1).all()
    assert colour_and_place(looked_at).shape == (192, 11)
