"""A linear read-out: multinomial logistic regression on standardised features, fitted to the optimum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError

#: Steps of L-BFGS at most, the same for whatever is compared.
_ITERATIONS = 200
_HISTORY = 10  # steps that L-BFGS remembers
#: Largest slope that counts as flat. Going on to the optimum takes three times as long, lowers the cross-entropy by a
#: hundredth at most (at the smallest penalties) and moves mean IoU by less than another draw of the rows does.
_TOLERANCE = 1e-4
_CURVATURE = 3.0  # of the loss along a column of deviation 1; found by trying, larger than that of one row


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


def fit_readout(features: Tensor, labels: Tensor, penalty: float) -> LinearReadout:
    """The read-out of least mean cross-entropy plus ``penalty / 2`` times the squared weights, by L-BFGS.

    All rows are looked at in every step, so nothing is drawn. The bias is free.

    Args:
        features: (N, C).
        labels: (N,) int64, 0 or more.
        penalty: weight of the squares, of standardised features.

    Raises:
        InputError: nothing to learn from, or features that are not finite.
    """
    ((_, readout),) = fit_path(features, labels, [penalty])
    return readout


def fit_path(features: Tensor, labels: Tensor, penalties: Sequence[float]) -> Iterator[tuple[float, LinearReadout]]:
    """Each penalty, the largest first, and its read-out; each begins where that of the next larger penalty ended.

    Args:
        features, labels: as :func:`fit_readout` takes them.
        penalties: in any order.
    """
    readout = untrained_readout(features, labels)
    problem = _Problem(readout, features, labels)
    for penalty in sorted(penalties, reverse=True):
        readout = problem.fit(penalty, readout)
        yield penalty, readout


class _Problem:
    """Rows along their principal axes, where steps of L-BFGS are taken.

    Columns of a network's features are much alike, and along the axes that they share the objective is curved most.
    Weights are therefore counted in units that even the curvature out, which leaves the optimum as it is and takes half
    the steps.
    """

    def __init__(self, untrained: LinearReadout, features: Tensor, labels: Tensor) -> None:
        rows = untrained.standardise(features)
        self.variance, self.axes = (
            part.float() for part in torch.linalg.eigh((rows.T @ rows).double() / max(len(rows), 1))
        )
        self.rows = rows @ self.axes
        self.targets = torch.searchsorted(untrained.classes, labels)

    def fit(self, penalty: float, start: LinearReadout) -> LinearReadout:
        """The optimum of a penalty, begun with weights of another."""
        unit = (_CURVATURE * self.variance.clamp_min(0) + penalty).rsqrt().unsqueeze(1)
        steps = (self.axes.T @ start.weight / unit).requires_grad_()
        bias = start.bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [steps, bias],
            max_iter=_ITERATIONS,
            history_size=_HISTORY,
            tolerance_grad=_TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            weight = unit * steps
            loss = F.cross_entropy(torch.addmm(bias, self.rows, weight), self.targets)
            loss = loss + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(objective)
        weight = self.axes @ (unit * steps.detach())
        return LinearReadout(start.mean, start.scale, weight, bias.detach(), start.classes)


__all__ = ["LinearReadout", "fit_path", "fit_readout", "untrained_readout"]
