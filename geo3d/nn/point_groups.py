"""Groups of points: centres that lie far apart, each with its nearest neighbours, level over level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.ops import farthest_point_sample, knn


@dataclass
class PointGroups:
    """The groups of one level, as many in every cloud.

    Args:
        xyz: (B, G, 3) centres, which are points of the level below.
        picked: (B * G,) int64 rows of these among the points of the level below.
        index: (B * G, k) int64 rows of the members, nearest first, among the points of the level below.
    """

    xyz: Tensor
    picked: Tensor
    index: Tensor

    @property
    def rows(self) -> Tensor:
        """(B * G, 3) centres, those of one cloud one after the other."""
        return self.xyz.flatten(0, 1)

    @property
    def offsets(self) -> Tensor:
        """(B + 1,) int64: cloud b owns rows ``offsets[b]`` to ``offsets[b + 1]``."""
        clouds, count = self.xyz.shape[:2]
        return torch.arange(clouds + 1, device=self.xyz.device) * count


def group_points(
    points: Tensor, offsets: Tensor, counts: Sequence[int], neighbors: Sequence[int], published: bool = True
) -> list[PointGroups]:
    """Levels of groups, finest first: those of the points, then of the centres of the level below.

    Centres are found by farthest point sampling from the first point of each cloud. Clouds of fewer points than a level
    has groups, or a group members, repeat some.

    Args:
        points: (P, 3) packed.
        offsets: (B + 1,) int64; no cloud is empty.
        counts: groups of each level.
        neighbors: members of each level's groups.
        published: the rules of the published kernels, by which points within about 3 cm of the origin are never
            centres (squared norm up to 1e-3), ties are broken as their threads happen to, and distances compared in
            float32; else the lowest index wins, distances are exact, and no point is left out.

    Returns:
        One for each level.
    """
    rule = {"ties": "published", "skip_near_origin": True} if published else {}
    batch, exact = offsets.shape[0] - 1, points
    points = points.float()  # who is whose neighbour does not depend on the network's precision
    levels = []
    for count, k in zip(counts, neighbors, strict=True):
        picked = farthest_point_sample(points, offsets, count, **rule)
        centres, exact = points[picked], exact[picked]
        centre_offsets = torch.arange(0, (batch + 1) * count, count, device=offsets.device)
        index, _ = knn(centres, points, centre_offsets, offsets, k, float32_order=published)
        index = torch.where(index < 0, index[:, :1], index)  # of clouds with fewer points than members
        levels.append(PointGroups(exact.view(batch, count, 3), picked, index))
        points, offsets = centres, centre_offsets
    return levels


def propagate_visible(groups: Sequence[PointGroups], top: Tensor, published: bool = True) -> list[Tensor]:
    """Which groups of every level are visible, given those of the top level.

    A group is visible if it is a member of a visible one of the level above.

    Args:
        groups: of :func:`group_points`.
        top: (B, G) bool, true where a group of the last level is visible.
        published: the first group of the first cloud of a batch is visible below the top whenever any is masked, since
            the published code multiplies indices of what is masked by 0.

    Returns:
        (B, G) bool for each level, finest first.
    """
    visible = [top]
    for level in range(len(groups) - 1, 0, -1):
        below = torch.zeros_like(groups[level - 1].xyz[..., 0], dtype=torch.bool).flatten()
        below[groups[level].index[visible[0].flatten()].flatten()] = True
        if published:
            below[0] |= ~visible[0].all()
        visible.insert(0, below.view(groups[level - 1].xyz.shape[:2]))
    return visible


__all__ = ["PointGroups", "group_points", "propagate_visible"]
