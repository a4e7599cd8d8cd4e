"""Grids that are handed in, without files."""

from __future__ import annotations

from geo3d.geometry import VolumeGrid


class MemoryGrids:
    """Grids as sources of samples hand them out."""

    def __init__(self, *grids: VolumeGrid) -> None:
        self.grids = grids

    def __len__(self) -> int:
        return len(self.grids)

    def grid(self, index: int) -> VolumeGrid:
        return self.grids[index]

    def describe(self, index: int) -> str:
        return f"memory: {index}"
