"""What DUSt3R and MASt3R are trained by: confidence-weighted distances of points, and descriptors told apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Smallest mean distance by which points are divided.
_SMALLEST_SCALE = 1e-8


class PointmapLoss(NamedTuple):
    """The loss of a batch of pairs.

    Args:
        value: scalar that is minimised: of each view the mean, over valid pixels, of confidence * error - alpha * log
            confidence; the sum of both.
        errors: (2,) mean distance |p - t| of the first and second view, in units of the scene (or metres, see
            :func:`pointmap_loss`), without gradients.
    """

    value: Tensor
    errors: Tensor


def mean_distance(points: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> Tensor:
    """Mean distance from the origin over the valid points of both views.

    Args:
        points: two (B, H, W, 3).
        valid: two (B, H, W) bool.

    Returns:
        (B,), 1e-8 where it would be less.
    """
    sums = sum(_distance(p, v).flatten(1).sum(1) for p, v in zip(points, valid, strict=True))
    counts = sum(v.flatten(1).sum(1) for v in valid)
    return (sums / counts.clamp(min=1)).clamp(min=_SMALLEST_SCALE)


def _distance(points: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W): lengths of points, 0 where not valid, whatever stands there."""
    return torch.where(valid.unsqueeze(-1), points, 0).norm(dim=-1)


def pointmap_loss(
    points: tuple[Tensor, Tensor],
    confidences: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    metric: Tensor | None = None,
    alpha: float = 0.2,
) -> PointmapLoss:
    """The loss of DUSt3R (section 3.3), and of MASt3R (section 3.1) on scenes in metres.

    Predictions and truth are each divided by their mean distance from the first camera, so that one scale of the scene
    is not asked for; where ``metric``, both are by that of the truth.

    Args:
        points: predicted ones of both views, (B, H, W, 3) each, in the camera frame of the first.
        confidences: (B, H, W) each, positive.
        targets: true points likewise, in the same frame; anything where not valid.
        valid: (B, H, W) bool each.
        metric: (B,) bool, pairs whose scale counts; none when not given.
        alpha: what being unsure costs.

    Returns:
        A :class:`PointmapLoss`; of a view without a valid pixel it is 0.
    """
    true_scale = mean_distance(targets, valid)
    scale = mean_distance(points, valid)
    if metric is not None:
        scale = torch.where(metric, true_scale, scale)
    losses, errors = [], []
    for p, t, c, v in zip(points, targets, confidences, valid, strict=True):
        p, t = p / _column(scale), torch.where(v.unsqueeze(-1), t, 0) / _column(true_scale)
        error, count = _distance(p - t, v), v.sum().clamp(min=1)
        cost = torch.where(v, c * error - alpha * torch.where(v, c, 1).log(), 0)
        losses.append(cost.sum() / count)
        errors.append(error.detach().sum() / count)
    return PointmapLoss(losses[0] + losses[1], torch.stack(errors))


def _column(scale: Tensor) -> Tensor:
    return scale.view(-1, 1, 1, 1)


def descriptor_loss(
    first: Tensor,
    second: Tensor,
    confidence: Tensor | None = None,
    temperature: float = 0.05,
    alpha: float = 10.0,
) -> Tensor:
    """InfoNCE of matching pixels of one pair (MASt3R, section 3.2): each is to find its partner among all, both ways.

    Args:
        first, second: (M, D) unit descriptors; row k of both is one point of the scene.
        confidence: (M,) of the matches, the mean of both descriptors'; plain InfoNCE when not given.
        temperature: of the softmax.
        alpha: what being unsure costs.

    Returns:
        Scalar: the mean over the matches; 0 of none.
    """
    if not len(first):
        return first.sum() + second.sum()
    likeness, partner = first @ second.T / temperature, torch.arange(len(first), device=first.device)
    each = F.cross_entropy(likeness, partner, reduction="none") + F.cross_entropy(likeness.T, partner, reduction="none")
    return each.mean() if confidence is None else (confidence * each - alpha * confidence.log()).mean()


__all__ = ["PointmapLoss", "descriptor_loss", "mean_distance", "pointmap_loss"]
