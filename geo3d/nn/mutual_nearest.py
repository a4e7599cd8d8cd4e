"""Rows of two sets of features that are each other's nearest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def most_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest rows by scalar product, both ways.

    Args:
        first, second: (N, C) and (M, C).

    Returns:
        (N,) int64 row of ``second`` that is most alike to each row of ``first``; and (M,) the other way round.
    """
    alike = first @ second.T
    return alike.argmax(1), alike.argmax(0)


def comes_back(forward: Tensor, backward: Tensor) -> Tensor:
    """(N,) bool: which rows are the nearest of their own nearest.

    Args:
        forward: (N,) int64 rows of a second set, the nearest to each row of a first one.
        backward: (M,) int64 rows of the first set, the nearest to each row of the second.
    """
    return backward[forward] == torch.arange(len(forward), device=forward.device)


def mutual_nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of two sets of features that are each other's nearest by cosine.

    Args:
        first, second: (N, C) and (M, C), of any length.

    Returns:
        (K, 2) int64 rows of the first and the second set, sorted by the first; and (K,) their cosines.
    """
    units = F.normalize(first, dim=1), F.normalize(second, dim=1)
    forward, backward = most_alike(*units)
    rows = comes_back(forward, backward).nonzero().squeeze(1)
    others = forward[rows]
    return torch.stack([rows, others], 1), (units[0][rows] * units[1][others]).sum(1)


__all__ = ["comes_back", "most_alike", "mutual_nearest"]
