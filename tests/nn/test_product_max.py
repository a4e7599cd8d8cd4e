"""The largest of each group's products against the same in two steps."""

from __future__ import annotations

import torch

from geo3d.nn.product_max import product_max


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
