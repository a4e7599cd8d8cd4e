"""Axes of cameras: how other conventions look in OpenCV's (x right, y down, z forward)."""

from __future__ import annotations

import numpy as np

#: (4, 4) between OpenCV's camera axes and OpenGL's (x right, y up, z back); its own inverse.
#: ``world_from_opengl = world_from_opencv @ OPENGL_FROM_OPENCV``.
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
OPENGL_FROM_OPENCV.flags.writeable = False

__all__ = ["OPENGL_FROM_OPENCV"]
