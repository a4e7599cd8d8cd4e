"""Chamfer distance of thousands of small sets, as a point autoencoder has them, and of two clouds.

The peer holds all squared distances of a pair of sets at once, as one writes it in PyTorch; what it gives must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from torch import Tensor

from geo3d.ops import chamfer_loss

_ALL_PAIRS, _GEO3D = "all pairs, PyTorch", "geo3d"
_CASES = ((6000, 8), (1, 2048))  # sets, points of each
_CALLS = 3  # of a turn


@dataclass
class ChamferBenchmark:
    """Chamfer distance, both sides, of small sets and of two clouds."""

    threads: int = 2
    """CPU threads."""
    turns: int = 7
    """Timed turns of each variant; the median counts."""


def _all_pairs(a: Tensor, b: Tensor) -> Tensor:
    squared = (a[:, :, None] - b[:, None]).square().sum(3)
    return squared.amin(2).mean() + squared.amin(1).mean()


def _geo3d(a: Tensor, b: Tensor) -> Tensor:
    offsets = torch.arange(len(a) + 1) * a.shape[1]
    return chamfer_loss(a.flatten(0, 1), b.flatten(0, 1), offsets, offsets)


_FORMS = {_ALL_PAIRS: _all_pairs, _GEO3D: _geo3d}


def distance(variant: str, sets: int, points: int, backward: bool) -> Callable[[], list[Tensor]]:
    """The function to time: the loss, and its gradient where that is asked for, a few times."""
    a, b = torch.randn(2, sets, points, 3, generator=torch.Generator().manual_seed(0))
    a.requires_grad_(backward)

    def step() -> list[Tensor]:
        for _ in range(_CALLS):
            loss = _FORMS[variant](a, b)
            result = list(torch.autograd.grad(loss, a)) if backward else [loss]
        return result

    return step


def run(config: ChamferBenchmark) -> list[dict[str, Any]]:
    """Rows of every variant; all pairs at once are the base of the ratios."""
    rows = []
    for sets, points in _CASES:
        for backward in (False, True):
            arguments = {"sets": sets, "points": points, "backward": backward}
            variants = [
                Variant(
                    name,
                    "benchmarks.chamfer:distance",
                    {"variant": name, **arguments},
                    threads=config.threads,
                    share=_CALLS,
                )
                for name in _FORMS
            ]
            passes = "forward and backward" if backward else "forward"
            rows += race(f"{sets:,} times {points:,} and {points:,} points, {passes}", variants, config.turns)
    return rows
