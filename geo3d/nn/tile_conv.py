"""Convolution of tiles: products at active sites alone, the same numbers as the dense convolution with its mask.

Four ways lead there, chosen by shape (measured on a CPU with AVX-512; the numbers are in docs/benchmarks.md):
one matrix product where a site looks at itself alone; a dense convolution of tiles with their margin where
tiles are large; gathered pairs of sites, as in sparse 3D convolution, where they are small; and for depthwise kernels
on small tiles, whose margin would be larger than they are, the dense map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from geo3d.nn.active_cells import ActiveCells
from geo3d.nn.reach import Reach, reach_of
from geo3d.nn.tile_window import gather_rows
from geo3d.ops import sparse_conv

#: Tiles up to this side are convolved pair by pair.
_PAIRS_UP_TO = 2
#: Depthwise kernels whose margin widens a tile by more than this factor along a side go through the dense map.
_WIDEST_MARGIN = 2.0


def why_no_tiles(layer: nn.Module) -> str | None:
    """Why a convolution or pooling layer cannot read tiles, or None."""
    reach = reach_of(layer)
    if isinstance(reach, str):
        return reach
    return None if reach.keeps_ratio else "does not keep sides in whole ratios"


def way_of(layer: nn.Conv2d, side: int) -> str:
    """How tiles of ``side`` sites are convolved: ``product``, ``cells``, ``margin``, ``pairs`` or ``dense``."""
    reach = reach_of(layer)
    if reach.before <= 0 and reach.after <= 0:
        return "product" if reach.kernel == 1 and layer.groups == 1 else "cells"
    if layer.groups > 1:
        return "margin" if side + reach.before + reach.after <= _WIDEST_MARGIN * side else "dense"
    return "pairs" if side <= _PAIRS_UP_TO else "margin"


def tile_conv(tiles: Tensor, layer: nn.Conv2d, cells: ActiveCells) -> Tensor:
    """Tiles (N, C, t, t) -> (N, O, t / stride, t / stride), as the layer makes of the dense map at active sites."""
    way, reach = way_of(layer, tiles.shape[-1]), reach_of(layer)
    tiles, weight, bias = _under_autocast(tiles, layer.weight, layer.bias)
    if way == "product":
        rows = tiles[:, :, :: reach.stride, :: reach.stride].permute(0, 2, 3, 1)
        return F.linear(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)
    if way == "cells":
        return F.conv2d(tiles, weight, bias, reach.stride, 0, reach.dilation, layer.groups)
    if way == "dense":
        maps = F.conv2d(cells.spread(tiles), weight, bias, reach.stride, reach.padding, reach.dilation, layer.groups)
        return cells.cut(maps)
    if way == "pairs":
        return _pairs(tiles, weight, bias, reach, cells)
    return _MarginConv.apply(tiles, weight, bias, reach, layer.groups, cells)


def _under_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype that autocast wants of a convolution."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [None if t is None else t.to(torch.get_autocast_dtype(device)) for t in tensors]


def _pairs(tiles: Tensor, weight: Tensor, bias: Tensor | None, reach: Reach, cells: ActiveCells) -> Tensor:
    """Sum over the taps of the kernel: gathered rows times the tap's matrix."""
    out, channels, kernel, _ = weight.shape
    side = tiles.shape[-1]
    neighbours, transposed = cells.neighbours(side, reach)
    rows = tiles.permute(0, 2, 3, 1).reshape(-1, channels)
    y = sparse_conv(rows, weight.permute(2, 3, 1, 0).reshape(kernel * kernel, channels, out), neighbours, transposed)
    side = side // reach.stride
    y = y.view(len(tiles), side, side, out).permute(0, 3, 1, 2)
    return y if bias is None else y + bias.view(-1, 1, 1)


class _MarginConv(torch.autograd.Function):
    """Dense convolution of tiles with their margin, which the backward pass gathers anew instead of keeping it."""

    @staticmethod
    def forward(
        ctx: Any, tiles: Tensor, weight: Tensor, bias: Tensor | None, reach: Reach, groups: int, cells: ActiveCells
    ) -> Tensor:
        ctx.save_for_backward(tiles, weight)
        ctx.reach, ctx.groups, ctx.cells, ctx.biased = reach, groups, cells, bias is not None
        with torch.autocast(tiles.device.type, enabled=False):
            window = _window(tiles, reach, cells)
            return F.conv2d(window, weight, bias, reach.stride, 0, reach.dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tiles, weight = ctx.saved_tensors
        reach, groups, cells = ctx.reach, ctx.groups, ctx.cells
        needs = [*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2]]
        # At stride 1 the gradient of the input is a convolution of the output's, with the kernel turned round.
        turned = needs[0] and reach.stride == 1
        window = _window(tiles, reach, cells)
        of_window, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, window, weight, [len(weight)] if ctx.biased else None, [reach.stride] * 2, [0, 0],
            [reach.dilation] * 2, False, [0, 0], groups, [needs[0] and not turned, *needs[1:]],
        )  # fmt: skip
        of_tiles = None
        if turned:
            back = Reach(reach.kernel, 1, reach.after, reach.dilation)
            flipped = weight.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            of_tiles = F.conv2d(_window(gradient, back, cells), flipped, None, 1, 0, reach.dilation, groups)
        elif needs[0]:
            of_tiles = _add_up(of_window, tiles, cells.window(tiles.shape[-1], reach.before, reach.after))
        return of_tiles, of_weight, of_bias, None, None, None


def _window(tiles: Tensor, reach: Reach, cells: ActiveCells) -> Tensor:
    index = cells.window(tiles.shape[-1], reach.before, reach.after)
    return gather_rows(tiles, index).permute(0, 3, 1, 2)


def _add_up(of_window: Tensor, tiles: Tensor, index: Tensor) -> Tensor:
    """Gradients of windows (N, C, w, w) -> those of the tiles whose sites they read."""
    n, c, side, _ = tiles.shape
    rows = of_window.new_zeros(n * side * side + 2, c)
    rows.index_add_(0, index.flatten(), of_window.permute(0, 2, 3, 1).reshape(-1, c))
    return rows[:-2].view(n, side, side, c).permute(0, 3, 1, 2)
