"""Which way is up, as the cameras tell: people hold them level."""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.geometry.similarity import Similarity

#: How much the cameras' own up counts beside what is level for all of them.
_OWN = 0.02


def upright(world_from_camera: Tensor) -> Similarity:
    """The way to a world whose z is up, whose origin is the first camera, which looks along y.

    Up is across the cameras' horizontal axes, as far as these differ, and else their own.

    Args:
        world_from_camera: (N, 4, 4) poses, OpenCV's axes.
    """
    poses = world_from_camera.double()
    right, down, forward = (poses[:, :3, axis] for axis in range(3))
    own = -down.mean(0)
    if float(own.norm()) < 1e-6:
        own = -down[0]
    own = own / own.norm()
    level = torch.einsum("ni,nj->ij", right, right) / len(poses)
    up = torch.linalg.solve(level + _OWN * torch.eye(3, dtype=torch.float64), own)
    up = up / up.norm()
    ahead = forward[0] - (forward[0] @ up) * up
    if float(ahead.norm()) < 1e-6:  # it looks straight up or down
        ahead = down[0] - (down[0] @ up) * up
    ahead = ahead / ahead.norm()
    rotation = torch.stack([torch.linalg.cross(ahead, up), ahead, up])
    return Similarity(rotation, -rotation @ poses[0, :3, 3], 1.0)


__all__ = ["upright"]
