"""The recipe of SparK over voxels: scenes of points, and how well masked cells of scenes held out are filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from geo3d.datasets.rooms import make_rooms, rooms_folder, split_scenes
from geo3d.methods.spark3d import ATTRIBUTES, MaskedCellSamples, SparK3D, SparK3DConfig, copied_occupancy
from geo3d.random import Stream, stream_generator
from geo3d.recipes.recipe import Log, Recipe, Run, first_readable, log_broken
from geo3d.samples.points import PointScenes
from geo3d.train.config import TrainConfig
from geo3d.viz.points import draw_clouds, write_points

#: What is measured before and after: this many scenes, of each a crop this many times as large as in training.
_MEASURED, _LARGER = 16, 4


@dataclass(kw_only=True)
class SparK3DRun(Run):
    """Pre-train an encoder over voxels: fill in masked cells of scenes, which need no labels."""

    method: SparK3DConfig = field(default_factory=SparK3DConfig)
    """The task and the network."""


def _tiny() -> SparK3DRun:
    """Minutes on a CPU: a small network on coarse voxels."""
    train = TrainConfig(
        steps=2400, batch_size=2, lr=2e-3, warmup_steps=100, min_lr=1e-5, weight_decay=0.05, clip_norm=1.0, workers=1
    )
    return SparK3DRun(rooms=24, train=train)


def _paper() -> SparK3DRun:
    """The published schedule as far as it carries over from images: LAMB, a long cosine, 60 % masked."""
    method = SparK3DConfig("sparse_resnet34", voxel_size=0.02, max_voxels=120_000, decoder_width=512)
    train = TrainConfig(
        epochs=1600,
        warmup_epochs=40,
        batch_size=8,
        base_lr=2e-3,
        optimizer="lamb",
        clip_norm=5.0,
        weight_decay=0.05,
        workers=8,
    )
    return SparK3DRun(method=method, train=train)


def _prepare(run: SparK3DRun, folder: Path, log: Log, fresh: bool) -> None:
    """Make synthetic rooms where no data is given."""
    with torch.device("meta"):
        SparK3D(run.method)  # settings that do not fit each other are told before the work below
    if not run.data:
        make_rooms(run.rooms, run.train.seed, log)


class SparK3DTask:
    """Filling in with training scenes, and held-out scenes to measure it on."""

    def __init__(self, run: SparK3DRun, folder: Path, log: Log) -> None:
        scenes = PointScenes.find(run.data or (rooms_folder(run.rooms, run.train.seed),))
        log_broken(scenes.datasets, log)
        self.folder = folder
        self.method = SparK3D(run.method, torch.Generator().manual_seed(run.train.seed))
        rows, held = split_scenes(scenes.group_count, run.held_out, run.train.seed)
        self.samples = self.method.samples(scenes.of_groups(rows))
        self.measured_scenes = "held-out" if len(held) else "training"
        larger = replace(run.method, max_voxels=_LARGER * run.method.max_voxels)
        measured = scenes.of_groups(held if len(held) else rows)
        samples = MaskedCellSamples(measured, larger, self.method.cell, self.method.encoder.reads)
        self._crops = first_readable(
            range(len(samples)),
            lambda index: samples.draw(index, stream_generator(run.train.seed, Stream.MEASURE_SPARK3D, index)),
            _MEASURED,
            run.strict,
            log,
        )
        log(
            f"{len(rows)} scenes to train on; the report is on {len(self._crops)} {self.measured_scenes} scenes; cells "
            f"of {self.method.cell} voxels of {100 * run.method.voxel_size:g} cm"
        )

    def _batches(self) -> list[dict[str, Any]]:
        device = next(self.method.parameters()).device
        joined = (self.method.collate([crop]) for crop in self._crops)
        return [{name: value.to(device) for name, value in batch.items()} for batch in joined]

    def measure(self) -> dict[str, float]:
        """Occupancy in masked cells, and squared errors of what is predicted at occupied voxels, over all crops.

        ``occupancy_iou`` counts voxels whose logit is above 0; ``copied_iou`` is that of copying the
        nearest kept cell, ``all_iou`` that of calling every voxel occupied. ``bits`` is the cross-entropy a voxel,
        ``rate_bits`` that of who knows the share of occupied voxels alone. Of ``voxels`` ``filled`` have a logit
        above 0. Of each attribute ``<name>_share`` is the
        squared error over that of the best constant (1: nothing was learnt).
        """
        with self.method.measuring():
            return self._figures(self._sums())

    def _sums(self) -> dict[str, Tensor]:
        """Sums over all crops of what the figures are made of."""
        method = self.method
        sums: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            sums[name] = sums.get(name, 0) + value.double().cpu()

        for batch in self._batches():
            visible, cells, voxels = method.split(batch)
            sites, predicted = method.predict(visible, cells)
            masked = method.truth(sites, voxels)
            truth = masked.occupied
            for name, guess in (("network", predicted[:, 0] > 0), ("copied", copied_occupancy(method, batch, sites))):
                add(f"{name} both", (guess & truth).sum())
                add(f"{name} either", (guess | truth).sum())
            logit = predicted[:, 0].double() - math.log(method.config.occupied_weight)  # of the voxels as they are
            add("entropy", F.binary_cross_entropy_with_logits(logit, truth.double(), reduction="sum"))
            add("guessed", (predicted[:, 0] > 0).sum())
            add("occupied", truth.sum())
            add("sites", torch.tensor(len(truth)))
            for name, (target, _, _) in method.targets(batch, masked).items():
                known = target.isfinite().all(1)
                value, guess = target[known].double(), predicted[known, ATTRIBUTES[name]].double()
                add(f"{name} count", known.sum())
                add(f"{name} error", (guess - value).square().sum())
                add(f"{name} sum", value.sum(0))
                add(f"{name} squares", value.square().sum())
        return sums

    @staticmethod
    def _figures(sums: dict[str, Tensor]) -> dict[str, float]:
        """What is reported, from sums over all crops."""
        total, rate = float(sums["sites"]), float(sums["occupied"]) / max(float(sums["sites"]), 1)
        figures = {
            "occupancy_iou": float(sums["network both"] / sums["network either"].clamp_min(1)),
            "copied_iou": float(sums["copied both"] / sums["copied either"].clamp_min(1)),
            "all_iou": rate,
            "bits": float(sums["entropy"]) / max(total, 1) / np.log(2),
            "rate_bits": float(-sum(p * np.log2(p) for p in (rate, 1 - rate) if p > 0)),
            "voxels": total,
            "filled": float(sums["guessed"]),
        }
        for name in ATTRIBUTES:
            count = sums[f"{name} count"]
            constant = sums[f"{name} squares"] - sums[f"{name} sum"].square().sum() / count.clamp_min(1)
            if count > 0 and constant > 0:
                figures[f"{name}_share"] = float(sums[f"{name} error"] / constant)
        return figures

    def report(self, before: dict[str, float], after: dict[str, float]) -> tuple[dict[str, Any], str]:
        """Figures before and after; the first measured crop is drawn as ``filled.png`` and written as PLY files."""
        clouds = self._write_pictures()
        named = {"offset": "place in the voxel", "color": "colour", "normal": "normal"}
        shares = [
            f"{what} {100 * before[f'{name}_share']:.0f} % untrained, {100 * after[f'{name}_share']:.0f} % trained"
            for name, what in named.items()
            if f"{name}_share" in after
        ]
        nothing = "" if after["filled"] else "; no voxel is called occupied yet, so that nothing is filled in"
        text = (
            f"occupancy of masked cells on {len(self._crops)} {self.measured_scenes} scenes, intersection over union: "
            f"{100 * before['occupancy_iou']:.1f} % untrained, {100 * after['occupancy_iou']:.1f} % trained "
            f"(copying the nearest kept cell: {100 * after['copied_iou']:.1f} %, all voxels: "
            f"{100 * after['all_iou']:.1f} %); {before['bits']:.3f} and {after['bits']:.3f} bits a voxel "
            f"(the share of occupied ones alone: {after['rate_bits']:.3f}){nothing}\n"
            f"squared error at occupied voxels, of that of the best constant: {'; '.join(shares)}\n"
            f"a scene masked, filled in and in the original: {self.folder / 'filled.png'} ({', '.join(clouds)})"
        )
        return {"scenes": self.measured_scenes, "before": before, "after": after}, text

    def _write_pictures(self) -> list[str]:
        """Draw the first crop, and write each of its clouds in metres; returns the names of the PLY files."""
        method, batch = self.method, self._batches()[0]
        with method.measuring():
            clouds = method.clouds(batch, method(batch))
        Image.fromarray(draw_clouds(clouds)).save(self.folder / "filled.png")
        names = []
        for name, cloud in clouds.items():
            cloud.xyz = cloud.xyz.cpu() * method.config.voxel_size
            write_points(self.folder / f"{name}.ply", cloud)
            names.append(f"{name}.ply")
        return names


RECIPE = Recipe(
    summary="SparK over voxels: fill in masked cells of scenes without labels",
    run=SparK3DRun,
    presets={"tiny": _tiny, "paper": _paper},
    prepare=_prepare,
    task=SparK3DTask,
)
