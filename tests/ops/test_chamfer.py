"""The Chamfer distance against all pairs, its gradients, and cases whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from geo3d.errors import InputError
from geo3d.ops import chamfer_distance, chamfer_loss


def _offsets(*counts: int) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def _clouds(*counts: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    points = torch.randn(sum(counts), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return points.to(dtype), _offsets(*counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [((8,) * 50, (8,) * 50), ((30, 1, 200), (77, 5, 3)), ((2000,), (1500,))])
def test_against_all_pairs(sizes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype) -> None:
    (a, a_offsets), (b, b_offsets) = _clouds(*sizes[0], seed=0, dtype=dtype), _clouds(*sizes[1], seed=1, dtype=dtype)
    found = chamfer_distance(a, b, a_offsets, b_offsets)
    roots = chamfer_distance(a, b, a_offsets, b_offsets, norm="l1")
    for i in range(len(sizes[0])):
        rows_a, rows_b = slice(*a_offsets[i : i + 2]), slice(*b_offsets[i : i + 2])
        squared = (a[rows_a, None].double() - b[None, rows_b].double()).square().sum(2)
        # Differences, squares and sums are rounded in float32: 3e-7 of the distance measured.
        tolerance = {"rtol": 5e-7, "atol": 0, "check_dtype": False}
        torch.testing.assert_close(found.distance_a[rows_a], squared.amin(1), **tolerance)
        torch.testing.assert_close(found.distance_b[rows_b], squared.amin(0), **tolerance)
        torch.testing.assert_close(roots.distance_a[rows_a], squared.amin(1).sqrt(), **tolerance)
        assert torch.equal(found.index_a[rows_a], squared.argmin(1) + b_offsets[i])
        assert torch.equal(found.index_b[rows_b], squared.argmin(0) + a_offsets[i])
    assert found.distance_a.dtype == dtype
    assert torch.equal(roots.index_b, found.index_b)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("sides", ["both", "a"])
def test_derivatives_numerically(norm: str, sides: str) -> None:
    (a, a_offsets), (b, b_offsets) = _clouds(5, 7, seed=0), _clouds(6, 3, seed=1)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return chamfer_loss(a, b, a_offsets, b_offsets, norm, sides)

    arguments = a.requires_grad_(), b.requires_grad_()
    assert gradcheck(loss, arguments)
    assert gradgradcheck(loss, arguments)


def test_loss_of_known_clouds() -> None:
    a = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    b = torch.tensor([[0.0, 0, 2], [0, 0, 3], [1, 0, 0]])
    arguments = a, b, _offsets(2), _offsets(3)
    found = chamfer_distance(*arguments)
    assert found.distance_a.tolist() == [1, 0]
    assert found.distance_b.tolist() == [4, 9, 0]
    assert found.index_a.tolist() == [2, 2]
    assert found.index_b.tolist() == [0, 0, 1]
    assert chamfer_loss(*arguments).item() == pytest.approx(1 / 2 + 13 / 3)
    assert chamfer_loss(*arguments, norm="l1").item() == pytest.approx((1 / 2 + 5 / 3) / 2)
    assert chamfer_loss(*arguments, sides="a", norm="l1").item() == 0.5


def test_equal_clouds_have_no_distance_and_no_gradient() -> None:
    a, offsets = _clouds(20, 30, seed=2)
    a.requires_grad_()
    for norm in ("l2", "l1"):
        loss = chamfer_loss(a, a.detach().clone(), offsets, offsets, norm)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, a)
        assert (gradient == 0).all()


def test_one_side_leaves_out_the_other() -> None:
    (a, a_offsets), (b, b_offsets) = _clouds(5, 7, seed=0), _clouds(6, 3, seed=1)
    found = chamfer_distance(a, b, a_offsets, b_offsets, sides="a")
    assert found.distance_b is None
    assert found.index_b is None
    assert torch.equal(found.distance_a, chamfer_distance(a, b, a_offsets, b_offsets).distance_a)
    assert chamfer_loss(a, b, a_offsets, b_offsets, sides="a") == found.distance_a.mean()


def test_of_equally_near_points_the_first_is_taken() -> None:
    a, b = torch.zeros(1, 3), torch.eye(3)
    for few in (3, 90):
        index = chamfer_distance(a, b.repeat(few // 3, 1), _offsets(1), _offsets(few)).index_a
        assert index.tolist() == [0]


def test_bad_arguments_are_refused() -> None:
    a, offsets = _clouds(5, 7, seed=0)
    with pytest.raises(ValueError, match="chamfer_distance: norm must be one of l2, l1, got 'l3'"):
        chamfer_distance(a, a, offsets, offsets, norm="l3")
    with pytest.raises(ValueError, match="chamfer_distance: sides must be one of both, a, got 'b'"):
        chamfer_distance(a, a, offsets, offsets, sides="b")
    with pytest.raises(InputError, match="chamfer_distance: cloud 1 has points in one of a and b only"):
        chamfer_distance(a, a, offsets, _offsets(12, 0))
    with pytest.raises(InputError, match="chamfer_distance: cloud 0 has points in one of a and b only"):
        chamfer_distance(a, a, _offsets(0, 12), offsets)
