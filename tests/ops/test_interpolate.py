"""Interpolation where the answer is known, and its gradients' independence of threads."""

from __future__ import annotations

import pytest
import torch

from geo3d.ops import interpolate, inverse_distance_weights, knn

_DTYPES = [torch.float32, torch.float64]  # the kernels, where they are built, and the references


def test_weights_fall_with_the_distance_and_not_its_square() -> None:
    weight = inverse_distance_weights(torch.tensor([[1.0, 4.0, 16.0]], dtype=torch.float64))
    # 1, 1/2 and 1/4 of the sum; 1e-8 is added to each distance.
    torch.testing.assert_close(weight, torch.tensor([[4, 2, 1]]).double() / 7, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_weights_of_few_neighbours_and_of_none(dtype: torch.dtype) -> None:
    weight = inverse_distance_weights(torch.tensor([[0.25, torch.inf, torch.inf], [torch.inf] * 3], dtype=dtype))
    assert weight.tolist() == [[1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_query_on_a_point_takes_its_features(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    points, feats = (
        torch.rand(200, 3, generator=generator).to(dtype),
        torch.randn(200, 8, generator=generator).to(dtype),
    )
    offsets = torch.tensor([0, 200])
    index, squared = knn(points, points, offsets, offsets, 3)
    result = interpolate(feats, index, inverse_distance_weights(squared))
    # Other points are at least 0.005 away here, so their share is below 1e-8 / 0.005 each.
    assert squared[:, 1].min() > 0.005**2
    torch.testing.assert_close(result, feats, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", [*_DTYPES, torch.bfloat16, torch.float16])
def test_equal_features_stay_as_they_are(dtype: torch.dtype) -> None:
    squared = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    index = torch.randint(0, 9, (50, 3), generator=torch.Generator().manual_seed(1))
    weight = inverse_distance_weights(squared)  # float32 whatever the features are, as under autocast
    result = interpolate(
        torch.full((9, 4), 1.5, dtype=dtype), index, weight.double() if dtype == torch.float64 else weight
    )
    assert result.dtype == dtype
    # Weights sum to one but for three roundings in float32; of the result, one in its own dtype.
    torch.testing.assert_close(
        result.double(), torch.full((50, 4), 1.5).double(), rtol=4e-7, atol=torch.finfo(dtype).eps
    )


def test_gradient_of_half_features_keeps_the_weights_in_float() -> None:
    feats = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    weight = torch.rand(20, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    index = torch.randint(-1, 9, (20, 3), generator=torch.Generator().manual_seed(2))
    interpolate(feats, index, weight).sum().backward()
    assert feats.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32
    counts = torch.zeros(10).index_add(0, index.flatten() % 10, weight.detach().flatten())[:9]
    torch.testing.assert_close(feats.grad.float(), counts[:, None].expand(9, 4), rtol=2.0**-8, atol=0)


def test_threads_do_not_change_a_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    feats, gradient = torch.randn(300, 40, generator=generator), torch.randn(20000, 40, generator=generator)
    index = torch.randint(-1, 300, (20000, 3), generator=generator)
    weight = torch.rand(20000, 3, generator=generator)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = feats.clone().requires_grad_(), weight.clone().requires_grad_()
        result = interpolate(leaves[0], index, leaves[1])
        results.append([result, *torch.autograd.grad(result, leaves, gradient)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
