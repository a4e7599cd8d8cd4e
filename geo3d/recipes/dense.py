"""Stereo, optical flow and depth: fine-tuning of CroCo's networks, and how far off held-out predictions are."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.rooms import make_pairs, pairs_folder
from geo3d.errors import InputError
from geo3d.methods.dense import (
    DensePrediction,
    DepthConfig,
    DepthEstimation,
    FlowConfig,
    OpticalFlow,
    StereoConfig,
    StereoMatching,
    draw_dense,
)
from geo3d.progress import Log
from geo3d.random import Stream, stream_generator
from geo3d.recipes.finetuning import FewLabels
from geo3d.recipes.recipe import RoomsRun
from geo3d.samples.readable import Readable
from geo3d.spread import evenly_spread
from geo3d.train.config import TrainConfig
from geo3d.viz.sheet import captioned_sheet, write_picture

_DRAWN = 4
#: Training items that the head's beginning is the median of.
_OF_MEDIAN = 64
#: Rooms that the presets `tiny` of two views make.
_ROOMS = 120


@dataclass(kw_only=True)
class DenseRun(RoomsRun):
    """What runs of stereo, flow and depth share."""

    held_out: float = 0.2
    """Share of the scenes kept out of training for the report (0 to 1); none are where there are fewer than ten."""

    method: Any = None


@dataclass(kw_only=True)
class StereoRun(DenseRun):
    """Train a network of stereo; `init` names the pre-trained network."""

    method: StereoConfig = field(default_factory=StereoConfig)
    """The task and the network."""


@dataclass(kw_only=True)
class FlowRun(DenseRun):
    """Train a network of optical flow; `init` names the pre-trained network."""

    method: FlowConfig = field(default_factory=FlowConfig)
    """The task and the network."""


@dataclass(kw_only=True)
class DepthRun(DenseRun):
    """Train a network of depth; `init` names the pre-trained network."""

    method: DepthConfig = field(default_factory=DepthConfig)
    """The task and the network."""


def _tiny_training(steps: int) -> TrainConfig:
    """Minutes on a CPU; of two views, what is learnt before a thousand steps is little."""
    return TrainConfig(steps=steps, batch_size=8, lr=1e-3, warmup_steps=20, clip_norm=1.0, workers=1)


def _published(epochs: int, batch_size: int, lr: float) -> TrainConfig:
    """The published optimiser: AdamW of betas 0.9 and 0.95, weight decay 0.05, an epoch of warm-up, a cosine."""
    return TrainConfig(epochs=epochs, batch_size=batch_size, lr=lr, warmup_epochs=1, workers=8)


def _stereo_tiny() -> StereoRun:
    """Minutes on a CPU: small network, images of 96 pixels along the shorter side."""
    method = StereoConfig(resized=96, color_jitter=0.2, asymmetric=0.0)
    return StereoRun(method=method, train=_tiny_training(1500), rooms=_ROOMS)


def _stereo_paper() -> StereoRun:
    """CroCo v2's stereo: the large network, crops of 352 x 704, batches of 6, 32 epochs."""
    return StereoRun(method=StereoConfig("croco_stereo_large_base", (352, 704)), train=_published(32, 6, 3e-5))


def _flow_tiny() -> FlowRun:
    """Minutes on a CPU: small network, images of 96 pixels along the shorter side."""
    method = FlowConfig(resized=96, scale=(0.9, 1.1), color_jitter=0.2, asymmetric=0.0)
    return FlowRun(method=method, train=_tiny_training(1500), rooms=_ROOMS)


def _flow_paper() -> FlowRun:
    """CroCo v2's optical flow: the large network, crops of 320 x 384, batches of 8, 240 epochs of 30,000 pairs."""
    return FlowRun(method=FlowConfig("croco_flow_large_base", (320, 384)), train=_published(240, 8, 2e-5))


def _depth_tiny() -> DepthRun:
    """Minutes on a CPU: small network, crops of 64 pixels."""
    return DepthRun(train=_tiny_training(300))


def _depth_base() -> DepthRun:
    """Depth by the base network on crops of 224 pixels; nothing is published of it, so that the rest is stereo's."""
    return DepthRun(method=DepthConfig("croco_depth_base", (224, 224), resized=256), train=_published(32, 32, 3e-5))


class DenseRecipe(FewLabels):
    """A dense method with training items, and items of held-out scenes to measure it on."""

    purpose = "finetune"
    items = "pairs"
    method: DensePrediction
    #: Figures of the report, with their units.
    told: ClassVar[tuple[tuple[str, str], ...]]

    def __init__(self, config: DenseRun, folder: Path, log: Log) -> None:
        super().__init__(config, folder, log)
        #: (C,) what is true of a pixel on the whole: the head begins there, where `init` brings none.
        self.usual = self._median()
        self.method.network.start_at(self.usual)

    def _median(self) -> Tensor:
        """(C,) the median of what is true of some training crops; 0 where nothing is known of them."""
        readable, drawn = Readable(self.config.strict, self.log, "left out of where the head begins"), []
        for row in evenly_spread(len(self.samples), _OF_MEDIAN):
            rng = stream_generator(self.seed, Stream.MEASURE, row)
            sample = readable.read(row, partial(self.samples.draw, row, rng), partial(self.samples.describe, row))
            drawn += [sample["target"].flatten(1)] if sample is not None else []
        if not drawn:
            return torch.zeros(len(self.method.units))
        return torch.cat(drawn, 1).nanmedian(1).values.nan_to_num()

    def prepare_measuring(self, source: Any, measured: Any) -> None:
        """Measure crops of the held-out items as they are."""
        self.measured = self.method.measured_samples(measured)

    def figures(self) -> dict[str, float]:
        """The loss and the figures of the task, over all held-out items.

        Raises:
            InputError: nothing is known of them.
        """
        found = self.means(self._errors)
        if self.best not in found:
            raise InputError(f"nothing is known of the {self.measured_count} {self.items} to measure")
        return found

    def _errors(self, batch: dict[str, Any]) -> dict[str, float]:
        output = self.method(batch)
        loss = {"loss": output.loss.item()}
        if not batch["target"].isfinite().all(1).any():
            return loss
        return loss | self.method.errors(output.extras["values"].float(), batch["target"])

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Figures before and after; some held-out items are drawn into the run's folder."""
        batch = self.pictured(0, _DRAWN)
        with self.method.measuring():
            values = self.method.predict(batch).values.float().cpu()
        rows = [
            [first.cpu().numpy(), *draw_dense(found.numpy(), truth.cpu().numpy())]
            for first, found, truth in zip(batch["first"], values, batch["target"], strict=True)
        ]
        path = self.folder / f"{self.method.name}.png"
        captions = "first image", self.method.name, "predicted", "error"
        write_picture(path, captioned_sheet(np.array(rows), captions))
        told = "; ".join(f"{name} {before[name]:.3g} -> {after[name]:.3g}{unit}" for name, unit in self.told)
        of = f"{self.method.name} on {self.measured_count} {self.measured_on} {self.items}"
        return f"{of}, {self.beginning} -> trained: {told}\npredictions and their errors: {path}"


class _PairsRecipe(DenseRecipe):
    """Pairs rendered in synthetic rooms where no data is given."""

    @classmethod
    def made_data(cls, config: DenseRun) -> Path:
        """The folder of pairs."""
        return pairs_folder(cls.method_class.name, config.rooms, config.train.seed)

    @classmethod
    def make_data(cls, config: DenseRun, log: Log) -> Path:
        """Make them, or find those made before."""
        return make_pairs(cls.method_class.name, config.rooms, config.train.seed, log)


class StereoRecipe(_PairsRecipe):
    """Disparity of rectified pairs."""

    summary = "disparity of rectified pairs, by CroCo's stereo network"
    run, method_class = StereoRun, StereoMatching
    presets: ClassVar = {"tiny": _stereo_tiny, "paper": _stereo_paper}
    best = "epe"
    told = (("epe", " px"), ("bad1", " %"), ("bad2", " %"))


class FlowRecipe(_PairsRecipe):
    """Optical flow of pairs."""

    summary = "optical flow between two images, by CroCo's flow network"
    run, method_class = FlowRun, OpticalFlow
    presets: ClassVar = {"tiny": _flow_tiny, "paper": _flow_paper}
    best = "epe"
    told = (("epe", " px"), ("bad1", " %"), ("f1", " %"))


class DepthRecipe(DenseRecipe):
    """Depth of single images."""

    summary = "depth of single images, by CroCo's network of one view"
    run, method_class = DepthRun, DepthEstimation
    presets: ClassVar = {"tiny": _depth_tiny, "base": _depth_base}
    items = "views"
    best = "abs_rel"
    told = (("abs_rel", ""), ("delta1", ""), ("rmse", " m"))


__all__ = ["DenseRun", "DepthRecipe", "DepthRun", "FlowRecipe", "FlowRun", "StereoRecipe", "StereoRun"]
