"""Correspondences by features alone: nearest neighbours between two views, and how many of them are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.nn.mutual_nearest import comes_back


@dataclass(frozen=True)
class Correspondences:
    """What is known of the points of two views of which correspondences are looked for.

    Args:
        truth: (N, D) place of each point of the first view as the second sees it, in the unit of the thresholds; NaN
            where the second does not see it.
        places: (M, D) places of the points of the second view, among which one is chosen.
        judged: (N,) bool: whether it is known if the second view sees a point.
    """

    truth: Tensor
    places: Tensor
    judged: Tensor


@dataclass(frozen=True)
class MatchCounts:
    """Counts over some pairs, which may be added.

    Args:
        visible: points of first views that second views see.
        right: (T,) of them whose nearest neighbour is closer to the truth than each threshold.
        mutual: judged points whose nearest neighbour has them for its nearest.
        mutual_right: (T,) of those that are right.
        pairs: of views.
    """

    visible: int
    right: Tensor
    mutual: int
    mutual_right: Tensor
    pairs: int = 1

    def __add__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    @classmethod
    def none(cls, thresholds: int) -> MatchCounts:
        """Of no pair."""
        zeros = torch.zeros(thresholds, dtype=torch.int64)
        return cls(0, zeros, 0, zeros, 0)

    def figures(self) -> dict[str, list[float]]:
        """At each threshold: ``recall``, ``precision`` and ``mutual_recall``, 0 to 1; see :class:`MatchScore`."""
        return {
            "recall": (self.right / max(self.visible, 1)).tolist(),
            "precision": (self.mutual_right / max(self.mutual, 1)).tolist(),
            "mutual_recall": (self.mutual_right / max(self.visible, 1)).tolist(),
        }


def comparable(first: Tensor, second: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Features of two views, of which products say how alike they are.

    Of each block of columns, such as those of a stage, the mean over both views is taken off, which all points share
    and which tells nothing; rows then have length 1, and every block counts alike.

    Args:
        first, second: (N, C) and (M, C).
        widths: columns of each block.
    """
    blocks = []
    for both in torch.cat([first, second]).float().split(list(widths), 1):
        blocks.append(F.normalize(both - both.mean(0), dim=1))
    whole = torch.cat(blocks, 1) / len(widths) ** 0.5
    return whole[: len(first)], whole[len(first) :]


def match_counts(forward: Tensor, backward: Tensor, known: Correspondences, thresholds: Sequence[float]) -> MatchCounts:
    """How many correspondences are right.

    Args:
        forward, backward: as :func:`~geo3d.nn.mutual_nearest.most_alike` gives them.
        known: the truth.
        thresholds: largest distances that are right, ascending.
    """
    error = (known.truth - known.places[forward]).norm(dim=1)  # NaN where it is not seen, and no threshold is met
    right = error.unsqueeze(1) <= error.new_tensor(thresholds)
    mutual = comes_back(forward, backward) & known.judged
    visible = known.truth.isfinite().all(1)
    return MatchCounts(int(visible.sum()), right.sum(0), int(mutual.sum()), (right & mutual.unsqueeze(1)).sum(0))


__all__ = ["Correspondences", "MatchCounts", "comparable", "match_counts"]
