"""Volume rendering of rays through a dense radiance grid, and the gradient of a photometric loss in one pass.

A node of the grid holds four raw numbers: density and red, green, blue. A sample of a ray looks them up trilinearly;
then ``density = density_scale * softplus(raw + density_shift)`` and ``colour = sigmoid(raw)``.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator

_RAYS = "Tensor grid, Tensor origins, Tensor directions, "
_OPTIONAL = "Tensor? jitter, Tensor? occupancy, "
_NUMBERS = "float step, float border, float density_shift, float density_scale, float stop, float depth_reach"
SCHEMA = (
    f"render_rays({_RAYS}Tensor? target, Tensor? target_depth, {_OPTIONAL}{_NUMBERS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "render_rays_backward(Tensor grad_colour, Tensor grad_transmittance, Tensor grad_depth, Tensor grad_colour_error, "
    f"Tensor grad_depth_error, {_RAYS}Tensor? target, Tensor? target_depth, {_OPTIONAL}{_NUMBERS}) -> Tensor"
)
GRADIENT_SCHEMA = (
    f"radiance_gradient(Tensor(a!) gradient, {_RAYS}Tensor target, Tensor? target_depth, Tensor? weight, {_OPTIONAL}"
    f"{_NUMBERS}, float[] background, float colour_error_weight, float depth_error_weight) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)

#: Samples for which the length of a step is chosen at once, where it grows outside the box.
BLOCK = 8
#: Half side, in halves of the box, of the cube that rays end at where there is a border.
FAR = 60.0
#: Kernels count a grid's numbers in 32 bits.
_MOST_NUMBERS = 2**31 - 1
#: Bytes; rows a multiple of the first apart, and planes of the second, share few places of a cache.
_BAD_ROW, _BAD_PLANE = 1024, 4096
#: Bytes from which large pages are asked for.
_LARGE = 2**22
#: Shortest step, in halves of the box along the ray.
_SHORTEST = 1e-4


def render_rays(
    grid: Tensor,
    origins: Tensor,
    directions: Tensor,
    *,
    step: float,
    border: float = 0.0,
    density_shift: float = 0.0,
    density_scale: float = 1.0,
    stop: float = 0.0,
    jitter: Tensor | None = None,
    occupancy: Tensor | None = None,
    target: Tensor | None = None,
    target_depth: Tensor | None = None,
    depth_reach: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Colour, light left, and depth of rays through a radiance grid, and how far their samples are from a target.

    Coordinates are the box's own, ``u = (x - centre) / half``: the box is [-1, 1]^3. With a border b the grid spans
    [-1 - b, 1 + b]^3 and holds all space up to the cube of half side 60: where ``r = max(|u|)`` is over 1 it is looked
    up at ``u (1 + b - b / r) / r``. Without one, nothing lies outside the box. Nodes are centres of voxels: node i of
    X lies at ``(1 + b) ((2 i + 1) / X - 1)``; nearer to the faces than half a voxel the outermost nodes hold.

    A ray is cut into segments of ``step`` from where it enters; outside the box they grow by ``max(r, r^2 / (4 b))``,
    chosen anew every 8 segments; the last one ends where the ray leaves. Each segment has one sample, at its start plus
    its length times ``jitter``. With optical depth a_i = density * length::

        w_i = exp(-(a_0 + ... + a_(i-1))) (1 - exp(-a_i))    colour = sum w_i c_i    depth = sum w_i t_i

    Differentiable with respect to ``grid``, any number of times. A gradient is bitwise the same whatever the number of
    threads; on CUDA where ``torch.use_deterministic_algorithms`` asks for it, by the reference. The errors are
    differentiated as they stand, weights included.

    Args:
        grid: (X, Y, Z, 4) float32 or float64 raw density and raw colours, sides of at least 2. The last two dimensions
            lie packed, or it is copied; see :func:`padded_grid` for what is fast.
        origins: (R, 3) float32 or in grid's dtype, as all that follows; in the box's coordinates.
        directions: (R, 3) unit vectors divided by half the box's sides, so that t along the ray is in metres.
        step: length of a segment inside the box, in units of t.
        border: b; 0 for a plain box.
        density_shift, density_scale: see above; the density is per unit of t.
        stop: samples that less light than this reaches are left out, so that a ray ends early. 0: none are.
        jitter: (R,) in [0, 1), where in its segments a ray has its samples; None: 0.5.
        occupancy: (X // 2, Y // 2, Z // 2) uint8, of cells of 2 voxels, which begin at even nodes; samples in cells
            that are 0 are left out. See :func:`grid_occupancy`.
        target: (R, 3) colours to compare samples with.
        target_depth: (R,) t of the surface; not known where it is not positive.
        depth_reach: distance from the surface at which a sample's error is 1.

    Returns:
        ``colour`` (R, 3) without background; ``transmittance`` (R,), the light that is left at the ray's end; ``depth``
        (R,), not divided by the light that was stopped; ``colour_error`` (R,) ``sum w_i |c_i - target|^2``;
        ``depth_error`` (R,) ``sum w_i min(|t_i - target_depth| / depth_reach, 1)``. Errors without target are zero.
        All in grid's dtype.

    Raises:
        TypeError: a dtype other than those above.
        InputError: shapes that do not fit each other, tensors on different devices, numbers out of range; and for
            tensors on the CPU rays that are not finite or steps under 1 / 10,000 of half the box.
    """
    numbers = (step, border, density_shift, density_scale, stop, depth_reach)
    return torch.ops.geo3d.render_rays.default(
        grid, origins, directions, target, target_depth, jitter, occupancy, *numbers
    )


def radiance_gradient(
    gradient: Tensor,
    grid: Tensor,
    origins: Tensor,
    directions: Tensor,
    target: Tensor,
    *,
    step: float,
    border: float = 0.0,
    density_shift: float = 0.0,
    density_scale: float = 1.0,
    stop: float = 0.0,
    jitter: Tensor | None = None,
    occupancy: Tensor | None = None,
    target_depth: Tensor | None = None,
    weight: Tensor | None = None,
    depth_reach: float = 0.2,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    colour_error_weight: float = 0.0,
    depth_error_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Render rays, compare them with photos, and add the gradient of the mean loss to ``gradient``; for training.

    The loss of a ray is, with the results of :func:`render_rays`::

        weight (|colour + transmittance * background - target|^2 + colour_error_weight * colour_error)
        + depth_error_weight * (depth_error + transmittance)    (this line where target_depth > 0)

    and its mean over the rays is differentiated with respect to ``grid``, while what each sample looked up is still at
    hand: half the time of a forward and a backward. For a gain a photo, divide the photo by it.

    Args:
        gradient: (S, X, Y, Z, 4) in grid's dtype, added to in place. Ray i adds to part ``i * S // R``; parts are
            written by one thread each, so that the bits do not depend on the number of threads but on S. Their last
            two dimensions lie packed. Sum: :func:`geo3d.ops.radiance_step`.
        target: (R, 3) colours of the photo.
        weight: (R,) of a ray's colours; None: 1.
        background: colour behind everything.
        colour_error_weight, depth_error_weight: see above.
        grid: and all others: see :func:`render_rays`.

    Returns:
        ``colour`` (R, 3) without background, ``transmittance`` (R,), ``depth`` (R,), ``loss`` (R,), and ``samples``
        (R,) int32, how many samples were looked up. Constants to autograd.

    Raises:
        TypeError, InputError: see :func:`render_rays`.
    """
    numbers = (step, border, density_shift, density_scale, stop, depth_reach)
    return torch.ops.geo3d.radiance_gradient.default(
        gradient,
        grid,
        origins,
        directions,
        target,
        target_depth,
        weight,
        jitter,
        occupancy,
        *numbers,
        list(background),
        colour_error_weight,
        depth_error_weight,
    )


def grid_occupancy(grid: Tensor, density: float, density_shift: float = 0.0, density_scale: float = 1.0) -> Tensor:
    """Which cells of 2 voxels hold more than a density somewhere; see :func:`render_rays`.

    Args:
        grid: (X, Y, Z, 4) raw values.
        density: threshold, per unit of t.
        density_shift, density_scale: see :func:`render_rays`.

    Returns:
        (X // 2, Y // 2, Z // 2) uint8, 1 where one of a cell's 27 nodes is above.
    """
    raw = grid[None, None, ..., 0]
    odd = [side % 2 == 0 for side in grid.shape[:3]]  # the last cell of an even side has two nodes
    raw = F.pad(raw, [0, int(odd[2]), 0, int(odd[1]), 0, int(odd[0])], value=-torch.inf)
    largest = F.max_pool3d(raw, 3, stride=2)[0, 0]
    return (density_scale * F.softplus(largest + density_shift) > density).to(torch.uint8)


def padded_grid(*sizes: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Zeros that kernels reach fast: rows and planes do not lie powers of two apart, where caches hold few of them.

    On Linux they lie on large pages where the system has some, which takes a tenth off the time of training.

    Args:
        sizes: (..., X, Y, Z, 4).
        dtype, device: as of ``torch.zeros``.

    Returns:
        A tensor of those sizes, a view of a larger one where need be.
    """
    *outer, rows, nodes, channels = sizes
    padded_nodes = nodes + (nodes * channels * dtype.itemsize % _BAD_ROW == 0)
    padded_rows = rows + (rows * padded_nodes * channels * dtype.itemsize % _BAD_PLANE == 0)
    whole = _zeros((*outer, padded_rows, padded_nodes, channels), dtype, torch.device(device))
    return whole[..., :rows, :nodes, :]


def _zeros(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    size = math.prod(sizes) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(sizes, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Advice: a system without large pages, such as one in a container, may turn it down, and nothing changes.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).reshape(sizes)


@dataclass
class _Samples:
    """Samples of rays, S for each, and the nodes around them.

    Args:
        t: (R, S) where they are.
        length: (R, S) of their segments; 0 where there is no sample.
        nodes: (R, S, 8) of the grid, flattened.
        shares: (R, S, 8) what each node counts.
    """

    t: Tensor
    length: Tensor
    nodes: Tensor
    shares: Tensor


def _ends(origins: Tensor, directions: Tensor, side: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the cube; the second is not above the first where they miss it."""
    first, second = (-side - origins) / directions, (side - origins) / directions
    parallel, inside = directions == 0, origins.abs() <= side
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    low = torch.where(parallel, torch.where(inside, -torch.inf, torch.inf), low)
    high = torch.where(parallel, torch.where(inside, torch.inf, -torch.inf), high)
    return low.amax(1).clamp(min=0), high.amin(1)


def _march(origins: Tensor, directions: Tensor, jitter: Tensor, step: float, border: float) -> tuple[Tensor, Tensor]:
    """t and lengths of segments (R, S); lengths are zero behind a ray's end."""
    start, end = _ends(origins, directions, FAR if border > 0 else 1.0)
    number = torch.arange(BLOCK, dtype=start.dtype, device=start.device)
    t, length = [start[:, None][:, :0]], [start[:, None][:, :0]]
    while bool((start < end).any()):
        reach = (origins + start.unsqueeze(1) * directions).abs().amax(1)
        segment = torch.full_like(start, step)
        if border > 0:
            segment = torch.where(reach > 1, step * torch.maximum(reach, reach * reach / (4 * border)), segment)
        begins = start.unsqueeze(1) + number * segment.unsqueeze(1)
        lengths = torch.minimum(end.unsqueeze(1) - begins, segment.unsqueeze(1)).clamp(min=0)
        lengths = torch.where((start < end).unsqueeze(1), lengths, 0)
        t.append(torch.where(lengths > 0, begins + jitter.unsqueeze(1) * lengths, 0))
        length.append(lengths)
        start = start + BLOCK * segment
    return torch.cat(t, 1), torch.cat(length, 1)


def _samples(
    grid: Tensor,
    origins: Tensor,
    directions: Tensor,
    jitter: Tensor | None,
    occupancy: Tensor | None,
    step: float,
    border: float,
) -> _Samples:
    origins, directions = origins.to(grid.dtype), directions.to(grid.dtype)
    jitter = torch.full_like(origins[:, 0], 0.5) if jitter is None else jitter.to(grid.dtype)
    t, length = _march(origins, directions, jitter, step, border)
    position = origins.unsqueeze(1) + t.unsqueeze(2) * directions.unsqueeze(1)  # (R, S, 3)
    position = torch.where((length > 0).unsqueeze(2), position, 0)
    if border > 0:
        reach = position.abs().amax(2, keepdim=True).clamp(min=1)
        position = position * ((1 + border - border / reach) / reach)
    sides = torch.tensor(grid.shape[:3], device=grid.device)
    place = (position + (1 + border)) * (sides / (2 * (1 + border))) - 0.5
    place = torch.minimum(place.clamp(min=0), (sides - 1).to(place.dtype))
    low = torch.minimum(place.floor().long(), sides - 2)
    if occupancy is not None:
        cell = low // 2
        length = torch.where(occupancy[cell[..., 0], cell[..., 1], cell[..., 2]] > 0, length, 0)
    high_share = place - low
    nodes, shares = [], []
    for corner in range(8):
        offset = torch.tensor([corner >> 2, corner >> 1 & 1, corner & 1], device=grid.device)
        x, y, z = (low + offset).unbind(2)
        nodes.append((x * sides[1] + y) * sides[2] + z)
        shares.append(torch.where(offset > 0, high_share, 1 - high_share).prod(2))
    return _Samples(t, length, torch.stack(nodes, 2), torch.stack(shares, 2))


@dataclass
class _Lit:
    """What the samples of rays look like.

    Args:
        raw: (R, S, 4) what they look up.
        optical: (R, S) optical depths; 0 where less light than ``stop`` arrives.
        light: (R, S) that reaches them.
        weight: (R, S) that they stop.
        colour: (R, S, 3).
        colour_error: (R, S) squared distance from the target.
        depth_error: (R, S) clamped distance from the surface.
    """

    raw: Tensor
    optical: Tensor
    light: Tensor
    weight: Tensor
    colour: Tensor
    colour_error: Tensor
    depth_error: Tensor


def _light(
    grid: Tensor,
    samples: _Samples,
    target: Tensor | None,
    target_depth: Tensor | None,
    density_shift: float,
    density_scale: float,
    stop: float,
    depth_reach: float,
) -> _Lit:
    raw = (grid.reshape(-1, 4)[samples.nodes] * samples.shares.unsqueeze(-1)).sum(2)
    optical = density_scale * F.softplus(raw[..., 0] + density_shift) * samples.length
    before = torch.cat([torch.zeros_like(optical[:, :1]), optical.cumsum(1)], 1)[:, :-1][:, : optical.shape[1]]
    light = (-before).exp()
    optical = torch.where((light >= stop) & (samples.length > 0), optical, 0)
    weight = light * -torch.expm1(-optical)
    colour = raw[..., 1:].sigmoid()
    colour_error = depth_error = torch.zeros_like(weight)
    if target is not None:
        colour_error = (colour - target.to(grid.dtype).unsqueeze(1)).square().sum(2)
    if target_depth is not None:
        surface = target_depth.to(grid.dtype).unsqueeze(1)
        distance = ((samples.t - surface).abs() / depth_reach).clamp(max=1)
        depth_error = torch.where(surface > 0, distance, 0)
    return _Lit(raw, optical, light, weight, colour, colour_error, depth_error)


def render_rays_reference(
    grid: Tensor,
    origins: Tensor,
    directions: Tensor,
    target: Tensor | None,
    target_depth: Tensor | None,
    jitter: Tensor | None,
    occupancy: Tensor | None,
    step: float,
    border: float,
    density_shift: float,
    density_scale: float,
    stop: float,
    depth_reach: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``geo3d::render_rays`` computes, in plain PyTorch."""
    samples = _samples(grid, origins, directions, jitter, occupancy, step, border)
    lit = _light(grid, samples, target, target_depth, density_shift, density_scale, stop, depth_reach)
    return (
        (lit.weight.unsqueeze(2) * lit.colour).sum(1),
        (-lit.optical.sum(1)).exp(),
        (lit.weight * samples.t).sum(1),
        (lit.weight * lit.colour_error).sum(1),
        (lit.weight * lit.depth_error).sum(1),
    )


def render_rays_backward_reference(
    grad_colour: Tensor,
    grad_transmittance: Tensor,
    grad_depth: Tensor,
    grad_colour_error: Tensor,
    grad_depth_error: Tensor,
    grid: Tensor,
    origins: Tensor,
    directions: Tensor,
    target: Tensor | None,
    target_depth: Tensor | None,
    jitter: Tensor | None,
    occupancy: Tensor | None,
    step: float,
    border: float,
    density_shift: float,
    density_scale: float,
    stop: float,
    depth_reach: float,
) -> Tensor:
    """What ``geo3d::render_rays_backward`` computes, in plain PyTorch: the gradient of the grid.

    With q_i the derivative of the loss by w_i, that by a_i is ``exp(-(a_0 + ... + a_i)) q_i``, less what the samples
    behind and the background lose: ``sum over j > i of w_j q_j``, and the transmittance times its own derivative.
    """
    samples = _samples(grid, origins, directions, jitter, occupancy, step, border)
    lit = _light(grid, samples, target, target_depth, density_shift, density_scale, stop, depth_reach)
    of_weight = (lit.colour * grad_colour.unsqueeze(1)).sum(2) + samples.t * grad_depth.unsqueeze(1)
    of_weight = of_weight + lit.colour_error * grad_colour_error.unsqueeze(1)
    of_weight = of_weight + lit.depth_error * grad_depth_error.unsqueeze(1)
    gain = lit.weight * of_weight
    behind = gain.flip(1).cumsum(1).flip(1) - gain
    behind = behind + (grad_transmittance * (-lit.optical.sum(1)).exp()).unsqueeze(1)
    of_optical = (lit.light - lit.weight) * of_weight - behind
    of_raw = torch.empty_like(lit.raw)
    of_raw[..., 0] = of_optical * density_scale * samples.length * (lit.raw[..., 0] + density_shift).sigmoid()
    of_colour = grad_colour.unsqueeze(1).expand_as(lit.colour)
    if target is not None:
        distance = lit.colour - target.to(grid.dtype).unsqueeze(1)
        of_colour = of_colour + 2 * grad_colour_error[:, None, None] * distance
    of_raw[..., 1:] = lit.weight.unsqueeze(2) * of_colour * lit.colour * (1 - lit.colour)
    of_raw = torch.where((lit.optical > 0).unsqueeze(2), of_raw, 0)
    terms = samples.shares.unsqueeze(3) * of_raw.unsqueeze(2)
    flat = torch.zeros_like(grid, memory_format=torch.contiguous_format).reshape(-1, 4)
    return flat.index_add(0, samples.nodes.flatten(), terms.reshape(-1, 4)).reshape(grid.shape)


def radiance_gradient_reference(
    gradient: Tensor,
    grid: Tensor,
    origins: Tensor,
    directions: Tensor,
    target: Tensor,
    target_depth: Tensor | None,
    weight: Tensor | None,
    jitter: Tensor | None,
    occupancy: Tensor | None,
    step: float,
    border: float,
    density_shift: float,
    density_scale: float,
    stop: float,
    depth_reach: float,
    background: list[float],
    colour_error_weight: float,
    depth_error_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``geo3d::radiance_gradient`` computes, in plain PyTorch."""
    rays, parts = len(origins), len(gradient)
    numbers = (step, border, density_shift, density_scale, stop, depth_reach)
    behind = torch.tensor(background, dtype=grid.dtype, device=grid.device)
    results = []
    for part in range(parts):
        # Rays i with i * parts // rays == part.
        chosen = slice(-(-part * rays // parts), -(-(part + 1) * rays // parts))
        per_ray = (origins, directions, target, target_depth, jitter)
        arguments = [None if t is None else t[chosen] for t in per_ray]
        colour, transmittance, depth, colour_error, depth_error = render_rays_reference(
            grid, *arguments, occupancy, *numbers
        )
        known = torch.zeros_like(depth) if target_depth is None else (target_depth[chosen] > 0).to(grid.dtype)
        scale = torch.ones_like(depth) if weight is None else weight[chosen].to(grid.dtype)
        distance = colour + transmittance.unsqueeze(1) * behind - target[chosen].to(grid.dtype)
        loss = scale * (distance.square().sum(1) + colour_error_weight * colour_error)
        loss = loss + depth_error_weight * known * (depth_error + transmittance)
        of_colour = 2 * scale.unsqueeze(1) * distance / rays
        gradients = (
            of_colour,
            (of_colour * behind).sum(1) + depth_error_weight * known / rays,
            torch.zeros_like(depth),
            scale * colour_error_weight / rays,
            depth_error_weight * known / rays,
        )
        gradient[part] += render_rays_backward_reference(*gradients, grid, *arguments, occupancy, *numbers)
        samples = _samples(grid, arguments[0], arguments[1], arguments[4], occupancy, step, border)
        lit = _light(grid, samples, None, None, density_shift, density_scale, stop, depth_reach)
        results.append((colour, transmittance, depth, loss, (lit.optical > 0).sum(1, dtype=torch.int32)))
    return tuple(torch.cat(column) for column in zip(*results))


def _check(
    grid: Tensor,
    origins: Tensor,
    directions: Tensor,
    target: Tensor | None,
    target_depth: Tensor | None,
    jitter: Tensor | None,
    occupancy: Tensor | None,
    step: float,
    border: float,
    density_shift: float,
    density_scale: float,
    stop: float,
    depth_reach: float,
    name: str = "render_rays",
    **more: Tensor | None,
) -> None:
    if grid.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: grid must be float32 or float64, got {grid.dtype}")
    if grid.ndim != 4 or grid.shape[3] != 4 or min(grid.shape[:3]) < 2:
        raise InputError(f"{name}: grid must be (X, Y, Z, 4) with sides of at least 2, got {tuple(grid.shape)}")
    if origins.ndim != 2 or origins.shape[1] != 3:
        raise InputError(f"{name}: origins must be (R, 3), got {tuple(origins.shape)}")
    rays = origins.shape[0]
    shapes = {"origins": (rays, 3), "directions": (rays, 3), "target": (rays, 3)}
    tensors = {"origins": origins, "directions": directions, "target": target}
    tensors |= {"target_depth": target_depth, "jitter": jitter, **more}
    for label, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in (torch.float32, grid.dtype):
            raise TypeError(f"{name}: {label} must be float32 or {grid.dtype} as grid, got {tensor.dtype}")
        expected = shapes.get(label, (rays,))
        if tuple(tensor.shape) != expected:
            raise InputError(f"{name}: {label} must be {expected} to fit the rays, got {tuple(tensor.shape)}")
    if occupancy is not None:
        if occupancy.dtype != torch.uint8:
            raise TypeError(f"{name}: occupancy must be uint8, got {occupancy.dtype}")
        cells = tuple(side // 2 for side in grid.shape[:3])
        if tuple(occupancy.shape) != cells:
            raise InputError(f"{name}: occupancy must be {cells}, half the grid's sides, got {tuple(occupancy.shape)}")
    for label, tensor in (tensors | {"occupancy": occupancy}).items():
        if tensor is not None and tensor.device != grid.device:
            raise InputError(f"{name}: grid is on {grid.device} but {label} on {tensor.device}")
    numbers = {"step": step, "density_scale": density_scale, "depth_reach": depth_reach}
    for label, number in numbers.items():
        if not 0 < number < torch.inf:
            raise InputError(f"{name}: {label} must be positive, got {number}")
    if not 0 <= border <= 10:
        raise InputError(f"{name}: border must be from 0 to 10, got {border}")
    if not 0 <= stop < 1:
        raise InputError(f"{name}: stop must be from 0 to below 1, got {stop}")
    if not abs(density_shift) < torch.inf:
        raise InputError(f"{name}: density_shift must be finite, got {density_shift}")


def _check_rays(name: str, origins: Tensor, directions: Tensor, step: float) -> None:
    bad = ~(origins.isfinite() & directions.isfinite()).all(1)
    if bad.any():
        raise InputError(f"{name}: rays must be finite; the first that is not is {int(bad.nonzero()[0])}")
    if len(directions) and float(directions.norm(dim=1).min()) * step < _SHORTEST:
        raise InputError(
            f"{name}: a step of {step} is under {_SHORTEST} of half the box along ray "
            f"{int(directions.norm(dim=1).argmin())}; choose a longer one, or look for directions of length 0"
        )


def _check_values(grid: Tensor, origins: Tensor, directions: Tensor, *args: Any) -> None:
    _check_rays("render_rays", origins, directions, args[4])


def _fake(grid: Tensor, origins: Tensor, *args: Any) -> tuple[Tensor, ...]:
    rays = origins.shape[0]
    return grid.new_empty(rays, 3), *(grid.new_empty(rays) for _ in range(4))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.numbers = inputs[7:]
    ctx.save_for_backward(*inputs[:7])


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    of_grid = torch.ops.geo3d.render_rays_backward.default(*gradients, *ctx.saved_tensors, *ctx.numbers)
    return of_grid, *(None,) * 12


def _backward_check(*args: Any) -> None:
    name = "render_rays_backward"
    *gradients, grid, origins = args[:7]
    _check(*args[5:], name=name)
    labels = ("grad_colour", "grad_transmittance", "grad_depth", "grad_colour_error", "grad_depth_error")
    for label, tensor in zip(labels, gradients):
        expected = (origins.shape[0], 3) if label == "grad_colour" else (origins.shape[0],)
        if tuple(tensor.shape) != expected:
            raise InputError(f"{name}: {label} must be {expected} to fit the rays, got {tuple(tensor.shape)}")
        if tensor.dtype != grid.dtype:
            raise TypeError(f"{name}: {label} must be {grid.dtype} as grid, got {tensor.dtype}")
        if tensor.device != grid.device:
            raise InputError(f"{name}: grid is on {grid.device} but {label} on {tensor.device}")


def _backward_check_values(*args: Any) -> None:
    _check_rays("render_rays_backward", args[6], args[7], args[12])


def _backward_fake(*args: Any) -> Tensor:
    return args[5].new_empty(args[5].shape)


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.numbers = inputs[12:]
    ctx.save_for_backward(*inputs[:12])


def _backward_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives, by automatic differentiation of the reference."""
    with torch.enable_grad():
        *gradients, grid = (t.detach().requires_grad_() for t in ctx.saved_tensors[:6])
        results = render_rays_reference(grid, *ctx.saved_tensors[6:], *ctx.numbers)
        # Errors without a target are constants.
        pairs = [(result, gradient) for result, gradient in zip(results, gradients) if result.requires_grad]
        (first,) = torch.autograd.grad([r for r, _ in pairs], grid, [g for _, g in pairs], create_graph=True)
        second = torch.autograd.grad(first, [*gradients, grid], cotangent, allow_unused=True)
    return *second, *(None,) * 12


def _gradient_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those of render_rays among radiance_gradient's."""
    _, grid, origins, directions, target, target_depth, _, jitter, occupancy, *numbers = args
    return grid, origins, directions, target, target_depth, jitter, occupancy, *numbers[:6]


def _gradient_check(*args: Any) -> None:
    name, gradient, grid, weight = "radiance_gradient", args[0], args[1], args[6]
    _check(*_gradient_arguments(args), name=name, weight=weight)
    if gradient.dtype != grid.dtype:
        raise TypeError(f"{name}: gradient must be {grid.dtype} as grid, got {gradient.dtype}")
    if gradient.ndim != 5 or gradient.shape[0] < 1 or tuple(gradient.shape[1:]) != tuple(grid.shape):
        raise InputError(
            f"{name}: gradient must be (S, {', '.join(map(str, grid.shape))}), got {tuple(gradient.shape)}"
        )
    if gradient.device != grid.device:
        raise InputError(f"{name}: grid is on {grid.device} but gradient on {gradient.device}")
    if gradient.stride()[3:] != (4, 1):
        raise InputError(
            f"{name}: the last two dimensions of gradient must lie packed, got strides {gradient.stride()}"
        )
    background, *weights = args[-3:]
    if len(background) != 3:
        raise InputError(f"{name}: background must be three numbers, got {background}")
    if not all(0 <= number < torch.inf for number in weights):
        raise InputError(f"{name}: the weights of the errors must be finite and not negative, got {weights}")


def _gradient_check_values(*args: Any) -> None:
    _check_rays("radiance_gradient", args[2], args[3], args[9])


def _gradient_fake(gradient: Tensor, grid: Tensor, origins: Tensor, *args: Any) -> tuple[Tensor, ...]:
    rays = origins.shape[0]
    floats = (grid.new_empty(rays, 3), *(grid.new_empty(rays) for _ in range(3)))
    return *floats, grid.new_empty(rays, dtype=torch.int32)


def _reach(grid: Tensor) -> int:
    """Numbers from the first to the last of a grid, as it lies in memory."""
    return sum((side - 1) * stride for side, stride in zip(grid.shape, grid.stride())) + 1


def _refuse(grid: Tensor, *args: Any) -> str | None:
    if _reach(grid) > _MOST_NUMBERS:
        return f"a grid over {_reach(grid)} numbers in memory is over {_MOST_NUMBERS}"
    return None


def _refuse_backward(*args: Any) -> str | None:
    return _refuse(args[5]) if len(args) > 5 else None


def _refuse_gradient(gradient: Tensor, *args: Any) -> str | None:
    return _refuse(gradient[0]) or (_refuse(args[0]) if args else None)


_DTYPES = (torch.float32,)

define_operator(
    SCHEMA,
    reference=render_rays_reference,
    check=_check,
    check_values=_check_values,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    kernels=(Kernel("cpu", _DTYPES, _refuse), Kernel("cuda", _DTYPES)),
)
define_operator(
    BACKWARD_SCHEMA,
    reference=render_rays_backward_reference,
    check=_backward_check,
    check_values=_backward_check_values,
    fake=_backward_fake,
    setup_context=_backward_setup_context,
    backward=_backward_backward,
    kernels=(Kernel("cpu", _DTYPES, _refuse_backward), Kernel("cuda", _DTYPES, deterministic=False)),
)
define_operator(
    GRADIENT_SCHEMA,
    reference=radiance_gradient_reference,
    check=_gradient_check,
    check_values=_gradient_check_values,
    fake=_gradient_fake,
    kernels=(Kernel("cpu", _DTYPES, _refuse_gradient), Kernel("cuda", _DTYPES, deterministic=False)),
)
