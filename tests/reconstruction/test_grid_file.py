"""Radiance grids written and read back, by the package and as the published loader does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geo3d.datasets import open_dataset, read_grid
from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.reconstruction.grid_file import grid_path, write_classes, write_grid


def _grid() -> VolumeGrid:
    generator = torch.Generator().manual_seed(0)
    opacity = torch.rand(6, 5, 4, generator=generator)
    opacity[0] = 0
    opacity[1] = 1
    low, high = torch.tensor([1.0, -2, 0.5]).double(), torch.tensor([4.0, 0.5, 2.5]).double()
    labels = torch.randint(-1, 20, (6, 5, 4), generator=generator)
    boxes = torch.tensor([[3, 2, 1.5, 2, 1, 1, 0.25]])
    return VolumeGrid(torch.rand(6, 5, 4, 3, generator=generator), opacity, low, high, labels, boxes)


# Measured on rooms: 2.4e-4 and 7e-4 in half precision; 1e-6 is what opacity is held within.
@pytest.mark.parametrize(("precision", "colour", "opacity"), [("float16", 5e-4, 2e-3), ("float32", 1e-6, 2e-6)])
def test_round_trip(tmp_path, precision: str, colour: float, opacity: float) -> None:
    grid = _grid()
    path = write_grid(tmp_path / "new" / "scene.npz", grid, precision=precision, metric=False, made_by="test")
    back = read_grid(path)
    assert (back.rgb - grid.rgb).abs().max() < colour
    assert (back.opacity - grid.opacity).abs().max() < opacity
    assert torch.equal(back.labels, grid.labels)
    assert torch.equal(back.boxes, grid.boxes)
    assert torch.equal(back.low, grid.low)
    assert torch.equal(back.high, grid.high)
    assert [entry.name for entry in path.parent.iterdir()] == ["scene.npz"]


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_published_loader_reads_it(tmp_path, precision: str) -> None:
    """What the published loader does with a file of its own, in the file's precision."""
    grid = _grid()
    with np.load(write_grid(tmp_path / "scene.npz", grid, precision=precision), allow_pickle=False) as file:
        values = file["rgbsigma"]
        assert {"resolution", "bbox_min", "bbox_max", "scale", "offset", "from_mitsuba"} <= set(file.files)
        assert file["resolution"].tolist() == list(grid.sides)
    assert np.isfinite(values).all()
    alpha = np.clip(1 - np.exp(-np.exp(values[..., 3]) / 100), 0, 1)
    assert np.abs(alpha - grid.opacity.numpy()).max() < (3e-3 if precision == "float16" else 2e-6)


def test_without_corners_labels_and_boxes(tmp_path) -> None:
    grid = VolumeGrid(_grid().rgb, _grid().opacity)
    back = read_grid(write_grid(tmp_path / "scene.npz", grid))
    assert back.low is back.high is back.labels is back.boxes is None


def test_a_folder_of_them_is_a_dataset(tmp_path) -> None:
    for name in ("7/1a", "room"):
        write_grid(grid_path(tmp_path, name), _grid(), metric=name == "room")
    write_classes(tmp_path, [f"class {i}" for i in range(20)])
    write_classes(tmp_path, [f"class {i}" for i in range(20)])
    dataset = open_dataset(tmp_path)
    assert list(dataset.scene_names) == ["7_1a", "room"]
    assert [scene.metric for scene in dataset] == [False, True]
    assert dataset.classes[3] == "class 3"
    with pytest.raises(InputError, match="names other classes"):
        write_classes(tmp_path, ["wall"])


def test_what_cannot_be_written(tmp_path) -> None:
    grid = _grid()
    with pytest.raises(InputError, match=r"written to a \.npz file"):
        write_grid(tmp_path / "scene.npy", grid)
    with pytest.raises(InputError, match="precision 'float64' is unknown; give one of float16, float32"):
        write_grid(tmp_path / "scene.npz", grid, precision="float64")
    grid.labels[0, 0, 0] = 1 << 20
    with pytest.raises(InputError, match="labels must lie in -1 to 32767"):
        write_grid(tmp_path / "scene.npz", grid)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_grid(tmp_path / "file" / "scene.npz", _grid())
    assert not list(tmp_path.glob("*.npz"))
