"""The largest of each group's products against the same in two steps."""

from __future__ import annotations

import pytest
import torch

from geo3d.nn.batch_norm import VoxelNorm1d
from geo3d.nn.point_layers import GroupEmbedding
from geo3d.nn.product_max import normalised_product_max, product_max


def _operands(groups: int, members: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((groups * members, 24), (40, 24))
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def test_values_and_gradients_are_those_of_a_product_and_a_maximum() -> None:
    x, weight = _operands(700, 16, torch.float64)  # more than are worked on at a time
    found, expected = product_max(x, weight, 16), (x @ weight.t()).unflatten(0, (-1, 16)).amax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(found, (x, weight), direction), torch.autograd.grad(expected, (x, weight), direction)
    )
    for ours, reference in pairs:
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11)


def test_of_equal_members_one_has_the_gradient() -> None:
    x, weight = _operands(2, 1, torch.float64)
    found = product_max(x.repeat_interleave(3, 0), weight, 3)
    torch.testing.assert_close(found, x @ weight.t(), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, weight: product_max(x.repeat_interleave(3, 0), weight, 3), (x, weight))


def test_under_autocast_products_are_of_its_type() -> None:
    x, weight = _operands(5, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = product_max(x, weight, 8)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    expected = (x.detach() @ weight.detach().t()).unflatten(0, (-1, 8)).amax(1)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=5e-2)  # 8 bits
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("groups", "training"), [(700, True), (700, False), (1, True)])
def test_with_a_norm_it_is_the_layers_one_by_one(groups: int, training: bool) -> None:
    members = 16 if groups > 1 else 1  # one row alone has no spread: running statistics stand in
    x, weight = _operands(groups, members, torch.float64)
    norms = [VoxelNorm1d(24).double().train(training) for _ in range(2)]
    for norm in norms:
        generator = torch.Generator().manual_seed(1)
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.data = torch.rand(24, dtype=torch.float64, generator=generator)
    found = normalised_product_max(x, norms[0], weight, members)
    expected = (norms[1](x).relu() @ weight.t()).unflatten(0, (-1, members)).amax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad(result, (x, weight, norm.weight, norm.bias), direction)
        for result, norm in zip((found, expected), norms)
    ]
    for ours, reference in zip(*gradients):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)
    for ours, reference in zip(norms[0].buffers(), norms[1].buffers()):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


def test_group_embedding_under_autocast_is_near_that_in_float32() -> None:
    torch.manual_seed(0)
    embedding, members = GroupEmbedding(3, (16, 32), (64, 12)), torch.randn(50, 8, 3)
    expected = embedding(members)
    with torch.autocast("cpu", torch.bfloat16):
        found = embedding(members)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    assert (found.float() - expected).norm() < 0.02 * expected.norm()  # 8 bits: 0.006 measured
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in embedding.parameters())
