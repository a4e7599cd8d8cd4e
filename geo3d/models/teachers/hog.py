"""HOG: histograms of oriented gradients, a teacher without weights (Dalal & Triggs, CVPR 2005)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.models.teachers.teacher import Teacher, TeacherOptions, TeacherOutput, as_shares

#: A block's length below which it is not raised to 1: a gradient of 1/1000 of the range in each pixel of a cell.
_FLOOR = 1e-3
#: No entry of a block may be longer than this share (Lowe's clipping).
_CLIP = 0.2


@dataclass(frozen=True)
class HogOptions(TeacherOptions):
    """Options of :class:`HogTeacher`.

    Args:
        cell: pixels along a side of a cell; the image is divided evenly where it is no multiple.
        bins: directions that are told apart.
        signed: whether opposite directions are: light above dark is not dark above light.
    """

    cell: int = 16
    bins: int = 9
    signed: bool = False

    def __post_init__(self) -> None:
        if self.cell < 2 or self.bins < 2:
            raise InputError(f"teacher hog: cell and bins must be at least 2, got {self.cell} and {self.bins}")


class HogTeacher(Teacher):
    """Directions of edges in each cell, as four blocks of 2 x 2 cells around it normalise them; saliency is the edges'
    strength. Works offline and in no time: the default.
    """

    name = "hog"
    Options = HogOptions
    options: HogOptions

    def __init__(self, options: HogOptions, checkpoint: Path | None = None) -> None:
        super().__init__(options, checkpoint)
        if checkpoint is not None:
            raise InputError(
                f"teacher hog: has no weights, so that {checkpoint} cannot be loaded; leave checkpoint out"
            )
        self.channels = 4 * options.bins
        self.stride = options.cell

    def look(self, images: Tensor) -> TeacherOutput:
        grey = images.float().mean(1, keepdim=True)
        down, right = _gradients(grey)
        strength = (down * down + right * right).sqrt()
        height, width = (max(1, round(side / self.options.cell)) for side in images.shape[2:])
        histogram = F.adaptive_avg_pool2d(self._votes(down, right, strength), (height, width))
        saliency = F.adaptive_avg_pool2d(strength, (height, width)).squeeze(1)
        return TeacherOutput(_by_blocks(histogram), as_shares(saliency))

    def _votes(self, down: Tensor, right: Tensor, strength: Tensor) -> Tensor:
        """(B, 1, H, W) gradients -> (B, bins, H, W): a pixel's strength, shared among the two nearest directions."""
        bins = self.options.bins
        turn = 2 * math.pi if self.options.signed else math.pi
        place = torch.atan2(down, right).remainder(turn) * (bins / turn)
        lower = place.floor()
        share = place - lower
        lower = lower.long().remainder(bins)
        votes = strength.new_zeros(strength.shape[0], bins, *strength.shape[2:])
        votes.scatter_(1, lower, strength * (1 - share))
        return votes.scatter_(1, (lower + 1).remainder(bins), strength * share)


def _gradients(grey: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, H, W) -> half the differences of the two neighbours, downwards and to the right; edges are repeated."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    return down / 2, right / 2


def _by_blocks(histogram: Tensor) -> Tensor:
    """(B, bins, h, w) -> (B, 4 * bins, h, w): as the four blocks of 2 x 2 cells around it normalise each."""
    padded = F.pad(histogram, (1, 1, 1, 1), mode="replicate")
    energy = F.avg_pool2d(padded.square().sum(1, keepdim=True), 2, 1, divisor_override=1)  # (B, 1, h + 1, w + 1)
    length = (energy + _FLOOR**2).sqrt()
    height, width = histogram.shape[2:]
    corners = [length[:, :, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)]
    return torch.cat([(histogram / corner).clamp_max(_CLIP) for corner in corners], 1) / _CLIP
