"""Masked modelling of points guided by an image network (I2P-MAE, section 3).

Depth maps of a cloud are shown to a frozen teacher. Its saliency says which groups of points tend to stay visible, and
its features are what the network predicts of these; of masked groups it predicts the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.models.i2p_mae import VIEWS, PointBatch
from geo3d.nn.depth_views import DepthGrid
from geo3d.nn.point_groups import PointGroups


@dataclass
class Guidance:
    """What a teacher tells of clouds.

    Args:
        grid: where points lie in the views.
        features: (3 * B, C, h, w) the teacher's, all clouds of view 1 first.
        saliency: (3 * B, h, w).
    """

    grid: DepthGrid
    features: Tensor
    saliency: Tensor

    def saliency_of(self, groups: PointGroups) -> Tensor:
        """(B, G) saliency at the centres of groups, the mean over the views (section 3.2)."""
        clouds, count = groups.xyz.shape[:2]
        found = self.grid.look_up(groups.rows, _even_offsets(groups), self.saliency.unsqueeze(1))
        return found.mean(0).view(clouds, count)

    def features_of(self, groups: PointGroups, below: PointGroups, seen: Tensor) -> Tensor:
        """Features of the members of groups.

        Args:
            groups: of a level.
            below: those of the level below, whose centres are members.
            seen: (V,) rows of the groups that are asked for.

        Returns:
            (V, k, views * C), the views' side by side.
        """
        members = groups.index[seen]
        used = torch.zeros(len(below.rows), dtype=torch.bool, device=members.device)
        used[members.flatten()] = True
        rows = used.nonzero().squeeze(1)
        lengths = torch.bincount(rows // below.xyz.shape[1], minlength=below.xyz.shape[0])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        found = self.grid.look_up(below.rows[rows], offsets, self.features)  # (views, used, C)
        place = used.cumsum(0) - 1
        return found.transpose(0, 1).flatten(1)[place[members]]


def _even_offsets(groups: PointGroups) -> Tensor:
    count = groups.xyz.shape[1]
    return torch.arange(0, len(groups.rows) + 1, count, device=groups.xyz.device)


def visible_groups(saliency: Tensor | None, draws: Tensor, count: int, temperature: float = 1.0) -> Tensor:
    """Groups that stay visible, drawn without replacement with the softmax of their saliency as probability.

    Args:
        saliency: (B, G), or None where all are alike.
        draws: (B, G) exponentially distributed of mean 1, in float32.
        count: visible groups of a cloud.
        temperature: that saliency is divided by; the published 1 leaves attention of about 1 / 197 almost without
            effect.

    Returns:
        (B, G) bool.
    """
    probability = torch.ones_like(draws) if saliency is None else (saliency.float() / temperature).softmax(1)
    chosen = (probability / draws).topk(count, dim=1).indices
    return torch.zeros_like(draws, dtype=torch.bool).scatter_(1, chosen, True)


def points_loss(predicted: Tensor, batch: PointBatch, masked: Tensor) -> Tensor:
    """Chamfer distance of masked groups: mean squared distances to the nearest point, both ways (section 3.3).

    Args:
        predicted: (M, k, 3) about the centres.
        batch: of clouds.
        masked: (M,) rows of the groups of the last level but one.
    """
    *_, fine, _ = batch.groups
    below = batch.groups[-3].rows if len(batch.groups) > 2 else batch.inputs.xyz
    truth = below[fine.index[masked]] - fine.rows[masked].unsqueeze(1)
    squared = (predicted.unsqueeze(2) - truth.unsqueeze(1)).square().sum(-1)
    return squared.amin(2).mean() + squared.amin(1).mean()


def features_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of predicted features (V, k, views * C) (section 3.3)."""
    return F.mse_loss(predicted, targets.to(predicted.dtype))


def hidden_and_seen(visible: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of the masked and of the visible groups of the last level but one."""
    seen = visible[-2].flatten()
    return (~seen).nonzero().squeeze(1), seen.nonzero().squeeze(1)


__all__ = ["VIEWS", "Guidance", "features_loss", "hidden_and_seen", "points_loss", "visible_groups"]
