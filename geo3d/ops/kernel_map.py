"""Kernel maps of sparse convolution: which input voxel lies under which weight at each output voxel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator

SCHEMA = "kernel_map(Tensor in_coords, Tensor out_coords, int step, int kernel_size) -> Tensor"
TRANSPOSE_SCHEMA = "transpose_kernel_map(Tensor neighbours, SymInt count) -> Tensor"

_KERNELS = tuple(Kernel(device, (torch.int32,)) for device in ("cpu", "cuda"))


@dataclass(frozen=True)
class KernelMap:
    """The two views of one kernel map; build it with :func:`build_kernel_map` and share it between layers.

    Args:
        neighbours: (K, M) int32, input row of each offset and output voxel, -1 where there is none.
        transposed: (K, N) int32, output row of each offset and input voxel, -1 where there is none.
    """

    neighbours: Tensor
    transposed: Tensor


def build_kernel_map(in_coords: Tensor, out_coords: Tensor, step: int, kernel_size: int) -> KernelMap:
    """Both views of the kernel map; arguments and errors as of :func:`kernel_map`.

    Where ``in_coords`` and ``out_coords`` are the same tensor and the size is odd (a submanifold convolution), the map
    is its own transpose with the offsets in reverse, and costs one search.
    """
    neighbours = kernel_map(in_coords, out_coords, step, kernel_size)
    if in_coords is out_coords and kernel_size % 2 == 1:
        return KernelMap(neighbours, neighbours.flip(0))
    return KernelMap(neighbours, transpose_kernel_map(neighbours, in_coords.shape[0]))


def kernel_offsets(kernel_size: int) -> Tensor:
    """Offsets of a cubic kernel, x fastest: row k holds [dx, dy, dz].

    Odd sizes reach from ``-(size // 2)`` to ``size // 2``, so that k = (dx + 1) + 3 (dy + 1) + 9 (dz + 1) for
    size 3. Even sizes reach from 0 to ``size - 1``, as in MinkowskiEngine: with ``step`` the input's stride, size 2
    gathers the cells that a stride of 2 merges.

    Returns:
        (kernel_size ** 3, 3) int32.
    """
    first = -(kernel_size // 2) if kernel_size % 2 == 1 else 0
    axis = torch.arange(first, first + kernel_size, dtype=torch.int32)
    dz, dy, dx = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([dx, dy, dz], -1).reshape(-1, 3)


def kernel_map(in_coords: Tensor, out_coords: Tensor, step: int, kernel_size: int) -> Tensor:
    """For each offset of a cubic kernel and each output voxel, the input voxel that lies there.

    ``result[k, m]`` is the row of ``in_coords`` equal to ``out_coords[m] + step * offset[k]`` in the same scene, with
    the offsets of :func:`kernel_offsets`. A submanifold convolution passes the same coordinates twice, a strided one
    passes the coarse coordinates (multiples of the coarse stride) as outputs; ``step`` is the inputs' stride in both.

    Args:
        in_coords: (N, 4) int32 [batch, x, y, z] without duplicates, in any order.
        out_coords: (M, 4) int32 [batch, x, y, z]; may repeat.
        step: by which offsets are multiplied, at least 1.
        kernel_size: edge of the kernel in voxels, 1 to 15.

    Returns:
        (kernel_size ** 3, M) int32 rows of ``in_coords``, -1 where there is no voxel.

    Raises:
        TypeError: coordinates that are not int32.
        ValueError: shapes that do not fit, different devices, a step or size out of range.
        InputError: two equal rows in ``in_coords``; tensors on the CPU only (a CUDA kernel takes any one of them).
    """
    return torch.ops.geo3d.kernel_map.default(in_coords, out_coords, step, kernel_size)


def kernel_map_reference(in_coords: Tensor, out_coords: Tensor, step: int, kernel_size: int) -> Tensor:
    """What ``geo3d::kernel_map`` computes, in plain PyTorch: a sorted search, one coordinate after the other."""
    # Inputs that agree in the coordinates so far share a rank below 2**31, so rank and next coordinate fit in an int64.
    levels, rank = [], torch.zeros(len(in_coords), dtype=torch.int64, device=in_coords.device)
    for axis in range(4):
        values, rank = torch.unique((rank << 32) + in_coords[:, axis], return_inverse=True)
        levels.append(values)
    if len(levels[-1]) < len(in_coords):
        raise InputError(_duplicate_message(in_coords, rank))
    row_of_rank = torch.empty_like(rank).scatter_(0, rank, torch.arange(len(rank), device=rank.device))
    result = torch.full((kernel_size**3, len(out_coords)), -1, dtype=torch.int32, device=in_coords.device)
    if len(in_coords) == 0:
        return result
    for row, offset in zip(result, kernel_offsets(kernel_size).tolist()):
        query = out_coords.long() + step * torch.tensor([0, *offset], device=out_coords.device)
        rank = torch.zeros_like(query[:, 0])
        found = ((query >= -(2**31)) & (query < 2**31)).all(1)
        for axis, values in enumerate(levels):
            key = (rank << 32) + query[:, axis]
            rank = torch.searchsorted(values, key).clamp(max=len(values) - 1)
            found &= values[rank] == key
        row.copy_(torch.where(found, row_of_rank[rank], -1))
    return result


def _duplicate_message(coords: Tensor, rank: Tensor) -> str:
    first = int((torch.bincount(rank)[rank] > 1).nonzero()[0, 0])
    batch, x, y, z = coords[first].tolist()
    return f"kernel_map: in_coords has voxel (batch {batch}: {x}, {y}, {z}) more than once; voxelize the points first"


def _check(in_coords: Tensor, out_coords: Tensor, step: int, kernel_size: int) -> None:
    for name, coords in (("in_coords", in_coords), ("out_coords", out_coords)):
        if coords.dtype != torch.int32:
            raise TypeError(f"kernel_map: {name} must be int32, got {coords.dtype}")
        if coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"kernel_map: {name} must be (N, 4) [batch, x, y, z], got {tuple(coords.shape)}")
    if in_coords.device != out_coords.device:
        raise ValueError(f"kernel_map: in_coords are on {in_coords.device} but out_coords on {out_coords.device}")
    if step < 1:
        raise ValueError(f"kernel_map: step must be at least 1, got {step}")
    if not 1 <= kernel_size <= 15:
        raise ValueError(f"kernel_map: kernel_size must be from 1 to 15, got {kernel_size}")


def _fake(in_coords: Tensor, out_coords: Tensor, step: int, kernel_size: int) -> Tensor:
    return out_coords.new_empty((kernel_size**3, out_coords.shape[0]))


def transpose_kernel_map(neighbours: Tensor, count: int) -> Tensor:
    """For each offset and each input voxel, the output voxel that has it there.

    Args:
        neighbours: (K, M) int32 rows of inputs, -1 where there is none; each row names an input at most once, as those
            of :func:`kernel_map` without repeated outputs do.
        count: number of inputs N, at least 0.

    Returns:
        (K, N) int32 rows of outputs, -1 where there is none.

    Raises:
        TypeError: a map that is not int32.
        ValueError: a map that is not two-dimensional, or a negative count.
        InputError: a row outside of -1 to ``count`` - 1, or an input that occurs twice for the same offset; tensors on
            the CPU only.
    """
    return torch.ops.geo3d.transpose_kernel_map.default(neighbours, count)


def transpose_kernel_map_reference(neighbours: Tensor, count: int) -> Tensor:
    """What ``geo3d::transpose_kernel_map`` computes, in plain PyTorch."""
    offset, output = (neighbours >= 0).nonzero(as_tuple=True)
    slot = offset * count + neighbours[offset, output]
    if len(slot.unique()) < len(slot):
        raise InputError(
            "transpose_kernel_map: an input occurs twice for the same offset; out_coords must not have duplicates"
        )
    result = neighbours.new_full((neighbours.shape[0] * count,), -1)
    return result.scatter_(0, slot, output.int()).view(len(neighbours), count)


def _check_transpose(neighbours: Tensor, count: int) -> None:
    check_map("transpose_kernel_map", "neighbours", neighbours)
    if count < 0:
        raise ValueError(f"transpose_kernel_map: count must not be negative, got {count}")


def _check_transpose_values(neighbours: Tensor, count: int) -> None:
    check_map_values("transpose_kernel_map", "neighbours", neighbours, count)


def check_map(operator: str, name: str, neighbours: Tensor) -> None:
    """Raise TypeError or ValueError unless ``neighbours`` is (K, M) int32."""
    if neighbours.dtype != torch.int32:
        raise TypeError(f"{operator}: {name} must be int32, got {neighbours.dtype}")
    if neighbours.ndim != 2:
        raise ValueError(f"{operator}: {name} must be (K, M), got {tuple(neighbours.shape)}")


def check_map_values(operator: str, name: str, neighbours: Tensor, count: int) -> None:
    """Raise InputError unless all of ``neighbours`` is from -1 to ``count`` - 1."""
    if neighbours.numel() == 0:
        return
    low, high = (int(bound) for bound in neighbours.aminmax())
    if low < -1 or high >= count:
        raise InputError(f"{operator}: {name} must be rows from -1 (none) to {count - 1}, got {low} to {high}")


def _fake_transpose(neighbours: Tensor, count: int) -> Tensor:
    return neighbours.new_empty((neighbours.shape[0], count))


define_operator(SCHEMA, reference=kernel_map_reference, check=_check, fake=_fake, kernels=_KERNELS)
define_operator(
    TRANSPOSE_SCHEMA,
    reference=transpose_kernel_map_reference,
    check=_check_transpose,
    fake=_fake_transpose,
    kernels=_KERNELS,
    check_values=_check_transpose_values,
)
