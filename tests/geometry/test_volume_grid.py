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


def _corners(box: torch.Tensor) -> torch.Tensor:
    """(4, 2) corners of a box seen from above, in ascending order."""
    half = box[3:5] / 2 * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    cos, sin = box[6].cos(), box[6].sin()
    turned = torch.stack([half[:, 0] * cos - half[:, 1] * sin, half[:, 0] * sin + half[:, 1] * cos], 1) + box[:2]
    return turned[sorted(range(4), key=lambda row: [round(float(v), 4) for v in turned[row]])]


def _labelled() -> VolumeGrid:
    torch.manual_seed(0)
    boxes = torch.tensor([[1.0, 2, 1.5, 1, 2, 1, 0.3], [0.5, 1, 2, 0.5, 0.25, 1, -0.7]])
    return _grid(labels=torch.arange(24).reshape(2, 3, 4), boxes=boxes)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1, 5])
def test_quarter_turns_take_everything_along(quarters: int) -> None:
    grid = _labelled()
    turned = grid.turned(quarters)
    angle = torch.tensor(quarters * torch.pi / 2, dtype=torch.float64)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]], dtype=torch.float64)
    values = {tuple(c.round(decimals=6).tolist()): v for c, v in zip(_rows(turned.centres()), _rows(turned.rgb))}
    for centre, label, rgb in zip(_rows(grid.centres()), grid.labels.reshape(-1), _rows(grid.rgb)):
        place = (turn @ centre).round(decimals=6) + 0.0
        assert torch.equal(values[tuple(place.tolist())], rgb)
        index = tuple(((place - turned.low) / turned.voxel).long().tolist())
        assert turned.labels[index] == label
    spot = torch.cat([grid.boxes[:, :2].double() * grid.voxel[:2] + grid.low[:2], torch.zeros(2, 1)], 1) @ turn.T
    assert torch.allclose(turned.boxes[:, :2].double() * turned.voxel[:2] + turned.low[:2], spot[:, :2], atol=1e-6)
    for before, after in zip(grid.boxes, turned.boxes):
        moved = _corners(before).double() * grid.voxel[:2] + grid.low[:2]
        moved = torch.cat([moved, torch.zeros(4, 1)], 1) @ turn.T
        now = _corners(after).double() * turned.voxel[:2] + turned.low[:2]
        assert torch.cdist(moved[:, :2], now).min(1).values.max() < 1e-5  # float32 boxes


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 1, 2), ()])
def test_flips_take_everything_along(axes: tuple[int, ...]) -> None:
    grid = _labelled()
    flipped = grid.flipped(*axes)
    sign = torch.tensor([-1.0 if axis in axes else 1.0 for axis in range(3)], dtype=torch.float64)
    for centre, label in zip(_rows(grid.centres()), grid.labels.reshape(-1)):
        index = tuple(((centre * sign - flipped.low) / flipped.voxel).long().tolist())
        assert flipped.labels[index] == label
        assert torch.equal(flipped.rgb[index], grid.rgb.reshape(-1, 3)[int(label)])
    for before, after in zip(grid.boxes, flipped.boxes):
        moved = (_corners(before).double() * grid.voxel[:2] + grid.low[:2]) * sign[:2]
        now = _corners(after).double() * flipped.voxel[:2] + flipped.low[:2]
        assert torch.cdist(moved, now).min(1).values.max() < 1e-5  # float32 boxes
    again = flipped.flipped(*axes)
    assert torch.equal(again.values, grid.values)
    assert torch.allclose(again.boxes, grid.boxes)
    assert torch.equal(again.low, grid.low)


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 3)


@pytest.mark.parametrize("axes", [(3,), (0, 0), (-1,)])
def test_axes_that_are_none(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="axes to flip"):
        _labelled().flipped(*axes)
