"""From a dense convolutional network to one that sees the active cells of an image alone (SparK, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.nn import masked_layers
from geo3d.nn.active_cells import ActiveCells, CellsHolder
from geo3d.nn.batch_norm import SyncBatchNorm2d
from geo3d.nn.channel_norm import ChannelNorm, SampleDropPath
from geo3d.nn.masked_layers import MaskedLayer
from geo3d.nn.pooled import Pooled
from geo3d.nn.uncompiled import uncompiled

Layout = Literal["auto", "tiles", "dense"]
#: Share of active cells above which there is nothing to save, and the dense maps are the dense network's, bit for bit.
MOST_ACTIVE = 0.95

#: Layer -> what it becomes. A layer's exact class counts: a subclass may compute something else.
_CONVERTED = {
    nn.Conv2d: masked_layers.MaskedConv2d,
    nn.Linear: masked_layers.MaskedLinear,
    nn.BatchNorm2d: masked_layers.MaskedBatchNorm2d,
    nn.SyncBatchNorm: masked_layers.MaskedBatchNorm2d,
    SyncBatchNorm2d: masked_layers.MaskedBatchNorm2d,
    nn.LayerNorm: masked_layers.MaskedLayerNorm,
    ChannelNorm: masked_layers.MaskedChannelNorm,
    nn.GroupNorm: masked_layers.MaskedGroupNorm,
    nn.MaxPool2d: masked_layers.MaskedMaxPool2d,
    nn.AvgPool2d: masked_layers.MaskedAvgPool2d,
    nn.AdaptiveAvgPool2d: masked_layers.MaskedGlobalPool,
    SampleDropPath: masked_layers.MaskedDropPath,
    nn.Dropout: masked_layers.MaskedDropout,
    nn.Dropout2d: masked_layers.MaskedDropout2d,
    nn.ZeroPad2d: masked_layers.MaskedZeroPad2d,
    nn.Flatten: masked_layers.MaskedFlatten,
    nn.Sigmoid: masked_layers.MaskedSigmoid,
    nn.Hardsigmoid: masked_layers.MaskedHardsigmoid,
}
#: Layers that look at one value and leave zeros zero: they stay as they are.
_KEPT = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU,
    nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softsign,
)  # fmt: skip
#: Blocks of layers, as are their subclasses and modules of other kinds that hold modules: what they hold counts.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class SparseEncoder(nn.Module):
    """A converted network: it encodes the active cells of images, and nothing of the others reaches its maps.

    Args:
        network: converted in place. Its ``features(images)``, or else its forward pass, returns one map or several.
        synchronised: batch norms take their statistics from all processes while several train.

    Raises:
        InputError: a layer that cannot be converted; names it.
    """

    def __init__(self, network: nn.Module, synchronised: bool = True) -> None:
        super().__init__()
        self.holder = CellsHolder()
        _convert(network, self.holder, synchronised)
        self.sp_cnn = network
        self._why_dense = _refusing_layer(network)

    def explain(self, active: Tensor, path: Layout = "auto") -> dict[str, str]:
        """Which layout a pass would use, and why not the other.

        Args:
            active: (B, 1, rows, columns) bool.
            path: what is asked for.

        Returns:
            ``tiles`` and ``dense``, each ``chosen``, ``refused: <why>`` or ``not needed``.
        """
        reason = self._why_dense
        if path == "dense":
            reason = "dense maps are asked for"
        elif path == "auto" and reason is None and (share := float(active.float().mean())) > MOST_ACTIVE:
            reason = f"nothing to save with {100 * share:.0f} % of the cells active (limit {100 * MOST_ACTIVE:.0f} %)"
        if reason is None:
            return {"tiles": "chosen", "dense": "not needed"}
        return {"tiles": f"refused: {reason}", "dense": "chosen"}

    @contextmanager
    def seeing(self, active: Tensor, path: Layout = "auto") -> Iterator[ActiveCells]:
        """Context of one pass in which the network, and layers that share its ``holder``, see these cells.

        Args:
            active: (B, 1, rows, columns) bool, cells as large as the network's total stride.
            path: layout: ``tiles``, ``dense``, or ``auto``, which is as :meth:`explain` says.

        Raises:
            InputError: tiles are asked for and a layer refuses them.
        """
        verdict = self.explain(active, path)
        if path == "tiles" and verdict["tiles"] != "chosen":
            raise InputError(f"the layout of tiles cannot be had: {verdict['tiles'].removeprefix('refused: ')}")
        with self.holder.use(ActiveCells(active, tiled=verdict["tiles"] == "chosen")) as cells:
            yield cells

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps of images (B, C, H, W), in the layout of the cells that are seen."""
        cells = self.holder.current
        if len(images) != cells.batch:
            raise InputError(f"{len(images)} images, but a mask of {cells.batch}")
        cells.check(*images.shape[-2:])
        if cells.tiled:
            seen = cells.cut(images)
        else:
            # Not a product: what is hidden may be anything, and infinity times 0 is no number.
            seen = images.masked_fill(~cells.mask(*images.shape[-2:]), 0)
        network = self.sp_cnn
        out = network.features(seen) if hasattr(network, "features") else network(seen)
        return [out] if isinstance(out, Tensor) else list(out)

    @uncompiled  # layers ask their holder for the cells, which differ from pass to pass
    def forward(self, images: Tensor, active: Tensor, path: Layout = "auto") -> list[Tensor]:
        """Encode what is active of images.

        Args:
            images: (B, C, H, W).
            active: (B, 1, rows, columns) bool, true where a cell is seen.
            path: see :meth:`seeing`.

        Returns:
            The network's maps, each (B, C, h, w) and zero at inactive sites; (B, ...) what it makes of globally pooled
            ones, such as logits.

        Raises:
            InputError: shapes that do not fit each other; tiles, and a network that returns something else than maps.
        """
        with self.seeing(active, path) as cells:
            maps = self.maps(images)
            if cells.tiled and any(m.ndim != 4 for m in maps if not isinstance(m, Pooled)):
                shapes = ", ".join(str(tuple(m.shape)) for m in maps)
                raise InputError(
                    f"the network makes {shapes} of tiles (N, C, t, t), which are no maps; convert it without its "
                    'classifier, let nn.AdaptiveAvgPool2d(1) pool, or ask for path="dense"'
                )
            return [_whole(m, cells) for m in maps]


def _whole(made: Tensor, cells: ActiveCells) -> Tensor:
    """What a network made in the layout of the cells -> (B, ...)."""
    if isinstance(made, Pooled):
        return cells.image_rows(made.as_subclass(Tensor))
    return cells.spread(made) if cells.tiled else made


def to_sparse(network: nn.Module, synchronised: bool = True) -> SparseEncoder:
    """Make a dense convolutional network one that sees the active cells of an image alone.

    Convolutions, linear layers, batch, layer and group norms, pooling and gates become ones that neither read nor
    write inactive sites; names and values of parameters stay. A block may list as ``interior`` those of its linear
    layers that only its other pointwise layers read: they need not put zeros at inactive sites.

    Args:
        network: converted in place: hand in a copy to keep it.
        synchronised: batch norms take their statistics from all processes while several train.

    Raises:
        InputError: a layer that cannot be converted; names it.

    Example:
        >>> encoder = to_sparse(create_model("resnet50"))
        >>> maps = encoder(images, torch.rand(len(images), 1, 7, 7) < 0.4)   # images (B, 3, 224, 224)
    """
    return SparseEncoder(network, synchronised)


def _refusing_layer(network: nn.Module) -> str | None:
    """The first layer that works on dense maps alone, and why; or None."""
    for name, module in network.named_modules():
        reason = module.why_no_tiles() if isinstance(module, MaskedLayer) else None
        if reason is not None:
            return f"layer {name} {reason}"
    return None


def _convert(network: nn.Module, holder: CellsHolder, synchronised: bool) -> None:
    interior = {
        id(getattr(block, name)) for block in network.modules() for name in getattr(type(block), "interior", ())
    }
    found = list(network.named_modules())
    for name, module in found:  # look at all before any is changed
        reason = _why_not(module)
        if reason is not None:
            raise InputError(
                f"layer {name or 'itself'} ({type(module).__name__}) cannot be made sparse: {reason}; what can be: "
                f"{', '.join(kind.__name__ for kind in (*_CONVERTED, *_KEPT))}"
            )
    for _, module in found:
        if type(module) in _CONVERTED:
            module.__class__ = _CONVERTED[type(module)]
            module.holder = holder
            if isinstance(module, masked_layers.MaskedBatchNorm2d):
                module.synchronised = synchronised
            if isinstance(module, masked_layers.MaskedLinear):
                module.interior = id(module) in interior


def _why_not(module: nn.Module) -> str | None:
    kind = type(module)
    if isinstance(module, MaskedLayer):
        return "it is sparse already"
    if kind is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
        return f"it pools to {module.output_size}, and only the mean of all active sites is known"
    if kind is nn.LayerNorm and len(module.normalized_shape) != 1:
        return "it normalises more than the channels of a site"
    if kind is nn.Flatten and module.start_dim != 1:
        return f"it flattens from axis {module.start_dim}, and images stay apart from axis 1 alone"
    if kind in _CONVERTED or kind in _KEPT or isinstance(module, _CONTAINERS):
        return None
    if next(module.children(), None) is not None and not isinstance(module, (*_CONVERTED, *_KEPT)):
        return None  # a block of layers, each of which is looked at
    return "nothing is known of what it does at inactive sites"
