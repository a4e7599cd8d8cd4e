"""Three orthogonal depth maps of each cloud of a packed batch, and the way back from maps to points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError

#: Axes of each view: the row, the column, and the depth.
VIEW_AXES = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
#: A point covers its pixel and this many on each side of it.
_REACH = 2
#: Pixels of a side that the longest extent of a cloud does not take, so that what a point covers stays inside.
_MARGIN = 3
#: Of the published bicubic resize.
_CUBIC = -0.75


@dataclass(frozen=True)
class DepthGrid:
    """Where the points of each cloud lie in its three views (I2P-MAE, sec. 3.1). All of it is float32.

    Args:
        minimum: (3, B, 2) lower corner of each cloud on the axes of rows and columns, in the unit of the points.
        cell: (3, B) side of a pixel, in the same unit.
        shift: (3, B, 2) int64 rows and columns by which the points are moved to the middle of the image.
        size: pixels along a side of the images.
    """

    minimum: Tensor
    cell: Tensor
    shift: Tensor
    size: int

    def pixels(self, points: Tensor, offsets: Tensor) -> Tensor:
        """Rows and columns of points in the three views.

        Args:
            points: (Q, 3), in the coordinates of the clouds.
            offsets: (B + 1,) int64; cloud b owns rows ``offsets[b]`` to ``offsets[b + 1]``.

        Returns:
            (3, Q, 2) int64. Points of the clouds themselves lie in 1 to size - 2; others are moved to the nearest
            pixel of the image.
        """
        _require_packed(points, offsets, self.cell.shape[1])
        return self._pixels(points, _cloud_of(points, offsets))

    def _pixels(self, points: Tensor, cloud: Tensor) -> Tensor:
        axes = torch.tensor([view[:2] for view in VIEW_AXES], device=points.device)
        plane = points.float()[:, axes].transpose(0, 1)  # (3, Q, 2)
        steps = ((plane - self.minimum[:, cloud]) / self.cell[:, cloud].unsqueeze(-1)).floor()
        # Limited first, since far numbers have no int64.
        index = steps.clamp(-2 * self.size, 2 * self.size).long() + self.shift[:, cloud] + 1
        return index.clamp(0, self.size - 1)

    def look_up(self, points: Tensor, offsets: Tensor, maps: Tensor) -> Tensor:
        """Values of maps of the three views at points: bicubic, as if resized to the images' size and then gathered.

        Args:
            points: (Q, 3), in the coordinates of the clouds.
            offsets: (B + 1,) int64; cloud b owns rows ``offsets[b]`` to ``offsets[b + 1]``.
            maps: (3 * B, C, h, w), all clouds of view 1 first; half precision is read as float32.

        Returns:
            (3, Q, C). No gradient is kept.

        Raises:
            InputError: maps of another number of views.
        """
        count = self.cell.shape[1]
        if maps.ndim != 4 or maps.shape[0] != 3 * count:
            raise InputError(
                f"look_up: maps must be (3 * {count}, C, h, w), one for each of three views of {count} clouds, got "
                f"{tuple(maps.shape)}"
            )
        _require_packed(points, offsets, count)
        cloud = _cloud_of(points, offsets)
        with torch.no_grad():
            pixel = self._pixels(points, cloud)  # (3, Q, 2)
            channels, height, width = maps.shape[1:]
            table = maps.permute(0, 2, 3, 1).reshape(-1, channels)
            table = table if table.dtype == torch.float64 else table.float()
            rows, row_weights = (t.index_select(0, pixel[..., 0].flatten()) for t in _taps(height, self.size, table))
            columns, column_weights = (
                t.index_select(0, pixel[..., 1].flatten()) for t in _taps(width, self.size, table)
            )
            image = (torch.arange(3, device=cloud.device).unsqueeze(1) * count + cloud).flatten().int()  # (3 * Q,)
            rows = (rows + image.unsqueeze(-1) * height) * width
            index = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)  # (3 * Q, 16)
            weights = (row_weights.unsqueeze(-1) * column_weights.unsqueeze(-2)).flatten(-2)
            found = F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
        return found.view(3, -1, channels)


@dataclass(frozen=True)
class DepthViews(DepthGrid):
    """Depth maps of the clouds; order: all clouds of view 1, then view 2, then view 3.

    Args:
        depth: (3 * B, size, size) float32 sum of the depth coordinate over all points that cover a pixel; 0 where
            there is none.
        images: (3 * B, size, size) its sigmoid, in [0, 1]; the background is 0.5.
    """

    depth: Tensor
    images: Tensor

    def colors(self) -> Tensor:
        """The images as a teacher reads them: (3 * B, 3, size, size), three equal channels, one memory."""
        return self.images.unsqueeze(1).expand(-1, 3, -1, -1)


def depth_grid(points: Tensor, offsets: Tensor, size: int = 224) -> DepthGrid:
    """Where the points of clouds lie in their three views; what :func:`depth_views` draws, without drawing it.

    Args:
        points, offsets, size: see :func:`depth_views`.

    Raises:
        InputError: as :func:`depth_views`.
    """
    _require_clouds(points, offsets, size)
    return _grid(points, offsets, _cloud_of(points, offsets), size)


@torch.no_grad()
def depth_views(points: Tensor, offsets: Tensor, size: int = 224) -> DepthViews:
    """Depth maps of clouds along x, y and z, as published (I2P-MAE, sec. 3.1 and its code).

    The longer of a view's two extents takes ``size - 3`` pixels. Each point covers 5 x 5 pixels, to which it adds its
    depth coordinate; the whole is moved to the middle. Where all points of a cloud coincide they share a pixel.

    Args:
        points: (P, 3) packed clouds, in any unit; ranges and pixels are found in float32.
        offsets: (B + 1,) int64; cloud b owns rows ``offsets[b]`` to ``offsets[b + 1]``, at least one.
        size: pixels along a side, an even number.

    Returns:
        The maps, of the same values on every run; no gradient is kept.

    Raises:
        InputError: an odd or tiny size; tensors on the CPU only: offsets that are no partition, an empty cloud,
            coordinates that are not finite.
    """
    _require_clouds(points, offsets, size)
    cloud = _cloud_of(points, offsets)
    grid = _grid(points, offsets, cloud, size)
    pixel = grid._pixels(points, cloud)
    count = len(offsets) - 1
    border = _REACH + 1  # what is covered may lie one pixel outside
    side = size + 2 * border
    image = torch.arange(3, device=cloud.device).unsqueeze(1) * count + cloud
    place = (image * side + pixel[..., 0] + border) * side + pixel[..., 1] + border
    value = points.float()[:, [view[2] for view in VIEW_AXES]].t()
    canvas = value.new_zeros(3 * count * side * side)
    if canvas.is_cuda:  # where index_add_ adds in no fixed order
        canvas.index_put_((place.flatten(),), value.flatten(), accumulate=True)
    else:
        canvas.index_add_(0, place.flatten(), value.flatten())
    covered = _fold(_box_sum(_fold(_box_sum(canvas.view(-1, side, side), 1), 1), 2), 2)
    return DepthViews(grid.minimum, grid.cell, grid.shift, size, depth=covered, images=covered.sigmoid())


def _grid(points: Tensor, offsets: Tensor, cloud: Tensor, size: int) -> DepthGrid:
    xyz = points.float()
    rows = cloud.unsqueeze(-1).expand(-1, 3)
    limits = xyz.new_full((2, len(offsets) - 1, 3), torch.inf)
    low = limits[0].scatter_reduce(0, rows, xyz, "amin")
    high = -limits[1].scatter_reduce(0, rows, -xyz, "amin")
    axes = torch.tensor([view[:2] for view in VIEW_AXES], device=xyz.device)
    low, high = low[:, axes].transpose(0, 1), high[:, axes].transpose(0, 1)  # (3, B, 2)
    extent = high - low
    # A cloud without extent has its points in the first cell, whose side then does not matter.
    cell = (extent.amax(-1) / (size - _MARGIN)).clamp_min(torch.finfo(torch.float32).tiny)
    last = (extent / cell.unsqueeze(-1)).floor().clamp(0, size - _MARGIN).long()
    # The middle of what is covered, from 1 - reach to last + 1 + reach, is put at pixel size / 2 - 1.
    middle = (last + 2).div(2, rounding_mode="floor")
    return DepthGrid(low, cell, size // 2 - middle - 1, size)


def _box_sum(canvas: Tensor, axis: int) -> Tensor:
    """Sum over a pixel and its reach on both sides, along an axis that becomes shorter by these."""
    length = canvas.shape[axis] - 2 * _REACH
    total = canvas.narrow(axis, 0, length) + canvas.narrow(axis, 1, length)
    for start in range(2, 2 * _REACH + 1):
        total += canvas.narrow(axis, start, length)
    return total


def _fold(canvas: Tensor, axis: int) -> Tensor:
    """What lies one pixel outside of the image along an axis, added to the image's edge."""
    size = canvas.shape[axis] - 2
    inside = canvas.narrow(axis, 1, size)
    inside.select(axis, 0).add_(canvas.select(axis, 0))
    inside.select(axis, size - 1).add_(canvas.select(axis, size + 1))
    return inside.contiguous()


def _taps(cells: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ``size`` pixels: the four cells of a map that its value is made of (size, 4), and their weights."""
    at = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * (cells / size) - 0.5
    first = at.floor()
    distance = (at - first).unsqueeze(-1) + torch.tensor([1, 0, -1, -2], device=like.device, dtype=like.dtype)
    d = distance.abs()
    near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
    far = ((_CUBIC * d - 5 * _CUBIC) * d + 8 * _CUBIC) * d - 4 * _CUBIC
    index = first.int().unsqueeze(-1) + torch.arange(-1, 3, device=like.device, dtype=torch.int32)
    return index.clamp(0, cells - 1), torch.where(d <= 1, near, far)


def _cloud_of(points: Tensor, offsets: Tensor) -> Tensor:
    """(P,) number of the cloud of each row."""
    return torch.arange(len(offsets) - 1, device=points.device).repeat_interleave(
        offsets.diff(), output_size=points.shape[0]
    )


def _require_packed(points: Tensor, offsets: Tensor, count: int | None = None) -> None:
    if points.ndim != 2 or points.shape[1] != 3 or not points.is_floating_point():
        raise InputError(
            f"depth views: points must be (P, 3) floats, got {tuple(points.shape)} of {points.dtype}; pack the clouds "
            "one after the other, with offsets"
        )
    if offsets.ndim != 1 or offsets.dtype != torch.int64 or len(offsets) < 2:
        raise InputError(
            f"depth views: offsets must be (B + 1,) int64, got {tuple(offsets.shape)} of {offsets.dtype}; begin with 0 "
            "and end with the number of points"
        )
    if count is not None and len(offsets) != count + 1:
        raise InputError(
            f"depth views: offsets are of {len(offsets) - 1} clouds, the views of {count}; hand in as many"
        )
    if offsets.is_cpu and (offsets[0] != 0 or offsets[-1] != len(points) or (offsets.diff() < 0).any()):
        raise InputError(f"depth views: offsets must rise from 0 to {len(points)}, got {offsets.tolist()[:8]}")


def _require_clouds(points: Tensor, offsets: Tensor, size: int) -> None:
    if size % 2 or size < 4 * (_REACH + 1):
        raise InputError(f"depth views: size must be an even number of at least 12 pixels, got {size}")
    _require_packed(points, offsets)
    if not points.is_cpu:
        return
    if (offsets.diff() == 0).any():
        empty = int((offsets.diff() == 0).nonzero()[0])
        raise InputError(f"depth views: cloud {empty} has no points; leave it out")
    if not points.isfinite().all():
        row = int((~points.isfinite().all(1)).nonzero()[0])
        raise InputError(f"depth views: row {row} of the points is not finite; leave such points out")


__all__ = ["VIEW_AXES", "DepthGrid", "DepthViews", "depth_grid", "depth_views"]
