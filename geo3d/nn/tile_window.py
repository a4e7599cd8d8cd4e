"""Tiles with a margin: what a layer that looks around reads of its tile and of the tiles beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geo3d.nn.active_cells import ActiveCells
from geo3d.nn.reach import check_steps, reach_of


def gather_rows(tiles: Tensor, index: Tensor, outside: float = 0.0) -> Tensor:
    """Rows ``index`` of tiles (N, C, t, t): inactive sites are 0, those outside the image ``outside``.

    Returns:
        ``index``'s shape and C.
    """
    rows = tiles.permute(0, 2, 3, 1).reshape(-1, tiles.shape[1])
    rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1]), rows.new_full((1, rows.shape[1]), outside)])
    return rows.index_select(0, index.flatten()).view(*index.shape, -1)


def read_windows(tiles: Tensor, layer: nn.Module, cells: ActiveCells, outside: float) -> Tensor:
    """Tiles with the margin that ``layer`` looks at: (N, C, t, t) -> (N, C, t + before + after, the same)."""
    reach = reach_of(layer)
    check_steps(tiles.shape[-1], reach)
    if reach.before <= 0 and reach.after <= 0:
        return tiles
    index = cells.window(tiles.shape[-1], reach.before, reach.after)
    return gather_rows(tiles, index, outside).permute(0, 3, 1, 2)
