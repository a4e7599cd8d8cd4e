"""VolumeGrid: what it holds, where its voxels are, and fields that do not fit."""

from __future__ import annotations

import pytest
import torch

from geo3d.geometry import VolumeGrid

LOW, HIGH = torch.tensor([-1.0, 0, 2], dtype=torch.float64), torch.tensor([1.0, 3, 6], dtype=torch.float64)


def _grid(**fields) -> VolumeGrid:
    known = {"rgb": torch.rand(2, 3, 4, 3), "opacity": torch.rand(2, 3, 4), "low": LOW, "high": HIGH}
    return VolumeGrid(**{**known, **fields})


def test_where_the_voxels_are() -> None:
    grid = _grid()
    assert grid.sides == (2, 3, 4)
    assert grid.voxel.tolist() == [1, 1, 1]
    assert grid.centres()[1, 2, 3].tolist() == [0.5, 2.5, 5.5]


def test_values_and_back() -> None:
    grid = _grid(labels=torch.zeros(2, 3, 4, dtype=torch.int64))
    assert grid.values.shape == (4, 2, 3, 4)
    back = VolumeGrid.of_values(grid.values, grid)
    for name, value in grid.to_numpy().items():
        assert (back.to_numpy()[name] == value).all()
    again = VolumeGrid.from_numpy(grid.to_numpy())
    assert torch.equal(again.values, grid.values)
    assert VolumeGrid.of_values(grid.values).low is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rgb": torch.rand(2, 3, 4)}, "rgb"),
        ({"labels": torch.zeros(2, 3)}, "labels"),
        ({"boxes": torch.zeros(3, 6)}, "boxes"),
        ({"low": torch.zeros(2)}, "low"),
        ({"high": None}, "both corners"),
        ({"low": HIGH, "high": LOW}, "beyond"),
    ],
)
def test_fields_that_do_not_fit(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _grid(**fields)


def test_corners_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="not known"):
        _grid(low=None, high=None).centres()
