"""Ways to colour the points of one space, for viewers that let one choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo3d.viz.picture import Points, Space

#: Colourings that viewers make of features.
FEATURES, SIMILARITY = "features", "similarity"
#: Points of which the spacing is measured.
_SAMPLED = 200


@dataclass(frozen=True, eq=False)
class Coloring:
    """One way to colour points.

    Args:
        name: in the list of all.
        colors: (N, 3) uint8.
        legend: names and their colours.
    """

    name: str
    colors: np.ndarray
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()

    def name_of(self, point: int) -> str:
        """What the legend calls the colour of a point; empty where it does not."""
        color = tuple(int(channel) for channel in self.colors[point])
        return next((name for name, meant in self.legend if tuple(meant) == color), "")


def joined(space: Space) -> Points:
    """All points of a space as one; with features where all of them have some of as many channels."""
    parts = space.points
    if len(parts) == 1:
        return parts[0]
    widths = {None if part.features is None else part.features.shape[1] for part in parts}
    featured = len(widths) == 1 and None not in widths
    return Points(
        np.concatenate([np.zeros((0, 3)), *(part.xyz for part in parts)]),
        np.concatenate([np.zeros((0, 3), np.uint8), *(part.colors for part in parts)]),
        features=np.concatenate([part.features for part in parts]) if featured else None,
    )


def spacing(xyz: np.ndarray) -> float:
    """Median distance of points (N, 3) to the point nearest to each, of a sample, metres; 0 of fewer than two."""
    sampled = xyz[:: max(1, len(xyz) // _SAMPLED)].astype(np.float64)
    nearest = []
    for place in sampled:
        squared = ((xyz - place) ** 2).sum(1)
        squared = squared[squared > 0]
        nearest += [squared.min()] if len(squared) else []
    return float(np.sqrt(np.median(nearest))) if nearest else 0.0


__all__ = ["FEATURES", "SIMILARITY", "Coloring", "joined", "spacing"]
