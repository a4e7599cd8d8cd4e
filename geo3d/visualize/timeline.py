"""Features of the same points at several states of a network, in colours that can be compared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from geo3d.viz.feature_colors import Projection

#: Rows of a state that take part in the projection; all states together are what it is fitted to.
_ROWS = 4000
#: Bytes of features that are kept; those of other states are computed again when they are asked for.
_KEPT_BYTES = 1 << 30


class FeatureTimeline:
    """Features of the same points at each of several states of a network.

    Every layer has one projection to colours, fitted to the features of all states, so that a colour that changes is a
    feature that changes. Features are computed when they are asked for, and kept while there is room.

    Args:
        steps: what the states are called, oldest first.
        numbers: optimizer steps done at each.
        layers: name -> columns of the features.
        encode: number of a state -> (N, C) features of the points, rows not finite where there is none.
        report: told how many states are done and how many there are, while the projection is fitted.
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
        report: Callable[[int, int], None] = lambda done, total: None,
        kept_bytes: int = _KEPT_BYTES,
    ) -> None:
        if not steps or not layers or len(steps) != len(numbers):
            raise ValueError(f"FeatureTimeline: {len(steps)} steps, {len(numbers)} numbers, {len(layers)} layers")
        self.steps, self.numbers, self.layers = tuple(steps), tuple(numbers), dict(layers)
        self._encode, self._kept_bytes = encode, kept_bytes
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._colors: dict[tuple[int, str], np.ndarray] = {}
        rows = []
        for step in range(len(self.steps)):
            features = self._all(step)
            rows.append(features[:: max(1, len(features) // _ROWS)])
            report(step + 1, len(self.steps))
        self._projections = {
            name: Projection.fit([part[:, columns] for part in rows]) for name, columns in self.layers.items()
        }

    def __len__(self) -> int:
        """Number of points."""
        return len(self._all(next(reversed(self._kept))))

    def features(self, step: int, layer: str) -> np.ndarray:
        """(N, C) float32 features of a layer at the state of a number."""
        return self._all(step)[:, self.layers[layer]]

    def colors(self, step: int, layer: str) -> np.ndarray:
        """(N, 3) uint8 colours of a layer's features at the state of a number."""
        if (step, layer) not in self._colors:
            self._colors[step, layer] = self._projections[layer].colors(self.features(step, layer))
        return self._colors[step, layer]

    def _all(self, step: int) -> np.ndarray:
        if step not in self._kept:
            self._kept[step] = np.asarray(self._encode(step), dtype=np.float32)
            while len(self._kept) > 1 and sum(part.nbytes for part in self._kept.values()) > self._kept_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(step)
        return self._kept[step]


__all__ = ["FeatureTimeline"]
