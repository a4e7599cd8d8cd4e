"""Transforms of messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry.rotation import quaternion_matrix
from geo3d.interop.ros2.messages import field_of, numbers_of


def from_transform(transform: Any) -> Tensor:
    """The matrix of a ``geometry_msgs/TransformStamped`` or ``Transform``.

    Args:
        transform: such as ``tf_buffer.lookup_transform("map", message.header.frame_id, message.header.stamp)`` returns
            it: it takes coordinates of the child, the frame of the message, to those of its parent, the map.

    Returns:
        (4, 4) float64 ``parent_from_child``; of the optical frame of a camera in a map, its ``world_from_camera``.

    Raises:
        InputError: a field is missing or no number, or the rotation is a quaternion of zeros.
    """
    kind = "Transform"
    transform = getattr(transform, "transform", transform)
    translation, rotation = field_of(transform, "translation", kind), field_of(transform, "rotation", kind)
    x, y, z = (numbers_of(translation, axis, f"{kind}.translation", 1)[0] for axis in "xyz")
    quaternion = np.array([numbers_of(rotation, axis, f"{kind}.rotation", 1)[0] for axis in "wxyz"])
    if not quaternion.any():
        raise InputError(f"{kind}: rotation is a quaternion of zeros, as in a message that was never filled in")
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_matrix(quaternion)
    matrix[:3, 3] = x, y, z
    return torch.from_numpy(matrix)


def as_matrix(transform: Any) -> np.ndarray:
    """A message of a transform, or an array or tensor (4, 4), as (4, 4) float64.

    Raises:
        InputError: it is neither.
    """
    if not hasattr(transform, "shape"):
        return from_transform(transform).numpy()
    if tuple(transform.shape) != (4, 4):
        raise InputError(f"a transform is a message or a matrix (4, 4), got {tuple(transform.shape)}")
    return np.asarray(transform, np.float64)
