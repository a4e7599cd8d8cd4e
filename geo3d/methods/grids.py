"""What methods that read radiance grids share: settings of samples, turned, mirrored and cut grids, and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from geo3d.geometry import VolumeGrid
from geo3d.methods.checks import check_at_least, check_share
from geo3d.models.grid_encoder import fill_up


@dataclass(frozen=True)
class GridSampleConfig:
    """How a network over grids is trained on samples of scenes; methods add their own fields."""

    model: str
    """Network, one that reads grids."""
    side: int = 64
    """Voxels along the sides of the cube that grids are filled up to; of larger grids a random part is taken."""
    turn: float = 0.5
    """Chance of a quarter turn about the vertical (0 to 1)."""
    mirror: float = 0.5
    """Chance of mirroring each horizontal axis (0 to 1)."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "side")
        check_share(self, "turn", "mirror")


def draw_grid(grid: VolumeGrid, config: GridSampleConfig, rng: np.random.Generator) -> VolumeGrid:
    """A grid turned and mirrored at random as published (section 3.5 of the supplement), and a part of a large one."""
    if rng.random() < config.turn:
        grid = grid.turned()
    mirrored = [axis for axis in (0, 1) if rng.random() < config.mirror]
    if mirrored:
        grid = grid.flipped(*mirrored)
    start = [int(rng.integers(max(0, side - config.side) + 1)) for side in grid.sides]
    return crop_grid(grid, start, config.side)


def crop_grid(grid: VolumeGrid, start: Sequence[int], side: int) -> VolumeGrid:
    """The part of a grid from a voxel on, at most so many voxels along a side; boxes whose centre is in it remain."""
    if max(grid.sides) <= side:
        return grid
    x, y, z = (slice(first, first + side) for first in start)
    low, high, boxes = grid.low, grid.high, grid.boxes
    rgb = grid.rgb[x, y, z]
    shift = torch.tensor(list(start))
    if low is not None:
        low = low + grid.voxel * shift
        high = low + grid.voxel * torch.tensor(rgb.shape[:3])
    if boxes is not None:
        moved = boxes[:, :3] - shift
        inside = ((moved >= 0) & (moved < torch.tensor(rgb.shape[:3]))).all(1)
        boxes = torch.cat([moved, boxes[:, 3:]], 1)[inside]
    labels = None if grid.labels is None else grid.labels[x, y, z]
    return replace(grid, rgb=rgb, opacity=grid.opacity[x, y, z], low=low, high=high, labels=labels, boxes=boxes)


def batch_of_grids(values: Sequence[Tensor], multiple: int) -> dict[str, Tensor]:
    """Grids (4, X, Y, Z) of any sides as one batch.

    Args:
        values: the grids.
        multiple: to whose multiples sides are filled up.

    Returns:
        ``values`` (B, 4, X, Y, Z) and ``sizes`` (B, 3) int64, the sides of each grid.
    """
    sizes = torch.tensor([grid.shape[1:] for grid in values])
    sides = [-(-side // multiple) * multiple for side in sizes.amax(0).tolist()]
    return {"values": torch.stack([fill_up(grid, sides) for grid in values]), "sizes": sizes}


__all__ = ["GridSampleConfig", "batch_of_grids", "crop_grid", "draw_grid"]
