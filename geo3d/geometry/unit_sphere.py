"""Clouds moved and scaled to the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_sphere(xyz: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Each cloud with its mean at 0 and its farthest point at distance 1.

    Args:
        xyz: (P, 3) float, packed; no cloud is empty.
        offsets: (B + 1,) int64; one cloud when not given.

    Returns:
        (P, 3) positions, (B, 3) what was taken off and (B,) what they were divided by; 1 for clouds of one place.
    """
    lengths = torch.tensor([len(xyz)], device=xyz.device) if offsets is None else offsets.diff()
    centre = torch.segment_reduce(xyz, "mean", lengths=lengths, axis=0)
    cloud = torch.repeat_interleave(lengths)
    moved = xyz - centre[cloud]
    largest = torch.segment_reduce(moved.norm(dim=1), "max", lengths=lengths)
    scale = torch.where(largest > 0, largest, 1)
    return moved / scale[cloud].unsqueeze(1), centre, scale


__all__ = ["to_unit_sphere"]
