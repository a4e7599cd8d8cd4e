"""Nearest neighbours against an independent k-d tree, and cases whose answer is known."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from geo3d.ops import knn

_DTYPES = [torch.float32, torch.float64]  # the kernel, where it is built, and the reference


def _offsets(*counts: int) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def _points(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A wavy surface, as scans are."""
    generator = torch.Generator().manual_seed(seed)
    u, v, noise = torch.rand(3, count, generator=generator)
    return torch.stack([5 * u, 4 * v, (6 * u).sin() + (5 * v).cos() + 0.02 * noise], 1).to(dtype)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("k", [1, 3, 16, 64])
def test_against_an_independent_tree(k: int, dtype: torch.dtype) -> None:
    query, points = _points(600, 0, dtype), _points(3000, 1, dtype)
    index, squared = knn(query[:300], points, _offsets(100, 200), _offsets(1200, 1800), k)
    for rows, first, last in ((slice(0, 100), 0, 1200), (slice(100, 300), 1200, 3000)):
        distance, row = cKDTree(points[first:last].double().numpy()).query(
            query[rows].double().numpy(), k=range(1, k + 1)
        )
        assert torch.equal(index[rows], torch.from_numpy(row) + first)  # no two distances are equal here
        expected = torch.from_numpy(distance).square()
        torch.testing.assert_close(squared[rows].double(), expected, rtol=2.0**-23, atol=0)  # two roundings to float32


@pytest.mark.parametrize("dtype", _DTYPES)
def test_points_are_nearest_to_themselves_at_exactly_zero(dtype: torch.dtype) -> None:
    points = _points(2000, 2, dtype) + 1000
    assert len(points.unique(dim=0)) == 2000
    index, squared = knn(points, points, _offsets(2000), _offsets(2000), 2)
    assert torch.equal(index[:, 0], torch.arange(2000))
    assert (squared[:, 0] == 0).all()
    assert (squared[:, 1] > 0).all()


@pytest.mark.parametrize("dtype", _DTYPES)
def test_of_equally_near_points_the_first_is_taken(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(*[torch.arange(10, dtype=dtype)] * 3)[torch.randperm(1000, generator=generator)]
    index, squared = knn(grid, grid, _offsets(1000), _offsets(1000), 7)
    inside = ((grid > 0) & (grid < 9)).all(1)
    assert inside.sum() == 512
    assert torch.equal(squared[inside], torch.tensor([0, 1, 1, 1, 1, 1, 1], dtype=dtype).expand(512, 7))
    assert torch.equal(index[:, 0], torch.arange(1000))
    assert (index[inside][:, 1:].diff(dim=1) > 0).all()
    # All at one place: the lowest rows, whatever the query.
    same = torch.ones(100, 3, dtype=dtype)
    index, squared = knn(same[:5] * 2, same, _offsets(5), _offsets(100), 9)
    assert torch.equal(index, torch.arange(9).expand(5, 9))
    assert (squared == 3).all()


@pytest.mark.parametrize("dtype", _DTYPES)
def test_scenes_with_fewer_points_than_asked_for(dtype: torch.dtype) -> None:
    query, points = _points(6, 3, dtype), _points(3, 4, dtype)
    index, squared = knn(query, points, _offsets(2, 2, 2), _offsets(2, 0, 1), 3)
    assert index[:2, :2].sort(1).values.tolist() == [[0, 1], [0, 1]]
    assert (index[:2, 2] == -1).all()
    assert (index[2:4] == -1).all()
    assert index[4:].tolist() == [[2, -1, -1], [2, -1, -1]]
    assert torch.equal(squared.isinf(), index == -1)


def test_both_implementations_give_the_same_bits() -> None:
    query, points = _points(500, 5, torch.float32), _points(4000, 6, torch.float32)
    arguments = _offsets(500), _offsets(4000), 16
    index, squared = knn(query, points, *arguments)
    exact_index, exact = knn(query.double(), points.double(), *arguments)
    assert torch.equal(index, exact_index)
    assert torch.equal(squared, exact.float())


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("count", [10, 729])  # without and with a tree
def test_float32_decides_the_order_where_it_is_asked_for(count: int, dtype: torch.dtype) -> None:
    lattice = 0.1 * torch.cartesian_prod(*[torch.arange(9)] * 3)
    points = lattice[torch.randperm(729, generator=torch.Generator().manual_seed(0))][:count]
    x, y, z = (points[:, None] - points).unbind(2)
    ordered, expected = ((x * x + y * y) + z * z).sort(dim=1, stable=True)
    arguments = points.to(dtype), points.to(dtype), _offsets(count), _offsets(count), 10
    index, squared = knn(*arguments, float32_order=True)
    assert torch.equal(index, expected[:, :10])
    assert torch.equal(squared, ordered[:, :10].to(dtype))
    exact, _ = knn(*arguments)
    assert count < 20 or not torch.equal(exact, index)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 65])
def test_small_scenes_are_searched_as_large_ones(size: int, k: int, dtype: torch.dtype) -> None:
    """Without a tree or with one; a lattice, with ties."""
    generator = torch.Generator().manual_seed(size)
    points = torch.randint(0, 4, (3 * size, 3), generator=generator).to(dtype)
    index, squared = knn(points, points, _offsets(size, 2 * size), _offsets(size, 2 * size), k)
    for rows in (slice(0, size), slice(size, 3 * size)):
        scene = points[rows]
        distance, order = (scene[:, None] - scene).square().sum(2).sort(dim=1, stable=True)
        found = min(k, len(scene))
        assert torch.equal(index[rows, :found], order[:, :found] + rows.start)
        assert torch.equal(squared[rows, :found], distance[:, :found])
        assert (index[rows, found:] == -1).all()


def test_threads_do_not_change_a_bit() -> None:
    points = _points(5000, 7, torch.float32)
    arguments = points, points, _offsets(2000, 3000), _offsets(4000, 1000), 16
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(knn(*arguments))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_gradients_end_here() -> None:
    points = _points(10, 8, torch.float32).requires_grad_()
    index, squared = knn(points, points, _offsets(10), _offsets(10), 2)
    assert not index.requires_grad
    assert not squared.requires_grad
