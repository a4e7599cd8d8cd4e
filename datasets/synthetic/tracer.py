"""Casting rays against triangles (embreex)."""

from __future__ import annotations

import numpy as np

from geo3d.errors import require_extra

_PURPOSE = "making synthetic scenes"


class Tracer:
    """First hits of rays with a set of triangles.

    Args:
        triangles: (T, 3, 3) metres, counter-clockwise seen from outside.

    Attributes:
        normal: (T, 3) float32 outward unit normals.

    Raises:
        MissingExtra: embreex is not installed (extra ``synthetic``).
    """

    def __init__(self, triangles: np.ndarray) -> None:
        normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        self.normal = (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32)
        self._scene = require_extra("embreex.rtcore_scene", "synthetic", _PURPOSE).EmbreeScene(robust=True)
        corners = triangles.reshape(-1, 3).astype(np.float32)
        index = np.arange(len(corners), dtype=np.int32).reshape(-1, 3)
        require_extra("embreex.mesh_construction", "synthetic", _PURPOSE).TriangleMesh(self._scene, corners, index)

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
        """First hits of rays.

        Args:
            origins, directions: (N, 3).

        Returns:
            ``primID`` (-1 where nothing is hit), barycentric ``u`` and ``v``, and ``tfar`` in lengths of the direction.
        """
        return self._scene.run(_rays(origins), _rays(directions), output=1)

    def distance(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(N,) float32 distance to the first hit, in lengths of the direction; 1e37 where nothing is hit."""
        return self._scene.run(_rays(origins), _rays(directions), query="DISTANCE")


def _rays(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors, np.float32)
