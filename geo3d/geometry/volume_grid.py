"""VolumeGrid: colours and opacity of a place, on a dense grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class VolumeGrid:
    """A dense radiance grid: colour of a voxel, averaged over the directions it is seen from, and its opacity.

    Voxel (i, j, k) is the cell of that number from ``low`` along the axes of the world, z up; values are those of its
    centre.

    Args:
        rgb: (X, Y, Z, 3) float32 colours in [0, 1].
        opacity: (X, Y, Z) float32 in [0, 1], the share of light that the voxel stops: ``1 - exp(-density * side)``.
        low, high: (3,) float64 corners of the box, metres; None where a file does not tell them.
        labels: (X, Y, Z) int64 dataset class of each voxel, -1 where it is empty or not known.
        boxes: (N, 7) float32 objects in it: centre x, y, z and sides w, l, h in voxels (the grid spans 0 to X, Y, Z),
            and yaw about z, radians.

    Raises:
        ValueError: shapes that contradict each other.
    """

    rgb: Tensor
    opacity: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None

    def __post_init__(self) -> None:
        sides = tuple(self.opacity.shape)
        if len(sides) != 3 or tuple(self.rgb.shape) != (*sides, 3):
            raise ValueError(
                f"VolumeGrid: opacity must be (X, Y, Z) and rgb (X, Y, Z, 3), got {sides} and {tuple(self.rgb.shape)}"
            )
        if self.labels is not None and tuple(self.labels.shape) != sides:
            raise ValueError(f"VolumeGrid: labels must be {sides}, got {tuple(self.labels.shape)}")
        if self.boxes is not None and (self.boxes.ndim != 2 or self.boxes.shape[1] != 7):
            raise ValueError(f"VolumeGrid: boxes must be (N, 7), got {tuple(self.boxes.shape)}")
        for name in ("low", "high"):
            corner = getattr(self, name)
            if corner is not None and tuple(corner.shape) != (3,):
                raise ValueError(f"VolumeGrid: {name} must be (3,), got {tuple(corner.shape)}")
        if (self.low is None) != (self.high is None):
            raise ValueError("VolumeGrid: give both corners, low and high, or none")
        if self.low is not None and not bool((self.high > self.low).all()):
            raise ValueError(f"VolumeGrid: high {self.high.tolist()} must lie beyond low {self.low.tolist()}")

    @property
    def sides(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        return tuple(self.opacity.shape)

    @property
    def voxel(self) -> Tensor:
        """(3,) float64 sides of a voxel, metres.

        Raises:
            ValueError: the corners are not known.
        """
        if self.low is None or self.high is None:
            raise ValueError("VolumeGrid: its corners are not known, so that its voxels have no size")
        return (self.high - self.low) / torch.tensor(self.sides, dtype=torch.float64)

    @property
    def values(self) -> Tensor:
        """(4, X, Y, Z) float32: red, green, blue, opacity, as encoders read them."""
        return torch.cat([self.rgb, self.opacity.unsqueeze(-1)], -1).permute(3, 0, 1, 2).contiguous()

    @classmethod
    def of_values(cls, values: Tensor, like: VolumeGrid | None = None) -> VolumeGrid:
        """Inverse of :attr:`values`; corners and labels are those of another grid of the same sides."""
        rgb, opacity = values[:3].permute(1, 2, 3, 0), values[3]
        if like is None:
            return cls(rgb, opacity)
        return replace(like, rgb=rgb, opacity=opacity)

    def centres(self) -> Tensor:
        """(X, Y, Z, 3) float64 centres of the voxels, metres.

        Raises:
            ValueError: the corners are not known.
        """
        along = [
            low + side * (torch.arange(count, dtype=torch.float64) + 0.5)
            for low, side, count in zip(self.low if self.low is not None else (), self.voxel, self.sides)
        ]
        return torch.stack(torch.meshgrid(*along, indexing="ij"), -1)

    def turned(self, quarters: int = 1) -> VolumeGrid:
        """The world turned about its z axis by quarter turns, x towards y; labels, boxes and corners turn along.

        A quarter turn exchanges the sides w and l of the boxes and keeps their yaw, as the published augmentation does.
        """
        grid = self
        for _ in range(quarters % 4):
            grid = grid._quarter()
        return grid

    def _quarter(self) -> VolumeGrid:
        low, high, boxes = self.low, self.high, self.boxes
        if low is not None and high is not None:
            low, high = (
                torch.stack([-high[1], low[0], low[2]]),
                torch.stack([-low[1], high[0], high[2]]),
            )
        if boxes is not None:
            x, y, z, width, length, height, yaw = boxes.unbind(-1)
            boxes = torch.stack([self.sides[1] - y, x, z, length, width, height, yaw], -1)
        values = (self.rgb, self.opacity, self.labels)
        rgb, opacity, labels = (None if v is None else v.transpose(0, 1).flip(0) for v in values)
        return VolumeGrid(rgb, opacity, low, high, labels, boxes)

    def flipped(self, *axes: int) -> VolumeGrid:
        """The world mirrored along some of x (0), y (1) and z (2), each once; labels, boxes and corners along with it.

        A mirror along one of x and y reverses the yaw of boxes; along both, it is a half turn and keeps it.

        Raises:
            ValueError: an axis that is none of these, or is named twice.
        """
        if len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
            raise ValueError(f"VolumeGrid: axes to flip are 0, 1 and 2, each once, got {axes}")
        low, high, boxes = self.low, self.high, self.boxes
        if low is not None and high is not None:
            mirrored = torch.tensor([axis in axes for axis in range(3)], device=low.device)
            low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
        if boxes is not None:
            boxes = boxes.clone()
            for axis in axes:
                boxes[:, axis] = self.sides[axis] - boxes[:, axis]
            if (0 in axes) != (1 in axes):
                boxes[:, 6] = -boxes[:, 6]
        rgb, opacity, labels = (None if v is None else v.flip(axes) for v in (self.rgb, self.opacity, self.labels))
        return VolumeGrid(rgb, opacity, low, high, labels, boxes)

    def to_numpy(self) -> dict[str, Any]:
        """Fields that are present as numpy arrays."""
        known = {name: getattr(self, name) for name in ("rgb", "opacity", "low", "high", "labels", "boxes")}
        return {name: value.detach().cpu().numpy() for name, value in known.items() if value is not None}

    @classmethod
    def from_numpy(cls, fields: dict[str, Any]) -> VolumeGrid:
        """Inverse of :meth:`to_numpy`."""
        return cls(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()})
