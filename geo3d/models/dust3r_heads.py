"""Heads of DUSt3R and MASt3R: tokens of one view -> points, confidences and descriptors of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from geo3d.nn import Mlp
from geo3d.nn.dpt import DPTHead, PixelHead, hook_layers, tokens_to_pixels
from geo3d.nn.pointmaps import ConfidenceMode, DepthMode, points_from_raw, unit_descriptors

if TYPE_CHECKING:
    from geo3d.models.dust3r import DUSt3RConfig

#: Channels of a head's map: x, y, z and confidence.
_CHANNELS = 4
#: Hidden channels of the descriptors' MLP over its channels.
_EXPANSION = 4


@dataclass(frozen=True)
class Pointmap:
    """What is predicted for the pixels of one view.

    Args:
        points: (B, H, W, 3) in the camera frame of the first view, OpenCV axes: DUSt3R up to one unknown scale for both
            views of a pair, MASt3R about in metres.
        confidence: (B, H, W), more is surer.
        descriptors: (B, H, W, D) of unit length, by which pixels are matched; None: the network has none.
        descriptor_confidence: (B, H, W); None likewise.
    """

    points: Tensor
    confidence: Tensor
    descriptors: Tensor | None = None
    descriptor_confidence: Tensor | None = None

    def fields(self) -> tuple[Tensor | None, ...]:
        """All four, in that order."""
        return self.points, self.confidence, self.descriptors, self.descriptor_confidence


class PairPointmaps(NamedTuple):
    """Both views of a pair, in the camera frame of the first."""

    first: Pointmap
    second: Pointmap


class LinearPointHead(PixelHead):
    """The linear head: the last tokens alone, each its patch of pixels.

    Args:
        config: sizes.
    """

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__(config.decoder_dim, _CHANNELS, config.patch_size)
        self.modes = _Modes.of(config)
        #: Entries of the list of tokens that are read.
        self.levels = (config.decoder_depth,)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        """Tokens (B, N, C) of :attr:`levels` -> what they say of their pixels."""
        return self.modes(super().forward(tokens[0], grid))


class DensePointHead(nn.Module):
    """The DPT head, and MASt3R's descriptors by an MLP on the encoder's and the decoder's last tokens together.

    Args:
        config: sizes.
    """

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__()
        self.levels = hook_layers(config.decoder_depth)
        inputs = [config.decoder_dim if entry else config.encoder_dim for entry in self.levels]
        self.dpt = DPTHead(
            inputs, _CHANNELS, config.patch_size, config.head_levels, config.head_width, config.head_last
        )
        self.patch_size = config.patch_size
        self.modes = _Modes.of(config)
        if config.descriptors is not None:
            dim = config.encoder_dim + config.decoder_dim
            channels = config.descriptors + config.two_confidences
            self.head_local_features = Mlp(dim, _EXPANSION * dim, channels * config.patch_size**2)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        """Tokens (B, N, C) of :attr:`levels` -> what they say of their pixels."""
        dense = self.dpt(tokens, grid)
        if self.modes.descriptors is None:
            return self.modes(dense)
        local = self.head_local_features(torch.cat([tokens[0], tokens[-1]], -1))
        return self.modes(dense, tokens_to_pixels(local, grid, self.patch_size))


@dataclass(frozen=True)
class _Modes:
    """How raw maps become points, confidences and descriptors."""

    depth: DepthMode
    confidence: ConfidenceMode
    descriptors: int | None
    descriptor_confidence: ConfidenceMode | None

    @classmethod
    def of(cls, config: DUSt3RConfig) -> _Modes:
        own = (config.descriptor_confidence or config.confidence) if config.two_confidences else None
        return cls(config.depth_mode, config.confidence, config.descriptors, own)

    def __call__(self, dense: Tensor, local: Tensor | None = None) -> Pointmap:
        """(B, 4, H, W) and (B, D or D + 1, H, W), both raw."""
        dense = dense.movedim(1, -1)
        points, confidence = points_from_raw(dense[..., :3], self.depth), self.confidence(dense[..., 3])
        if local is None:
            return Pointmap(points, confidence)
        local = local.movedim(1, -1)
        descriptors = unit_descriptors(local[..., : self.descriptors])
        own = confidence if self.descriptor_confidence is None else self.descriptor_confidence(local[..., -1])
        return Pointmap(points, confidence, descriptors, own)


def build_head(config: DUSt3RConfig) -> LinearPointHead | DensePointHead:
    """The head of a config."""
    return LinearPointHead(config) if config.head == "linear" else DensePointHead(config)


def upright_or_transposed(
    head: nn.Module, tokens: Sequence[Tensor], grid: tuple[int, int], portrait: Tensor | None
) -> Pointmap:
    """Run a head on a batch in which some rows are portraits that lie transposed in landscape arrays.

    Heads run in their own precision, float32, also under autocast.

    Args:
        head: of :func:`build_head`.
        tokens: (B, N, C) of its levels, in the raster order of the upright images.
        grid: rows and columns of the arrays.
        portrait: (B,) bool on the CPU, or None: all are upright.

    Returns:
        As the arrays are.
    """
    dtype = next(head.parameters()).dtype
    with torch.autocast(tokens[0].device.type, enabled=False):
        tokens = [level.to(dtype) for level in tokens]
        if portrait is None or not portrait.any():
            return head(tokens, grid)
        turned = _transposed(head([level[portrait] for level in tokens], grid[::-1]))
        if portrait.all():
            return turned
        upright = head([level[~portrait] for level in tokens], grid)
    order = torch.cat([(~portrait).nonzero(), portrait.nonzero()]).squeeze(1).argsort().to(tokens[0].device)
    pairs = zip(upright.fields(), turned.fields(), strict=True)
    return Pointmap(*(None if a is None else torch.cat([a, b])[order] for a, b in pairs))


def _transposed(maps: Pointmap) -> Pointmap:
    return Pointmap(*(None if field is None else field.transpose(1, 2) for field in maps.fields()))


__all__ = [
    "DensePointHead",
    "LinearPointHead",
    "PairPointmaps",
    "Pointmap",
    "build_head",
    "upright_or_transposed",
]
