"""Layers that look at the active cells alone: what ``geo3d.nn.masked_conversion`` makes of those of a dense network.

Each has the parameters, and their names, of the layer that it was. In the dense layout it computes what the layer
computes and puts zeros at inactive sites (SparK, section 3.1); norms take their statistics from active sites. In the
layout of tiles a layer that looks at single sites is what it was; one that looks around reads its tile with a margin.
What is pooled over whole images goes through the layer that it was in both layouts, one row an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.nn.active_cells import ActiveCells, CellsHolder
from geo3d.nn.batch_norm import SyncBatchNorm2d
from geo3d.nn.channel_norm import ChannelNorm, SampleDropPath
from geo3d.nn.pooled import Pooled
from geo3d.nn.site_product import site_product
from geo3d.nn.tile_conv import tile_conv, under_autocast, why_no_tiles
from geo3d.nn.tile_window import read_windows


class MaskedLayer:
    """What converted layers have beside their own: the cells of the current pass."""

    holder: CellsHolder

    @property
    def cells(self) -> ActiveCells:
        """The cells of the pass that this layer is called in."""
        return self.holder.current

    def forward(self, x: Tensor) -> Tensor:
        """Maps in the layout of the cells of the pass, or what was pooled over whole images."""
        if isinstance(x, Pooled):
            return self.cells.over_images(x.as_subclass(Tensor), self.as_it_was).as_subclass(Pooled)
        return self.on_maps(x)

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles (N, C, t, t), without influence of inactive sites."""
        # Not an abstract method: layers become these by `__class__`, which an abstract base does not allow.
        raise NotImplementedError(f"{type(self).__name__} must say what it does on maps")

    def as_it_was(self, x: Tensor) -> Tensor:
        """What the layer was before the conversion."""
        return super().forward(x)

    def why_no_tiles(self) -> str | None:
        """Why the layer works in the dense layout alone, or None."""
        return None


def _masked(x: Tensor, cells: ActiveCells) -> Tensor:
    """(B, C, H, W), with zeros at inactive sites; ``x`` itself is overwritten."""
    return x.mul_(cells.mask(*x.shape[-2:]))


def _over_active_rows(x: Tensor, cells: ActiveCells, function) -> Tensor:
    """Maps (B, C, H, W) through a function of the rows (M, C) of active sites, zeros elsewhere."""
    b, c, height, width = x.shape
    index = cells.rows(height, width)
    rows = function(x.permute(0, 2, 3, 1).reshape(-1, c).index_select(0, index))
    maps = rows.new_zeros(b * height * width, c).index_copy(0, index, rows)
    return maps.view(b, height, width, c).permute(0, 3, 1, 2)


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """Convolution that neither reads nor writes inactive sites."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        cells = self.cells
        return tile_conv(x, self, cells) if cells.tiled else _masked(self.as_it_was(x), cells)

    def why_no_tiles(self) -> str | None:
        return why_no_tiles(self)


class MaskedLinear(MaskedLayer, nn.Linear):
    """Linear layer over the channels of sites (B, H, W, C), or of whole images (B, C).

    Where ``interior``, only pointwise layers read its result, and the last of them puts the zeros.
    """

    interior: bool = False

    def on_maps(self, x: Tensor) -> Tensor:
        """(B, H, W, C) or (N, t, t, C) -> the same sites."""
        if self.cells.tiled:
            return site_product(*under_autocast(x, self.weight, self.bias))
        y = self.as_it_was(x)
        if y.ndim != 4 or self.interior:
            return y
        return _masked(y.permute(0, 3, 1, 2), self.cells).permute(0, 2, 3, 1)


class MaskedBatchNorm2d(MaskedLayer, SyncBatchNorm2d):
    """Batch normalisation with the statistics of active sites."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        return self.as_it_was(x) if self.cells.tiled else _over_active_rows(x, self.cells, self.as_it_was)


class MaskedChannelNorm(MaskedLayer, ChannelNorm):
    """Layer normalisation of active sites of maps (B, C, H, W)."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        return self.as_it_was(x) if self.cells.tiled else _over_active_rows(x, self.cells, self._rows)

    def _rows(self, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, self.normalized_shape, self.weight, self.bias, self.eps)


class MaskedLayerNorm(MaskedLayer, nn.LayerNorm):
    """Layer normalisation of active sites of maps (B, H, W, C)."""

    def on_maps(self, x: Tensor) -> Tensor:
        """(B, H, W, C) or (N, t, t, C)."""
        if x.ndim != 4 or self.cells.tiled:
            return self.as_it_was(x)
        return _over_active_rows(x.permute(0, 3, 1, 2), self.cells, self.as_it_was).permute(0, 2, 3, 1)


class MaskedGroupNorm(MaskedLayer, nn.GroupNorm):
    """Group normalisation with each image's statistics over its active sites."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        cells = self.cells
        mask = None if cells.tiled else cells.mask(*x.shape[-2:])
        groups = x.unflatten(1, (self.num_groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
        sites = x[0, 0].numel() if cells.tiled else 1
        own = cells.sample if cells.tiled else torch.arange(len(x), device=x.device)
        if cells.tiled:
            active = torch.bincount(cells.sample, minlength=cells.batch) * sites
        else:
            active = mask.sum((1, 2, 3))
        count = (active * groups.shape[2]).clamp_min(1).unsqueeze(1).to(groups.dtype)  # (B, 1)

        def of_images(values: Tensor) -> Tensor:
            """Sums over the sites of each image and group: (B, G), spread to the rows of ``groups``."""
            sums = values.sum((2, 3, 4))
            total = sums.new_zeros(len(count), self.num_groups).index_add(0, own, sums)
            return (total / count)[own][:, :, None, None, None]

        inside = 1 if mask is None else mask.unsqueeze(1)
        centred = (groups - of_images(groups * inside)) * inside
        y = (centred * (of_images(centred.square()) + self.eps).rsqrt()).flatten(1, 2).to(x.dtype)
        if self.weight is not None:
            y = y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return y if mask is None else y * mask


class MaskedMaxPool2d(MaskedLayer, nn.MaxPool2d):
    """Maximum over windows: inactive sites count as 0, those outside the image do not count."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        cells = self.cells
        if not cells.tiled:
            return _masked(self.as_it_was(x), cells)
        return F.max_pool2d(read_windows(x, self, cells, -torch.inf), self.kernel_size, self.stride)

    def why_no_tiles(self) -> str | None:
        return "returns indices" if self.return_indices else why_no_tiles(self)


class MaskedAvgPool2d(MaskedLayer, nn.AvgPool2d):
    """Mean over windows, in which inactive sites and, as in the layer that it was, padding count as 0."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        cells = self.cells
        if not cells.tiled:
            return _masked(self.as_it_was(x), cells)
        windows = read_windows(x, self, cells, 0.0)
        return F.avg_pool2d(windows, self.kernel_size, self.stride, divisor_override=self.divisor_override)

    def why_no_tiles(self) -> str | None:
        padded = self.padding not in (0, (0, 0))
        return "does not count its padding" if padded and not self.count_include_pad else why_no_tiles(self)


class MaskedGlobalPool(MaskedLayer, nn.AdaptiveAvgPool2d):
    """Mean over the active sites of each image; for gates over channels."""

    def on_maps(self, x: Tensor) -> Pooled:
        """(B, C, H, W) -> (B, C, 1, 1); tiles (N, C, t, t) -> (N, C, 1, 1), equal for all cells of an image."""
        cells = self.cells
        if cells.tiled:
            means = x.mean((2, 3), keepdim=True)
            total = means.new_zeros(cells.batch, *means.shape[1:]).index_add(0, cells.sample, means)
            count = torch.bincount(cells.sample, minlength=cells.batch).clamp_min(1).to(x.dtype)
            return (total / count.view(-1, 1, 1, 1)).index_select(0, cells.sample).as_subclass(Pooled)
        mask = cells.mask(*x.shape[-2:])
        count = mask.sum((2, 3), keepdim=True).clamp_min(1).to(x.dtype)
        return ((x * mask).sum((2, 3), keepdim=True) / count).as_subclass(Pooled)


class MaskedDropPath(MaskedLayer, SampleDropPath):
    """Drops the residual of each image on its own."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, ...), or tiles (N, ...)."""
        if not self.training or self.rate == 0 or not self.cells.tiled:
            return self.as_it_was(x)
        return x * self.draw(self.cells.batch, x)[self.cells.sample].view(-1, *[1] * (x.ndim - 1))


class MaskedDropout(MaskedLayer, nn.Dropout):
    """Drops single values; of what was pooled, the same for all cells of an image."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, ...), or tiles (N, ...)."""
        return self.as_it_was(x)


class MaskedDropout2d(MaskedLayer, nn.Dropout2d):
    """Drops whole channels of each image on their own."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        if not self.training or not self.cells.tiled:
            return self.as_it_was(x)
        factors = F.dropout2d(x.new_ones(self.cells.batch, x.shape[1], 1, 1), self.p)
        return x * factors.index_select(0, self.cells.sample)


class MaskedZeroPad2d(MaskedLayer, nn.ZeroPad2d):
    """Zeros around whole maps, for a convolution or pooling layer that brings maps back to whole cells."""

    def on_maps(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + top + bottom, W + left + right)."""
        return self.as_it_was(x)

    def why_no_tiles(self) -> str | None:
        return "pads whole maps, and tiles have no border; a convolution with the padding of its own reads tiles"


class MaskedFlatten(MaskedLayer, nn.Flatten):
    """Rows of what was pooled over whole images."""

    def on_maps(self, x: Tensor) -> Tensor:
        raise InputError(
            f"a Flatten meets a map {tuple(x.shape)}, of which inactive sites are a part; it may follow global pooling"
        )


class MaskedSigmoid(MaskedLayer, nn.Sigmoid):
    """Sigmoid that leaves zeros at inactive sites."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        y = self.as_it_was(x)
        return y if self.cells.tiled else y * self.cells.mask(*x.shape[-2:])


class MaskedHardsigmoid(MaskedLayer, nn.Hardsigmoid):
    """Hard sigmoid that leaves zeros at inactive sites."""

    def on_maps(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or tiles."""
        y = self.as_it_was(x)
        return y if self.cells.tiled else y * self.cells.mask(*x.shape[-2:])
