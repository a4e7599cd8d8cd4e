"""Masked modelling for convolutional networks (SparK): reconstruct hidden cells from the ones that are seen."""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.models.croco import patchify, unpatchify
from geo3d.models.spark import CELL
from geo3d.nn.masked_conversion import SparseEncoder, to_sparse

_VARIANCE_EPS = 1e-6
_COUNT_EPS = 1e-8


def cell_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every patch (B, N, C), unbiased as published: both (B, N, 1)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=1)
    return mean, (variance + _VARIANCE_EPS).sqrt()


def reconstruction_loss(reconstruction: Tensor, images: Tensor, active: Tensor, cell: int = CELL) -> Tensor:
    """Mean squared error over hidden cells, of colours that are normalised in each cell.

    Args:
        reconstruction: (B, 3, H, W) predicted colours, normalised cell by cell.
        images: (B, 3, H, W).
        active: (B, 1, H / cell, W / cell) bool, true where a cell was seen.
        cell: pixels along a side of a cell.

    Returns:
        Scalar, float32 or wider; 0 where no cell is hidden.
    """
    patches = patchify(images, cell)
    mean, deviation = cell_statistics(patches)
    predicted = patchify(reconstruction.to(patches.dtype), cell)
    error = (predicted - (patches - mean) / deviation).square().mean(-1)
    hidden = ~active.flatten(1)
    return (error * hidden).sum() / (hidden.sum() + _COUNT_EPS)


def fill_in(reconstruction: Tensor, images: Tensor, active: Tensor, cell: int = CELL) -> Tensor:
    """Images (B, 3, H, W) with the reconstruction, brought to the true mean and contrast, in their hidden cells."""
    patches = patchify(images, cell)
    mean, deviation = cell_statistics(patches)
    predicted = patchify(reconstruction.to(patches.dtype), cell) * deviation + mean
    seen = active.flatten(1).unsqueeze(-1)
    return unpatchify(torch.where(seen, patches, predicted), cell, tuple(active.shape[-2:]))


__all__ = ["SparseEncoder", "cell_statistics", "fill_in", "reconstruction_loss", "to_sparse"]
