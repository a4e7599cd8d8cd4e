"""Features of the same points at several states of a network, in colours that can be compared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from geo3d.viz.feature_colors import Projection

#: Rows of a state that its middle and spread, and the projection, are found from.
_ROWS = 4000
#: Bytes of features that are kept; those of other states are computed again when they are asked for.
_KEPT_BYTES = 1 << 30


class FeatureTimeline:
    """Features of the same points at each of several states of a network.

    Every layer has one projection to colours for all states: features of each are moved to their median and divided by
    their median distance from it, which training changes by orders of magnitude, and the three main axes are those of
    all states together. Features are computed when they are asked for, and kept while there is room.

    Args:
        steps: what the states are called, oldest first.
        numbers: optimizer steps done at each.
        layers: name -> columns of the features.
        encode: number of a state -> (N, C) features of the points, rows not finite where there is none.
        report: told how many states are done, how many there are, and the name of the last.
        kept_bytes: of features that are kept at most, one state's at least.

    Raises:
        InputError: no row of a layer is finite.
        ValueError: no state, no layer, or not as many numbers as states.
    """

    def __init__(
        self,
        steps: Sequence[str],
        numbers: Sequence[int],
        layers: Mapping[str, slice],
        encode: Callable[[int], np.ndarray],
        report: Callable[[int, int, str], None] = lambda done, total, name: None,
        kept_bytes: int = _KEPT_BYTES,
    ) -> None:
        if not steps or not layers or len(steps) != len(numbers):
            raise ValueError(f"FeatureTimeline: {len(steps)} steps, {len(numbers)} numbers, {len(layers)} layers")
        self.steps, self.numbers, self.layers = tuple(steps), tuple(numbers), dict(layers)
        self._encode, self._kept_bytes = encode, kept_bytes
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._colors: dict[tuple[int, str], np.ndarray] = {}
        self._frames: dict[tuple[int, str], tuple[np.ndarray, float]] = {}
        fitted: dict[str, list[np.ndarray]] = {layer: [] for layer in self.layers}
        for step in range(len(self.steps)):
            every = self._all(step)
            rows = every[:: max(1, len(every) // _ROWS)]
            for layer, columns in self.layers.items():
                centre, spread = self._frames[step, layer] = _frame(rows[:, columns])
                fitted[layer].append((rows[:, columns] - centre) / spread)
            report(step + 1, len(self.steps), self.steps[step])
        self._projections = {layer: Projection.fit(parts) for layer, parts in fitted.items()}

    def __len__(self) -> int:
        """Number of points."""
        return len(self._all(next(reversed(self._kept))))

    def features(self, step: int, layer: str) -> np.ndarray:
        """(N, C) float32 features of a layer at the state of a number."""
        return self._all(step)[:, self.layers[layer]]

    def colors(self, step: int, layer: str) -> np.ndarray:
        """(N, 3) uint8 colours of a layer's features at the state of a number."""
        if (step, layer) not in self._colors:
            centre, spread = self._frames[step, layer]
            shared = self._projections[layer]  # of (features - centre) / spread
            own = replace(shared, centre=centre + spread * shared.centre, axes=shared.axes / spread)
            self._colors[step, layer] = own.colors(self.features(step, layer))
        return self._colors[step, layer]

    def _all(self, step: int) -> np.ndarray:
        if step not in self._kept:
            self._kept[step] = np.asarray(self._encode(step), dtype=np.float32)
            while len(self._kept) > 1 and sum(part.nbytes for part in self._kept.values()) > self._kept_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(step)
        return self._kept[step]


def _frame(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Median (C,) of features, and median distance from it; of none that are finite 0 and 1."""
    known = features[np.isfinite(features).all(1)].astype(np.float64)
    if not len(known):
        return np.zeros(features.shape[1]), 1.0
    centre = np.median(known, axis=0)
    return centre, float(np.median(np.linalg.norm(known - centre, axis=1))) or 1.0


__all__ = ["FeatureTimeline"]
