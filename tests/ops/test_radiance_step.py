"""Steps of a radiance grid against torch's Adam and a total variation by autograd."""

from __future__ import annotations

import pytest
import torch
from operator_examples import require_library
from torch import Tensor

from geo3d.ops import padded_grid, radiance_step
from geo3d.ops.radiance_step import stepped_nodes


def _tensors(sides: tuple[int, int, int], parts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid, gradient = padded_grid(*sides, 4, dtype=dtype), padded_grid(parts, *sides, 4, dtype=dtype)
    grid.copy_(torch.randn(grid.shape, generator=generator))
    gradient.copy_(torch.randn(gradient.shape, generator=generator))
    return grid, gradient, torch.zeros_like(grid), torch.zeros_like(grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "reference"])
def test_steps_as_adam_with_a_total_variation(dtype: torch.dtype) -> None:
    require_library("cpu")
    grid, gradient, mean, square = _tensors((20, 6, 11), 3, dtype)
    first = gradient.clone()
    density, colour = (part.clone().double().requires_grad_() for part in (grid[..., :1], grid[..., 1:]))
    adam = torch.optim.Adam(
        [{"params": [density], "lr": 0.3}, {"params": [colour], "lr": 0.02}], betas=(0.8, 0.95), eps=1e-4
    )
    for number in range(1, 5):
        gradient.copy_(number * first)
        adam.zero_grad()
        smooth = sum(
            weight * part.diff(dim=axis).square().sum() / 2
            for part, weight in ((density, 0.3), (colour, 0.05))
            for axis in range(3)
        )
        values = torch.cat([density, colour], -1)
        (smooth + (values * number * first.double().sum(0)).sum()).backward()
        adam.step()
        radiance_step(
            grid,
            gradient,
            mean,
            square,
            number=number,
            density_rate=0.3,
            colour_rate=0.02,
            density_smoothness=0.3,
            colour_smoothness=0.05,
            mean_decay=0.8,
            square_decay=0.95,
            epsilon=1e-4,
        )
        assert not gradient.any()
    # Four steps in float32, some against a gradient that all but cancels: 1e-5 measured.
    torch.testing.assert_close(grid.double(), torch.cat([density, colour], -1).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "reference"])
@pytest.mark.parametrize("smoothness", [0.0, 0.1])
def test_only_segments_near_occupied_cells_are_stepped(dtype: torch.dtype, smoothness: float) -> None:
    sides = (9, 8, 37)
    occupancy = torch.zeros(4, 4, 18, dtype=torch.uint8)
    occupancy[1, 3, 4] = occupancy[3, 0, 17] = 1  # nodes 2 to 4, 6 and 7, 8 to 10; and 6 to 8, 0 to 2, 34 to 36
    stepped = torch.zeros(sides, dtype=torch.bool)
    stepped[2:5, 6:8, 8:16] = True
    stepped[6:9, 0:3, 32:37] = True
    assert torch.equal(stepped_nodes(occupancy, sides), stepped)
    tensors, whole = (list(_tensors(sides, 2, dtype)) for _ in range(2))
    before = [t.clone() for t in tensors]
    arguments = {"number": 1, "density_rate": 0.1, "colour_rate": 0.1, "density_smoothness": smoothness}
    radiance_step(*tensors, occupancy=occupancy, **arguments)
    radiance_step(*whole, **arguments)
    for masked, unmasked, old in zip(tensors, whole, before):
        assert torch.equal(masked[..., stepped, :], unmasked[..., stepped, :])
        assert torch.equal(masked[..., ~stepped, :], old[..., ~stepped, :])
    assert not tensors[1][:, stepped].any()


@pytest.mark.parametrize("smoothness", [0.0, 0.1])
def test_bits_do_not_depend_on_the_number_of_threads(smoothness: float) -> None:
    require_library("cpu")
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            tensors = _tensors((50, 7, 9), 3, torch.float32)
            for number in (1, 2):
                radiance_step(
                    *tensors,
                    number=number,
                    density_rate=0.1,
                    colour_rate=0.1,
                    density_smoothness=smoothness,
                    colour_smoothness=smoothness,
                )
            results.append(tensors)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_moments_of_nodes_that_no_ray_meets_end_at_zero() -> None:
    """Numbers that are not normal would make every later step slow."""
    require_library("cpu")
    grid, gradient, mean, square = _tensors((4, 4, 8), 1, torch.float32)
    for number in range(1, 1200):
        radiance_step(grid, gradient, mean, square, number=number, density_rate=0.1, colour_rate=0.1, square_decay=0.9)
    assert not mean.any()
    assert not square.any()
    assert grid.isfinite().all()
