"""Clouds moved and scaled to the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor

#: Roundings of a coordinate that the mean of equal ones may be away.
_ROUNDING = 1000


def to_unit_sphere(xyz: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Each cloud with its mean at 0 and its farthest point at distance 1.

    Args:
        xyz: (P, 3) float, packed; no cloud is empty.
        offsets: (B + 1,) int64; one cloud when not given.

    Returns:
        (P, 3) positions, zeros where all points of a cloud are the same; (B, 3) what was taken off; and (B,) what they
        were divided by, 1 for such clouds.
    """
    lengths = torch.tensor([xyz.shape[0]], device=xyz.device) if offsets is None else offsets.diff()
    centre = torch.segment_reduce(xyz, "mean", lengths=lengths, axis=0)
    cloud = torch.repeat_interleave(lengths, output_size=xyz.shape[0])
    moved = xyz - centre[cloud]
    largest = torch.segment_reduce(moved.norm(dim=1), "max", lengths=lengths)
    farthest = torch.segment_reduce(xyz.norm(dim=1), "max", lengths=lengths)
    # Of equal points the mean may lie beside them by rounding, which must not be magnified.
    extended = largest > _ROUNDING * torch.finfo(xyz.dtype).eps * farthest
    scale = torch.where(extended, largest, 1)
    return torch.where(extended[cloud].unsqueeze(1), moved / scale[cloud].unsqueeze(1), 0), centre, scale


__all__ = ["to_unit_sphere"]
