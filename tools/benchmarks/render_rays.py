"""Volume rendering through a radiance grid, its gradient, and the step of the grid, beside plain PyTorch.

A sample costs some 200 operations forward and as many backward (trilinear sums of 4 channels, five exponentials), 15 ns
of one core with 8 lanes; and memory: the 8 nodes around it are 4 runs of 32 bytes, and so are their places in the
gradient, which are read and written. Rays of a batch have nothing in common, and grid and gradient of 128^3 nodes are
34 MB each, so that most runs come from memory or the last cache, at 4 to 8 ns each when many are on their way at once:
30 to 60 ns. A step moves 128 bytes a node (value, two moments and gradient, read and written): 2 to 4 ns.

The plain twin looks samples up with ``grid_sample``, a fixed number a ray, as many as the longest in the box has; the
light that is left is a ``cumprod``, and autograd finds the gradient. Samples are counted up to where their rays leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.race import Variant, race
from torch import Tensor

from geo3d.ops import grid_occupancy, padded_grid, radiance_gradient, radiance_step, render_rays

_COLOUR_ERROR, _DEPTH_ERROR, _DEPTH_REACH = 0.05, 0.1, 0.2
_STOP = 1e-4


@dataclass
class RenderRaysBenchmark:
    """Rays through a radiance grid with surfaces: rendering, the gradient of a loss, a step of Adam."""

    nodes: int = 128
    """Nodes along each side of the grid."""
    rays: int = 4096
    """Rays of a batch, from anywhere to anywhere."""
    haze: bool = True
    """Faint densities between the surfaces, as photos leave them; without, as depths leave them."""
    threads: int = 1
    """CPU threads."""
    turns: int = 9
    """Timed turns of each variant; the median counts."""
    device: str = "cpu"
    """cpu or cuda."""


def surfaces(nodes: int, haze: bool) -> Tensor:
    """(X, Y, Z, 4) raw values as training leaves them: a room and bodies in it, dense within two voxels of a face."""
    torch.manual_seed(0)
    axis = (2 * torch.arange(nodes) + 1) / nodes - 1
    place = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    distance = (torch.tensor([0.9, 0.9, 0.8]) - place.abs()).amin(-1)  # to the nearest face, negative inside matter
    for centre, radius in (((0.4, 0.3, -0.6), 0.25), ((-0.5, 0.2, -0.5), 0.3), ((0.1, -0.6, -0.6), 0.2)):
        distance = torch.minimum(distance, (place - torch.tensor(centre)).norm(dim=-1) - radius)
    for centre, half in (((-0.5, -0.5, -0.6), (0.3, 0.2, 0.2)), ((0.6, -0.3, -0.5), (0.1, 0.3, 0.3))):
        distance = torch.minimum(distance, ((place - torch.tensor(centre)).abs() - torch.tensor(half)).amax(-1))
    voxels = distance * nodes / 2
    density = (1.5 - 2.5 * voxels).clamp(-9, 2) + 0.5 * torch.randn(voxels.shape)
    density = torch.where(voxels < -3, -6.0, density)
    if haze:
        coarse = torch.randn(1, 1, *(nodes // 4,) * 3)
        density = torch.maximum(density, 2.5 * F.interpolate(coarse, size=(nodes,) * 3, mode="trilinear")[0, 0] - 6.5)
    grid = padded_grid(nodes, nodes, nodes, 4)
    grid[..., 0] = density
    grid[..., 1:] = torch.randn(nodes, nodes, nodes, 3)
    return grid


@dataclass
class _Batch:
    origins: Tensor
    directions: Tensor
    target: Tensor
    target_depth: Tensor
    jitter: Tensor


def _batch(rays: int) -> _Batch:
    torch.manual_seed(1)
    origins = (2 * torch.rand(rays, 3) - 1) * torch.tensor([0.5, 0.5, 0.2])
    directions = F.normalize(torch.randn(rays, 3), dim=1)
    return _Batch(origins, directions, torch.rand(rays, 3), torch.rand(rays) + 0.3, torch.rand(rays))


def twin(grid: Tensor, batch: _Batch, step: float) -> tuple[Tensor, Tensor, Tensor, int]:
    """Colour, loss and transmittance of rays in plain PyTorch, and how many samples lie on them.

    Args:
        grid: (1, 4, X, Y, Z) raw values.
        step: length of a segment, of which a voxel has one.
    """
    length = ((batch.directions.sign() - batch.origins) / batch.directions).amin(1)
    count = int((length.max() / step).ceil())
    begins = step * torch.arange(count, device=grid.device)
    lengths = (length.unsqueeze(1) - begins).clamp(0, step)
    t = begins + batch.jitter.unsqueeze(1) * lengths
    position = batch.origins.unsqueeze(1) + t.unsqueeze(2) * batch.directions.unsqueeze(1)
    # grid_sample's first coordinate is that of the last dimension.
    looked_up = F.grid_sample(grid, position.flip(2)[None, None], padding_mode="border", align_corners=False)
    density, colours = looked_up[0, 0, 0], looked_up[0, 1:, 0].permute(1, 2, 0).sigmoid()
    kept = torch.exp(-F.softplus(density) / step * lengths)
    light = torch.cat([torch.ones_like(kept[:, :1]), kept], 1).cumprod(1)
    weight = light[:, :-1] * (1 - kept)
    colour, transmittance = (weight.unsqueeze(2) * colours).sum(1), light[:, -1]
    colour_error = (weight * (colours - batch.target.unsqueeze(1)).square().sum(2)).sum(1)
    distance = ((t - batch.target_depth.unsqueeze(1)).abs() / _DEPTH_REACH).clamp(max=1)
    depth_error = (weight * distance).sum(1) + transmittance
    loss = (colour - batch.target).square().sum(1) + _COLOUR_ERROR * colour_error + _DEPTH_ERROR * depth_error
    return colour, loss.mean(), transmittance, int((lengths > 0).sum())


def calls(variant: str, nodes: int, rays: int, haze: bool, device: str) -> Callable[[], float]:
    """The function to time, which returns the nanoseconds a sample of its calls so far, their median, in CPU time."""
    batch, grid = _batch(rays), surfaces(nodes, haze)
    batch = _Batch(*(tensor.to(device) for tensor in vars(batch).values()))
    grid = grid.to(device)
    step = 2 / nodes
    shared = {"step": step, "density_scale": 1 / step, "stop": _STOP, "jitter": batch.jitter}
    shared["occupancy"] = grid_occupancy(grid, 0.01 / step, 0.0, 1 / step)
    compared = {"target": batch.target, "target_depth": batch.target_depth, "depth_reach": _DEPTH_REACH}
    weights = {"colour_error_weight": _COLOUR_ERROR, "depth_error_weight": _DEPTH_ERROR}
    gradient = padded_grid(2, nodes, nodes, nodes, 4, device=device)
    rays_of_batch = (batch.origins, batch.directions)

    def fused() -> int:
        return radiance_gradient(gradient, grid, *rays_of_batch, **shared, **compared, **weights)[4]

    samples = int(fused().sum())
    leaf = grid.clone().requires_grad_()
    channels_first = grid.permute(3, 0, 1, 2).contiguous()[None].requires_grad_()

    def composed() -> int:
        colour, left, _, colour_error, depth_error = render_rays(leaf, *rays_of_batch, **shared, **compared)
        loss = (colour - batch.target).square().sum(1) + _COLOUR_ERROR * colour_error
        torch.autograd.grad((loss + _DEPTH_ERROR * (depth_error + left)).mean(), leaf)
        return samples

    def plain() -> int:
        _, loss, _, count = twin(channels_first, batch, step)
        torch.autograd.grad(loss, channels_first)
        return count

    def plain_forward() -> int:
        with torch.no_grad():
            return twin(channels_first, batch, step)[3]

    def rendered() -> int:
        render_rays(grid, *rays_of_batch, **shared)
        return samples

    def learnt() -> int:
        fused()
        return samples

    functions = {_PLAIN: plain, _FORWARD_PLAIN: plain_forward, _COMPOSED: composed, _FUSED: learnt, _RENDERED: rendered}
    return _timed(functions[variant])


def _timed(function: Callable[[], int]) -> Callable[[], float]:
    """Calls it, and returns the median of its CPU nanoseconds over what it returns, so far."""
    taken: list[float] = []

    def step() -> float:
        start = time.process_time()
        count = function()
        taken.append(1e9 * (time.process_time() - start) / count)
        return sorted(taken)[len(taken) // 2]

    return step


_FORWARD_PLAIN, _RENDERED = "grid_sample and cumprod", "render_rays"
_PLAIN, _COMPOSED, _FUSED = "grid_sample, cumprod, autograd", "render_rays and autograd", "radiance_gradient"
_ADAM, _STEP, _SMOOTH_ADAM, _SMOOTH_STEP = (
    "torch.optim.Adam",
    "radiance_step",
    "torch.optim.Adam and differences",
    "radiance_step, smooth",
)


def steps(variant: str, nodes: int, device: str) -> Callable[[], float]:
    """The function to time: one step of the whole grid; returns CPU nanoseconds a node."""
    torch.manual_seed(0)
    grid = torch.randn(nodes, nodes, nodes, 4, device=device)
    smoothness = 1e-5 if variant in (_SMOOTH_ADAM, _SMOOTH_STEP) else 0.0
    if variant in (_STEP, _SMOOTH_STEP):
        values, mean, square = (padded_grid(nodes, nodes, nodes, 4, device=device) for _ in range(3))
        gradient = padded_grid(2, nodes, nodes, nodes, 4, device=device)
        values.copy_(grid)
        numbers = {"density_rate": 0.1, "colour_rate": 0.1}
        numbers |= {"density_smoothness": smoothness, "colour_smoothness": smoothness}

        def ours() -> int:
            gradient[0, 0, 0] += 1.0
            radiance_step(values, gradient, mean, square, number=9, **numbers)
            return nodes**3

        return _timed(ours)
    leaf = torch.nn.Parameter(grid)
    leaf.grad = torch.randn_like(grid)
    adam = torch.optim.Adam([leaf], 0.1, betas=(0.9, 0.99), fused=True)

    def theirs() -> int:
        if smoothness:
            for axis in range(3):
                difference = smoothness * leaf.detach().diff(dim=axis)
                leaf.grad.narrow(axis, 1, nodes - 1).add_(difference)
                leaf.grad.narrow(axis, 0, nodes - 1).sub_(difference)
        adam.step()
        leaf.grad.zero_()
        return nodes**3

    return _timed(theirs)


def run(config: RenderRaysBenchmark) -> list[dict[str, Any]]:
    """Rows of rendering, of the gradient and of the step; plain PyTorch is the base of the ratios."""
    size = {"nodes": config.nodes, "device": config.device}
    batch = size | {"rays": config.rays, "haze": config.haze}
    scene = f"{config.rays} rays, {config.nodes} nodes a side, {'haze' if config.haze else 'clear'}"
    cases = {
        f"rendering, {scene}": ("calls", (_FORWARD_PLAIN, _RENDERED), batch, "ns a sample"),
        f"gradient, {scene}": ("calls", (_PLAIN, _COMPOSED, _FUSED), batch, "ns a sample"),
        "step": ("steps", (_ADAM, _STEP), size, "ns a node"),
        "step with a total variation": ("steps", (_SMOOTH_ADAM, _SMOOTH_STEP), size, "ns a node"),
    }
    rows = []
    for case, (factory, names, arguments, unit) in cases.items():
        path = f"benchmarks.render_rays:{factory}"
        variants = [
            Variant(name, path, arguments | {"variant": name}, "float32", config.device, config.threads)
            for name in names
        ]
        for row in race(case, variants, config.turns):
            columns = {f"{unit}, CPU time": f"{row['value']:.1f}"} if config.device == "cpu" else {}
            rows.append(row | {"columns": columns})
    return rows
