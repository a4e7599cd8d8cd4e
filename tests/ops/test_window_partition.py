"""window_partition against what is known of windows, and against a dictionary of cells."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from geo3d.ops import window_partition
from geo3d.ops.window_partition import sort_cells, window_cells, window_partition_reference

_IMPLEMENTATIONS = [
    pytest.param(window_partition, id="operator"),  # the kernel, where it is built
    pytest.param(window_partition_reference, id="reference"),
]


def _windows(order: Tensor, offsets: Tensor) -> list[list[int]]:
    rows, ends = order.tolist(), offsets.tolist()
    return [rows[a:b] for a, b in pairwise(ends)]


def _by_dictionary(coords: Tensor, stride: int, window: int, shift: bool) -> list[list[int]]:
    """Windows in the words of the definition, with Python's whole numbers."""
    s = window // 2 if shift else 0
    members = defaultdict(list)
    for row, (batch, *xyz) in enumerate(coords.tolist()):
        members[(batch, *((c // stride + s) // window for c in xyz))].append(row)
    return [members[key] for key in sorted(members)]


def _random_coords(seed: int, count: int, reach: int, scenes: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-reach, reach + 1, (count, 3), generator=generator)
    return torch.cat([torch.randint(0, scenes, (count, 1), generator=generator), xyz], 1).int()


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
@pytest.mark.parametrize("shift", [False, True], ids=["regular", "shifted"])
@pytest.mark.parametrize(("stride", "window"), [(1, 5), (1, 7), (3, 5), (6, 7), (2, 1), (1, 4)])
@pytest.mark.parametrize(("count", "reach", "scenes"), [(1, 9, 1), (400, 12, 3), (300, 2**20, 65536)])
def test_against_a_dictionary(
    function, shift: bool, stride: int, window: int, count: int, reach: int, scenes: int
) -> None:
    for seed in range(3):
        coords = _random_coords(seed, count, reach, scenes)
        order, offsets = function(coords, stride, window, shift)
        assert (order.dtype, offsets.dtype) == (torch.int64, torch.int64)
        assert _windows(order, offsets) == _by_dictionary(coords, stride, window, shift)


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
def test_full_grids_have_known_windows(function) -> None:
    axis = torch.arange(14, dtype=torch.int32)
    grid = torch.cartesian_prod(torch.tensor([0], dtype=torch.int32), axis, axis, axis)
    _, regular = function(grid, 1, 7, False)
    assert regular.diff().tolist() == [343] * 8
    _, shifted = function(grid, 1, 7, True)  # moved by 3: cells 0 to 3, 4 to 10 and 11 to 13 of each axis
    sides = torch.tensor([4, 7, 3])
    assert shifted.diff().tolist() == torch.cartesian_prod(sides, sides, sides).prod(1).tolist()


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
@pytest.mark.parametrize(("window", "shift"), [(5, 2), (7, 3), (4, 2), (1, 0)])
def test_the_shift_is_half_a_window_rounded_down(function, window: int, shift: int) -> None:
    x = torch.arange(-20, 20, dtype=torch.int32)
    coords = torch.stack([torch.zeros_like(x), x, torch.zeros_like(x), torch.zeros_like(x)], 1)
    _, offsets = function(coords, 1, window, True)
    begins = x[offsets[1:-1]]  # of all windows but the first, which begins before these voxels do
    assert ((begins + shift) % window == 0).all()


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
def test_negative_coordinates_round_down(function) -> None:
    x = torch.tensor([-8, -7, -6, -1, 0, 6, 7], dtype=torch.int32)
    coords = torch.stack([torch.zeros_like(x), x, x, x], 1)
    order, offsets = function(coords, 1, 7, False)
    assert _windows(order, offsets) == [[0], [1, 2, 3], [4, 5], [6]]


@pytest.mark.parametrize(("stride", "window"), [(1, 5), (3, 7)])
@pytest.mark.parametrize("shift", [False, True])
def test_cells_inside_windows(stride: int, window: int, shift: bool) -> None:
    coords = _random_coords(0, 500, 40, 2)
    cells = window_cells(coords, stride, window, shift)
    s = window // 2 if shift else 0
    expected = [[(c // stride + s) % window for c in xyz] for _, *xyz in coords.tolist()]
    assert cells.dtype == torch.int32
    assert cells.tolist() == expected


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
def test_the_order_of_rows_changes_nothing_but_their_names(function) -> None:
    coords = _random_coords(1, 1000, 15, 4)
    permutation = torch.randperm(1000, generator=torch.Generator().manual_seed(2))
    order, offsets = function(coords, 1, 5, True)
    order_of_permuted, offsets_of_permuted = function(coords[permutation], 1, 5, True)
    assert torch.equal(offsets, offsets_of_permuted)
    renamed = [sorted(permutation[rows].tolist()) for rows in _windows(order_of_permuted, offsets_of_permuted)]
    assert renamed == _windows(order, offsets)


def test_threads_do_not_change_the_result() -> None:
    coords = _random_coords(3, 50000, 100, 3)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(window_partition(coords, 1, 5, True))
    torch.set_num_threads(before)
    for order, offsets in results[1:]:
        assert torch.equal(order, results[0][0])
        assert torch.equal(offsets, results[0][1])


def test_sorting_keys_that_do_not_fit_one_word() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(-(2**40), 2**40, (200, 5), generator=generator)
    cells = torch.cat([cells, cells[:50], cells[:100] + torch.tensor([0, 0, 0, 0, 1])])
    order, offsets = sort_cells(cells)
    expected = sorted(range(len(cells)), key=lambda row: (cells[row].tolist(), row))
    assert order.tolist() == expected
    assert len(offsets) - 1 == len(cells.unique(dim=0))
