"""The linear probe over radiance grids: maps looked up where voxels are, and grids whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from geo3d import InputError, create_model, save_model
from geo3d.geometry import VolumeGrid
from geo3d.probe import run_probe
from geo3d.probe.grids import GridRows, grid_input_features, look_up
from geo3d.probe.linear_probe import LinearProbeConfig
from geo3d.reconstruction.grid_file import write_classes, write_grid

CLASSES = ("red", "green", "blue")


def make_grid(seed: int, labelled: bool = True) -> VolumeGrid:
    """Boxes of one colour each in an empty grid; the colour is the class."""
    generator = torch.Generator().manual_seed(seed)
    rgb, opacity = torch.zeros(24, 16, 16, 3), torch.zeros(24, 16, 16)
    labels = torch.full((24, 16, 16), -1)
    for _ in range(9):
        x, y, z = (int(torch.randint(side - 4, (1,), generator=generator)) for side in opacity.shape)
        kind = int(torch.randint(3, (1,), generator=generator))
        place = slice(x, x + 4), slice(y, y + 4), slice(z, z + 4)
        rgb[place], opacity[place], labels[place] = torch.eye(3)[kind], 1, kind
    corners = torch.zeros(3).double(), torch.tensor([2.4, 1.6, 1.6]).double()
    return VolumeGrid(rgb, opacity, *corners, labels=labels if labelled else None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("grids")
    for number in range(10):
        write_grid(root / "features" / f"scene{number:02d}.npz", make_grid(number))
    write_classes(root, CLASSES)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "nerf_mae.safetensors"
    save_model(create_model("nerf_mae_tiny", depths=(1, 1, 1, 1), generator=torch.Generator().manual_seed(0)), path)
    return path


def test_a_map_is_looked_up_where_the_voxel_is() -> None:
    """A map that is linear in the place gives the place of every voxel between the outermost centres of cells."""
    stride, cells = 4, (5, 4, 3)
    along = [stride * (torch.arange(count) + 0.5) for count in cells]
    place = torch.stack(torch.meshgrid(*along, indexing="ij")).unsqueeze(0)
    rows = torch.tensor([[2, 2, 2], [9, 13, 7], [17, 6, 9]])
    torch.testing.assert_close(look_up(place, rows, stride), rows + 0.5)
    edge = look_up(place, torch.tensor([[0, 0, 11]]), stride)
    torch.testing.assert_close(edge, torch.tensor([[2.0, 2, 10]]))


def test_input_features_are_colour_opacity_and_height() -> None:
    grid = make_grid(0)
    rows = (grid.labels == 1).nonzero()[:1]
    expected = torch.tensor([[0, 1, 0, 1, (rows[0, 2].item() + 0.5) / 16]])
    torch.testing.assert_close(grid_input_features(GridRows(grid, rows)), expected)


def test_a_class_that_is_the_colour_is_read_off(folder: Path, checkpoint: Path) -> None:
    said: list[str] = []
    config = LinearProbeConfig(checkpoint=checkpoint, data=(folder,), voxels_per_scene=200)
    scores = run_probe("linear", config, said.append)
    assert scores["input features"].miou == scores["input features"].accuracy == 1
    assert scores["input features"].columns == 5
    assert scores["checkpoint"].columns == 5 + 48 + 96 + 192 + 384
    assert scores["checkpoint"].accuracy > 0.95  # colours are among what is read
    assert "9 scenes to learn from, 1 held out; voxels of their grids" in said[0]


def test_what_is_no_labelled_grid_is_named(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="voxel_size is of networks over sparse voxels"):
        run_probe("linear", LinearProbeConfig(checkpoint=checkpoint, data=(folder,), voxel_size=0.1), print)
    write_grid(tmp_path / "features" / "bare.npz", make_grid(0, labelled=False))
    with pytest.raises(InputError, match="does not name the classes"):
        run_probe("linear", LinearProbeConfig(checkpoint=checkpoint, data=(tmp_path,)), print)
    for number in range(10):
        write_grid(tmp_path / "features" / f"bare{number}.npz", make_grid(0, labelled=False))
    write_classes(tmp_path, CLASSES)
    with pytest.raises(InputError, match="none of the scenes can be read"):
        run_probe("linear", LinearProbeConfig(checkpoint=checkpoint, data=(tmp_path,)), said_nothing)


def said_nothing(_: str) -> None:
    """No line."""
