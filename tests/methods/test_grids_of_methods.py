"""Grids as samples: turned, mirrored, cut at a random place, filled up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.methods.grids import GridSampleConfig, crop_grid, draw_grid
from geo3d.models.grid_encoder import fill_up


def _grid(*sides: int) -> VolumeGrid:
    """A grid whose colours are the place of a voxel."""
    along = [torch.arange(side, dtype=torch.float32) for side in sides]
    rgb = torch.stack(torch.meshgrid(*along, indexing="ij"), -1)
    boxes = torch.tensor([[2.0, 1.0, 3.0, 1, 1, 1, 0.2], [0.5, 0.5, 0.5, 1, 1, 1, 0]])
    corners = torch.zeros(3).double(), 0.5 * torch.tensor(sides).double()
    return VolumeGrid(rgb, rgb.sum(-1) / 100, *corners, labels=rgb.sum(-1).long(), boxes=boxes)


def test_a_part_says_where_it_is() -> None:
    part = crop_grid(_grid(6, 5, 9), (1, 0, 2), 4)
    assert part.sides == (4, 4, 4)
    assert part.rgb[0, 0, 0].tolist() == [1, 0, 2]
    assert part.low.tolist() == [0.5, 0, 1]
    assert part.voxel.tolist() == [0.5] * 3
    torch.testing.assert_close(part.boxes, torch.tensor([[1.0, 1, 1, 1, 1, 1, 0.2]]))
    assert torch.equal(part.labels, part.rgb.sum(-1).long())
    small = _grid(3, 2, 4)
    assert crop_grid(small, (0, 0, 0), 4) is small


def test_equal_generators_draw_equal_grids_and_all_ways_are_drawn() -> None:
    grid, config = _grid(8, 6, 5), GridSampleConfig("nerf_mae_tiny", side=5)
    drawn = [draw_grid(grid, config, np.random.default_rng(seed)) for seed in range(60)]
    again = draw_grid(grid, config, np.random.default_rng(7))
    assert torch.equal(drawn[7].rgb, again.rgb)
    assert all(max(one.sides) <= 5 for one in drawn)
    signs = {tuple((one.rgb[1, 1, 0] - one.rgb[0, 0, 0])[:2].tolist()) for one in drawn}
    assert len(signs) == 4  # with x and y exchanged and mirrored
    still = GridSampleConfig("nerf_mae_tiny", side=8, turn=0, mirror=0)
    assert draw_grid(grid, still, np.random.default_rng(0)) is grid


def test_filling_up_adds_at_the_far_ends() -> None:
    filled = fill_up(torch.ones(2, 1, 2, 3), (2, 4, 3), 5)
    assert filled.shape == (2, 2, 4, 3)
    assert filled[:, :1, :2].eq(1).all()
    assert filled[:, 1:].eq(5).all()


@pytest.mark.parametrize(("options", "message"), [({"side": 0}, "side"), ({"turn": 1.5}, "turn")])
def test_settings_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GridSampleConfig("nerf_mae_tiny", **options)
