"""Registration of partial views in Open3D: an encoder's features beside FPFH, on rooms that can be looked at anywhere.

Pairs are depth images with noise of one room that share some of what they see, each in a frame of its own. All
descriptors are of the same keypoints, matched and registered by the same functions of Open3D.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.datasets.scene import Mesh
from geo3d.errors import InputError, require_extra


@dataclass
class RegistrationBenchmark:
    """Inlier ratio and recall of registering partial views in Open3D: features of encoders beside FPFH."""

    checkpoint: str = "sparse_resnet_tiny"
    """A run, a file of weights, or a name whose weights come with geo3d; an encoder over voxels."""
    fresh: bool = True
    """The same network with fresh weights, too."""
    data: Path | None = None
    """Scenes with a mesh, such as ScanNet's. None: synthetic rooms."""
    rooms: int = 4
    """Rooms, or scenes of `data`."""
    first: int = 200
    """Number of the first synthetic room."""
    pairs: int = 3
    """Pairs of views of each."""
    overlap: tuple[float, float] = (0.3, 0.7)
    """Least and greatest share of a view that the other sees too."""
    keypoints: int = 1500
    """Points of each view that are matched, at most."""
    turns: int = 4
    """Turns about z over which features are averaged."""
    any_way: bool = False
    """Views are turned any way, not about z alone: a sensor that knows no gravity."""
    seed: int = 0
    """Of the pairs."""
    threads: int = 1
    """CPU threads."""

    def __post_init__(self) -> None:
        for name in ("rooms", "pairs", "keypoints", "turns", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.overlap[0] < self.overlap[1] <= 1:
            raise InputError(f"overlap must rise within 0 to 1, got {self.overlap}")


def _meshes(config: RegistrationBenchmark) -> Iterator[Mesh]:
    if config.data is None:
        require_extra("embreex", "synthetic", "the rooms of this benchmark")
        from geo3d.datasets.synthetic.furnished import furnished_mesh

        for room in range(config.first, config.first + config.rooms):
            yield furnished_mesh(room)
        return
    from geo3d.datasets import open_dataset

    for scene in open_dataset(config.data)[: config.rooms]:
        scene.require("mesh")
        yield scene.mesh()


def run(config: RegistrationBenchmark) -> list[dict[str, Any]]:
    """Score every descriptor on the same pairs; a row each, whose time is that of describing a pair's two views."""
    import torch

    from geo3d.inference import load_encoder
    from geo3d.interop import registration as reg

    torch.set_num_threads(config.threads)
    o3d = require_extra("open3d", "open3d", "this benchmark")
    o3d.utility.set_verbosity_level(o3d.utility.VerbosityLevel.Error)
    encoders = {"trained": load_encoder(config.checkpoint)}
    if config.fresh:
        encoders["fresh"] = load_encoder(config.checkpoint, fresh=0)
    for encoder in encoders.values():
        if encoder.kind != "voxels":
            raise InputError(f"{config.checkpoint}: reads {encoder.kind}, an encoder over voxels is needed")
    scores, seconds, overlaps = defaultdict(list), defaultdict(float), []
    for number, mesh in enumerate(_meshes(config)):
        rng = np.random.default_rng([config.seed, number])
        for pair in reg.scan_pairs(mesh, config.pairs, rng, not config.any_way, config.overlap):
            overlaps.append(pair.overlap)
            rows = tuple(reg.drawn_keypoints(scan, config.keypoints) for scan in (pair.source, pair.target))
            described = {}
            for name, given in (("FPFH", {}), *((name, {name: encoder}) for name, encoder in encoders.items())):
                start = time.process_time()
                found = reg.describe(pair, rows, given, config.turns)
                seconds[name] += time.process_time() - start
                described |= found
            for name, features in described.items():
                o3d.utility.random.seed(config.seed)
                scores[name].append(reg.score_pair(pair, rows, features))
            print(f"pair {len(overlaps)}: overlap {pair.overlap:.2f}, " + ", ".join(
                f"{name} {100 * of[-1].inlier_ratio[1]:.0f} % {of[-1].error:.2f} m" for name, of in scores.items()
            ), flush=True)  # fmt: skip
    if not overlaps:
        raise InputError("no pair of views with enough overlap was found; take larger rooms")
    place = "synthetic rooms" if config.data is None else config.data.name
    turned = "turned any way" if config.any_way else "upright"
    case = f"{place}, {len(overlaps)} pairs, {turned}, overlap {np.mean(overlaps):.2f}"
    return [_row(case, name, of, seconds, len(overlaps)) for name, of in scores.items()]


def _row(case: str, name: str, scores: list, seconds: dict[str, float], pairs: int) -> dict[str, Any]:
    from geo3d.interop.registration import REGISTERED, WITHIN

    ratios = np.array([score.inlier_ratio for score in scores])
    errors = np.array([score.error for score in scores])
    columns = {f"matches within {w:g} m": f"{100 * r:.1f} %" for w, r in zip(WITHIN, ratios.mean(0))}
    columns["pairs with 5 % right"] = f"{100 * (ratios[:, 1] > 0.05).mean():.0f} %"
    columns |= {f"registered to {r:g} m": f"{100 * (errors < r).mean():.0f} %" for r in REGISTERED}
    columns["matches"] = f"{np.mean([score.matches for score in scores]):.0f}"
    took = seconds[name.partition(" and ")[0].partition(",")[0]] / pairs
    return {
        "case": case, "variant": name, "device": "cpu", "dtype": "float32", "seconds": took, "peak_mb": None,
        "columns": columns,
    }  # fmt: skip
