"""One step of Adam on a radiance grid, with the gradient of a total variation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator

SCHEMA = (
    "radiance_step(Tensor(a!) grid, Tensor(b!) gradient, Tensor(c!) mean, Tensor(d!) square, Tensor? occupancy, "
    "int number, float density_rate, float colour_rate, float density_smoothness, float colour_smoothness, "
    "float mean_decay, float square_decay, float epsilon) -> ()"
)

#: Nodes along z that are stepped together.
SEGMENT = 8


def radiance_step(
    grid: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    number: int,
    density_rate: float,
    colour_rate: float,
    density_smoothness: float = 0.0,
    colour_smoothness: float = 0.0,
    occupancy: Tensor | None = None,
    mean_decay: float = 0.9,
    square_decay: float = 0.99,
    epsilon: float = 1e-15,
) -> None:
    """Step a radiance grid against its gradient, and set the gradient to zero; all in place.

    To the sum of the gradient's parts, in order, is added that of ``smoothness / 2 * sum (v - v')^2`` over all
    neighbours v, v' along the axes, raw values, before the step. Then Adam, with the correction of its first steps.

    Args:
        grid: (X, Y, Z, 4) float32 or float64, raw density and raw colours; the last two dimensions of this and the
            other three lie packed.
        gradient: (S, X, Y, Z, 4) from :func:`geo3d.ops.radiance_gradient`; zero afterwards where it was taken.
        mean: (X, Y, Z, 4) mean of the gradients, as Adam keeps it.
        square: (X, Y, Z, 4) mean of their squares.
        number: of the step, from 1.
        density_rate, colour_rate: learning rates of the first channel and of the others.
        density_smoothness, colour_smoothness: weights of the total variation; 0: none.
        occupancy: (X // 2, Y // 2, Z // 2) uint8 as of :func:`geo3d.ops.render_rays`: only segments of 8 nodes along z,
            from multiples of 8, that touch a cell which is not 0 are stepped, all else is left as it is. None: all.
        mean_decay, square_decay, epsilon: Adam's.

    Raises:
        TypeError: a dtype other than those above.
        InputError: shapes that do not fit each other, tensors on different devices, numbers out of range.
    """
    torch.ops.geo3d.radiance_step.default(
        grid,
        gradient,
        mean,
        square,
        occupancy,
        number,
        density_rate,
        colour_rate,
        density_smoothness,
        colour_smoothness,
        mean_decay,
        square_decay,
        epsilon,
    )


def stepped_nodes(occupancy: Tensor, sides: tuple[int, int, int]) -> Tensor:
    """(X, Y, Z) bool, nodes of the segments that touch an occupied cell; see :func:`radiance_step`."""
    x, y, z = sides
    # A cell's last nodes are the first ones of the next: node i touches cells i // 2 and (i - 1) // 2, where they are.
    padded = F.pad((occupancy > 0).to(torch.float32)[None, None], (0, 1) * 3)
    nodes = torch.zeros(1, 1, 2 * padded.shape[2] + 1, 2 * padded.shape[3] + 1, 2 * padded.shape[4] + 1)
    nodes = nodes.to(occupancy.device)
    for corner in range(27):
        i, j, k = corner // 9, corner // 3 % 3, corner % 3
        part = nodes[:, :, i : i + 2 * padded.shape[2] - 1 : 2, j : j + 2 * padded.shape[3] - 1 : 2]
        part = part[..., k : k + 2 * padded.shape[4] - 1 : 2]
        part.copy_(torch.maximum(part, padded))
    touched = nodes[0, 0, :x, :y, :z]
    segments = F.max_pool1d(touched.reshape(1, x * y, z), SEGMENT, stride=SEGMENT, ceil_mode=True)
    return segments.repeat_interleave(SEGMENT, 2)[..., :z].reshape(x, y, z) > 0


def radiance_step_reference(
    grid: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    occupancy: Tensor | None,
    number: int,
    density_rate: float,
    colour_rate: float,
    density_smoothness: float,
    colour_smoothness: float,
    mean_decay: float,
    square_decay: float,
    epsilon: float,
) -> None:
    """What ``geo3d::radiance_step`` computes, in plain PyTorch."""
    total = gradient[0].clone()
    for part in gradient[1:]:
        total += part
    smoothness = grid.new_tensor([density_smoothness, *[colour_smoothness] * 3])
    if density_smoothness or colour_smoothness:
        for axis in range(3):
            difference = smoothness * grid.diff(dim=axis)
            total.narrow(axis, 1, grid.shape[axis] - 1).add_(difference)
            total.narrow(axis, 0, grid.shape[axis] - 1).sub_(difference)
    stepped = torch.ones_like(grid[..., 0], dtype=torch.bool)
    if occupancy is not None:
        stepped = stepped_nodes(occupancy, tuple(grid.shape[:3]))
    stepped = stepped.unsqueeze(3)
    mean.copy_(torch.where(stepped, mean_decay * mean + (1 - mean_decay) * total, mean))
    square.copy_(torch.where(stepped, square_decay * square + (1 - square_decay) * total * total, square))
    rate = grid.new_tensor([density_rate, *[colour_rate] * 3]) / (1 - mean_decay**number)
    change = rate * mean / ((square / (1 - square_decay**number)).sqrt() + epsilon)
    grid.sub_(torch.where(stepped, change, 0))
    gradient.masked_fill_(stepped, 0)


def _check(
    grid: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    occupancy: Tensor | None,
    number: int,
    density_rate: float,
    colour_rate: float,
    density_smoothness: float,
    colour_smoothness: float,
    mean_decay: float,
    square_decay: float,
    epsilon: float,
) -> None:
    name = "radiance_step"
    if grid.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: grid must be float32 or float64, got {grid.dtype}")
    if grid.ndim != 4 or grid.shape[3] != 4 or min(grid.shape[:3]) < 2:
        raise InputError(f"{name}: grid must be (X, Y, Z, 4) with sides of at least 2, got {tuple(grid.shape)}")
    if gradient.ndim != 5 or gradient.shape[0] < 1 or tuple(gradient.shape[1:]) != tuple(grid.shape):
        raise InputError(
            f"{name}: gradient must be (S, {', '.join(map(str, grid.shape))}), got {tuple(gradient.shape)}"
        )
    for label, tensor in {"grid": grid, "gradient": gradient, "mean": mean, "square": square}.items():
        if tensor.dtype != grid.dtype:
            raise TypeError(f"{name}: {label} must be {grid.dtype} as grid, got {tensor.dtype}")
        if label in ("mean", "square") and tuple(tensor.shape) != tuple(grid.shape):
            raise InputError(f"{name}: {label} must be {tuple(grid.shape)} as grid, got {tuple(tensor.shape)}")
        if tensor.device != grid.device:
            raise InputError(f"{name}: grid is on {grid.device} but {label} on {tensor.device}")
        if tensor.stride()[-2:] != (4, 1):
            raise InputError(f"{name}: the last two dimensions of {label} must lie packed, got {tensor.stride()}")
    if occupancy is not None:
        if occupancy.dtype != torch.uint8:
            raise TypeError(f"{name}: occupancy must be uint8, got {occupancy.dtype}")
        cells = tuple(side // 2 for side in grid.shape[:3])
        if tuple(occupancy.shape) != cells:
            raise InputError(f"{name}: occupancy must be {cells}, half the grid's sides, got {tuple(occupancy.shape)}")
        if occupancy.device != grid.device:
            raise InputError(f"{name}: grid is on {grid.device} but occupancy on {occupancy.device}")
    if number < 1:
        raise InputError(f"{name}: number counts from 1, got {number}")
    amounts = {"density_rate": density_rate, "colour_rate": colour_rate, "density_smoothness": density_smoothness}
    amounts |= {"colour_smoothness": colour_smoothness, "epsilon": epsilon}
    for label, amount in amounts.items():
        if not 0 <= amount < torch.inf:
            raise InputError(f"{name}: {label} must be finite and not negative, got {amount}")
    for label, decay in {"mean_decay": mean_decay, "square_decay": square_decay}.items():
        if not 0 <= decay < 1:
            raise InputError(f"{name}: {label} must be from 0 to below 1, got {decay}")


def _fake(*args: object) -> None:
    """Nothing is returned."""


define_operator(
    SCHEMA,
    reference=radiance_step_reference,
    check=_check,
    fake=_fake,
    kernels=(Kernel("cpu", (torch.float32,)), Kernel("cuda", (torch.float32,))),
)
