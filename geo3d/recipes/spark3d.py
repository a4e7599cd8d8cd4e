"""The recipe of SparK over voxels: scenes of points, and how well masked cells of scenes held out are filled in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.methods.spark3d import ATTRIBUTES, MaskedCellSamples, SparK3D, SparK3DConfig, copied_occupancy
from geo3d.metrics import intersection_and_union
from geo3d.random import Stream, stream_generator
from geo3d.recipes.recipe import MEASURED_SCENES, Recipe, RoomsRun
from geo3d.samples.points import PointScenes
from geo3d.train.config import TrainConfig
from geo3d.viz.points import draw_clouds, write_points
from geo3d.viz.sheet import write_picture

#: Of scenes that are measured a crop this many times as large as in training.
_LARGER = 4


@dataclass(kw_only=True)
class SparK3DRun(RoomsRun):
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


class SparK3DRecipe(Recipe):
    """Filling in with training scenes, and held-out scenes to measure it on."""

    summary = "SparK over voxels: fill in masked cells of scenes without labels"
    stream, best = Stream.MEASURE_SPARK3D, "bits"
    run = SparK3DRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = SparK3D

    def prepare_measuring(self, source: PointScenes, measured: PointScenes) -> None:
        """Draw a crop of each of the first scenes that can be read."""
        larger = replace(self.config.method, max_voxels=_LARGER * self.config.method.max_voxels)
        self.measured = samples = MaskedCellSamples(measured, larger, self.method.cell, self.method.encoder.reads)
        self._crops = self.first_readable(
            samples,
            lambda index: samples.draw(index, stream_generator(self.seed, self.stream, index)),
            MEASURED_SCENES,
        )

    @property
    def measured_count(self) -> int:
        """How many scenes are measured."""
        return len(self._crops)

    def describe(self) -> str:
        """The size of cells."""
        return f"; cells of {self.method.cell} voxels of {100 * self.config.method.voxel_size:g} cm"

    def _crop_batches(self) -> Iterator[dict[str, Any]]:
        return (self.on_device(self.method.collate([crop])) for crop in self._crops)

    def figures(self) -> dict[str, float]:
        """Occupancy in masked cells, and squared errors of what is predicted at occupied voxels, over all crops.

        ``occupancy_iou`` counts voxels whose logit is above 0; ``copied_iou`` is that of copying the
        nearest kept cell, ``all_iou`` that of calling every voxel occupied. ``bits`` is the cross-entropy a voxel,
        ``rate_bits`` that of the baseline that knows the share of occupied voxels alone. Of ``voxels`` ``filled`` have
        a logit above 0. Of each attribute ``<name>_share`` is the squared error over that of the best constant.
        """
        sums = self._sums()
        total, rate = float(sums["sites"]), float(sums["occupied"]) / max(float(sums["sites"]), 1)
        figures = {
            "occupancy_iou": float(sums["network both"] / sums["network either"].clamp_min(1)),
            "copied_iou": float(sums["copied both"] / sums["copied either"].clamp_min(1)),
            "all_iou": rate,
            "bits": float(sums["entropy"]) / max(total, 1) / np.log(2),
            "rate_bits": float(-sum(p * np.log2(p) for p in (rate, 1 - rate) if p > 0)),
            "voxels": total,
            "filled": float(sums["filled"]),
        }
        for name in ATTRIBUTES:
            count = sums[f"{name} count"]
            constant = sums[f"{name} squares"] - sums[f"{name} sum"].square().sum() / count.clamp_min(1)
            if count > 0 and constant > 0:
                figures[f"{name}_share"] = float(sums[f"{name} error"] / constant)
        return figures

    def _sums(self) -> dict[str, Tensor]:
        """Sums over all crops of what the figures are made of."""
        method = self.method
        sums: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            sums[name] = sums.get(name, 0) + value.double().cpu()

        for batch in self._crop_batches():
            visible, cells, voxels = method.split(batch)
            sites, predicted = method.predict(visible, cells)
            masked = method.truth(sites, voxels)
            truth = masked.occupied
            for name, filled in (("network", predicted[:, 0] > 0), ("copied", copied_occupancy(method, batch, sites))):
                both, either = intersection_and_union(filled, truth)
                add(f"{name} both", both)
                add(f"{name} either", either)
            logit = predicted[:, 0].double() - math.log(method.config.occupied_weight)  # of the voxels as they are
            add("entropy", F.binary_cross_entropy_with_logits(logit, truth.double(), reduction="sum"))
            add("filled", (predicted[:, 0] > 0).sum())
            add("occupied", truth.sum())
            add("sites", torch.tensor(len(truth)))
            for name, (target, _, _) in method.targets(batch, masked).items():
                known = target.isfinite().all(1)
                value, found = target[known].double(), predicted[known, ATTRIBUTES[name]].double()
                add(f"{name} count", known.sum())
                add(f"{name} error", (found - value).square().sum())
                add(f"{name} sum", value.sum(0))
                add(f"{name} squares", value.square().sum())
        return sums

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Figures before and after; the first measured crop is drawn as ``filled.png`` and written as PLY files."""
        clouds = self._write_pictures()
        named = {"offset_share": "place in the voxel", "color_share": "colour", "normal_share": "normal"}
        shares = [
            f"{what} {100 * before[key]:.0f} % {self.beginning}, {100 * after[key]:.0f} % trained"
            for key, what in named.items()
            if key in after
        ]
        nothing = "" if after["filled"] else "; no voxel is called occupied yet, so that nothing is filled in"
        return (
            f"occupancy of masked cells on {self.measured_count} {self.measured_on} scenes, intersection over union: "
            f"{100 * before['occupancy_iou']:.1f} % {self.beginning}, {100 * after['occupancy_iou']:.1f} % trained "
            f"(baselines: {100 * after['copied_iou']:.1f} % by copying the nearest kept cell, "
            f"{100 * after['all_iou']:.1f} % with every voxel occupied); {before['bits']:.3f} and {after['bits']:.3f} "
            f"bits a voxel (baseline that knows only the share of occupied voxels: {after['rate_bits']:.3f}){nothing}\n"
            f"squared error at occupied voxels, relative to the best constant prediction: {'; '.join(shares)}\n"
            f"a scene masked, filled in and in the original: {self.folder / 'filled.png'} ({', '.join(clouds)})"
        )

    def _write_pictures(self) -> list[str]:
        """Draw the first crop, and write each of its clouds in metres; returns the names of the PLY files."""
        method, batch = self.method, next(self._crop_batches())
        with method.measuring():
            clouds = method.clouds(batch, method(batch))
        write_picture(self.folder / "filled.png", draw_clouds(clouds))
        names = []
        for name, cloud in clouds.items():
            cloud.xyz = cloud.xyz.cpu() * method.config.voxel_size
            write_points(self.folder / f"{name}.ply", cloud)
            names.append(f"{name}.ply")
        return names
