"""Pictures of grids whose pixels are known."""

from __future__ import annotations

import torch

from geo3d.viz.grids import seen_along, slice_of


def _values() -> torch.Tensor:
    """A red opaque voxel at (1, 0, 2), below it a green one that lets half the light through, in 3 x 2 x 4 voxels."""
    values = torch.zeros(4, 3, 2, 4)
    values[:, 1, 0, 2] = torch.tensor([1.0, 0, 0, 1])
    values[:, 1, 0, 1] = torch.tensor([0, 1, 0, 0.5])
    return values


def test_a_slice_has_its_last_axis_upwards() -> None:
    picture = slice_of(_values(), 1, 0)
    assert picture.shape == (4, 3, 3)
    assert picture[1, 1].tolist() == [255, 0, 0]  # z = 2 is the second row from above
    assert picture[2, 1].tolist() == [128, 255, 128]
    assert (picture.reshape(-1, 3) == 255).all(1).sum() == 10
    assert slice_of(_values(), 0).tolist() == slice_of(_values(), 0, 1).tolist()


def test_what_is_seen_from_above_hides_what_is_below() -> None:
    assert seen_along(_values(), 2)[1, 1].tolist() == [255, 0, 0]  # y = 0 is the lower row
    assert seen_along(_values(), 2, 0, 0.5)[1, 1].tolist() == [128, 255, 128]  # without the upper half
    assert seen_along(_values(), 2).shape == (2, 3, 3)
    assert seen_along(_values() * 2 - 0.0, 0).max() == 255
