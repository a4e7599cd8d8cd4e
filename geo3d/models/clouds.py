"""Clouds in the forms that people have them in, checked before an encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud, View
from geo3d.models.encoder import Encoder, require_range

#: Field of points -> least and greatest value, and what to do with others.
_RANGES = {
    "colors": (0.0, 1.0, "divide colours of 8 bits by 255"),
    "normals": (-1.01, 1.01, "make normals of unit length"),
}


def checked_cloud(encoder: Encoder, scene: Any, reads: Sequence[str] = (), others: str = "") -> PointCloud:
    """A cloud's points.

    Args:
        encoder: that is to read them, for messages.
        scene: a ``PointCloud``, an array or tensor (N, 3) of positions, or a ``View`` with depth, camera and pose,
            whose image gives the colours where it is aligned.
        reads: fields of points that must be there beside their place.
        others: what else the encoder reads, for messages.

    Raises:
        InputError: something else; no point; numbers that are not finite, of the wrong type or out of range; or a
            cloud that lacks what is read.
    """
    if isinstance(scene, View):
        scene = _points_of_view(scene)
    if isinstance(scene, np.ndarray):
        scene = torch.from_numpy(np.ascontiguousarray(scene))
    if isinstance(scene, Tensor):
        if scene.ndim != 2 or scene.shape[1] != 3:
            raise InputError(
                f"prepare: an array of points is (N, 3), got {tuple(scene.shape)}; colours and normals come in a "
                "PointCloud(xyz, colors, normals)"
            )
        scene = PointCloud(scene)
    if not isinstance(scene, PointCloud):
        last = f"a View with depth {others}" if others else "or a View with depth"
        raise InputError(
            f"prepare: {type(encoder).__name__} reads a PointCloud, an array (N, 3), {last}, "
            f"not a {type(scene).__name__}"
        )
    if len(scene) == 0 or (scene.offsets.diff() == 0).any():
        raise InputError("prepare: the cloud holds no point")
    if not scene.xyz.is_floating_point():
        raise InputError(f"prepare: positions must be floats, metres, got {scene.xyz.dtype}")
    require_range(scene.xyz, -np.inf, np.inf, "prepare: positions", "leave such points out")
    for part in reads:
        values = getattr(scene, part)
        if values is None:
            raise InputError(
                f"prepare: {type(encoder).__name__} reads {part}, and the points have none; add them, or make one "
                "without by the option signals"
            )
        check_part(part, values)
    return scene


def check_part(part: str, values: Tensor) -> None:
    """Raise InputError where colours or normals are no floats, or out of range."""
    low, high, hint = _RANGES[part]
    if not values.is_floating_point():
        raise InputError(f"prepare: {part} must be floats in [{low:.0f}, {high:.0f}], got {values.dtype}; {hint}")
    require_range(values, low, high, f"prepare: {part}", hint)


def _points_of_view(view: View) -> PointCloud:
    """The points that a view's depth map shows, with the colours of an image of the same size."""
    try:
        xyz, pixel = view.world_points()
    except ValueError as error:
        raise InputError(f"prepare: {error}") from error
    one_camera = view.depth_camera in (None, view.camera)
    aligned = one_camera and view.image is not None and view.image.shape[:2] == view.depth.shape
    return PointCloud(xyz, view.image.reshape(-1, 3)[pixel] if aligned else None)


__all__ = ["check_part", "checked_cloud"]
