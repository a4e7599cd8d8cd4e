"""A linear read-out: multinomial logistic regression on standardised features, fitted to the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError

#: Steps of L-BFGS, the same for whatever is compared.
ITERATIONS = 200
_HISTORY = 10  # steps that L-BFGS remembers


@dataclass
class LinearReadout:
    """Classes from features.

    Args:
        mean, scale: (C,) float32, by which features are standardised.
        weight: (C, K) float32, of standardised features.
        bias: (K,) float32.
        classes: (K,) int64 label of each column: the classes that there were to learn from, ascending.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def standardise(self, features: Tensor) -> Tensor:
        """(N, C) features -> (N, C) float32 of mean 0 and deviation 1 over what was learnt from."""
        return (features.float() - self.mean) / self.scale

    def predict(self, features: Tensor) -> Tensor:
        """(N, C) features -> (N,) int64 labels."""
        return self.classes[torch.addmm(self.bias, self.standardise(features), self.weight).argmax(1)]


def untrained_readout(features: Tensor, labels: Tensor) -> LinearReadout:
    """Statistics of (N, C) features, classes of (N,) int64 labels, and weights that are 0.

    A column that does not vary is only shifted.

    Raises:
        InputError: nothing to learn from, or features that are not finite.
    """
    if len(labels) == 0:
        raise InputError("linear read-out: there is no labelled row to learn from")
    if not features.isfinite().all():
        raise InputError("linear read-out: features hold NaN or infinite values")
    deviation, mean = torch.std_mean(features.double(), 0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1)
    classes = labels.unique()
    weight = features.new_zeros(features.shape[1], len(classes), dtype=torch.float32)
    return LinearReadout(mean.float(), scale.float(), weight, weight.new_zeros(len(classes)), classes)


def fit_readout(features: Tensor, labels: Tensor, penalty: float, start: LinearReadout | None = None) -> LinearReadout:
    """The read-out of least mean cross-entropy plus ``penalty / 2`` times the squared weights, by L-BFGS.

    All rows are looked at in every step, so nothing is drawn. The bias is free.

    Args:
        features: (N, C).
        labels: (N,) int64, 0 or more.
        penalty: weight of the squares, of standardised features.
        start: of the same features and labels, whose weights are begun with; they are 0 where it is not given.

    Raises:
        InputError: nothing to learn from, or features that are not finite.
    """
    start = start or untrained_readout(features, labels)
    rows, targets = start.standardise(features), torch.searchsorted(start.classes, labels)
    weight, bias = (t.clone().requires_grad_() for t in (start.weight, start.bias))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, history_size=_HISTORY, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(torch.addmm(bias, rows, weight), targets) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return LinearReadout(start.mean, start.scale, weight.detach(), bias.detach(), start.classes)


def fit_path(features: Tensor, labels: Tensor, penalties: Sequence[float]) -> dict[float, LinearReadout]:
    """A read-out for each penalty; each begins where the next larger penalty's ended.

    Args:
        features, labels: as :func:`fit_readout` takes them.
        penalties: in any order.
    """
    readout, path = untrained_readout(features, labels), {}
    for penalty in sorted(penalties, reverse=True):
        readout = path[penalty] = fit_readout(features, labels, penalty, readout)
    return path


__all__ = ["ITERATIONS", "LinearReadout", "fit_path", "fit_readout", "untrained_readout"]
