"""What methods that read single objects share: how a cloud is turned, scaled, moved and made noisy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from geo3d.geometry.rotation import random_rotation
from geo3d.methods.checks import check_at_least, check_range

_AXES = {"x": 0, "y": 1, "z": 2}


@dataclass(frozen=True)
class ObjectAugmentation:
    """Random changes of an object's cloud; the defaults are those published for pre-training (I2P-MAE, Point-M2AE)."""

    rotation: Literal["none", "x", "y", "z", "any"] = "none"
    """Turn by a random angle about an axis, or by any rotation, all equally likely."""
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    """Each axis is scaled by a random factor of its own between these."""
    shift: float = 0.2
    """Each axis is shifted by up to so much either way."""
    jitter: float = 0.0
    """Standard deviation of the noise that is added to each coordinate."""

    def __post_init__(self) -> None:
        check_range(self, "scale")
        check_at_least(self, 0, "shift", "jitter")

    def apply(self, xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A changed copy of some points: rotated, scaled, shifted, made noisy, in this order.

        Args:
            xyz: (P, 3), in the unit sphere as a rule.
            rng: what is drawn from.

        Returns:
            (P, 3) float32.
        """
        xyz = np.asarray(xyz, np.float64) @ self._rotation(rng).T
        xyz = xyz * rng.uniform(*self.scale, 3) + rng.uniform(-self.shift, self.shift, 3)
        if self.jitter:
            xyz = xyz + self.jitter * rng.standard_normal(xyz.shape)
        return xyz.astype(np.float32)

    def _rotation(self, rng: np.random.Generator) -> np.ndarray:
        if self.rotation == "none":
            return np.eye(3)
        if self.rotation == "any":
            return random_rotation(rng)
        angle = rng.uniform(0, 2 * math.pi)
        first, second = (axis for axis in range(3) if axis != _AXES[self.rotation])
        matrix = np.eye(3)
        matrix[[first, second], [first, second]] = math.cos(angle)
        matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
        return matrix


__all__ = ["ObjectAugmentation"]
