"""Volume rendering against what is known of fog, walls and boxes, and the gradient against other ways to it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from operator_examples import EXAMPLES, cast_arguments, outputs_of, overload, ray_arguments, require_library
from torch import Tensor
from torch.nn.functional import normalize, softplus

from geo3d.ops import explain, grid_occupancy, padded_grid, radiance_gradient, render_rays
from geo3d.ops.registry import get_operator

_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "reference"])


def _rays(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """From inside the box, in metres of a box of 2 m."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.rand(count, 3, generator=generator) - 0.5
    return origins, normalize(torch.randn(count, 3, generator=generator), dim=1)


def _named(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the operator as those of the function."""
    names = ["target", "target_depth", "jitter", "occupancy"]
    names += ["step", "border", "density_shift", "density_scale", "stop", "depth_reach"]
    return arguments[:3], dict(zip(names, arguments[3:], strict=True))


@_DTYPES
@pytest.mark.parametrize("jittered", [False, True])
def test_fog(dtype: torch.dtype, jittered: bool) -> None:
    """Through equal density d, exp(-d * length) of the light is left, of which the rest has the fog's one colour."""
    require_library("cpu")
    origins, directions = _rays(50)
    grid = torch.tensor([0.4, 0.0, 1.0, -2.0], dtype=dtype).expand(7, 5, 6, 4)
    jitter = torch.rand(50, generator=torch.Generator().manual_seed(0)) if jittered else None
    colour, transmittance, depth, _, _ = render_rays(
        grid, origins, directions, step=0.11, jitter=jitter, density_shift=0.1, density_scale=0.7
    )
    length = ((directions.sign() - origins) / directions).amin(1).to(dtype)
    density = 0.7 * math.log1p(math.exp(0.5))
    left = (-density * length).exp()
    torch.testing.assert_close(transmittance, left, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(colour, (1 - left).unsqueeze(1) * grid[0, 0, 0, 1:].sigmoid(), rtol=2e-6, atol=1e-6)
    if not jittered:  # the middle of a segment errs by the square of its optical depth
        expected = 1 / density - left * (length + 1 / density)
        torch.testing.assert_close(depth, expected, rtol=2e-3, atol=1e-3)


@_DTYPES
def test_a_wall_stands_where_it_is(dtype: torch.dtype) -> None:
    """An opaque half space behind x = 0.25 is met within a voxel, and nothing behind it is seen."""
    grid = torch.full((64, 4, 4, 4), -20.0, dtype=dtype)
    grid[40:, ..., 0] = 20.0  # nodes from (2 * 40 + 1) / 64 - 1 on; density 20 / 0.02 there
    grid[..., 1:] = torch.linspace(-3, 3, 64, dtype=dtype)[:, None, None, None]
    origins = torch.tensor([[-0.9, 0.0, 0.1], [-2.0, 0.2, 0.0], [0.9, 0.0, 0.0], [0.9, 3.0, 0.0]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    arguments = {"step": 0.01, "density_scale": 50.0, "stop": 1e-4}
    colour, transmittance, depth, _, _ = render_rays(grid, origins, directions, **arguments)
    torch.testing.assert_close(depth[:2].double(), torch.tensor([1.15, 2.25]).double(), rtol=0, atol=1 / 32)
    assert transmittance[:2].max() < 1e-4
    torch.testing.assert_close(colour[:2], grid[39:41, 0, 0, 1:].sigmoid().mean(0).expand(2, 3), rtol=0, atol=0.05)
    assert depth[2] < 0.01, "the third ray starts in the wall"
    assert (transmittance[3], depth[3], colour[3].sum()) == (1, 0, 0), "the last one misses the box"


@_DTYPES
def test_values_of_nodes(dtype: torch.dtype) -> None:
    """Raw values that are linear in position are met exactly, between the outermost nodes."""
    sides = (6, 5, 9)
    axes = [(2 * torch.arange(side, dtype=dtype) + 1) / side - 1 for side in sides]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    linear = [0.5 * x - y + 0.2 * z, x + y, -2 * z, y - 0.3]
    grid = torch.stack(linear, -1)
    origins, directions = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) - 0.5, torch.ones(30, 3) * 1e-3
    step = 4000.0  # one segment to the box's end; its sample lies at the origin
    colour, transmittance, _, _, _ = render_rays(grid, origins, directions, step=step, jitter=torch.zeros(30))
    x, y, z = origins.to(dtype).unbind(1)
    length = ((1 - origins) / 1e-3).amin(1).to(dtype)
    density = softplus(0.5 * x - y + 0.2 * z)
    torch.testing.assert_close(transmittance, (-density * length).exp(), rtol=1e-3, atol=1e-30)
    torch.testing.assert_close(colour, torch.stack([x + y, -2 * z, y - 0.3], 1).sigmoid(), rtol=1e-5, atol=1e-6)


@_DTYPES
def test_space_outside_is_contracted(dtype: torch.dtype) -> None:
    """A shell of colour at 1 + b - b / r is met at r; and inside, the grid's crop renders as without a border."""
    border, nodes = 0.5, 48  # 32 of them inside
    axis = 1.5 * ((2 * torch.arange(nodes, dtype=dtype) + 1) / nodes - 1)
    reach = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).abs().amax(0)
    grid = torch.zeros(nodes, nodes, nodes, 4, dtype=dtype)
    grid[..., 0] = torch.where(reach > 1.25, 30.0, -30.0)
    origins, directions = torch.zeros(20, 3), _rays(20)[1]
    arguments = {"step": 0.01, "border": border, "density_scale": 30.0}
    _, transmittance, depth, _, _ = render_rays(grid, origins, directions, **arguments)
    distance = depth.double() * directions.double().abs().amax(1)  # along the largest axis: 1 + b - b / r = 1.25
    # The wall begins between the nodes at 1.21875 and 1.28125, that is r = 1.78 to 2.29.
    assert transmittance.max() < 1e-6
    assert distance.min() > 1.75
    assert distance.max() < 2.2

    generator = torch.Generator().manual_seed(1)
    inner = torch.randn(32, 32, 32, 4, generator=generator).to(dtype)
    grid = torch.full((nodes, nodes, nodes, 4), -60.0, dtype=dtype)
    grid[8:40, 8:40, 8:40] = inner
    grid[:, :, :, 1:] = 0.0
    crop = grid[8:40, 8:40, 8:40]
    origins, directions = _rays(20)
    inside = render_rays(crop, origins, directions, step=0.02)
    whole = render_rays(grid, origins, directions, step=0.02, border=border)
    # The outermost half voxel differs, 0.03 m: a crop goes on as its last node, a border falls off.
    torch.testing.assert_close(whole[1], inside[1], rtol=0.1, atol=0)


@_DTYPES
def test_segments_grow_outside(dtype: torch.dtype) -> None:
    """The far end of the contraction is reached in few samples; a fog that fills the border is counted whole."""
    grid = torch.full((9, 9, 9, 4), -1.0, dtype=dtype)
    origins, directions = _rays(20)
    gradient = torch.zeros(1, 9, 9, 9, 4, dtype=dtype)
    target = torch.zeros(20, 3)
    arguments = {"step": 0.02, "border": 0.5, "density_scale": 0.01}
    _, transmittance, _, _, samples = radiance_gradient(gradient, grid, origins, directions, target, **arguments)
    assert 200 < samples.max() < 500
    length = ((directions.sign() * 60 - origins) / directions).amin(1).to(dtype)
    density = 0.01 * math.log1p(math.exp(-1))
    torch.testing.assert_close(transmittance, (-density * length).exp(), rtol=1e-5, atol=0)


@_DTYPES
def test_empty_cells_may_be_skipped(dtype: torch.dtype) -> None:
    grid = torch.randn(12, 13, 9, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid[..., 0] = -200.0
    grid[3:6, 2:9, 4:6, 0] = 1.0
    occupancy = grid_occupancy(grid, 1e-20)
    assert occupancy.shape == (6, 6, 4)
    assert 0 < occupancy.sum() < 60
    origins, directions = _rays(60)
    arguments = {"step": 0.03, "target": torch.rand(60, 3), "target_depth": torch.rand(60)}
    results = [render_rays(grid, origins, directions, occupancy=o, **arguments) for o in (None, occupancy)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert (results[0][1] < 0.9).any()


def test_occupancy_covers_what_is_looked_up() -> None:
    """Cell c is where the lowest of the 8 nodes is 2 c or 2 c + 1: nodes 2 c to 2 c + 2."""
    for node in range(7):
        grid = torch.full((7, 8, 4, 4), -9.0)
        grid[node, 5, 0] = 9.0
        occupied = grid_occupancy(grid, 5.0).nonzero().tolist()
        along_x = [cell for cell in range(3) if 2 * cell <= node <= 2 * cell + 2]
        assert occupied == [[x, 2, 0] for x in along_x]


@_DTYPES
def test_stopping_ends_rays_early(dtype: torch.dtype) -> None:
    arguments, numbers = _named(ray_arguments(occupied=None, border=0.0, step=0.05))
    arguments = (arguments[0].to(dtype), *arguments[1:])
    whole, stopped = (
        render_rays(*arguments, **{**numbers, "stop": stop, "density_scale": 20.0}) for stop in (0.0, 0.01)
    )
    assert not torch.equal(whole[0], stopped[0])
    for a, b in zip(whole, stopped):
        assert (a - b).abs().max() < 0.05
    assert stopped[1].min() > 0


@pytest.mark.parametrize("name", ["render_rays", "render_rays_backward"])
def test_kernels_for_the_cpu_are_as_exact_as_float32(name: str) -> None:
    """Depths, and gradients of depths, reach 60: 1e-5 measured."""
    require_library("cpu")
    for case, arguments in EXAMPLES[name].cases.items():
        cast = cast_arguments(name, arguments, torch.float32)
        results = outputs_of(overload(name)(*cast))
        expected = outputs_of(get_operator(name).reference(*cast_arguments(name, cast, torch.float64)))
        for result, exact in zip(results, expected, strict=True):
            torch.testing.assert_close(
                result.double(), exact, rtol=1e-5, atol=2e-5, msg=lambda text, case=case: f"{case}: {text}"
            )


def test_gradient_by_central_differences() -> None:
    """Of the kernel itself, in float32, in random directions of the grid."""
    require_library("cpu")
    arguments, numbers = _named(ray_arguments(step=0.3, border=0.25, occupied=None))
    grid, origins, directions = (a.float() for a in arguments)
    weights = [torch.randn(40, 3), *torch.randn(4, 40)]

    def loss(values: Tensor) -> Tensor:
        results = render_rays(values, origins, directions, **numbers)
        return sum((w.double() * r.double()).sum() for w, r in zip(weights, results))

    leaf = grid.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert gradient.abs().sum() > 1
    for seed in range(4):
        along = torch.randn(grid.shape, generator=torch.Generator().manual_seed(seed))
        numeric = (loss(grid + 0.01 * along) - loss(grid - 0.01 * along)) / 0.02
        # The third derivative's part is 1e-4 of it, and float32's rounding 2e-5: 3e-4 measured.
        torch.testing.assert_close(float((gradient * along).sum()), float(numeric), rtol=2e-3, atol=2e-3)


@_DTYPES
def test_one_pass_gives_what_autograd_gives(dtype: torch.dtype) -> None:
    (grid, *rays), numbers = _named(ray_arguments(300, step=0.4))
    grid, target = grid.to(dtype), numbers.pop("target")
    weight, background = torch.linspace(0, 2, 300), (0.2, 0.5, 0.9)
    weights = {"colour_error_weight": 0.3, "depth_error_weight": 0.2}
    gradient = torch.zeros(3, *grid.shape, dtype=dtype)
    colour, transmittance, depth, loss, samples = radiance_gradient(
        gradient, grid, *rays, target, weight=weight, background=background, **weights, **numbers
    )
    assert samples.dtype == torch.int32
    assert samples.sum() > 1000
    leaf = grid.clone().requires_grad_()
    results = render_rays(leaf, *rays, target=target, **numbers)
    known = (numbers["target_depth"] > 0).to(dtype)
    distance = results[0] + results[1].unsqueeze(1) * torch.tensor(background, dtype=dtype) - target
    expected = weight * (distance.square().sum(1) + 0.3 * results[3]) + 0.2 * known * (results[4] + results[1])
    (of_grid,) = torch.autograd.grad(expected.mean(), leaf)
    for ours, theirs in zip((colour, transmittance, depth, loss), (*results[:3], expected)):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.sum(0), of_grid, rtol=1e-4, atol=1e-5 * of_grid.abs().max().item())


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    require_library("cpu")
    (grid, *rays), numbers = _named(ray_arguments(1500, (9, 8, 7), step=0.2))
    grid, target = grid.float(), numbers.pop("target")
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = grid.clone().requires_grad_()
            rendered = render_rays(leaf, *rays, target=target, **numbers)
            sum(result.sum() for result in rendered).backward()
            gradient = torch.zeros(4, *grid.shape)
            fused = radiance_gradient(gradient, grid, *rays, target, colour_error_weight=0.1, **numbers)
            results.append([*(r.detach() for r in rendered), leaf.grad, gradient, *fused])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_jitter_moves_samples_within_their_segments() -> None:
    """In a grid that grows denser, the later the samples the less light is left; on average as in the middle."""
    grid = torch.linspace(-3, 3, 16)[:, None, None, None].expand(16, 4, 4, 4).contiguous()
    origins, directions = torch.tensor([[-1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    left = [
        render_rays(grid, origins, directions, step=0.5, jitter=torch.tensor([j]))[1].item() for j in (0.0, 0.5, 0.9)
    ]
    assert left[0] > left[1] > left[2]
    many = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    repeated = origins.expand(2000, 3), directions.expand(2000, 3)
    mean = render_rays(grid, *repeated, step=0.5, jitter=many)[1].log().mean().exp()
    assert abs(mean.item() - left[1]) < 0.03
    assert torch.equal(render_rays(grid, origins, directions, step=0.5)[1], torch.tensor([left[1]])), (
        "None is the middle"
    )


def test_padded_grids() -> None:
    for sides in ((128, 128, 128), (3, 5, 7), (160, 160, 160), (64, 64, 64)):
        grid = padded_grid(*sides, 4)
        assert grid.shape == (*sides, 4)
        assert grid.stride()[2:] == (4, 1)
        assert not grid.any()
        assert 4 * grid.stride(0) % 4096 != 0
        assert 4 * grid.stride(1) % 1024 != 0
    assert padded_grid(2, 128, 128, 128, 4, dtype=torch.float64).stride()[3:] == (4, 1)


def test_kernels_refuse_huge_grids() -> None:
    arguments = ray_arguments()
    wide = torch.empty_strided((2, 2, 2, 4), (2**31, 8, 4, 1), device="meta")
    for name, args in (
        ("render_rays", (wide,)),
        ("render_rays_backward", (*arguments[:5], wide)),
        ("radiance_gradient", (wide.unsqueeze(0),)),
    ):
        (kernel,) = (k for k in get_operator(name).kernels if k.name == "cpu")
        assert "over 2147483647" in kernel.refuse(*args)
    assert explain("render_rays", arguments[0])["cpu"] == "refused: no kernel for torch.float64"
