"""A linear read-out of numbers: ridge regression on standardised features, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.errors import InputError


@dataclass
class RidgeReadout:
    """Numbers from features.

    Args:
        mean, scale: (C,) float32, by which features are standardised.
        weight: (C,) float32, of standardised features.
        bias: what is predicted of mean features.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: float

    def predict(self, features: Tensor) -> Tensor:
        """(N, C) features -> (N,) float32."""
        return ((features.float() - self.mean) / self.scale) @ self.weight + self.bias


def fit_ridge(features: Tensor, targets: Tensor, penalties: Sequence[float]) -> dict[float, RidgeReadout]:
    """The read-outs of least mean squared error plus a penalty times the squared weights; one for each penalty.

    Args:
        features: (N, C); of no column the mean of the targets is predicted.
        targets: (N,).
        penalties: of standardised features.

    Raises:
        InputError: nothing to learn from, or features that are not finite.
    """
    if len(targets) == 0:
        raise InputError("linear read-out: there is no row to learn from")
    if not features.isfinite().all():
        raise InputError("linear read-out: features hold NaN or infinite values")
    features, targets = features.double(), targets.double()
    mean = features.mean(0)
    deviation = (features - mean).square().mean(0).sqrt()
    scale = torch.where(deviation > 0, deviation, 1)
    rows = ((features - mean) / scale).float()
    bias = targets.mean()
    # Products in float32, which are as exact as the features are; what is solved in float64.
    moments = (rows.T @ rows).double() / len(rows)
    wanted = (rows.T @ (targets - bias).float()).double() / len(rows)
    variance, axes = torch.linalg.eigh(moments)
    along = axes.T @ wanted
    return {
        penalty: RidgeReadout(
            mean.float(), scale.float(), (axes @ (along / (variance.clamp_min(0) + penalty))).float(), float(bias)
        )
        for penalty in penalties
    }


__all__ = ["RidgeReadout", "fit_ridge"]
