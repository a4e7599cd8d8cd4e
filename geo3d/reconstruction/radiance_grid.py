"""The grid of a radiance field: raw values in a box, how they are rendered, refined, and read off as a VolumeGrid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.ops import grid_occupancy, padded_grid, render_rays
from geo3d.reconstruction.field_box import FieldBox

#: Opacity that a voxel begins with, of a grid of so many along the longest side of its span.
_FIRST_OPACITY, _OF_LONGEST = 1e-3, 128
#: Less light than this reaches nothing that counts.
STOP = 1e-3
#: A cell whose voxels all stop less than this is left out by rays.
EMPTY = 1e-2
#: Rays rendered at once.
_AT_ONCE = 1 << 14
#: Samples along a voxel that is larger than the field's own, for each of the field's voxels in it.
_FINER = 1.5
#: Opaque enough for a pixel to have a depth.
_SOLID = 0.5


@dataclass
class Rendered:
    """What rays see.

    Args:
        colours: (R, 3) float32, black where light is left.
        opacity: (R,) float32 in [0, 1], the share of the light that is stopped.
        distances: (R,) float32 metres along the ray, the mean of where light is stopped; 0 where less than half is.
    """

    colours: Tensor
    opacity: Tensor
    distances: Tensor


class RadianceGrid:
    """Raw densities and colours at the centres of the voxels of a box.

    Density per metre is ``scale * softplus(raw + shift)``, colour is ``sigmoid(raw)``; zeros are a faint grey fog.

    Args:
        box: where it lies.
        values: (X, Y, Z, 4) float32 raw density and red, green, blue.

    Raises:
        InputError: values of another shape.
    """

    def __init__(self, box: FieldBox, values: Tensor) -> None:
        if values.ndim != 4 or values.shape[3] != 4 or min(values.shape[:3]) < 4:
            raise InputError(f"radiance grid: values must be (X, Y, Z, 4), sides at least 4, got {tuple(values.shape)}")
        self.box, self.values = box, values
        self.occupancy: Tensor | None = None
        self._centre = torch.from_numpy(box.centre).float().to(values.device)
        self._half = torch.from_numpy(box.half).float().to(values.device)

    @classmethod
    def empty(cls, box: FieldBox, longest_side: int, device: str = "cpu") -> RadianceGrid:
        """A faint fog; ``longest_side`` voxels along the longest side of the box and its surroundings."""
        return cls(box, padded_grid(*box.sides(longest_side), 4, device=device))

    @property
    def span(self) -> np.ndarray:
        """(3,) float64 sides of the whole grid, metres of the inner box's scale."""
        return 2 * self.box.half * (1 + self.box.border)

    @property
    def step(self) -> float:
        """Metres: the shortest side of a voxel in the inner box."""
        return float((self.span / np.array(self.values.shape[:3])).min())

    @property
    def shift(self) -> float:
        """Of raw densities."""
        return math.log(math.expm1(_FIRST_OPACITY))

    @property
    def scale(self) -> float:
        """Of densities, per metre."""
        return _OF_LONGEST / float(self.span.max())

    def numbers(self) -> dict[str, float]:
        """Arguments that all operators on rays share."""
        return {
            "step": self.step,
            "border": self.box.border,
            "density_shift": self.shift,
            "density_scale": self.scale,
            "stop": STOP,
        }

    def within(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Rays of the world (metres, unit vectors) in the box's own coordinates, t staying metres."""
        return (origins - self._centre) / self._half, directions / self._half

    def look_for_empty_cells(self) -> None:
        """Find the cells that rays may leave out from now on."""
        self.occupancy = grid_occupancy(self.values, -math.log1p(-EMPTY) / self.step, self.shift, self.scale)

    def refined(self, longest_side: int) -> RadianceGrid:
        """The same field on another grid of the same box, by trilinear interpolation; nothing in it is known empty."""
        sides = self.box.sides(longest_side)
        moved = self.values.permute(3, 0, 1, 2)[None].contiguous()
        finer = F.interpolate(moved, size=sides, mode="trilinear", align_corners=False)[0].permute(1, 2, 3, 0)
        grid = RadianceGrid.empty(self.box, longest_side, str(self.values.device))
        grid.values.copy_(finer)
        return grid

    @torch.no_grad()
    def see(self, origins: Tensor, directions: Tensor) -> Rendered:
        """Render rays.

        Args:
            origins: (R, 3) metres in the world.
            directions: (R, 3) unit vectors.
        """
        parts = []
        for first in range(0, len(origins), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            starts, towards = self.within(origins[some], directions[some])
            colour, light, depth, *_ = render_rays(
                self.values, starts, towards, occupancy=self.occupancy, **self.numbers()
            )
            opacity = 1 - light
            distance = torch.where(opacity > _SOLID, depth / opacity.clamp_min(_SOLID), 0.0)
            parts.append((colour, opacity, distance))
        if not parts:
            return Rendered(origins.new_zeros(0, 3), origins.new_zeros(0), origins.new_zeros(0))
        return Rendered(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def to_volume(
        self,
        longest_side: int | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> VolumeGrid:
        """Read off a box as colours and opacity, without its surroundings.

        A voxel larger than the field's own is averaged from as many samples as it takes: its density is their mean, its
        colour theirs by how dense they are.

        Args:
            longest_side: voxels along the longest side; the others in proportion. None: as fine as the field is.
            low, high: (3,) corners, metres; None: the whole inner box. What lies outside of a field without
                surroundings is empty.

        Returns:
            The grid; ``opacity = 1 - exp(-density * side)`` of the shortest side of its voxels.

        Raises:
            InputError: corners in the wrong order, or fewer than 1 voxel.
        """
        low, high = (own if given is None else given for given, own in ((low, self.box.low), (high, self.box.high)))
        box = FieldBox(tuple(map(float, low)), tuple(map(float, high)))
        sides_in_metres = 2 * box.half
        if longest_side is None:
            longest_side = max(1, round(float(sides_in_metres.max()) / self.step))
        if longest_side < 1:
            raise InputError(f"grid: longest_side must be at least 1, got {longest_side}")
        share = sides_in_metres / sides_in_metres.max()
        sides = [max(1, round(longest_side * float(part))) for part in share]
        voxel = sides_in_metres / np.array(sides)
        ratio = float(voxel.max()) / self.step
        # Densities peak at nodes: samples as far apart as these, and on them, would find too much.
        finer = 1 if ratio < 1.25 else math.ceil(_FINER * ratio)
        axes = []
        for side, first, metres in zip(sides, box.low, sides_in_metres, strict=True):
            axes.append(
                first + (torch.arange(side * finer, dtype=torch.float64) + 0.5) * float(metres) / (side * finer)
            )
        source = self.values.permute(3, 0, 1, 2)[None].contiguous()
        rgb, opacity = torch.empty(*sides, 3), torch.empty(*sides)
        for number in range(sides[0]):
            some = axes[0][number * finer : (number + 1) * finer]
            xyz = torch.stack(torch.meshgrid(some, axes[1], axes[2], indexing="ij"), -1)
            density, colour = self._at(source, xyz.to(self.values.device))
            shape = (finer, sides[1], finer, sides[2], finer)
            density, colour = density.reshape(shape), colour.reshape(*shape, 3)
            total = density.sum((0, 2, 4))
            rgb[number] = ((density[..., None] * colour).sum((0, 2, 4)) / total.clamp_min(1e-30)[..., None]).cpu()
            opacity[number] = -torch.expm1(-total / finer**3 * float(voxel.min())).cpu()
        corners = (torch.tensor(corner, dtype=torch.float64) for corner in (box.low, box.high))
        return VolumeGrid(rgb.clamp(0, 1), opacity, *corners)

    def _at(self, source: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Density per metre (...) and colour (..., 3) at places (..., 3) of the world."""
        place = (xyz - self._centre) / self._half
        reach = place.abs().amax(-1, keepdim=True)
        outside = reach[..., 0] > 1 + 1e-9
        border = self.box.border
        if border > 0:
            far = reach.clamp_min(1)
            place = place * ((1 + border - border / far) / far)
        place = (place / (1 + border)).flip(-1).float()  # the last axis comes first
        raw = F.grid_sample(source, place[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
        density = self.scale * F.softplus(raw[0] + self.shift)
        if border == 0:
            density = torch.where(outside, 0.0, density)
        return density, raw[1:].movedim(0, -1).sigmoid()


__all__ = ["EMPTY", "STOP", "RadianceGrid", "Rendered"]
