"""Views of grids, against scenes that are computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_scenes import look_at

from geo3d.errors import InputError
from geo3d.geometry import Camera, VolumeGrid
from geo3d.reconstruction.grid_rendering import overview, render_grid

CAMERA = Camera.from_fov(33, 25, 0.6)


def _corners() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([-1.0, -2, 0]).double(), torch.tensor([3.0, 2, 2]).double()


def _empty() -> VolumeGrid:
    return VolumeGrid(torch.zeros(40, 40, 20, 3), torch.zeros(40, 40, 20), *_corners())


def test_an_empty_grid_shows_the_background() -> None:
    pose = torch.from_numpy(look_at((-0.9, 0.1, 1), (2, 0, 1)))
    colour, depth = render_grid(_empty(), CAMERA, pose, (0.2, 0.4, 0.6))
    assert torch.allclose(colour, torch.tensor([0.2, 0.4, 0.6]).expand_as(colour), atol=1e-3)
    assert (depth == 0).all()


@pytest.mark.parametrize("outside", [False, True])
def test_a_wall(outside: bool) -> None:
    """An opaque wall of one voxel more or less is where it is, in its colour, from within the grid or from outside."""
    grid = _empty()
    grid.opacity[30:32] = 0.999
    grid.rgb[30:32] = torch.tensor([0.9, 0.3, 0.1])
    eye = (-3.0 if outside else -0.5, 0, 1)
    colour, depth = render_grid(grid, CAMERA, torch.from_numpy(look_at(eye, (2, 0, 1))))
    seen = depth > 0
    assert seen[8:17, 8:25].all()
    assert torch.allclose(colour[12, 16], torch.tensor([0.9, 0.3, 0.1]), atol=0.02)
    # The wall begins at x = 2, halfway between the voxels 29 and 30; by depth along z it is level.
    assert (depth[8:17, 8:25] - (2 - eye[0])).abs().max() < 0.1


def test_opacity_is_that_of_a_side() -> None:
    """Light through n voxels of opacity a is dimmed to (1 - a)^n, whatever the size of voxels."""
    grid = _empty()
    grid.opacity[10:30] = 0.05
    pose = torch.from_numpy(look_at((-0.9, 0.05, 1.05), (2, 0.05, 1.05)))
    colour, depth = render_grid(grid, CAMERA, pose)
    # Ends of the block are soft over half a voxel.
    assert colour[12, 16] == pytest.approx([0.95**20] * 3, abs=0.02)
    assert depth[12, 16] > 0


def test_surfaces_have_no_dark_rims() -> None:
    grid = _empty()
    grid.opacity[30:32] = 0.999
    grid.rgb[30:32] = 1
    colour, _ = render_grid(grid, CAMERA, torch.from_numpy(look_at((0, 0, 1), (2, 0.3, 1))), (1, 1, 1))
    assert colour.min() > 0.97


def test_an_overview_of_a_room_is_from_the_corner_that_sees_farthest() -> None:
    """In a room with a floor and far walls, a pillar stands before each corner but one."""
    grid = _empty()
    for wall in (
        grid.opacity[:, :, :1],
        grid.opacity[:1],
        grid.opacity[-1:],
        grid.opacity[:, :1],
        grid.opacity[:, -1:],
    ):
        wall[:] = 0.999
    for x, y in ((8, 8), (8, 29), (29, 8)):
        grid.opacity[x : x + 3, y : y + 3] = 0.999
    camera, pose = overview(grid, 64, 48)
    assert (camera.width, camera.height) == (64, 48)
    torch.testing.assert_close(pose[:3, 3], torch.tensor([2.4, 1.4, 1.2]).double())
    assert render_grid(grid, camera, pose)[1].median() > 1
    with pytest.raises(InputError, match="corners"):
        overview(VolumeGrid(grid.rgb, grid.opacity))


def test_an_overview_stands_where_the_air_is_clear() -> None:
    """An object before a wall, fog behind it and above: seen from outside, from the open side."""
    grid = _empty()
    grid.opacity[:12] = grid.opacity[:, :, 11:] = 0.08
    grid.opacity[12] = grid.opacity[18:22, 16:24, 3:10] = 0.999
    camera, pose = overview(grid, 64, 48)
    torch.testing.assert_close(pose[:3, 3], torch.tensor([5.0, 0, 1]).double())
    depth = render_grid(grid, camera, pose)[1]
    # The object's face is at x = 1.2, 3.8 from the camera; the wall behind it at 0.3.
    assert depth[27, 32] == pytest.approx(3.8, abs=0.1)
    assert depth[27, 22] == pytest.approx(4.7, abs=0.1)


def test_a_grid_that_has_no_place() -> None:
    grid = VolumeGrid(torch.zeros(4, 4, 4, 3), torch.zeros(4, 4, 4))
    with pytest.raises(InputError, match="needs corners"):
        render_grid(grid, CAMERA, torch.from_numpy(np.eye(4)))
