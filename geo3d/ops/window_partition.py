"""Cells of a lattice gathered into cubic windows: the index sets of window attention (Swin3D, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.ops.registry import Kernel, define_operator

SCHEMA = "window_partition(Tensor coords, int stride, int window, bool shift) -> (Tensor, Tensor)"

_MAX_KEY = 2**63


def window_partition(coords: Tensor, stride: int, window: int, shift: bool = False) -> tuple[Tensor, Tensor]:
    """Gather voxels into windows of ``window`` cells a side.

    A voxel's window is ``(batch, floor((floor(c / stride) + s) / window))`` for each of its coordinates c, where s is
    ``window // 2`` with ``shift`` (2 of 5, 3 of 7) and 0 without. Coordinates are global: windows do not wrap around,
    and those at the border of a scene are just smaller. Every int32 coordinate is taken, negative ones too.

    Rows that share a cell stay together, so with a window of 1 this sorts voxels by (batch, x, y, z) and finds equal
    ones.

    Args:
        coords: (N, 4) int32 rows [batch, x, y, z] in any order, any strides.
        stride: size of the voxels in units of the coordinates, 1 or more.
        window: cells along a window's side, 1 or more; ``stride * window`` is below 2**31.
        shift: move the windows by half of their size.

    Returns:
        ``order`` (N,) int64 rows of ``coords``, window after window; windows ascend by (batch, x, y, z), and rows
        ascend inside a window. ``offsets`` (W + 1,) int64; window w holds ``order[offsets[w]:offsets[w + 1]]``. No
        window is empty.

    Raises:
        TypeError: coords that are not int32.
        ValueError: coords that are not (N, 4), or a stride or window out of range.
    """
    return torch.ops.geo3d.window_partition.default(coords, stride, window, shift)


def window_cells(coords: Tensor, stride: int, window: int, shift: bool) -> Tensor:
    """(N, 3) int32 place of every voxel inside its window, 0 to ``window - 1`` on each axis; rows as in ``coords``."""
    cells = coords[:, 1:].div(stride, rounding_mode="floor")
    return (cells + (window // 2 if shift else 0)).remainder(window)


def window_partition_reference(coords: Tensor, stride: int, window: int, shift: bool) -> tuple[Tensor, Tensor]:
    """What ``geo3d::window_partition`` computes, in plain PyTorch."""
    cells = coords[:, 1:].long().div(stride, rounding_mode="floor") + (window // 2 if shift else 0)
    return sort_cells(torch.cat([coords[:, :1].long(), cells.div(window, rounding_mode="floor")], 1))


def sort_cells(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the rows of a table of whole numbers, and find where equal rows begin.

    Columns, less their minima, are packed into as few int64 keys as hold their ranges: one key for nearly every cloud.
    Rows are sorted by each key in turn, from the last: exact as long as each single column's range is below 2**63.

    Args:
        cells: (N, K) int64.

    Returns:
        order: (N,) int64 rows that sort ``cells`` by the first column, then the second and so on; equal rows ascend.
        offsets: (U + 1,) int64; the U different rows own ``order[offsets[u]:offsets[u + 1]]``.
    """
    order = torch.arange(len(cells), device=cells.device)
    if len(cells) == 0:
        return order, order.new_zeros(1)
    lowest, highest = cells.aminmax(dim=0)
    columns = (cells - lowest).unbind(1)
    extents = (highest - lowest + 1).tolist()
    keys, size = [columns[0]], extents[0]
    for column, extent in zip(columns[1:], extents[1:]):
        if size * extent < _MAX_KEY:
            keys[-1], size = keys[-1] * extent + column, size * extent
        else:
            keys.append(column)
            size = extent
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    is_first = torch.zeros_like(order, dtype=torch.bool)
    is_first[0] = True
    for key in keys:
        is_first[1:] |= key[order].diff() != 0
    return order, torch.cat([is_first.nonzero().flatten(), order.new_full((1,), len(order))])


def _check(coords: Tensor, stride: int, window: int, shift: bool) -> None:
    if coords.dtype != torch.int32:
        raise TypeError(f"window_partition: coords must be int32, got {coords.dtype}")
    if coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"window_partition: coords must be (N, 4) [batch, x, y, z], got {tuple(coords.shape)}")
    if stride < 1 or window < 1 or stride * window >= 2**31:
        raise ValueError(
            "window_partition: stride and window must be 1 or more and their product below 2**31, "
            f"got {stride} and {window}"
        )


def _fake(coords: Tensor, stride: int, window: int, shift: bool) -> tuple[Tensor, Tensor]:
    length = torch.library.get_ctx().new_dynamic_size(min=1)
    return coords.new_empty(coords.shape[0], dtype=torch.int64), coords.new_empty(length, dtype=torch.int64)


define_operator(
    SCHEMA,
    reference=window_partition_reference,
    check=_check,
    fake=_fake,
    kernels=tuple(Kernel(device, (torch.int32,)) for device in ("cpu", "cuda")),
)
