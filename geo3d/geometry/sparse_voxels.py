"""SparseVoxels: features on the occupied cells of a lattice, a packed batch of scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from geo3d.errors import InputError

_make_topology: Callable[[Tensor, int, int], Any] | None = None


def set_topology(make: Callable[[Tensor, int, int], Any]) -> None:
    """Say how :attr:`SparseVoxels.topology` is made of coords, stride and batch size.

    Topology is computed by operators, which this room knows nothing of; ``geo3d.nn`` calls this when it is imported.
    """
    global _make_topology
    _make_topology = make


@dataclass(eq=False)
class SparseVoxels:
    """Features on occupied cells of a lattice, of one or more scenes, rows in any order.

    A voxel covers ``stride`` units along each axis, and its coordinate is its lowest corner: a multiple of the stride,
    for the coarse voxel of a finer coordinate c ``floor(c / stride) * stride``, below zero too.

    Args:
        coords: (N, 4) int32 rows [batch, x, y, z]: batch from 0 to 65535, x, y, z from -2**20 to 2**20.
        feats: (N, C) on the device of ``coords``.
        stride: size of the voxels in units of the coordinates.
        batch_size: number of scenes B, of which any may be empty; when not given, one more than the highest batch
            there is.

    Raises:
        InputError: shapes, dtypes or devices that do not fit. Values are checked by :attr:`topology`.
    """

    coords: Tensor
    feats: Tensor
    stride: int = 1
    batch_size: int | None = None
    #: What follows from the coordinates alone; the same object for all voxels that share them.
    shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 4 or self.coords.dtype != torch.int32:
            shape, dtype = tuple(self.coords.shape), self.coords.dtype
            raise InputError(f"SparseVoxels: coords must be (N, 4) int32 [batch, x, y, z], got {shape} {dtype}")
        if self.feats.ndim != 2 or self.feats.shape[0] != self.coords.shape[0]:
            raise InputError(
                f"SparseVoxels: feats must be ({self.coords.shape[0]}, C), a row a voxel, got {tuple(self.feats.shape)}"
            )
        if self.feats.device != self.coords.device:
            raise InputError(f"SparseVoxels: coords are on {self.coords.device} but feats on {self.feats.device}")
        if self.stride < 1:
            raise InputError(f"SparseVoxels: stride must be 1 or more, got {self.stride}")
        if self.batch_size is None:
            self.batch_size = int(self.coords[:, 0].max()) + 1 if len(self.coords) else 0

    def __len__(self) -> int:
        """Number of voxels, all scenes together."""
        return len(self.coords)

    @property
    def topology(self) -> Any:
        """``geo3d.nn.Topology``: order, windows, neighbours, coarser voxels; one for all voxels of the same coords.

        Raises:
            InputError: coordinates out of range, not multiples of the stride, or twice the same.
        """
        if "topology" not in self.shared:
            if _make_topology is None:
                raise RuntimeError("SparseVoxels.topology is computed by geo3d.nn: import geo3d.nn first")
            self.shared["topology"] = _make_topology(self.coords, self.stride, self.batch_size)
        return self.shared["topology"]

    def with_feats(self, feats: Tensor) -> SparseVoxels:
        """The same voxels, with their topology, and other features (N, C)."""
        return replace(self, feats=feats)

    def to(self, device: torch.device | str) -> SparseVoxels:
        """Copy to a device; topology is made anew there. On that device already: the voxels themselves."""
        if self.coords.device == torch.device(device):
            return self
        return replace(self, coords=self.coords.to(device), feats=self.feats.to(device), shared={})
