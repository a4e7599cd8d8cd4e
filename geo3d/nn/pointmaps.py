"""What heads of DUSt3R and MASt3R put out, as points, confidences and descriptors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from geo3d.errors import InputError

#: How the length of a head's output becomes a point's distance.
DepthMode = Literal["exp", "linear", "square"]
#: Shortest length by which an output is divided.
_SHORTEST = 1e-8


@dataclass(frozen=True)
class ConfidenceMode:
    """How a head's output c becomes a confidence.

    Args:
        kind: ``exp``: low + e^c, no more than high; ``sigmoid``: between low and high.
        low, high: the bounds; None above: there is none.

    Raises:
        InputError: bounds that make no sense.
    """

    kind: Literal["exp", "sigmoid"] = "exp"
    low: float = 1.0
    high: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.low) or (self.high is not None and not self.low < self.high < math.inf):
            raise InputError(f"confidence mode: bounds must be finite and ascending, got {self.low} and {self.high}")
        if self.kind == "sigmoid" and self.high is None:
            raise InputError("confidence mode: sigmoid needs an upper bound")

    def __call__(self, raw: Tensor) -> Tensor:
        """Raw output -> confidence, of the same shape."""
        if self.kind == "sigmoid":
            return self.low + (self.high - self.low) * raw.sigmoid()
        grown = raw.exp()
        return self.low + (grown if self.high is None else grown.clamp(max=self.high - self.low))


def points_from_raw(raw: Tensor, mode: DepthMode = "exp") -> Tensor:
    """A head's output as points: its direction kept, its length d turned into a distance.

    Args:
        raw: (..., 3).
        mode: ``exp``: e^d - 1; ``square``: d^2; ``linear``: d.

    Returns:
        (..., 3) in the unit in which the network was trained.
    """
    if mode == "linear":
        return raw
    length = raw.norm(dim=-1, keepdim=True)
    if mode == "square":
        return raw * length
    return raw / length.clamp(min=_SHORTEST) * torch.expm1(length)


def unit_descriptors(raw: Tensor) -> Tensor:
    """(..., C) divided by its length."""
    return raw / raw.norm(dim=-1, keepdim=True)


__all__ = ["ConfidenceMode", "DepthMode", "points_from_raw", "unit_descriptors"]
