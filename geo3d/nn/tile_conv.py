"""Convolution of tiles: products at active sites alone, the same numbers as the dense convolution with its mask.

Several ways lead there, chosen by shape, dtype and device; :func:`way_of` says which is taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from geo3d.nn.active_cells import ActiveCells
from geo3d.nn.reach import Reach, check_steps, reach_of
from geo3d.nn.site_product import KernelProduct, site_product
from geo3d.nn.tile_window import gather_rows
from geo3d.ops.registry import get_operator

#: Largest side of tiles whose convolution gathers the pairs of sites that meet: in float32 by the kernel of
#: ``geo3d::sparse_conv``, in other dtypes and on GPUs as one matrix product with all taps side by side.
_PAIRS_UP_TO, _UNFOLD_UP_TO = 4, 2
#: Depthwise kernels whose margin widens a tile by more than this factor along a side go through the dense map.
_WIDEST_MARGIN = 2.0
#: Maps up to this side are taken channels first for the gradient of depthwise kernels.
_SMALL_MAP = 7


def why_no_tiles(layer: nn.Module) -> str | None:
    """Why a convolution or pooling layer cannot read tiles, or None."""
    reach = reach_of(layer)
    if isinstance(reach, str):
        return reach
    return None if reach.keeps_ratio else "does not keep sides in whole ratios"


def way_of(layer: nn.Conv2d, tiles: Tensor) -> str:
    """How tiles (N, C, t, t) are convolved.

    Returns:
        ``product``: sites look at themselves alone, one matrix product. ``cells``: windows do not leave their tile.
        ``pairs``: gathered pairs of sites that meet, tap by tap. ``unfold``: gathered sites of all taps, one product.
        ``margin``: dense convolution of tiles with a margin. ``dense``: through the dense map.
    """
    reach, side = reach_of(layer), tiles.shape[-1]
    if reach.before <= 0 and reach.after <= 0:
        return "product" if reach.kernel == 1 and layer.groups == 1 else "cells"
    if layer.groups > 1:
        return "margin" if side + reach.before + reach.after <= _WIDEST_MARGIN * side else "dense"
    if side <= _PAIRS_UP_TO and _kernel_for_pairs(tiles):
        return "pairs"
    return "unfold" if side <= _UNFOLD_UP_TO else "margin"


def _kernel_for_pairs(tiles: Tensor) -> bool:
    """Whether ``geo3d::sparse_conv`` is quicker than dense products; in float64 its reference is as good."""
    if tiles.device.type != "cpu" or tiles.dtype not in (torch.float32, torch.float64):
        return False
    return tiles.dtype == torch.float64 or "cpu" not in get_operator("sparse_conv").choose(tiles)[1]


def tile_conv(tiles: Tensor, layer: nn.Conv2d, cells: ActiveCells) -> Tensor:
    """Tiles (N, C, t, t) -> (N, O, t / stride, t / stride), as the layer makes of the dense map at active sites."""
    tiles, weight, bias = under_autocast(tiles, layer.weight, layer.bias)
    way, reach = way_of(layer, tiles), reach_of(layer)
    check_steps(tiles.shape[-1], reach)
    if way == "product":
        rows = tiles[:, :, :: reach.stride, :: reach.stride].permute(0, 2, 3, 1)
        return site_product(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)
    if way == "cells":
        return F.conv2d(tiles, weight, bias, reach.stride, 0, reach.dilation, layer.groups)
    if way == "dense":
        return _Recomputed.apply(tiles, weight, bias, _MapConv(reach, layer.groups, cells))
    if way == "pairs":
        return _pairs(tiles, weight, bias, reach, cells)
    if way == "unfold":
        return _unfold(tiles, weight, bias, reach, cells)
    return _Recomputed.apply(tiles, weight, bias, _MarginConv(reach, layer.groups, cells))


def under_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype that autocast wants of products."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [None if t is None else t.to(torch.get_autocast_dtype(device)) for t in tensors]


def _pairs(tiles: Tensor, weight: Tensor, bias: Tensor | None, reach: Reach, cells: ActiveCells) -> Tensor:
    """Sum over the taps of the kernel: gathered rows times the tap's matrix."""
    out, channels = weight.shape[:2]
    rows = tiles.permute(0, 2, 3, 1).reshape(-1, channels)
    y = KernelProduct.apply(rows, weight.flatten(2), *cells.neighbours(tiles.shape[-1], reach))
    side = tiles.shape[-1] // reach.stride
    y = y.view(len(tiles), side, side, out).permute(0, 3, 1, 2)
    return y if bias is None else y + bias.view(-1, 1, 1)


def _unfold(tiles: Tensor, weight: Tensor, bias: Tensor | None, reach: Reach, cells: ActiveCells) -> Tensor:
    """One product of the sites of all taps, (sites, I k k), with the kernel as a matrix."""
    columns = gather_rows(tiles, cells.taps(tiles.shape[-1], reach)).transpose(-1, -2).flatten(3)
    return F.linear(columns, weight.flatten(1), bias).permute(0, 3, 1, 2)


class _Way:
    """How tiles are convolved, and the gradients.

    Args:
        reach, groups, cells: of the convolution and its tiles.
    """

    def __init__(self, reach: Reach, groups: int, cells: ActiveCells) -> None:
        self.reach, self.groups, self.cells = reach, groups, cells

    def laid_out(self, gradient: Tensor) -> Tensor:
        """Gradient of tiles as both of the other gradients are made of it."""
        return gradient


class _MarginConv(_Way):
    """Dense convolution of tiles with their margin."""

    def convolve(self, tiles: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        reach = self.reach
        return F.conv2d(_window(tiles, reach, self.cells), weight, bias, reach.stride, 0, reach.dilation, self.groups)

    def weight_gradient(self, gradient: Tensor, tiles: Tensor, weight: Tensor) -> Tensor:
        x, g = _for_weights(self.groups, _window(tiles, self.reach, self.cells), gradient)
        return _weight_gradient(x, g, weight, self.reach, 0, self.groups)

    def input_gradient(self, gradient: Tensor, tiles: Tensor, weight: Tensor) -> Tensor:
        reach, groups, cells = self.reach, self.groups, self.cells
        if reach.stride == 1:
            turned = Reach(reach.kernel, 1, reach.after, reach.dilation)
            window = _window(gradient, turned, cells)
            return F.conv2d(window, _turned(weight, groups), None, 1, 0, reach.dilation, groups)
        window = cells.window(tiles.shape[-1], reach.before, reach.after)
        like = gradient.new_empty(len(tiles), tiles.shape[1], *window.shape[1:])
        of_window = _convolution_backward(gradient, like, weight, reach, 0, groups, (True, False, False))[0]
        return _add_up(of_window, tiles, window)


class _MapConv(_Way):
    """Convolution through the dense map."""

    def laid_out(self, gradient: Tensor) -> Tensor:
        return self.cells.spread(gradient)

    def convolve(self, tiles: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        reach, maps = self.reach, self.cells.spread(tiles)
        return self.cells.cut(F.conv2d(maps, weight, bias, reach.stride, reach.padding, reach.dilation, self.groups))

    def weight_gradient(self, gradient: Tensor, tiles: Tensor, weight: Tensor) -> Tensor:
        x, g = _for_weights(self.groups, self.cells.spread(tiles), gradient)
        return _weight_gradient(x, g, weight, self.reach, self.reach.padding, self.groups)

    def input_gradient(self, gradient: Tensor, tiles: Tensor, weight: Tensor) -> Tensor:
        reach, groups = self.reach, self.groups
        if reach.stride == 1:
            turned = _turned(weight, groups)
            return self.cells.cut(F.conv2d(gradient, turned, None, 1, reach.after, reach.dilation, groups))
        maps, mask = self.cells.spread(tiles), (True, False, False)
        return self.cells.cut(_convolution_backward(gradient, maps, weight, reach, reach.padding, groups, mask)[0])


class _Recomputed(torch.autograd.Function):
    """A way of convolving whose backward pass gathers what it reads anew instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, tiles: Tensor, weight: Tensor, bias: Tensor | None, way: _Way) -> Tensor:
        ctx.save_for_backward(tiles, weight)
        ctx.way = way
        with torch.autocast(tiles.device.type, enabled=False):
            return way.convolve(tiles, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs_tiles, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        way, of_out = ctx.way, ctx.way.laid_out(gradient)
        of_tiles = way.input_gradient(of_out, *ctx.saved_tensors) if needs_tiles else None
        of_weight = way.weight_gradient(of_out, *ctx.saved_tensors) if needs_weight else None
        return of_tiles, of_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, reach: Reach, padding: int, groups: int, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, ...]:
    """PyTorch's own gradients of a square convolution, those that ``mask`` asks for."""
    stride, dilation = [reach.stride] * 2, [reach.dilation] * 2
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, [padding] * 2, dilation, False, [0, 0], groups, mask
    )


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, reach: Reach, padding: int, groups: int) -> Tensor:
    mask = (False, True, False)
    found = _convolution_backward(gradient, x, weight.to(x.dtype), reach, padding, groups, mask)[1]
    return found.to(weight.dtype)


def _for_weights(groups: int, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Input and gradient as the gradient of a kernel is quickest made of them.

    On CPUs that of depthwise kernels is slower in half precision than in single, and slow on small maps with channels
    last.
    """
    if groups == 1 or x.device.type != "cpu":
        return x, gradient
    x, gradient = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, gradient))
    return (x.contiguous(), gradient.contiguous()) if x.shape[-1] <= _SMALL_MAP else (x, gradient)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """Kernel (O, I / groups, k, k) of a convolution with stride 1 -> that of its gradient, (I, O / groups, k, k)."""
    return weight.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _window(tiles: Tensor, reach: Reach, cells: ActiveCells) -> Tensor:
    index = cells.window(tiles.shape[-1], reach.before, reach.after)
    return gather_rows(tiles, index).permute(0, 3, 1, 2)


def _add_up(of_window: Tensor, tiles: Tensor, index: Tensor) -> Tensor:
    """Gradients of windows (N, C, w, w) -> those of the tiles whose sites they read."""
    n, c, side, _ = tiles.shape
    rows = of_window.new_zeros(n * side * side + 2, c)
    rows.scatter_add_(0, index.view(-1, 1).expand(-1, c), of_window.permute(0, 2, 3, 1).reshape(-1, c))
    return rows[:-2].view(n, side, side, c).permute(0, 3, 1, 2)
