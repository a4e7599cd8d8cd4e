"""Retrieval: how high things of the same class stand among all others, by cosine similarity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Retrieved(NamedTuple):
    """How well things of the same class are found.

    Args:
        precision: mean over queries of the average precision over all others.
        recall: share of the queries whose nearest other thing is of their class.
        chance: the mean share of a query's class among the others.
        queries: things of which there is another of their class.
    """

    precision: float
    recall: float
    chance: float
    queries: int


def retrieve(features: np.ndarray, labels: np.ndarray) -> Retrieved:
    """Every thing asks for the others; among these those of its class are right.

    The mean over all is taken off, which says nothing of any; cosines of what is left are compared. Of equally alike
    things the one with the smaller number comes first.

    Args:
        features: (N, C).
        labels: (N,) int64.
    """
    centred = features.astype(np.float64) - features.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)  # last of all, and left out
    order = np.argsort(-alike, axis=1, kind="stable")[:, :-1]
    right = labels[order] == labels[:, None]
    asked = right.any(1)
    if not asked.any():
        return Retrieved(0.0, 0.0, 0.0, 0)
    right = right[asked]
    precision = right.cumsum(1) / np.arange(1, right.shape[1] + 1)
    average = (precision * right).sum(1) / right.sum(1)
    return Retrieved(float(average.mean()), float(right[:, 0].mean()), float(right.mean()), int(asked.sum()))


__all__ = ["Retrieved", "retrieve"]
