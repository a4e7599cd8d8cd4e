"""The whole of Swin3D on scenes of growing size: how long a pass takes, how much memory, and how both grow.

Scene: a furnished room at 2 cm, coloured and with normals (`scan.py`, as the benchmark of voxel_attention has it); a
smaller scene is a smaller part of it. How many voxels share a window is printed for each: where that number changed
with the size, so would the cost of a voxel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.race import Variant, race
from benchmarks.scan import VOXEL_SIZE, scan
from benchmarks.voxel_attention import pair_count, scene

from geo3d import create_model

_LARGE = 100_000  # voxels; a pass over more takes long, and a first one is hardly slower
_PASSES = ("forward", "forward and backward")


@dataclass
class Swin3DBenchmark:
    """Forward pass, and forward and backward pass, over sizes of scenes."""

    model: str = "swin3d_s"
    """Network, one of `geo3d.list_models("swin3d*")`."""
    voxels: tuple[int, ...] = (25_000, 50_000, 100_000, 200_000, 400_000)
    """Sizes of the scenes, voxels (approximately)."""
    decoder: str = "linear"
    """Decoder stages: linear or linear_attn."""
    turns: int = 3
    """Timed turns of each variant; the median counts. Scenes above 100,000 voxels get one."""
    threads: int = 2
    """CPU threads."""
    backward: bool = True
    """Time forward and backward too."""


def network_pass(model: str, voxels: int, decoder: str, backward: bool) -> Callable[[], float]:
    """A pass from points to logits, or on to gradients; returns the number of voxels."""
    network = create_model(model, signals="XYZ_RGB_NORM", decoder=decoder, generator=torch.Generator().manual_seed(0))
    cloud = scan(voxels)

    def forward() -> float:
        with torch.no_grad():
            inputs = network.inputs(cloud, VOXEL_SIZE)
            network(inputs)
        return float(len(inputs.voxels))

    def forward_backward() -> float:
        inputs = network.train().inputs(cloud, VOXEL_SIZE)
        network(inputs).square().mean().backward()
        network.zero_grad(set_to_none=True)
        return float(len(inputs.voxels))

    return forward_backward if backward else forward


def run(config: Swin3DBenchmark) -> list[dict[str, Any]]:
    """Rows of the table; prints by which power of the number of voxels time and memory grow."""
    passes = _PASSES if config.backward else _PASSES[:1]
    rows, sizes = [], []
    for count in config.voxels:
        arguments = {"model": config.model, "voxels": count, "decoder": config.decoder}
        variants = [
            Variant(
                name,
                "benchmarks.swin3d:network_pass",
                arguments | {"backward": name != "forward"},
                threads=config.threads,
            )
            for name in passes
        ]
        large = count > _LARGE
        found = race(config.model, variants, 1 if large else config.turns, warmup=0 if large else 1)
        sizes.append(found[0]["value"])
        in_window = pair_count(scene(count)[0]) / sizes[-1]
        case = f"{config.model}, {sizes[-1]:,.0f} voxels, windows of 7 at 2 cm hold {in_window:.0f} for a voxel"
        for row in found:
            columns = {"a thousand voxels": f"{1e6 * row['seconds'] / sizes[-1]:.1f} ms"}
            rows.append(row | {"case": case, "columns": columns})
    for number, name in enumerate(passes):
        found = rows[number :: len(passes)]
        if len(sizes) > 1:
            time, memory = (
                np.polyfit(np.log(sizes), np.log([row[what] for row in found]), 1)[0] for what in ("seconds", "peak_mb")
            )
            print(f"{name}: time grows as the {time:.2f}th power of the number of voxels, memory as the {memory:.2f}th")
    return rows
