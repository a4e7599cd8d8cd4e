"""Optical flow of what does not move, of depth and poses."""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.geometry.camera import Camera

_NEAREST = 1e-3  # metres in front of a camera; what lies nearer or behind has no pixel


def moved_points(
    depth: Tensor, pixels: Tensor, camera: Camera, second_camera: Camera, second_from_first: Tensor
) -> tuple[Tensor, Tensor]:
    """Where a second view has what pixels of a first one show.

    Args:
        depth: (...) metres along z at the pixels, 0 where unknown.
        pixels: (..., 2) of the first view, as (u, v).
        camera, second_camera: intrinsics of the views.
        second_from_first: (4, 4) pose.

    Returns:
        (..., 2) pixels of the second view, inside it or not, NaN where the depth is unknown or the point lies behind
        the second camera; and (...) depth in it, metres.
    """
    xyz = camera.unproject(pixels.double(), depth.double())
    pose = second_from_first.double()
    moved = xyz @ pose[:3, :3].T + pose[:3, 3]
    known = (depth > 0) & (moved[..., 2] > _NEAREST)
    seen = torch.where(known.unsqueeze(-1), moved, moved.new_tensor([0.0, 0.0, 1.0]))
    return second_camera.project(seen).masked_fill(~known.unsqueeze(-1), torch.nan), moved[..., 2]


def depth_there(place: Tensor, second_depth: Tensor) -> Tensor:
    """Depth that a second view has at some of its pixels, that of the nearest.

    Args:
        place: (..., 2) pixels of the second depth map, as :func:`moved_points` gives them.
        second_depth: (H, W) metres, 0 where unknown.

    Returns:
        (...) float64 metres; 0 where it is unknown and outside the map.
    """
    height, width = second_depth.shape
    nearest = place.nan_to_num(-1.0, -1.0, -1.0).clamp(-1, 2**24).round().long()
    inside = (nearest >= 0).all(-1) & (nearest[..., 0] < width) & (nearest[..., 1] < height)
    there = second_depth[nearest[..., 1].clamp(0, height - 1), nearest[..., 0].clamp(0, width - 1)].double()
    return there.where(inside, 0)


def same_surface(depth: Tensor, there: Tensor, share: float = 0.05, metres: float = 0.03) -> Tensor:
    """Which points (...) of a view lie on the surface that it has in their place, known and near enough; bool.

    Args:
        depth: (...) of the points in the view, metres.
        there: (...) of its surface at their pixels, 0 where unknown.
        share, metres: by which the two may differ, a share of the points' depth or a length, whichever is more.
    """
    return (there > 0) & ((there - depth).abs() <= (share * depth).clamp_min(metres))


def is_visible(place: Tensor, depth: Tensor, second_depth: Tensor) -> Tensor:
    """Which moved points a second view sees: inside it, and within 5 % or 3 cm of the surface that it has there.

    Args:
        place: (..., 2) pixels of the second depth map, as :func:`moved_points` gives them.
        depth: (...) of the points in the second view, metres.
        second_depth: (H, W) depth map of the second view, 0 where unknown: points there count as not seen.

    Returns:
        (...) bool.
    """
    return same_surface(depth, depth_there(place, second_depth))


__all__ = ["depth_there", "is_visible", "moved_points", "same_surface"]
