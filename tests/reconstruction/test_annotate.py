"""Classes of voxels and boxes of objects, against shapes whose place is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geo3d.datasets import Mesh, MissingPart, Scene
from geo3d.geometry import PointCloud, VolumeGrid
from geo3d.reconstruction.annotate import annotate, object_boxes, smallest_rectangle, voxel_labels

CLASSES = ("wall", "floor", "table")


def _turned(points: np.ndarray, yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[cos, sin], [-sin, cos]])


@pytest.mark.parametrize("yaw", [-0.7, -0.2, 0.0, 0.3, 0.75, 1.2, 3.0])
def test_the_smallest_rectangle_is_found(yaw: float) -> None:
    rng = np.random.default_rng(3)
    inside = rng.uniform(-1, 1, (200, 2)) * [2, 0.5]
    corners = np.array([[-2, -0.5], [-2, 0.5], [2, -0.5], [2, 0.5]])
    points = _turned(np.concatenate([inside, corners]), yaw) + np.array([3, -1])
    centre, sides, found = smallest_rectangle(points)
    assert centre == pytest.approx([3, -1])
    assert -np.pi / 4 <= found < np.pi / 4
    quarters = round((yaw - found) / (np.pi / 2))
    assert found == pytest.approx(yaw - quarters * np.pi / 2, abs=1e-9)
    assert sides == pytest.approx([4, 1] if quarters % 2 == 0 else [1, 4])


def test_rectangles_of_lines_and_single_points() -> None:
    centre, sides, yaw = smallest_rectangle(np.array([[0.0, 0], [1, 1], [2, 2], [2, 2]]))
    assert centre == pytest.approx([1, 1])
    assert sorted(sides) == pytest.approx([0, np.sqrt(8)])
    assert abs(yaw) == pytest.approx(np.pi / 4)
    centre, sides, _ = smallest_rectangle(np.full((5, 2), 3.0))
    assert centre.tolist() == [3, 3]
    assert sides.tolist() == [0, 0]


def _block(rng: np.random.Generator, sides, yaw: float, centre) -> np.ndarray:
    """Points of the surface and inside of a box, its corners among them."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    points = np.concatenate([rng.uniform(-1, 1, (300, 3)), corners]) * np.array(sides) / 2
    return np.concatenate([_turned(points[:, :2], yaw), points[:, 2:]], 1) + centre


def test_boxes_of_objects() -> None:
    rng = np.random.default_rng(0)
    things = {
        0: (_block(rng, (8, 3, 4), 0.4, (20, 10, 5)), 2),
        3: (_block(rng, (30, 40, 0), 0.0, (16, 20, 19)), 1),  # a floor is a surface
        5: (_block(rng, (30, 38, 1), 0.0, (16, 20, 18)), -1),  # what covers all the plan and has no name is no object
        6: (_block(rng, (4, 4, 4), 0.1, (32, 40, 10)), -1),  # nor is what lies mostly outside
        7: (_block(rng, (5, 6, 0.2), -0.3, (9, 20, 1)), -1),
        8: (np.full((5, 3), 7.0), 2),  # too few points
    }
    xyz = np.concatenate([points for points, _ in things.values()])
    instance = np.concatenate([np.full(len(points), number) for number, (points, _) in things.items()])
    semantic = np.concatenate([np.full(len(points), kind) for points, kind in things.values()])
    shuffled = rng.permutation(len(xyz))
    boxes = object_boxes(xyz[shuffled], instance[shuffled], semantic[shuffled], (32, 40, 20), surfaces=(0, 1))
    assert len(boxes) == 2
    assert boxes[0].tolist() == pytest.approx([20, 10, 5, 8, 3, 4, 0.4], abs=1e-5)  # float32
    assert boxes[1].tolist() == pytest.approx([9, 20, 1, 5, 6, 1, -0.3], abs=1e-5)  # at least a voxel high


class _Table(Scene):
    """A floor and a square table on one leg, as a mesh."""

    name, root, parts = "table", Path("memory"), frozenset({"mesh", "labels"})

    def mesh(self) -> Mesh:
        sheets = [((-2, 2), 0.0, 1), ((-0.5, 0.5), 1.0, 2)]
        vertices, faces, labels = [], [], []
        for (low, high), z, label in sheets:
            first = len(vertices)
            vertices += [(low, low, z), (high, low, z), (high, high, z), (low, high, z)]
            faces += [(first, first + 1, first + 2), (first, first + 2, first + 3)]
            labels += [label] * 4
        vertices = np.array(vertices, np.float32)
        labels = np.array(labels)
        return Mesh(vertices, np.array(faces), semantic=labels, instance=labels)


def _grid() -> VolumeGrid:
    low, high = torch.tensor([-2.0, -2, -0.5]).double(), torch.tensor([2.0, 2, 1.5]).double()
    grid = VolumeGrid(torch.rand(32, 32, 16, 3), torch.zeros(32, 32, 16), low, high)
    grid.opacity[:, :, 3:5] = 0.9  # the floor at z = 0, between voxels 3 and 4
    grid.opacity[12:20, 12:20, 12] = 0.5  # the table, within reach of voxel 12
    grid.opacity[2, 2, 9] = 0.9  # nothing is near
    return grid


def test_labels_of_a_mesh(monkeypatch) -> None:
    monkeypatch.setattr("geo3d.reconstruction.annotate.FEWEST_POINTS", 4)
    grid = annotate(_grid(), _Table(), CLASSES)
    assert (grid.labels[:, :, 3:5] == 1).all()
    assert (grid.labels[12:20, 12:20, 12] == 2).all()
    assert grid.labels[2, 2, 9] == -1
    assert (grid.labels[grid.opacity == 0] == -1).all()
    assert len(grid.boxes) == 1
    assert grid.boxes[0, :6].tolist() == pytest.approx([16, 16, 12, 8, 8, 1], abs=1e-5)


def test_labels_of_points() -> None:
    class Points(_Table):
        parts = frozenset({"points", "labels"})

        def points(self) -> PointCloud:
            return PointCloud(torch.tensor([[0.0, 0, 0], [0.9, 0, 0]]), semantic=torch.tensor([1, 2]))

    grid = annotate(_grid(), Points(), CLASSES)
    assert grid.boxes is None
    assert set(grid.labels.unique().tolist()) == {-1, 1, 2}
    voxel = grid.centres()
    for label, place in ((1, 0.0), (2, 0.9)):
        apart = (voxel[grid.labels == label] - torch.tensor([place, 0, 0])).norm(dim=1)
        assert apart.max() <= 1.75 * 0.125 + 1e-9


def test_nothing_to_label() -> None:
    empty = VolumeGrid(torch.zeros(2, 2, 2, 3), torch.zeros(2, 2, 2), torch.zeros(3).double(), torch.ones(3).double())
    assert (voxel_labels(empty, np.zeros((1, 3)), np.zeros(1)) == -1).all()
    scene = _Table()
    scene.parts = frozenset({"mesh"})
    with pytest.raises(MissingPart, match="no labels"):
        annotate(_grid(), scene)
