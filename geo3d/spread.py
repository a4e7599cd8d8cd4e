"""Some of many, evenly spread."""

from __future__ import annotations

import numpy as np


def evenly_spread(count: int, most: int | None = None) -> list[int]:
    """Numbers of at most so many of ``count`` things in a row, from the first to the last, ascending.

    Args:
        count: how many there are.
        most: how many are wanted, 1 or more; None: all.
    """
    if most is None or count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


__all__ = ["evenly_spread"]
