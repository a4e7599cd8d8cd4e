"""Which pairs of views are predicted, and the tree that joins them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.reconstruction.pointmaps.prediction import PairPrediction


def complete_pairs(count: int) -> list[tuple[int, int]]:
    """Every pair (i, j), i < j, of so many views."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def window_pairs(count: int, reach: int, closed: bool = False) -> list[tuple[int, int]]:
    """Each view of a sequence with the next ones.

    Args:
        count: of views.
        reach: how many next ones.
        closed: the first follows upon the last, as in a walk around a thing.

    Raises:
        InputError: a reach below 1.
    """
    if reach < 1:
        raise InputError(f"a window reaches 1 view or more, got {reach}")
    pairs = {(i, i + step) for i in range(count) for step in range(1, reach + 1) if i + step < count}
    if closed:
        for i in range(count):
            for step in range(1, reach + 1):
                one, other = i, (i + step) % count
                if one != other:
                    pairs.add((min(one, other), max(one, other)))
    return sorted(pairs)


def similar_pairs(descriptors: Tensor, neighbours: int) -> list[tuple[int, int]]:
    """Each view with those that look most alike, and what joins all into one graph.

    Args:
        descriptors: (N, C) of each view, such as the mean of an encoder's features.
        neighbours: of each view.

    Raises:
        InputError: no neighbour, or descriptors that are not finite.
    """
    if neighbours < 1:
        raise InputError(f"a view is paired with 1 other or more, got {neighbours}")
    if not descriptors.isfinite().all():
        raise InputError("descriptors of views are not finite")
    count = len(descriptors)
    rows = descriptors.double()
    rows = F.normalize(rows - rows.mean(0), dim=1)
    alike = rows @ rows.T
    alike.fill_diagonal_(-torch.inf)
    nearest = alike.topk(min(neighbours, count - 1), dim=1).indices
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row}
    joined = {0}
    while len(joined) < count:  # the most alike tree over all views
        inside = torch.zeros(count, dtype=torch.bool)
        inside[list(joined)] = True
        across = alike.masked_fill(~inside[:, None] | inside[None], -torch.inf)
        i, j = divmod(int(across.argmax()), count)
        pairs.add((min(i, j), max(i, j)))
        joined.add(j)
    return sorted(pairs)


def spanning_tree(predictions: Sequence[PairPrediction]) -> list[int]:
    """Numbers of the predictions of a maximum spanning tree over their scores, the best first.

    Every one after the first has one view that an earlier one has.

    Raises:
        InputError: the pairs do not join all views.
    """
    order = sorted(range(len(predictions)), key=lambda number: -predictions[number].score)
    views = {view for p in predictions for view in (p.first, p.second)}
    chosen, known = [order[0]], {predictions[order[0]].first, predictions[order[0]].second}
    while known != views:
        grows = (n for n in order if (predictions[n].first in known) != (predictions[n].second in known))
        number = next(grows, None)
        if number is None:
            apart = sorted(views - known)
            raise InputError(f"views {apart} are joined to the others by no pair; leave them out or predict more pairs")
        chosen.append(number)
        known |= {predictions[number].first, predictions[number].second}
    return chosen


def largest_group(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The views of the largest group that pairs join, in order; of groups of one size the first."""
    group = list(range(count))
    for one, other in pairs:
        old, new = group[other], group[one]
        group = [new if g == old else g for g in group]
    sizes = {g: group.count(g) for g in dict.fromkeys(group)}
    largest = max(sizes, key=sizes.__getitem__)
    return [view for view in range(count) if group[view] == largest]


__all__ = ["complete_pairs", "largest_group", "similar_pairs", "spanning_tree", "window_pairs"]
