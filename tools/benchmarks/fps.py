"""Farthest point sampling: many small clouds as a point network has them in a batch, one small cloud, one scan.

Peers are the loop in PyTorch that point networks are written with, over all clouds at once, and fpsample (1.0.2), cloud
after cloud: its plain form, and its fastest exact one, over the lines of a k-d tree, at the height that its authors
name for the size. It is no dependency: `pip install fpsample`, or `pip install --target FOLDER fpsample` and pass
`--peers FOLDER`. Every run checks that all but that tree take the same points; the tree starts where it wants.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from benchmarks.surface import surface_points
from torch import Tensor

from geo3d.ops import farthest_point_sample

_LOOP, _GEO3D, _PLAIN, _TREE = "loop over samples, PyTorch", "geo3d", "fpsample, plain", "fpsample, k-d tree"
# clouds, points of each, samples of each, height of fpsample's tree, calls of a turn
_CASES = ((32, 2048, 512, 3, 1), (1, 2048, 512, 3, 20), (1, 100_000, 2048, 7, 1))
_START = 1


@dataclass
class FpsBenchmark:
    """Farthest point sampling of small clouds and of a large one."""

    threads: int = 2
    """CPU threads."""
    turns: int = 5
    """Timed turns of each variant; the median counts."""
    peers: str = ""
    """Folder that fpsample was installed to, where it is not in the environment."""


def _loop(clouds: Tensor, count: int, height: int) -> Tensor:
    batch, distance = torch.arange(len(clouds)), torch.full(clouds.shape[:2], 1e10)
    row = torch.full((len(clouds),), _START)
    samples = torch.empty(len(clouds), count, dtype=torch.long)
    for place in range(count):
        samples[:, place] = row
        sample = clouds[batch, row].unsqueeze(1)
        distance = torch.minimum(distance, (clouds - sample).square().sum(2))
        row = distance.argmax(1)
    return samples


def _geo3d(clouds: Tensor, count: int, height: int) -> Tensor:
    batch, points, _ = clouds.shape
    offsets = torch.arange(batch + 1) * points
    rows = farthest_point_sample(clouds.flatten(0, 1), offsets, count, torch.full((batch,), _START))
    return rows.view(batch, count) - offsets[:-1, None]


def _plain(clouds: Tensor, count: int, height: int) -> Tensor:
    import fpsample

    rows = [fpsample.fps_sampling(cloud.numpy(), count, start_idx=_START) for cloud in clouds]
    return torch.stack([torch.from_numpy(taken.astype("int64")) for taken in rows])


def _tree(clouds: Tensor, count: int, height: int) -> None:
    import fpsample

    for cloud in clouds:
        fpsample.bucket_fps_kdline_sampling(cloud.numpy(), count, height, start_idx=_START)


_FORMS = {_LOOP: _loop, _GEO3D: _geo3d, _PLAIN: _plain, _TREE: _tree}


def sampling(
    variant: str, clouds: int, points: int, count: int, height: int, calls: int, peers: str
) -> Callable[[], list[Tensor] | None]:
    """The function to time: samples of all clouds, so many times; returns their rows where they are comparable."""
    if peers:
        sys.path.append(peers)
    packed = torch.stack([surface_points(points, seed) for seed in range(clouds)])

    def step() -> list[Tensor] | None:
        for _ in range(calls):
            rows = _FORMS[variant](packed, count, height)
        return None if rows is None else [rows]

    return step


def _peers(folder: str) -> list[str]:
    """The peers that can be imported; says where they come from."""
    if folder:
        sys.path.append(folder)
    try:
        import fpsample  # noqa: F401
    except ImportError as error:
        print(f"fpsample is left out ({error}): pip install fpsample, or pass --peers FOLDER")
        return []
    return [_PLAIN, _TREE]


def run(config: FpsBenchmark) -> list[dict[str, Any]]:
    """Rows of every variant; the loop is the base of the ratios."""
    names = [_LOOP, *_peers(config.peers), _GEO3D]
    rows = []
    for clouds, points, count, height, calls in _CASES:
        arguments = {"clouds": clouds, "points": points, "count": count, "height": height}
        arguments |= {"calls": calls, "peers": config.peers}
        variants = [
            Variant(
                name,
                "benchmarks.fps:sampling",
                {"variant": name, **arguments},
                threads=config.threads,
                share=calls,
            )
            for name in names
        ]
        number = f"{clouds} clouds of" if clouds > 1 else "one cloud of"
        rows += race(f"{number} {points:,} points, {count:,} samples of each", variants, config.turns)
    return rows
