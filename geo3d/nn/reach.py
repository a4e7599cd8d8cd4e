"""How far a convolution or pooling layer looks beyond a site."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from geo3d.errors import InputError


@dataclass(frozen=True)
class Reach:
    """How far a convolution or pooling layer looks, the same along both axes.

    Args:
        kernel, stride, padding, dilation: of the layer.
    """

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def before(self) -> int:
        """Sites that the first window of a tile takes above and left of it."""
        return self.padding

    @property
    def after(self) -> int:
        """Sites that the last window takes below and right of the tile; negative where it ends before."""
        return self.dilation * (self.kernel - 1) - self.padding - self.stride + 1

    @property
    def keeps_ratio(self) -> bool:
        """Whether a map of n sites becomes one of n / stride, so that tiles stay aligned."""
        return -self.stride <= 2 * self.padding - self.dilation * (self.kernel - 1) - 1 < 0


def check_steps(side: int, reach: Reach) -> None:
    """Raise :class:`InputError` where a tile of ``side`` sites is less than a whole number of steps."""
    if side % reach.stride:
        raise InputError(
            f"cells of {side} x {side} sites do not divide by a stride of {reach.stride}; the mask's cells must be as "
            "large as the network's total stride"
        )


def reach_of(layer: nn.Module) -> Reach | str:
    """The reach of a convolution or pooling layer, or what about it has none."""
    stride = layer.kernel_size if layer.stride is None else layer.stride
    padding, dilation = layer.padding, getattr(layer, "dilation", 1)
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else [d * (k - 1) // 2 for d, k in zip(dilation, layer.kernel_size)]
    sides = [(v, v) if isinstance(v, int) else tuple(v) for v in (layer.kernel_size, stride, padding, dilation)]
    if any(a != b for a, b in sides):
        return "is not square"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"has padding mode {layer.padding_mode}"
    if getattr(layer, "ceil_mode", False):
        return "has ceil_mode"
    return Reach(*(a for a, _ in sides))
