"""PointCloud: a packed batch of point sets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class PointCloud:
    """Point sets packed one after the other; scene b owns rows ``offsets[b]`` to ``offsets[b + 1]``.

    Args:
        xyz: (N, 3) metres, z up; in the world's frame less the scene's ``origin``.
        colors: (N, 3) float32 in [0, 1].
        normals: (N, 3) unit vectors.
        semantic: (N,) int64 class, -1 where ignored.
        instance: (N,) int64 instance, -1 where there is none.
        offsets: (B + 1,) int64; one scene when not given.
        origin: (B, 3) float64, what was taken off the points of each scene before they became float32: a scene's world
            coordinates are ``xyz + origin``. None: zeros.

    Raises:
        ValueError: a field whose shape does not fit ``xyz``, or offsets that are not a partition of the rows.
    """

    xyz: Tensor
    colors: Tensor | None = None
    normals: Tensor | None = None
    semantic: Tensor | None = None
    instance: Tensor | None = None
    offsets: Tensor | None = None
    origin: Tensor | None = None

    def __post_init__(self) -> None:
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise ValueError(f"PointCloud: xyz must be (N, 3), got {tuple(self.xyz.shape)}")
        count = self.xyz.shape[0]
        for name, shape in (
            ("colors", (count, 3)),
            ("normals", (count, 3)),
            ("semantic", (count,)),
            ("instance", (count,)),
        ):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"PointCloud: {name} must be {shape}, got {tuple(value.shape)}")
        if self.offsets is None:
            self.offsets = torch.tensor([0, count], dtype=torch.int64, device=self.xyz.device)
        steps = self.offsets.diff()
        if (
            self.offsets.ndim != 1
            or len(self.offsets) < 2
            or self.offsets[0] != 0
            or self.offsets[-1] != count
            or (steps < 0).any()
        ):
            raise ValueError(f"PointCloud: offsets must rise from 0 to {count}, got {self.offsets.tolist()[:8]}")
        origin, wanted = self.origin, (self.batch_size, 3)
        if origin is not None and (tuple(origin.shape) != wanted or origin.dtype != torch.float64):
            raise ValueError(
                f"PointCloud: origin must be {wanted} torch.float64, got {tuple(origin.shape)} {origin.dtype}"
            )

    def __len__(self) -> int:
        """Number of points, all scenes together."""
        return self.xyz.shape[0]

    @property
    def batch_size(self) -> int:
        """Number of scenes."""
        return len(self.offsets) - 1

    def scene(self, index: int) -> PointCloud:
        """The points of one scene, as views of the packed tensors."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("offsets", "origin")}
        origin = None if self.origin is None else self.origin[index : index + 1]
        return PointCloud(**{k: None if v is None else v[start:stop] for k, v in parts.items()}, origin=origin)

    def world(self) -> Tensor:
        """World coordinates (N, 3) float64: ``xyz`` with the origin of each scene put back."""
        if self.origin is None:
            return self.xyz.double()
        return self.xyz.double() + self.origin.repeat_interleave(self.offsets.diff(), dim=0)

    @classmethod
    def pack(cls, clouds: list[PointCloud]) -> PointCloud:
        """Join clouds into one batch; keeps the fields that all of them have, and every scene's origin.

        Raises:
            ValueError: an empty list.
        """
        if not clouds:
            raise ValueError("PointCloud.pack: the list is empty")
        joined = {}
        for f in fields(cls):
            values = [getattr(c, f.name) for c in clouds]
            if f.name not in ("offsets", "origin") and all(v is not None for v in values):
                joined[f.name] = torch.cat(values)
        if any(c.origin is not None for c in clouds):
            near = [torch.zeros(c.batch_size, 3, dtype=torch.float64, device=c.xyz.device) for c in clouds]
            joined["origin"] = torch.cat([n if c.origin is None else c.origin for n, c in zip(near, clouds)])
        sizes = torch.cat([c.offsets.diff() for c in clouds])
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return cls(**joined, offsets=offsets)

    def to_numpy(self) -> dict[str, Any]:
        """Fields that are present, as numpy arrays; :func:`geo3d.read_points` reads a file of those of one scene."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.detach().cpu().numpy() for k, v in values.items() if v is not None}

    @classmethod
    def from_numpy(cls, arrays: dict[str, Any]) -> PointCloud:
        """Inverse of :meth:`to_numpy`."""
        return cls(**{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()})
