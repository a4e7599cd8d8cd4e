"""Grids of radiance fields: fog and slabs whose picture is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geo3d.errors import InputError
from geo3d.reconstruction.field_box import FieldBox
from geo3d.reconstruction.radiance_grid import RadianceGrid

_BOX = FieldBox((-1.0, -2.0, 0.0), (1.0, 2.0, 1.0))


def _raw_density(grid: RadianceGrid, density: float) -> float:
    """Raw value of a density per metre."""
    return math.log(math.expm1(density / grid.scale)) - grid.shift


def _fog(density: float, colour: float = 0.25, border: float = 0.0) -> RadianceGrid:
    grid = RadianceGrid.empty(FieldBox(_BOX.low, _BOX.high, border), 16)
    grid.values[..., 0] = _raw_density(grid, density)
    grid.values[..., 1:] = math.log(colour / (1 - colour))
    return grid


def test_a_new_grid_is_a_faint_fog_of_cubic_voxels() -> None:
    grid = RadianceGrid.empty(_BOX, 32)
    assert tuple(grid.values.shape) == (16, 32, 8, 4)
    assert grid.step == pytest.approx(4 / 32)
    seen = grid.see(torch.tensor([[0.0, -3.0, 0.5]]), torch.tensor([[0.0, 1.0, 0.0]]))
    assert float(seen.opacity) == pytest.approx(1 - math.exp(-0.128), rel=1e-4)  # 128 voxels of a thousandth
    assert float(seen.colours[0, 0]) == pytest.approx(0.5 * float(seen.opacity), rel=1e-5)


def test_fog_stops_light_by_its_depth() -> None:
    grid = _fog(0.7)
    seen = grid.see(torch.tensor([[0.0, -5.0, 0.5], [0.0, 0.0, 0.5]]), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    expected = 1 - torch.exp(-0.7 * torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(seen.opacity, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(seen.colours, 0.25 * expected[:, None].expand(-1, 3), rtol=1e-5, atol=0)
    # The mean of where light is stopped in a stretch of length L: 1 / d - L / (exp(d L) - 1), from 3 m on.
    mean = 3 + 1 / 0.7 - 4 / math.expm1(0.7 * 4)
    assert float(seen.distances[0]) == pytest.approx(mean, rel=2e-3)  # samples of a quarter of a metre
    assert len(grid.see(torch.zeros(0, 3), torch.zeros(0, 3)).opacity) == 0


def test_a_finer_grid_is_the_same_field() -> None:
    grid = RadianceGrid.empty(_BOX, 16)
    grid.values.copy_(torch.arange(16)[None, :, None, None].float().expand(grid.values.shape))
    finer = grid.refined(32)
    expected = (torch.arange(32) + 0.5) / 2 - 0.5
    torch.testing.assert_close(finer.values[3, 1:-1, 2, 1], expected[1:-1])
    assert tuple(finer.values.shape) == (16, 32, 8, 4)


@pytest.mark.parametrize(("border", "longest"), [(0.0, 8), (0.0, 16), (0.5, 5), (0.5, 30)])
def test_fog_is_read_off_as_the_opacity_of_a_voxel(border: float, longest: int) -> None:
    volume = _fog(0.7, border=border).to_volume(longest)
    assert volume.sides == (round(longest / 2), longest, max(1, round(longest / 4)))
    side = float(volume.voxel.min())
    torch.testing.assert_close(volume.opacity, torch.full(volume.sides, 1 - math.exp(-0.7 * side)), rtol=1e-4, atol=0)
    torch.testing.assert_close(volume.rgb, torch.full((*volume.sides, 3), 0.25), rtol=1e-4, atol=0)
    assert (volume.low.tolist(), volume.high.tolist()) == ([-1, -2, 0], [1, 2, 1])


def test_a_larger_voxel_holds_what_lies_in_it() -> None:
    """A slab thinner than the voxel between two of its sample points is neither lost nor doubled."""
    grid = RadianceGrid.empty(_BOX, 16)
    grid.values[..., 0] = _raw_density(grid, 0.1)
    grid.values[:, 9, :, 0] = _raw_density(grid, 8.0)
    grid.values[:, 9, :, 1], grid.values[:, 9, :, 2:] = 3.0, -3.0
    fine, coarse = grid.to_volume(16), grid.to_volume(4)
    assert fine.opacity[4, 9, 2] == pytest.approx(1 - math.exp(-8.0 * 0.25), rel=1e-3)
    # softplus of a trilinear ramp has no closed form: the density's mean over 16 quarter voxels, by many samples.
    ramp = torch.linspace(0, 1, 20001, dtype=torch.float64)
    raw = torch.lerp(grid.values[0, 8, 0, 0].double(), grid.values[0, 9, 0, 0].double(), ramp)
    half = grid.scale * torch.nn.functional.softplus(raw + grid.shift)
    inside = half.mean() * 0.25 * 2 + 0.1 * 0.5  # both ramps lie in the voxel of four: nodes 8 to 11
    assert coarse.opacity[1, 2, 0] == pytest.approx(1 - math.exp(-float(inside)), rel=0.08)
    assert coarse.opacity[1, 1, 0] == pytest.approx(1 - math.exp(-0.1), rel=1e-3)
    assert coarse.rgb[1, 2, 0, 0] > 0.8 > 0.2 > coarse.rgb[1, 2, 0, 1]


def test_a_part_is_read_off_by_its_corners() -> None:
    grid = _fog(0.7)
    part = grid.to_volume(8, low=(-0.5, 0.0, 0.0), high=(0.5, 1.0, 0.5))
    assert part.sides == (8, 8, 4)
    beyond = grid.to_volume(8, low=(-3.0, -2.0, 0.0), high=(1.0, 2.0, 1.0))
    assert (beyond.opacity[:4] == 0).all()
    assert (beyond.opacity[4:] > 0.2).all()
    for wrong in ({"low": (1, 1, 1), "high": (0, 2, 2)}, {"longest_side": 0}):
        with pytest.raises(InputError):
            grid.to_volume(**wrong)
    with pytest.raises(InputError, match="sides at least 4"):
        RadianceGrid(_BOX, torch.zeros(3, 8, 8, 4))


def test_the_surroundings_are_seen_from_within() -> None:
    """What is painted on directions far outside is seen there: half a sky of each colour."""
    grid = RadianceGrid.empty(FieldBox((-1, -1, -1), (1, 1, 1), 0.5), 24)
    grid.values[..., 0] = _raw_density(grid, 1e-6)
    shell = torch.ones(24, 24, 24, dtype=torch.bool)
    shell[2:-2, 2:-2, 2:-2] = False
    grid.values[..., 0][shell] = _raw_density(grid, 3.0)
    grid.values[12:, ..., 1], grid.values[:12, ..., 1] = 4.0, -4.0
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    directions = directions[directions[:, 0].abs() > 0.3]
    seen = grid.see(torch.zeros_like(directions), directions)
    assert (seen.opacity > 0.99).all()
    assert torch.equal(seen.colours[:, 0] > 0.5, directions[:, 0] > 0)
    # The inner face of the shell is node 2: contracted 1.5 (1 - 5 / 24) = 1.19, uncontracted 0.5 / (1.5 - 1.19) = 1.6.
    assert (seen.distances * directions.abs().amax(1) > 1.2).all()


def test_empty_cells_change_no_picture_to_speak_of() -> None:
    grid = RadianceGrid.empty(_BOX, 32)
    grid.values[..., 0] = _raw_density(grid, 1e-4)
    grid.values[8:, :, :, 0] = _raw_density(grid, 50.0)
    origins, directions = torch.tensor([[-0.9, y, 0.5] for y in np.linspace(-1, 1, 5)]), torch.tensor([[1.0, 0, 0]] * 5)
    origins = origins.float()
    before = grid.see(origins, directions)
    grid.look_for_empty_cells()
    assert 0 < int(grid.occupancy.sum()) < grid.occupancy.numel()
    after = grid.see(origins, directions)
    torch.testing.assert_close(after.opacity, before.opacity, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.distances, before.distances, atol=1e-3, rtol=0)
