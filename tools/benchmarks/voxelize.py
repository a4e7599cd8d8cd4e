"""From points to voxels, and from voxels to windows: voxelize and window_partition beside plain PyTorch.

The peers are `torch.unique` over rows, which is the usual form, and over rows packed into one number, which is as far
as plain PyTorch goes when it is known that they fit; neither checks its input. For windows both are followed by the
stable sort that puts the rows of each window together. Points and voxels come in random order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from benchmarks.room import VOXEL_SIZE, room_points
from torch import Tensor

from geo3d.ops import voxelize, window_partition

_ROWS, _PACKED, _GEO3D = "torch.unique of rows", "torch.unique of packed rows", "geo3d"
_WINDOW = 7


@dataclass
class VoxelizeBenchmark:
    """Voxels of 2 cm of rooms of several sizes, and their shifted windows of 7 voxels a side."""

    scales: tuple[float, ...] = (0.5, 1.0, 1.5)
    """Sizes of the room; at 1 it has some 360,000 points in 110,000 voxels."""
    threads: int = 1
    """CPU threads."""
    turns: int = 5
    """Timed turns of each variant; the median counts."""


def _points(scale: float) -> Tensor:
    points = room_points(scale)
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))]


def _pack(cells: Tensor) -> Tensor:
    """One number a row; a room's cells fit."""
    low, high = cells.aminmax(dim=0)
    x, y, z = (cells - low).unbind(1)
    _, height, depth = (high - low + 1).tolist()
    return (x * height + y) * depth + z


def _unique(cells: Tensor, packed: bool) -> tuple[Tensor, Tensor]:
    """Group of every row, and their sizes."""
    if packed:
        return torch.unique(_pack(cells), return_inverse=True, return_counts=True)[1:]
    return torch.unique(cells, dim=0, return_inverse=True, return_counts=True)[1:]


def _voxelize_by_unique(points: Tensor, packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    cells = (points.double() / VOXEL_SIZE).floor().long()
    inverse, counts = _unique(cells, packed)
    rows = torch.arange(len(cells))
    first = rows.new_full((len(counts),), len(cells)).scatter_reduce_(0, inverse, rows, "amin")
    return cells[first].int(), inverse, first


def _windows_by_unique(coords: Tensor, packed: bool) -> tuple[Tensor, Tensor]:
    windows = (coords[:, 1:].long() + _WINDOW // 2).div(_WINDOW, rounding_mode="floor")
    inverse, counts = _unique(windows, packed)
    return inverse.argsort(stable=True), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def voxels(variant: str, scale: float) -> Callable[[], float]:
    """The function to time: one voxelisation; returns the number of voxels."""
    points = _points(scale)
    offsets = torch.tensor([0, len(points)])

    def step() -> float:
        if variant == _GEO3D:
            return len(voxelize(points, offsets, VOXEL_SIZE)[0])
        return len(_voxelize_by_unique(points, variant == _PACKED)[0])

    return step


def windows(variant: str, scale: float) -> Callable[[], float]:
    """The function to time: one partition; returns the number of windows."""
    points = _points(scale)
    coords, _, _ = voxelize(points, torch.tensor([0, len(points)]), VOXEL_SIZE)
    coords = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))]

    def step() -> float:
        if variant == _GEO3D:
            return len(window_partition(coords, 1, _WINDOW, True)[1]) - 1
        return len(_windows_by_unique(coords, variant == _PACKED)[1]) - 1

    return step


def run(config: VoxelizeBenchmark) -> list[dict[str, Any]]:
    """Rows of every variant and size; `torch.unique` of rows is the base of the ratios."""
    rows = []
    for scale in config.scales:
        points = room_points(scale)
        found = len(voxelize(points, torch.tensor([0, len(points)]), VOXEL_SIZE)[0])
        for case, factory in (
            (f"voxelize, {len(points)} points", "voxels"),
            (f"window_partition, {found} voxels", "windows"),
        ):
            variants = [
                Variant(
                    name, f"benchmarks.voxelize:{factory}", {"variant": name, "scale": scale}, threads=config.threads
                )
                for name in (_ROWS, _PACKED, _GEO3D)
            ]
            finished = race(case, variants, config.turns)
            if len({row["value"] for row in finished}) != 1:
                raise RuntimeError(f"{case}: the variants differ: {[row['value'] for row in finished]}")
            rows += finished
    return rows
