"""Points far from zero: what is taken off in float64 before they become float32."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Points whose middle lies farther from zero than this on an axis get an origin; metres, or the unit of the file.
#: At 1000 m float32 rounds by 0.03 mm; at the northing of a UTM zone, by 0.25 m.
FAR = 1000.0


def find_origin(xyz: np.ndarray) -> np.ndarray:
    """What to take off points so that float32 keeps them to a tenth of a millimetre.

    Args:
        xyz: (N, 3) coordinates; rows that are not finite do not count.

    Returns:
        (3,) float64, the points' median rounded to whole metres; zeros where no axis of it exceeds :data:`FAR`, so
        that points near zero stay where they are.
    """
    finite = xyz[np.isfinite(xyz).all(1)]
    if not len(finite):
        return np.zeros(3)
    middle = np.median(finite, axis=0).astype(np.float64)
    return np.round(middle) if np.abs(middle).max() > FAR else np.zeros(3)


def origin_rows(origin: np.ndarray) -> Tensor | None:
    """An origin (3,) as ``PointCloud.origin`` of one scene: (1, 3) float64, None where it is zero."""
    return torch.from_numpy(origin[None].astype(np.float64)) if origin.any() else None
