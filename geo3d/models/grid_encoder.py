"""Encoders of dense grids: what they read is made of radiance grids of any sides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.models.encoder import Encoder, as_list, require_prepared, require_range

CHANNELS = 4
_HINT = "hand in floats of 0 to 1 (red, green, blue, opacity), or uint8 of 0 to 255"


@dataclass
class GridInput:
    """Grids as an encoder of grids reads them: one batch, filled with zeros at the far end of every axis.

    Args:
        values: (B, 4, X, Y, Z) float32 red, green, blue and opacity, in [0, 1].
        sizes: (B, 3) int64 voxels of each grid along x, y and z, before it was filled up.
    """

    values: Tensor
    sizes: Tensor

    @property
    def sides(self) -> tuple[int, int, int]:
        """Voxels along x, y and z of the batch."""
        return tuple(self.values.shape[2:])

    @property
    def valid(self) -> Tensor:
        """(B, X, Y, Z) bool: voxels of a grid, not what it was filled up with."""
        inside = torch.ones(len(self.values), 1, 1, 1, dtype=torch.bool, device=self.values.device)
        for axis, side in enumerate(self.sides):
            along = torch.arange(side, device=self.values.device) < self.sizes[:, axis : axis + 1].to(inside.device)
            inside = inside & along.view(-1, *(side if other == axis else 1 for other in range(3)))
        return inside

    def to(self, device: torch.device | str) -> GridInput:
        """Copy to a device."""
        return GridInput(self.values.to(device), self.sizes.to(device))


class GridEncoder(Encoder):
    """An encoder of dense grids of colours and opacity. Features are maps (B, C, X / stride, Y / stride, Z / stride).

    Where a stride does not divide a side, the map's is rounded up.
    """

    kind: ClassVar = "grid"

    @property
    @abstractmethod
    def patch(self) -> int:
        """Voxels of which a multiple must lie along every side of what :meth:`features` reads."""

    @property
    @abstractmethod
    def side_multiple(self) -> int:
        """Voxels to whose multiple :meth:`prepare` fills up every side, unless it is told a resolution."""

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Side of the cube to which :meth:`prepare` fills up grids that fit into it, as in training; 0 for none."""

    @abstractmethod
    def features(self, inputs: GridInput, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """Maps (B, C, x, y, z) of the stages, finest first."""

    def prepare(self, inputs: Any, resolution: int | None = None) -> GridInput:
        """What the network reads, of one grid or several.

        Sides are filled up with zeros at the far ends, nothing is ever cut off. With a resolution it is to a cube of
        that side, as published, or of the next multiple of ``side_multiple`` that holds the largest grid; without, each
        side goes to its own multiple, which computes less.

        Args:
            inputs: a grid or a list of grids, each a ``VolumeGrid``, or an array or tensor (4, X, Y, Z) of red, green,
                blue and opacity, or several of one size (B, 4, X, Y, Z): floats of 0 to 1, or uint8 of 0 to 255. Sides
                may vary.
            resolution: voxels along the sides of the cube, a multiple of ``patch``; 0 for no cube. That of the config
                when not given.

        Returns:
            The network's input, on its device.

        Raises:
            InputError: something else than a grid; values out of range or not finite; a grid without voxels; a
                resolution that is negative, or that ``patch`` does not divide.
        """
        cube = self.resolution if resolution is None else resolution
        if cube < 0 or cube % self.patch:
            raise InputError(f"prepare: resolution must be a multiple of {self.patch}, or 0 for none, got {resolution}")
        grids = [grid for one in as_list(inputs) for grid in _grids(one)]
        sizes = torch.tensor([grid.shape[1:] for grid in grids])
        largest, step = sizes.amax(0).tolist(), self.side_multiple
        sides = [-(-side // step) * step for side in largest]
        if cube:
            sides = 3 * [cube if max(largest) <= cube else max(sides)]
        batch = torch.stack([fill_up(grid, sides) for grid in grids])
        return GridInput(batch, sizes).to(self.device)

    def require_grids(self, inputs: Any) -> None:
        """Look whether the network is handed grids as :meth:`prepare` makes them.

        Raises:
            InputError: it is not, or the patch does not divide their sides.
        """
        require_prepared(self, inputs, GridInput)
        shape, patch = tuple(inputs.values.shape), self.patch
        if len(shape) != 5 or shape[1] != CHANNELS or 0 in shape or any(side % patch for side in shape[2:]):
            raise InputError(
                f"{type(self).__name__}: grids must be (B, {CHANNELS}, X, Y, Z), sides multiples of {patch}, got "
                f"{shape}; prepare fills them up"
            )
        if tuple(inputs.sizes.shape) != (shape[0], 3):
            raise InputError(
                f"{type(self).__name__}: sizes must be ({shape[0]}, 3), got {tuple(inputs.sizes.shape)}; they are the "
                "sides of each grid"
            )


def fill_up(volume: Tensor, sides: Sequence[int], value: float = 0) -> Tensor:
    """(..., X, Y, Z) -> (..., *sides), filled up at the far ends."""
    padding = [n for side, own in zip(sides[::-1], volume.shape[:-4:-1]) for n in (0, side - own)]
    return F.pad(volume, padding, value=value)


def _grids(grid: Any) -> list[Tensor]:
    """Grids (4, X, Y, Z) float32 in one of the forms that people have them in."""
    if isinstance(grid, VolumeGrid):
        grid = grid.values
    if isinstance(grid, np.ndarray):
        if grid.dtype.kind not in "uif" or grid.dtype.name == "uint16":
            raise InputError(f"prepare: grids of type {grid.dtype} are not read; {_HINT}")
        grid = torch.from_numpy(np.ascontiguousarray(grid))
    if not isinstance(grid, Tensor):
        raise InputError(
            f"prepare: a grid is a VolumeGrid, or an array or tensor ({CHANNELS}, X, Y, Z), not a {type(grid).__name__}"
        )
    if grid.ndim not in (4, 5) or grid.shape[-4] != CHANNELS or 0 in grid.shape:
        last = grid.ndim in (4, 5) and grid.shape[-1] == CHANNELS
        hint = "; move the channels to the front: grid.movedim(-1, -4)" if last else ""
        raise InputError(f"prepare: grids are ({CHANNELS}, X, Y, Z), got {tuple(grid.shape)}{hint}")
    if grid.dtype == torch.uint8:
        grid = grid.float() / 255
    elif not grid.is_floating_point():
        raise InputError(f"prepare: grids of type {grid.dtype} are not read; {_HINT}")
    grid = require_range(grid.float(), 0, 1, "prepare: values of a grid", _HINT)
    return list(grid) if grid.ndim == 5 else [grid]


__all__ = ["CHANNELS", "GridEncoder", "GridInput", "fill_up"]
