"""The voxels that a kernel reaches: where a generative transposed convolution has its outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.kernel_map import kernel_offsets
from geo3d.ops.registry import Kernel, define_operator
from geo3d.ops.window_partition import sort_cells

SCHEMA = "kernel_support(Tensor coords, int step, int kernel_size) -> Tensor"


def kernel_support(coords: Tensor, step: int, kernel_size: int) -> Tensor:
    """All voxels ``coords[m] + step * offset[k]``, each once, ascending by (batch, x, y, z).

    These are the outputs of a transposed convolution that makes new voxels: with ``kernel_size`` 2 and ``coords`` of
    stride ``2 * step`` the eight children of every voxel, with an odd size the neighbourhood of each. The kernel map
    of that convolution is ``build_kernel_map(kernel_support(coords, step, size), coords, step, size)``, read from
    coarse to fine: ``sparse_conv(feats, weight, map.transposed, map.neighbours)``.

    Args:
        coords: (M, 4) int32 [batch, x, y, z], in any order; may repeat.
        step: by which offsets are multiplied, at least 1; the stride of the voxels that are made.
        kernel_size: edge of the kernel in voxels, 1 to 15; offsets as of :func:`kernel_offsets`.

    Returns:
        (N, 4) int32, N at most ``kernel_size ** 3 * M``.

    Raises:
        TypeError: coords that are not int32.
        ValueError: coords that are not (M, 4), a step or size out of range.
        InputError: a voxel that int32 does not hold.
    """
    return torch.ops.geo3d.kernel_support.default(coords, step, kernel_size)


def kernel_support_reference(coords: Tensor, step: int, kernel_size: int) -> Tensor:
    """What ``geo3d::kernel_support`` computes, in plain PyTorch."""
    _check_values(coords, step, kernel_size)
    offsets = kernel_offsets(kernel_size).to(coords.device)
    reach = torch.cat([offsets.new_zeros(len(offsets), 1), offsets], 1).long() * step  # (K, 4)
    cells = (coords.long().unsqueeze(1) + reach).flatten(0, 1)
    order, starts = sort_cells(cells)
    return cells[order[starts[:-1]]].int()


def _check(coords: Tensor, step: int, kernel_size: int) -> None:
    if coords.dtype != torch.int32:
        raise TypeError(f"kernel_support: coords must be int32, got {coords.dtype}")
    if coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"kernel_support: coords must be (M, 4) [batch, x, y, z], got {tuple(coords.shape)}")
    if step < 1 or step * kernel_size >= 2**31:
        raise ValueError(
            f"kernel_support: step must be at least 1 and step * kernel_size below 2**31, got {step} and {kernel_size}"
        )
    if not 1 <= kernel_size <= 15:
        raise ValueError(f"kernel_support: kernel_size must be from 1 to 15, got {kernel_size}")


def _check_values(coords: Tensor, step: int, kernel_size: int) -> None:
    if coords.numel() == 0:
        return
    low, high = (int(bound) for bound in coords[:, 1:].aminmax())
    first = int(kernel_offsets(kernel_size)[0, 0])
    low, high = low + step * first, high + step * (first + kernel_size - 1)
    if low < -(2**31) or high >= 2**31:
        raise InputError(f"kernel_support: voxels from {low} to {high} do not fit in int32; move the scene to 0")


def _fake(coords: Tensor, step: int, kernel_size: int) -> Tensor:
    return coords.new_empty(torch.library.get_ctx().new_dynamic_size(), 4)


define_operator(
    SCHEMA,
    reference=kernel_support_reference,
    check=_check,
    check_values=_check_values,
    fake=_fake,
    kernels=tuple(Kernel(device, (torch.int32,)) for device in ("cpu", "cuda")),
)
