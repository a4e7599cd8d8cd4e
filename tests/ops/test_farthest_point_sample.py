"""Farthest point sampling against the definition, and thread by thread where ties go by that; and its properties."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops import farthest_point_sample

_DTYPES = [torch.float32, torch.float64]  # the kernel, where it is built, and the reference


def _offsets(*counts: int) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def _cloud(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _grid(edge: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points of a lattice in random order: equal distances everywhere, exact in any dtype."""
    grid = torch.cartesian_prod(*[torch.arange(edge, dtype=dtype)] * 3)
    return grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(seed))]


def _simulated(points: Tensor, count: int, start: int, skip_near_origin: bool) -> list[int]:
    """A block of threads, each with its rows; then pairs of threads, of which the second wins where it is farther."""
    size, threads = len(points), 1
    while threads < 512 and 2 * threads <= size:
        threads *= 2
    nearest = torch.full((size,), 1e10, dtype=points.dtype)
    skipped = points.square().sum(1) <= 1e-3 if skip_near_origin else torch.zeros(size, dtype=torch.bool)
    rows = [start]
    while len(rows) < count:
        nearest = nearest.minimum((points - points[rows[-1]]).square().sum(1))
        best = []
        for thread in range(threads):
            farthest, row = -1.0, 0
            for k in range(thread, size, threads):
                if not skipped[k] and nearest[k] > farthest:
                    farthest, row = float(nearest[k]), k
            best.append((farthest, row))
        while len(best) > 1:
            half = len(best) // 2
            best = [b if b[0] > a[0] else a for a, b in zip(best[:half], best[half:])]
        rows.append(best[0][1])
    return rows


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 64, 100, 343, 512, 700, 1100])
@pytest.mark.parametrize("skip_near_origin", [False, True])
def test_published_ties_are_those_of_a_block_of_threads(size: int, dtype: torch.dtype, skip_near_origin: bool) -> None:
    points = _grid(11, size, dtype)[:size] - 3
    rows = farthest_point_sample(points, _offsets(size), 12, torch.tensor([size // 2]), "published", skip_near_origin)
    assert rows.tolist() == _simulated(points, 12, size // 2, skip_near_origin)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_of_equally_far_points_the_first_is_taken(dtype: torch.dtype) -> None:
    points = _grid(8, 0, dtype)
    rows = farthest_point_sample(points, _offsets(512), 200)
    nearest = torch.full((512,), torch.inf, dtype=dtype)
    for sample, following in pairwise(rows.tolist()):
        nearest = nearest.minimum((points - points[sample]).square().sum(1))
        assert following == int((nearest == nearest.max()).nonzero()[0])


@pytest.mark.parametrize("size", [3000, 20000])
@pytest.mark.parametrize("shape", ["ball", "sheet", "line", "crowd", "equal"])
def test_large_clouds_give_what_all_distances_give(shape: str, size: int) -> None:
    """Kernel against definition, in float32: pieces that are passed over would have changed nothing."""
    points = _cloud(size, 0)
    points *= {"sheet": torch.tensor([1, 1, 1e-3]), "line": torch.tensor([1, 0, 0])}.get(shape, torch.ones(3))
    if shape == "crowd":  # and three far ones
        points[:-3] *= 1e-5
    elif shape == "equal":
        points = points[torch.arange(size) % 40]
    rows = farthest_point_sample(points, _offsets(size), 150)
    x, y, z = points.unbind(1)
    nearest, row, expected = torch.full((size,), 1e10), 0, []
    for _ in range(150):
        expected.append(row)
        dx, dy, dz = x - x[row], y - y[row], z - z[row]
        nearest = nearest.minimum((dx * dx + dy * dy) + dz * dz)
        row = int((nearest == nearest.max()).nonzero()[0])
    assert rows.tolist() == expected


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_smaller_count_gives_the_first_of_a_larger_one(dtype: torch.dtype) -> None:
    points, start = _cloud(900, 1, dtype), torch.tensor([7, 400])
    many = farthest_point_sample(points, _offsets(400, 500), 64, start).view(2, 64)
    few = farthest_point_sample(points, _offsets(400, 500), 9, start).view(2, 9)
    assert torch.equal(few, many[:, :9])
    assert many[:, 0].tolist() == [7, 800]
    assert all(len(cloud.unique()) == 64 for cloud in many)
    assert (many[0] < 400).all()
    assert (many[1] >= 400).all()


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("ties", ["lowest", "published"])
def test_points_repeat_where_there_are_too_few(ties: str, dtype: torch.dtype) -> None:
    rows = farthest_point_sample(_cloud(4, 2, dtype), _offsets(3, 1), 6, torch.tensor([2, 0]), ties).view(2, 6)
    assert sorted(rows[0, :3].tolist()) == [0, 1, 2]
    assert rows[0, 3:].tolist() == [0, 0, 0]
    assert rows[1].tolist() == [3] * 6


@pytest.mark.parametrize("dtype", _DTYPES)
def test_points_near_the_origin_are_passed_over(dtype: torch.dtype) -> None:
    points = torch.tensor([[0, 0, 0], [0.03, 0, 0], [0, 1, 0], [0, 0, 0.01], [0.04, 0, 0]], dtype=dtype)
    rows = farthest_point_sample(points, _offsets(5), 6, torch.tensor([3]), skip_near_origin=True)
    assert rows.tolist() == [3, 2, 4, 2, 2, 2]
    rows = farthest_point_sample(points[:2], _offsets(2), 4, torch.tensor([1]), skip_near_origin=True)
    assert rows.tolist() == [1, 0, 0, 0]
    assert sorted(farthest_point_sample(points, _offsets(5), 5).tolist()) == [0, 1, 2, 3, 4]


def test_threads_do_not_change_a_row() -> None:
    arguments = _cloud(30_000, 3), _offsets(20_000, 3_000, 7_000), 100
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(farthest_point_sample(*arguments))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_unknown_ties_are_refused() -> None:
    with pytest.raises(ValueError, match="ties must be one of lowest, published, got 'first'"):
        farthest_point_sample(_cloud(4, 0), _offsets(4), 2, ties="first")


def test_an_empty_cloud_is_refused() -> None:
    with pytest.raises(InputError, match="farthest_point_sample: cloud 0 has no points; leave out empty clouds"):
        farthest_point_sample(_cloud(4, 0), _offsets(0, 4), 2)
