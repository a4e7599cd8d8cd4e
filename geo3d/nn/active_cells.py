"""Which square cells of an image are seen, and the two layouts in which a network may hold what it makes of them.

*Dense*: whole maps (B, C, H, W), zero outside the active cells. *Tiles*: (N, C, t, t), one tile an active cell and
nothing else; at stride s a cell of p pixels is a tile of t = p / s sites. Both hold the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.nn.reach import Reach
from geo3d.ops import transpose_kernel_map


class ActiveCells:
    """The active cells of a batch of images, and where their tiles lie.

    Args:
        active: (B, 1, rows, columns) bool, true where a cell is seen.
        tiled: whether networks hold tiles instead of dense maps.

    Raises:
        InputError: another shape or dtype, or no active cell at all.
    """

    def __init__(self, active: Tensor, tiled: bool) -> None:
        if active.dtype != torch.bool or active.ndim != 4 or active.shape[1] != 1:
            raise InputError(
                f"active cells must be (B, 1, rows, columns) bool, got {active.dtype} {tuple(active.shape)}"
            )
        self.active, self.tiled = active, tiled
        self.grid = tuple(active.shape[-2:])
        #: (N,) int64: number of each active cell, counted through the batch, row-major.
        self.cell = active.flatten().nonzero().squeeze(1)
        if not len(self.cell):
            raise InputError("no cell is active: there is nothing to encode")
        #: (N,) int64 image of each active cell.
        self.sample = self.cell // (self.grid[0] * self.grid[1])
        self._made: dict[tuple, Any] = {}

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.active)

    def check(self, height: int, width: int) -> int:
        """Sites of a map along a side of a cell.

        Raises:
            InputError: cells do not hold whole, square numbers of sites.
        """
        rows, columns = self.grid
        side = height // rows
        if side < 1 or (side * rows, side * columns) != (height, width):
            raise InputError(
                f"a map of {height} x {width} sites does not divide into {rows} x {columns} square cells; the mask's "
                "cells must be as large as the network's total stride, and its layers keep sides in whole ratios"
            )
        return side

    def _keep(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # Dense layout

    def mask(self, height: int, width: int) -> Tensor:
        """(B, 1, height, width) bool, true at active sites."""
        return self._keep(("mask", height, width), lambda: _enlarge(self.active, self.check(height, width)))

    def rows(self, height: int, width: int) -> Tensor:
        """(M,) int64 numbers of the active sites, counted through the batch, row-major."""
        return self._keep(("rows", height, width), lambda: self.mask(height, width).flatten().nonzero().squeeze(1))

    # Whole images

    @property
    def _images(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M,) int64 images with active cells, (N,) which of them each cell belongs to, (M,) the first cell of each."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            images, place, count = self.sample.unique_consecutive(return_inverse=True, return_counts=True)
            return images, place, count.cumsum(0) - count

        return self._keep(("images",), make)

    def over_images(self, pooled: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What was pooled, (B, ...) or, of tiles, (N, ...), through a function of a row an image, (M, ...).

        Images without an active cell have no row; in the dense layout zeros stand for theirs.
        """
        rows = function(self._row_an_image(pooled))
        return rows.index_select(0, self._images[1]) if self.tiled else self._of_batch(rows)

    def image_rows(self, pooled: Tensor) -> Tensor:
        """What was pooled, (B, ...) or, of tiles, (N, ...) -> (B, ...), zero for images without an active cell."""
        return self._of_batch(self._row_an_image(pooled))

    def _row_an_image(self, pooled: Tensor) -> Tensor:
        images, _, first = self._images
        return pooled.index_select(0, first if self.tiled else images)

    def _of_batch(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(self.batch, *rows.shape[1:]).index_copy(0, self._images[0], rows)

    # From one to the other

    def cut(self, dense: Tensor) -> Tensor:
        """(B, C, H, W) -> tiles (N, C, t, t) of the active cells, channels last in memory."""
        side = self.check(*dense.shape[-2:])
        rows = dense.permute(0, 2, 3, 1).reshape(-1, dense.shape[1])
        return rows.index_select(0, self._sites(side)).view(-1, side, side, dense.shape[1]).permute(0, 3, 1, 2)

    def spread(self, tiles: Tensor, fill: Tensor | None = None) -> Tensor:
        """Tiles (N, C, t, t) -> (B, C, H, W), ``fill`` (C,) or zero elsewhere; channels last in memory."""
        channels, side = tiles.shape[1], tiles.shape[2]
        height, width = (side * cells for cells in self.grid)
        shape = (self.batch * height * width, channels)
        empty = tiles.new_zeros(shape) if fill is None else fill.to(tiles.dtype).expand(shape)
        rows = empty.index_copy(0, self._sites(side), tiles.permute(0, 2, 3, 1).reshape(-1, channels))
        return rows.view(self.batch, height, width, channels).permute(0, 3, 1, 2)

    def _sites(self, side: int) -> Tensor:
        """(N x side x side,) int64 numbers of the sites of all tiles, counted through the batch, row-major."""
        return self._keep(("sites", side), lambda: self._make_sites(side))

    def _make_sites(self, side: int) -> Tensor:
        height, width = (side * cells for cells in self.grid)
        every = torch.arange(self.batch * height * width, device=self.cell.device)
        cells = every.view(self.batch, self.grid[0], side, self.grid[1], side).transpose(2, 3).flatten(0, 2)
        return cells[self.cell].flatten()

    # Tiles

    def window(self, side: int, before: int, after: int) -> Tensor:
        """Where the sites of every tile and of a margin around it lie among the rows of all tiles.

        Args:
            side: of a tile, sites.
            before, after: width of the margin above and left, below and right; negative ones cut the tile.

        Returns:
            (N, side + before + after, the same) int64 rows of tiles (N x side x side), channels last. Rows from
            N x side x side on are none: first that of inactive sites, then that of sites outside the image.
        """
        return self._keep(("window", side, before, after), lambda: self._make_window(side, before, after))

    def neighbours(self, side: int, reach: Reach) -> tuple[Tensor, Tensor]:
        """Kernel map of a convolution over the sites of tiles, as :func:`geo3d.ops.sparse_conv` takes it.

        Returns:
            (K, M) int32 row that each of the M output sites reads at each of the K taps, -1 where there is none; and
            (K, N) int32 the other way round.
        """
        key = ("neighbours", side, reach)
        return self._keep(key, lambda: self._make_neighbours(side, reach)), self._keep(
            (*key, "transposed"), lambda: transpose_kernel_map(self._made[key], len(self.cell) * side * side)
        )

    def map_neighbours(self, side: int, reach: Reach) -> tuple[Tensor, Tensor]:
        """As :meth:`neighbours`, of a convolution of stride 1 whose outputs are all sites of the maps, row-major."""
        key = ("map neighbours", side, reach)
        return self._keep(key, lambda: self._make_map_neighbours(side, reach)), self._keep(
            (*key, "transposed"), lambda: transpose_kernel_map(self._made[key], len(self.cell) * side * side)
        )

    def _make_map_neighbours(self, side: int, reach: Reach) -> Tensor:
        maps = self._row_maps(side, reach.before, reach.after, -1, -1)
        height, width = (side * cells for cells in self.grid)
        starts = range(0, reach.dilation * reach.kernel, reach.dilation)
        return torch.stack([maps[:, y : y + height, x : x + width].flatten() for y in starts for x in starts]).int()

    def _make_neighbours(self, side: int, reach: Reach) -> Tensor:
        rows = self.taps(side, reach).flatten(0, 2).t().contiguous()
        return rows.masked_fill(rows >= len(self.cell) * side * side, -1).int()

    def taps(self, side: int, reach: Reach) -> Tensor:
        """(N, t / stride, t / stride, K) int64 row of tiles that each output site reads at each tap, row-major.

        Rows that are none are as in :meth:`window`.
        """
        return self._keep(("taps", side, reach), lambda: self._make_taps(side, reach))

    def _make_taps(self, side: int, reach: Reach) -> Tensor:
        window = self.window(side, reach.before, reach.after)
        last = window.shape[1] - reach.dilation * (reach.kernel - 1)
        starts = range(0, reach.dilation * reach.kernel, reach.dilation)
        taps = [window[:, y : y + last : reach.stride, x : x + last : reach.stride] for y in starts for x in starts]
        return torch.stack(taps, 3)

    def _make_window(self, side: int, before: int, after: int) -> Tensor:
        (rows, columns), count, device = self.grid, len(self.cell), self.cell.device
        none = count * side * side
        maps = self._row_maps(side, max(before, 0), max(after, 0), none, none + 1)
        low = max(before, 0)
        place = self.cell % (rows * columns)
        reach = torch.arange(-before, side + after, device=device) + low
        y = (place // columns * side).unsqueeze(1) + reach
        x = (place % columns * side).unsqueeze(1) + reach
        return maps[self.sample.view(-1, 1, 1), y.unsqueeze(2), x.unsqueeze(1)]

    def _row_maps(self, side: int, before: int, after: int, inactive: int, outside: int) -> Tensor:
        """(B, before + H + after, before + W + after) int64 row of tiles of every site, or what stands for none."""
        rows, columns = self.grid
        count, device = len(self.cell), self.cell.device
        cells = torch.full((self.batch * rows * columns, side, side), inactive, device=device)
        cells[self.cell] = torch.arange(count * side * side, device=device).view(count, side, side)
        maps = cells.view(self.batch, rows, columns, side, side).transpose(2, 3).reshape(self.batch, rows * side, -1)
        return torch.nn.functional.pad(maps, (before, after, before, after), value=outside)


class CellsHolder:
    """What the layers of one converted network share: the cells of the pass that they are in.

    Each thread has its own, so one network may serve several; copies and pickles of a network get a holder of theirs.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def current(self) -> ActiveCells:
        """The cells of this thread's pass.

        Raises:
            RuntimeError: a converted layer was called outside of a pass through its network.
        """
        cells = getattr(self._local, "cells", None)
        if cells is None:
            raise RuntimeError("a sparse layer was called outside of its network: call the network that to_sparse made")
        return cells

    @contextmanager
    def use(self, cells: ActiveCells) -> Iterator[ActiveCells]:
        """Context of one pass."""
        before = getattr(self._local, "cells", None)
        self._local.cells = cells
        try:
            yield cells
        finally:
            self._local.cells = before

    def __reduce__(self):
        return CellsHolder, ()


def _enlarge(active: Tensor, factor: int) -> Tensor:
    """(B, 1, H, W) -> (B, 1, H x factor, W x factor)."""
    return active.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
