"""What the tests of inference encode."""

from __future__ import annotations

import numpy as np


def corner(count: int = 600, seed: int = 0) -> dict[str, np.ndarray]:
    """Points on a floor and two walls, with the normals that point into the room, and colours; in random order."""
    rng = np.random.default_rng(seed)
    axis, place = rng.integers(3, size=count), rng.random((count, 3)) * [2.0, 1.6, 1.2]
    place[np.arange(count), axis] = 0
    normals = np.eye(3, dtype=np.float32)[axis]
    return {"xyz": place.astype(np.float32), "normals": normals, "colors": rng.random((count, 3), dtype=np.float32)}


def image(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def grid(side: int = 16) -> np.ndarray:
    """(4, X, Y, Z) float32 of 0 to 1."""
    return np.random.default_rng(0).random((4, side, side, side // 2), dtype=np.float32)
