"""voxelize against grids whose cells are known, and against a dictionary of cells."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops import voxel_mean, voxelize
from geo3d.ops.voxelize import voxelize_reference


def _by_reference(xyz: Tensor, offsets: Tensor, voxel_size: float) -> tuple[Tensor, Tensor, Tensor]:
    origin = torch.zeros(len(offsets) - 1, 3, dtype=torch.float64)
    return voxelize_reference(xyz, offsets, origin, None, voxel_size)


_IMPLEMENTATIONS = [
    pytest.param(voxelize, id="operator"),  # the kernel, where it is built
    pytest.param(_by_reference, id="reference"),
]


def _points(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _by_dictionary(xyz: Tensor, offsets: Tensor, voxel_size: float) -> tuple[list[list[int]], list[int], list[int]]:
    """Cells in the words of the definition, one point after the other."""
    members = defaultdict(list)
    ends = offsets.tolist()
    for scene, (begin, end) in enumerate(pairwise(ends)):
        for row in range(begin, end):
            members[(scene, *(math.floor(c / voxel_size) for c in xyz[row].tolist()))].append(row)
    keys = sorted(members)
    inverse = [0] * len(xyz)
    for voxel, key in enumerate(keys):
        for row in members[key]:
            inverse[row] = voxel
    return [list(key) for key in keys], inverse, [members[key][0] for key in keys]


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("voxel_size", [0.02, 0.3, 50.0])
def test_against_a_dictionary(function, dtype: torch.dtype, voxel_size: float) -> None:
    xyz, offsets = _points(600, dtype=dtype), torch.tensor([0, 0, 250, 600, 600])
    results = function(xyz, offsets, voxel_size)
    assert [r.dtype for r in results] == [torch.int32, torch.int64, torch.int64]
    assert tuple(r.tolist() for r in results) == _by_dictionary(xyz, offsets, voxel_size)


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
def test_a_grid_of_points_fills_a_known_number_of_cells(function) -> None:
    axis = torch.arange(-8, 8) / 8 + 1 / 16  # exact in float32: two points a cell and axis, four cells to each side
    xyz = torch.cartesian_prod(axis, axis, axis)
    coords, inverse, index = function(xyz, torch.tensor([0, len(xyz)]), 0.25)
    cells = torch.arange(-4, 4, dtype=torch.int32)
    assert torch.equal(coords[:, 1:], torch.cartesian_prod(cells, cells, cells))
    assert torch.bincount(inverse).tolist() == [8] * 512
    assert torch.equal(inverse[index], torch.arange(512))


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
def test_cells_round_down_and_hold_their_lower_face(function) -> None:
    x = torch.tensor([-0.5001, -0.5, -1e-6, -0.0, 0.0, 0.4999, 0.5])
    coords, inverse, _ = function(torch.stack([x] * 3, 1), torch.tensor([0, 7]), 0.5)
    assert coords[inverse, 1].tolist() == [-2, -1, -1, 0, 0, 0, 1]


def test_arithmetic_is_that_of_float64() -> None:
    """Points next to the faces of cells fall where Python's floats say."""
    x = (torch.arange(-3000, 3000) * 0.1).float()
    coords, inverse, _ = voxelize(torch.stack([x] * 3, 1), torch.tensor([0, len(x)]), 0.1)
    assert coords[inverse, 1].tolist() == [math.floor(value / 0.1) for value in x.tolist()]


@pytest.mark.parametrize("origin", [(0.5, -1.0, 2.0), torch.tensor([0.5, -1.0, 2.0])])
def test_the_origin_is_a_corner_of_cell_zero(origin) -> None:
    xyz = torch.tensor([[0.5, -1.0, 2.0], [0.49, -1.01, 1.99], [1.5, 0.0, 3.0]])
    coords, inverse, _ = voxelize(xyz, torch.tensor([0, 3]), 1.0, origin)
    assert coords[inverse, 1:].tolist() == [[0, 0, 0], [-1, -1, -1], [1, 1, 1]]


def test_each_scene_can_have_an_origin() -> None:
    xyz = _points(100)
    origins = torch.stack([xyz[:40].amin(0), xyz[40:].amin(0)])
    coords, _, _ = voxelize(xyz, torch.tensor([0, 40, 100]), 0.1, origins)
    for scene in range(2):
        assert coords[coords[:, 0] == scene, 1:].amin(0).tolist() == [0, 0, 0]


def test_a_scene_is_cut_as_if_it_were_alone() -> None:
    parts = [_points(100, 1), _points(0), _points(50, 2)]
    coords, inverse, index = voxelize(torch.cat(parts), torch.tensor([0, 100, 100, 150]), 0.3)
    alone = [voxelize(part, torch.tensor([0, len(part)]), 0.3) for part in parts]
    sizes = [len(c) for c, _, _ in alone]
    assert torch.equal(coords[:, 1:], torch.cat([c[:, 1:] for c, _, _ in alone]))
    assert torch.equal(coords[:, 0], torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor(sizes)).int())
    assert torch.equal(inverse, torch.cat([alone[0][1], alone[2][1] + sizes[0]]))
    assert torch.equal(index, torch.cat([alone[0][2], alone[2][2] + 100]))


def test_voxels_do_not_depend_on_the_order_of_points() -> None:
    xyz, offsets = _points(2000), torch.tensor([0, 2000])
    permutation = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    coords, inverse, _ = voxelize(xyz, offsets, 0.3)
    coords_of_permuted, inverse_of_permuted, index = voxelize(xyz[permutation], offsets, 0.3)
    assert torch.equal(coords_of_permuted, coords)
    assert torch.equal(inverse_of_permuted, inverse[permutation])
    for voxel, row in enumerate(index.tolist()):
        assert row == int((inverse_of_permuted == voxel).nonzero()[0])


def test_random_points_are_reproducible_and_all_get_their_turn() -> None:
    xyz, offsets = torch.rand(64, 3), torch.tensor([0, 64])  # one cell with 64 points
    chosen = []
    for seed in range(2000):
        _, _, index = voxelize(xyz, offsets, 1.0, mode="random", generator=torch.Generator().manual_seed(seed))
        chosen.append(int(index))
    again = voxelize(xyz, offsets, 1.0, mode="random", generator=torch.Generator().manual_seed(1999))
    assert int(again[2]) == chosen[-1]
    counts = torch.bincount(torch.tensor(chosen), minlength=64)
    # 31.25 a point expected; chi squared with 63 degrees of freedom exceeds 113 once in 10,000 (these seeds are fixed).
    assert ((counts - 31.25).square() / 31.25).sum() < 113


def test_random_points_lie_in_their_voxels() -> None:
    xyz, offsets = _points(3000), torch.tensor([0, 1000, 3000])
    first = voxelize(xyz, offsets, 0.5)
    random = voxelize(xyz, offsets, 0.5, mode="random", generator=torch.Generator().manual_seed(0))
    assert torch.equal(random[0], first[0])
    assert torch.equal(random[1], first[1])
    assert torch.equal(random[1][random[2]], torch.arange(len(random[0])))
    assert not torch.equal(random[2], first[2])


def test_mean_over_voxels_and_its_gradient() -> None:
    xyz, offsets = _points(300), torch.tensor([0, 100, 300])
    coords, inverse, index = voxelize(xyz, offsets, 0.5, mode="mean")
    assert torch.equal(index, voxelize(xyz, offsets, 0.5)[2])
    values = torch.randn(300, 4, dtype=torch.float64, requires_grad=True)
    mean = voxel_mean(values, inverse, len(coords))
    for voxel in range(len(coords)):
        torch.testing.assert_close(mean[voxel], values[inverse == voxel].mean(0))
    mean.sum().backward()
    counts = torch.bincount(inverse)
    torch.testing.assert_close(values.grad, (1 / counts[inverse].double()).unsqueeze(1).expand(-1, 4))
    half = voxel_mean(values.detach().half(), inverse, len(coords))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), mean.detach(), rtol=2e-3, atol=2e-3)  # values and result round to 2**-11


def test_threads_do_not_change_the_result() -> None:
    xyz, offsets = _points(60000), torch.tensor([0, 100, 30000, 60000])
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        results.append(voxelize(xyz, offsets, 0.1, mode="random", generator=generator))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_a_batch_of_65536_scenes() -> None:
    xyz = torch.full((2**16, 3), 2.0**20 - 1)
    coords, _, _ = voxelize(xyz, torch.arange(2**16 + 1), 1.0)
    assert torch.equal(coords[:, 0], torch.arange(2**16, dtype=torch.int32))
    with pytest.raises(ValueError, match="for up to 65536 scenes"):
        voxelize(xyz, torch.arange(2**16 + 2), 1.0)


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
def test_unusable_points_are_counted_and_the_first_is_named(function) -> None:
    xyz = _points(50)
    xyz[[7, 20, 41], [0, 2, 1]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    xyz[3] = 1e9
    with pytest.raises(InputError, match=r"^voxelize: 3 of 50 points are not finite, the first in row 7; remove"):
        function(xyz, torch.tensor([0, 50]), 0.1)
    with pytest.raises(InputError, match=r"^voxelize: 1 of 4 points lie over 1048576 voxels .* the first in row 3;"):
        function(xyz[:4], torch.tensor([0, 4]), 0.1)


def test_random_needs_a_generator_and_modes_are_known() -> None:
    xyz, offsets = _points(5), torch.tensor([0, 5])
    with pytest.raises(InputError, match="mode 'random' needs a generator"):
        voxelize(xyz, offsets, 0.1, mode="random")
    with pytest.raises(InputError, match="one of first, random, mean, got 'median'"):
        voxelize(xyz, offsets, 0.1, mode="median")
