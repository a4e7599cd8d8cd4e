"""Voxels of labelled radiance grids, as the linear probe reads them, and what networks over grids say of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.models.grid_encoder import GridEncoder
from geo3d.probe.probe import Representation
from geo3d.progress import Log
from geo3d.reconstruction.make_grids import make_room_grids
from geo3d.samples.grids import LabelledGrids

#: Voxels along the longest side of grids of synthetic rooms, as `geo3d pretrain nerf_mae` makes them.
_SIDE = 64


class GridRows(NamedTuple):
    """A grid and the voxels of it that are looked at.

    Args:
        grid: the grid.
        rows: (N, 3) int64 numbers of the voxels along x, y and z.
    """

    grid: VolumeGrid
    rows: Tensor


class GridVoxels:
    """The labelled voxels of radiance grids.

    Args:
        scenes: where grids come from.
    """

    def __init__(self, scenes: LabelledGrids) -> None:
        self.scenes = scenes
        self.classes, self.describe = scenes.classes, scenes.describe

    def __len__(self) -> int:
        return len(self.scenes)

    def voxels(self, index: int) -> tuple[GridRows, Tensor]:
        """As :meth:`LabelledVoxels.voxels`; voxels without a label are left out."""
        grid = self.scenes.grid(index)
        rows = (grid.labels >= 0).nonzero()
        return GridRows(grid, rows), grid.labels[rows.unbind(1)]


class ProbedGrids:
    """What the linear probe does for networks over dense grids.

    Args:
        network: of the checkpoint.
        voxel_size, side: None; grids have voxels already, and they are no images.

    Raises:
        InputError: a size of voxels or of images.
    """

    source = LabelledGrids

    def __init__(self, network: GridEncoder, voxel_size: float | None, side: int | None = None) -> None:
        if side is not None:
            raise InputError("side is of networks over images; grids have none")
        if voxel_size is not None:
            raise InputError("voxel_size is of networks over sparse voxels; grids have voxels already")

    def describe(self) -> str:
        """What is looked at, for the log."""
        return "voxels of their grids"

    def make_rooms(self, rooms: int, seed: int, log: Log) -> Path:
        """Make grids of synthetic rooms, or find those made before; returns their folder."""
        return make_room_grids(rooms, seed, _SIDE, log)

    def voxels(self, scenes: LabelledGrids) -> GridVoxels:
        """The voxels of scenes."""
        return GridVoxels(scenes)

    def network_features(self, network: GridEncoder, device: str) -> Representation:
        """Maps of all stages at the voxels, after what the network is handed."""
        return grid_network_features(network, device)

    def input_features(self) -> Representation:
        """Colour, opacity and height."""
        return grid_input_features


def grid_network_features(network: GridEncoder, device: torch.device | str = "cpu") -> Representation:
    """A network's maps of all stages, trilinear at the centres of voxels, side by side, after colours and opacity.

    The network is moved to the device and stays as it is.
    """
    network = network.to(device).eval()

    @torch.no_grad()
    def features(found: GridRows) -> Tensor:
        maps = network.features(network.prepare(found.grid))
        columns = [look_up(map_, found.rows, info.stride) for map_, info in zip(maps, network.feature_info)]
        return torch.cat([grid_input_features(found), *columns], 1)

    return features


def look_up(values: Tensor, rows: Tensor, stride: int) -> Tensor:
    """Values of a map at the centres of voxels, trilinear; beyond the outermost centres those of the nearest.

    Args:
        values: (1, C, x, y, z) map.
        rows: (N, 3) int64 voxels.
        stride: voxels along a side of one of the map's cells.

    Returns:
        (N, C) float32 on the CPU.
    """
    sides = torch.tensor(values.shape[:1:-1])
    place = (2 * (rows.flip(1) + 0.5) / (stride * sides) - 1).to(values)  # of x, y, z the last axis comes first
    found = F.grid_sample(values, place.view(1, -1, 1, 1, 3), padding_mode="border", align_corners=False)
    return found[0, :, :, 0, 0].T.float().cpu()


def grid_input_features(found: GridRows) -> Tensor:
    """What a network is handed of a voxel: colour and opacity; and its height above the floor of the grid, a share."""
    x, y, z = found.rows.unbind(1)
    height = (found.rows[:, 2:] + 0.5) / found.grid.sides[2]
    return torch.cat([found.grid.rgb[x, y, z], found.grid.opacity[x, y, z].unsqueeze(1), height], 1)


__all__ = ["GridRows", "GridVoxels", "ProbedGrids", "grid_input_features", "grid_network_features", "look_up"]
