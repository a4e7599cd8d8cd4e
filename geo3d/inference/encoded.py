"""What an encoder made of a scene, a cloud, an image or a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import SparseVoxels
from geo3d.models.point_encoder import PointInput, PointTokens, pool
from geo3d.models.voxel_points import features_at_voxels
from geo3d.nn.point_layers import nearest_weights
from geo3d.nn.topology import Topology
from geo3d.ops.interpolate import interpolate


@dataclass
class _OfRows:
    """What is known of rows that were handed in.

    Args:
        filled: field -> how it was filled in; empty where nothing was.
        dropped: rows left out, whose positions are not finite.
    """

    filled: dict[str, str]
    dropped: int
    #: (M,) int64 usable rows of those that were handed in; None: all.
    usable: Tensor | None = field(repr=False)
    count: int = field(repr=False)

    def _aligned(self, values: Tensor) -> Tensor:
        """(M, C) of usable rows -> (N, C) of all, NaN for the others."""
        if self.usable is None:
            return values
        return values.new_full((self.count, values.shape[1]), torch.nan).index_copy_(0, self.usable, values)


@dataclass
class EncodedScene(_OfRows):
    """Points of a scene, encoded by a network over sparse voxels.

    Args:
        stages: voxels with features, of the stages that were asked for, finest first.
        inverse: (M,) int64 finest voxel of every usable row.
        corner: (3,) float64 lowest corner of voxel (0, 0, 0), in the frame that was handed in, metres.
        voxel_size: edge of a finest voxel, metres.
    """

    stages: list[SparseVoxels]
    inverse: Tensor = field(repr=False)
    corner: Tensor
    voxel_size: float
    topology: Topology = field(repr=False)

    @property
    def voxels(self) -> SparseVoxels:
        """Voxels of the finest of the stages, with its features."""
        return self.stages[0]

    @cached_property
    def points(self) -> Tensor:
        """(N, C) float32, aligned with the rows that were handed in: stages side by side; NaN for dropped rows."""
        with torch.no_grad():
            return self._aligned(features_at_voxels(self.stages, self.topology, self.inverse))

    @cached_property
    def pooled(self) -> Tensor:
        """(C,) mean over the voxels of each stage, side by side."""
        with torch.no_grad():
            return torch.cat([stage.feats.float().mean(0) for stage in self.stages])

    def positions(self, stage: int = 0) -> Tensor:
        """(V, 3) float64 centres of the voxels of one of ``stages``, in the frame that was handed in, metres."""
        voxels = self.stages[stage]
        centres = voxels.coords[:, 1:].double() + voxels.stride / 2
        return self.corner + self.voxel_size * centres


@dataclass
class EncodedCloud(_OfRows):
    """Points of an object, encoded by a network over points.

    Args:
        levels: tokens of the stages that were asked for, finest first, where the network sees them.
        inputs: what the network read.
        xyz: (M, 3) float32 usable rows, in the frame of the network.
        origin: (3,) float64 that was taken off the positions first.
    """

    levels: list[PointTokens]
    inputs: PointInput = field(repr=False)
    xyz: Tensor = field(repr=False)
    origin: Tensor

    @property
    def tokens(self) -> PointTokens:
        """Tokens of the last of the levels."""
        return self.levels[-1]

    @cached_property
    def points(self) -> Tensor:
        """(N, C) float32, aligned with the rows that were handed in: levels side by side; NaN for dropped rows.

        Between the three nearest tokens of a level, by the inverse of the squared distance.
        """
        rows = self.inputs.offsets.new_tensor([0, len(self.xyz)])
        with torch.no_grad():
            columns = []
            for level in self.levels:
                index, weight = nearest_weights(self.xyz, level.xyz.float(), rows, level.offsets)
                columns.append(interpolate(level.feats.float(), index, weight))
            return self._aligned(torch.cat(columns, 1))

    @cached_property
    def pooled(self) -> Tensor:
        """(2 C,) maximum and mean of the last level's tokens."""
        with torch.no_grad():
            return pool(self.tokens, "max+mean")[0].float()

    def positions(self, level: int = -1) -> Tensor:
        """(T, 3) float64 places of the tokens of one of ``levels``, in the frame that was handed in."""
        xyz = self.levels[level].xyz.double() * self.inputs.scale + self.inputs.centre
        return xyz + self.origin.to(xyz.device)


@dataclass
class EncodedImage:
    """An image, encoded.

    Args:
        maps: (C, h, w) float32 of the stages that were asked for, finest first; w is the image's width over the
            stride, rounded up.
        strides: pixels along a side of a cell of each.
        size: height and width of the image, pixels.
    """

    maps: list[Tensor]
    strides: list[int]
    size: tuple[int, int]

    @property
    def map(self) -> Tensor:
        """(C, h, w) the last of the maps."""
        return self.maps[-1]

    @cached_property
    def pooled(self) -> Tensor:
        """(C,) mean of the last map."""
        return self.map.mean((1, 2))

    def at(self, pixels: Tensor, map: int = -1) -> Tensor:
        """Features at places in the image, bilinear between the centres of cells.

        Args:
            pixels: (M, 2) x and y, the centre of the upper-left pixel is (0, 0); beyond the outermost centres of cells
                their features are taken.
            map: which of ``maps``.

        Returns:
            (M, C) float32.

        Raises:
            InputError: another shape, or places that are not finite.
        """
        values, stride = self.maps[map], self.strides[map]
        places = torch.as_tensor(pixels, dtype=torch.float32, device=values.device)
        if places.ndim != 2 or places.shape[1] != 2 or not places.isfinite().all():
            raise InputError(f"at: pixels must be (M, 2) finite x and y, got {tuple(places.shape)}")
        sides = places.new_tensor([values.shape[2], values.shape[1]])
        grid = 2 * (places + 0.5) / (stride * sides) - 1
        with torch.no_grad():
            found = F.grid_sample(values[None], grid[None, None], padding_mode="border", align_corners=False)
        return found[0, :, 0].T


@dataclass
class EncodedPair:
    """Two images, encoded.

    Args:
        first, second: each by itself.
        decoded: (D, h, w) what a decoder that looks at both views makes of the first; None without one.
    """

    first: EncodedImage
    second: EncodedImage
    decoded: Tensor | None = None


@dataclass
class EncodedGrid:
    """A radiance grid, encoded.

    Args:
        maps: (C, x, y, z) float32 of the stages that were asked for, finest first; x is the grid's side over the
            stride, rounded up.
        strides: voxels of the grid along a side of a cell of each.
    """

    maps: list[Tensor]
    strides: list[int]

    @property
    def map(self) -> Tensor:
        """(C, x, y, z) the last of the maps."""
        return self.maps[-1]

    @cached_property
    def pooled(self) -> Tensor:
        """(C,) mean of the last map."""
        return self.map.mean((1, 2, 3))
