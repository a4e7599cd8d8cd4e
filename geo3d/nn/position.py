"""Fixed position embeddings and token grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Integer (y, x) of every token of a grid, row-major: (rows * columns, 2) int64."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([y, x], -1).reshape(-1, 2)


def sincos_2d(dim: int, rows: int, columns: int) -> Tensor:
    """Two-dimensional sine-cosine embedding (MAE; CroCo v1, section 3).

    The first half of the channels encodes x, the second y; each half is ``dim / 4`` sines, then as many cosines,
    at frequencies ``10000 ** (-i / (dim / 4))``.

    Args:
        dim: channels, a multiple of 4.
        rows, columns: grid size in tokens.

    Returns:
        (rows * columns, dim) float32, computed in float64.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    return sincos_at(token_positions(rows, columns).double(), dim).float()


def sincos_at(positions: Tensor, dim: int) -> Tensor:
    """As :func:`sincos_2d`, of tokens at any places.

    Args:
        positions: (..., 2) floating-point rows and columns.
        dim: channels, a multiple of 4.

    Returns:
        (..., dim), of the type of ``positions``.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sincos_at: dim must be a multiple of 4, got {dim}")
    quarter = dim // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=positions.dtype, device=positions.device) / quarter)
    halves = []
    for axis in (1, 0):
        angle = positions[..., axis, None] * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, -1)


def resize_position_embedding(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic resampling of a position embedding to another grid; the same tensor when the grids agree.

    Args:
        embedding: (old rows * old columns, C).
        old, new: (rows, columns) in tokens.

    Returns:
        (new rows * new columns, C).
    """
    traced = any(isinstance(side, torch.SymInt) for side in new)  # unknown: resampling to the same grid changes nothing
    if not traced and old == new:
        return embedding
    grid = embedding.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)
