"""The whole of Swin3D on scenes of growing size: how long a pass takes, how much memory, and how both grow.

Scene: a furnished room at 2 cm, coloured and with normals, larger or smaller as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.race import Variant, race
from benchmarks.room import VOXEL_SIZE, room_points

from geo3d import create_model
from geo3d.geometry import PointCloud

_VOXELS_OF_ROOM = 100_000  # at scale 1


@dataclass
class Swin3DBenchmark:
    """Forward pass, and forward and backward pass, over sizes of scenes."""

    model: str = "swin3d_s"
    """Network, one of `geo3d.list_models("swin3d*")`."""
    voxels: tuple[int, ...] = (25_000, 50_000, 100_000)
    """Sizes of the scenes, voxels (approximately)."""
    decoder: str = "linear"
    """Decoder stages: linear or linear_attn."""
    turns: int = 1
    """Timed turns of each variant; the median counts."""
    threads: int = 2
    """CPU threads."""


def room(voxels: int) -> PointCloud:
    """A furnished room of about as many voxels."""
    generator = torch.Generator().manual_seed(0)
    xyz = room_points(math.sqrt(voxels / _VOXELS_OF_ROOM))
    noise = torch.randn(2, *xyz.shape, generator=generator)
    colors = (0.5 + 0.3 * torch.sin(3 * xyz) + 0.05 * noise[0]).clamp(0, 1)
    normals = torch.nn.functional.normalize(torch.sin(2 * xyz) + 0.1 * noise[1], dim=1)
    return PointCloud(xyz, colors, normals)


def network_pass(model: str, voxels: int, decoder: str, backward: bool) -> Callable[[], float]:
    """A pass from points to logits, or on to gradients; returns the number of voxels."""
    network = create_model(model, signals="XYZ_RGB_NORM", decoder=decoder, generator=torch.Generator().manual_seed(0))
    cloud = room(voxels)

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
    """Rows of the table; prints by which power of the number of voxels the time grows."""
    names = ("forward", "forward and backward")
    rows, sizes = [], []
    for count in config.voxels:
        arguments = {"model": config.model, "voxels": count, "decoder": config.decoder}
        factory = "benchmarks.swin3d:network_pass"
        variants = [
            Variant(name, factory, arguments | {"backward": name != "forward"}, threads=config.threads)
            for name in names
        ]
        found = race(f"{config.model}, about {count:,} voxels", variants, config.turns)
        sizes.append(found[0]["value"])
        rows += [row | {"case": f"{config.model}, {sizes[-1]:,.0f} voxels"} for row in found]
    if len(sizes) > 1:
        for number, name in enumerate(names):
            seconds = [row["seconds"] for row in rows[number :: len(names)]]
            power = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
            print(f"{name}: time grows as the {power:.2f}th power of the number of voxels")
    return rows
