"""Convolution of maps that a token fills wherever no tile lies, without making those maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.active_cells import ActiveCells
from geo3d.nn.reach import reach_of
from geo3d.nn.site_product import KernelProduct, site_product, why_not_own_kernel
from geo3d.nn.tile_conv import under_autocast
from geo3d.nn.unet_decoder import WIDE

#: Below this side of a tile the kernel's turning takes longer than what is saved.
_LEAST_SIDE = 4


def fill(tiles: Tensor, token: Tensor, cells: ActiveCells) -> Tensor:
    """``tiles`` at active cells and ``token`` everywhere else.

    Args:
        tiles: (N, C, t, t), or in the dense layout (B, C, H, W), of which only active sites count.
        token: (C,).
        cells: which are active.

    Returns:
        (B, C, H, W).
    """
    if cells.tiled:
        return cells.spread(tiles, token)
    return torch.where(cells.mask(*tiles.shape[-2:]), tiles, token.to(tiles.dtype).view(-1, 1, 1))


class Fill(nn.Module):
    """:func:`fill`, where nothing is convolved."""

    def forward(self, tiles: Tensor, token: Tensor, cells: ActiveCells) -> Tensor:
        """As :func:`fill`."""
        return fill(tiles, token, cells)


class FilledConv2d(nn.Conv2d):
    """``nn.Conv2d`` (square, of stride 1, its result as large as its input) of maps made of tiles and a token."""

    def forward(self, tiles: Tensor, token: Tensor, cells: ActiveCells) -> Tensor:
        """The convolution, (B, O, H, W), of what :func:`fill` makes of the same."""
        if not cells.tiled:
            return super().forward(fill(tiles, token, cells))
        if self.kernel_size == (1, 1):
            tiles, token, weight, bias = under_autocast(tiles, token, self.weight.flatten(1), self.bias)
            projected = site_product(tiles.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
            return fill(projected, F.linear(token, weight, bias), cells)
        if tiles.shape[-1] < _LEAST_SIDE or why_not_own_kernel(tiles.movedim(1, -1)):
            maps = fill(tiles, token, cells)
            wide = maps.shape[1] >= WIDE and maps.dtype == torch.float32 and maps.device.type == "cpu"
            return super().forward(maps.contiguous() if wide else maps)
        return self._from_tiles(*under_autocast(tiles, token, self.weight, self.bias), cells)

    def _from_tiles(
        self, tiles: Tensor, token: Tensor, weight: Tensor, bias: Tensor | None, cells: ActiveCells
    ) -> Tensor:
        """The tiles' share, over the pairs of sites that meet, and the token's: a convolution of the mask alone.

        The kernel of the latter is summed over the token's channels.
        """
        reach, side = reach_of(self), tiles.shape[-1]
        height, width = (side * count for count in cells.grid)
        rows = tiles.permute(0, 2, 3, 1).reshape(-1, tiles.shape[1])
        seen = KernelProduct.apply(rows, weight.flatten(2), *cells.map_neighbours(side, reach))
        seen = seen.view(cells.batch, height, width, -1).permute(0, 3, 1, 2)
        kernel = torch.einsum("oikl,i->okl", weight, token).unsqueeze(1)
        hidden = (~cells.mask(height, width)).to(kernel.dtype)
        return seen + F.conv2d(hidden, kernel, bias, padding=reach.padding, dilation=reach.dilation)
