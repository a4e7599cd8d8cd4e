"""Convolution of maps that a token fills wherever no tile lies, without making those maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.active_cells import ActiveCells
from geo3d.nn.reach import reach_of
from geo3d.nn.site_product import KernelProduct, why_not_own_kernel
from geo3d.nn.tile_conv import under_autocast
from geo3d.nn.unet_decoder import WIDE

#: Below this side of a tile the kernel's turning takes longer than what is saved.
_LEAST_SIDE = 4


def filled_conv(tiles: Tensor, token: Tensor, layer: nn.Conv2d, cells: ActiveCells) -> Tensor:
    """``layer`` of the maps that hold ``tiles`` at active cells and ``token`` everywhere else.

    The tiles' share is summed over the pairs of sites that meet. The token's is a convolution of the mask alone, with
    the kernel summed over the token's channels.

    Args:
        tiles: (N, C, t, t).
        token: (C,).
        layer: square, of stride 1 and with one group, and its result as large as its input.
        cells: where the tiles lie.

    Returns:
        (B, O, H, W), channels last in memory.
    """
    reach, side = reach_of(layer), tiles.shape[-1]
    height, width = (side * cells for cells in cells.grid)
    tiles, token, weight, bias = under_autocast(tiles, token, layer.weight, layer.bias)
    rows = tiles.permute(0, 2, 3, 1).reshape(-1, tiles.shape[1])
    if why_not_own_kernel(rows) is not None or layer.kernel_size == (1, 1) or side < _LEAST_SIDE:
        maps = cells.spread(tiles, token)
        wide = maps.shape[1] >= WIDE and maps.dtype == torch.float32 and maps.device.type == "cpu"
        return layer(maps.contiguous() if wide else maps)
    seen = KernelProduct.apply(rows, weight.flatten(2), *cells.map_neighbours(side, reach))
    seen = seen.view(cells.batch, height, width, -1).permute(0, 3, 1, 2)
    kernel = torch.einsum("oikl,i->okl", weight, token).unsqueeze(1)
    hidden = (~cells.mask(height, width)).to(kernel.dtype)
    return seen + F.conv2d(hidden, kernel, bias, padding=reach.padding, dilation=reach.dilation)
