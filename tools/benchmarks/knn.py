"""Nearest neighbours: of all points of a cloud, and in a room's voxels as Swin3D asks for them: 16 down, 3 up.

The peers are SciPy's k-d tree, which is exact as well (in float64, without a rule for equal distances), and all
distances by `torch.cdist` with `topk`, a block of queries at a time, which is not exact. Trees are made at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from benchmarks.room import room_voxels
from benchmarks.surface import surface_points
from torch import Tensor

from geo3d.ops import knn

_POINTS_A_TURN = 20_000  # at least: one call for few is too short to be timed
_BLOCK = 1024  # queries whose distances are held at a time
_SCIPY, _CDIST, _GEO3D = "SciPy cKDTree", "torch.cdist and topk", "geo3d"
# (queries are the fine voxels, k)
_ROOM_CASES = {
    "down, 16 fine ones of each coarse voxel": (False, 16),
    "up, 3 coarse ones of each fine voxel": (True, 3),
}


@dataclass
class KnnBenchmark:
    """Neighbours within clouds, and between a room's voxels and those of three times their size."""

    scale: float = 1.0
    """Size of the room; at 1 it has some 100,000 voxels."""
    threads: int = 1
    """CPU threads."""
    sizes: tuple[int, ...] = (2048, 100_000)
    """Points of the clouds."""
    neighbours: int = 16
    """Neighbours of every point of a cloud."""
    turns: int = 3
    """Timed turns of each variant; the median counts."""
    brute_force: bool = True
    """Time torch.cdist too; it takes a minute a turn."""


def _points(scale: float) -> tuple[Tensor, Tensor]:
    """Positions inside the fine voxels, in voxels, and one of each coarse voxel's."""
    coords = room_voxels(scale)[:, 1:]
    fine = coords + torch.rand(coords.shape, generator=torch.Generator().manual_seed(0))
    cells, parent = coords.div(3, rounding_mode="floor").unique(dim=0, return_inverse=True)
    first = torch.full((len(cells),), len(fine)).scatter_reduce(0, parent, torch.arange(len(fine)), "amin")
    return fine, fine[first]


def _scipy(query: Tensor, points: Tensor, k: int) -> Any:
    from scipy.spatial import cKDTree

    return cKDTree(points.numpy()).query(query.numpy(), k=k, workers=torch.get_num_threads())


def _cdist(query: Tensor, points: Tensor, k: int) -> list[Any]:
    return [torch.cdist(block, points).topk(k, largest=False) for block in query.split(_BLOCK)]


def _geo3d(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return knn(query, points, torch.tensor([0, len(query)]), torch.tensor([0, len(points)]), k)


_FORMS = {_SCIPY: _scipy, _CDIST: _cdist, _GEO3D: _geo3d}


def search(variant: str, scale: float, upwards: bool, k: int) -> Callable[[], None]:
    """The function to time: one search."""
    fine, coarse = _points(scale)
    query, points = (fine, coarse) if upwards else (coarse, fine)

    def step() -> None:
        _FORMS[variant](query, points, k)

    return step


def search_cloud(variant: str, size: int, k: int, calls: int) -> Callable[[], None]:
    """The function to time: neighbours of all points of a cloud among themselves, so many times."""
    points = surface_points(size)

    def step() -> None:
        for _ in range(calls):
            _FORMS[variant](points, points, k)

    return step


def run(config: KnnBenchmark) -> list[dict[str, Any]]:
    """Rows of every variant; SciPy's tree is the base of the ratios."""
    names = [_SCIPY, _GEO3D, _CDIST] if config.brute_force else [_SCIPY, _GEO3D]
    rows = []
    for size in config.sizes:
        calls = max(1, _POINTS_A_TURN // size)
        common = {"size": size, "k": config.neighbours, "calls": calls}
        variants = [
            Variant(
                name, "benchmarks.knn:search_cloud", {"variant": name, **common}, threads=config.threads, share=calls
            )
            for name in names
        ]
        rows += race(f"{size:,} points, {config.neighbours} of each", variants, config.turns)
    fine, coarse = _points(config.scale)
    for case, (upwards, k) in _ROOM_CASES.items():
        common = {"scale": config.scale, "upwards": upwards, "k": k}
        variants = [
            Variant(name, "benchmarks.knn:search", {"variant": name, **common}, threads=config.threads)
            for name in names
        ]
        rows += race(f"{len(fine)} and {len(coarse)} points, {case}", variants, config.turns)
    return rows
