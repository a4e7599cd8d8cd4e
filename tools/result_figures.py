"""Figures of the tables that `tools/results.py` writes: means over seeds, and what pre-training gains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure in the tables.

    Args:
        title: of its column.
        path: keys and numbers that lead to it in the JSON of what was measured.
        percent: whether it is shown as one.
        higher: whether higher is better.
    """

    title: str
    path: tuple[str | int, ...]
    percent: bool = True
    higher: bool = True

    def value(self, figures: Any) -> float:
        """The figure in what was measured."""
        for key in self.path:
            figures = figures[key]
        return float(figures)

    def text(self, values: Sequence[float]) -> str:
        """Mean and sample deviation."""
        scale, digits, unit = (100, 1, " %") if self.percent else (1, 3, "")
        mean = f"{scale * statistics.mean(values):.{digits}f}"
        spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean}{spread}{unit}"


def verdict(rows: Mapping[str, Sequence[float]], figure: Figure) -> tuple[str, str]:
    """In how many seeds the pre-trained network beats fresh weights; and by how much, with the standard error."""
    sign = 1 if figure.higher else -1
    gains = [sign * (a - b) for a, b in zip(rows["pre-trained"], rows["fresh weights"])]
    scale, digits, unit = (100, 1, " points") if figure.percent else (1, 3, "")
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0
    spread = f" ± {scale * error:.{digits}f}" if len(gains) > 1 else ""
    gain = f"{scale * statistics.mean(gains):+.{digits}f}{spread}{unit}"
    return f"{sum(gain > 0 for gain in gains)} of {len(gains)}", gain
