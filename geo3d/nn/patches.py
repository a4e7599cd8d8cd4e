"""Images as rows of square patches, and back; and what their patches are normalised by."""

from __future__ import annotations

import torch
from torch import Tensor

_VARIANCE_EPS = 1e-6


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Cut an image into patches.

    Args:
        image: (B, 3, H, W), both sides multiples of ``patch_size``.

    Returns:
        (B, N, patch * patch * 3): patches row-major; within one (row, column, channel), channel fastest.
    """
    b, c, height, width = image.shape
    rows, columns = height // patch_size, width // patch_size
    cut = image.reshape(b, c, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, patch_size * patch_size * c)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`patchify`: (B, N, patch * patch * 3) and (rows, columns) -> (B, 3, H, W)."""
    rows, columns = grid
    cut = patches.reshape(len(patches), rows, columns, patch_size, patch_size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * patch_size, columns * patch_size)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every patch (B, N, C), unbiased as CroCo and SparK publish it: both (B, N, 1)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=1)
    return mean, (variance + _VARIANCE_EPS).sqrt()
