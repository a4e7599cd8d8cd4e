"""SparK's recipe: single images of any scenes or folders, and how well hidden cells of held-out ones are filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo3d.datasets.rooms import make_rooms, rooms_folder, split_scenes
from geo3d.methods.spark import MaskedModelling, MaskedModellingConfig
from geo3d.random import Stream, stream_generator
from geo3d.recipes.recipe import Log, Recipe, Run, draw_readable, log_broken
from geo3d.samples.images import ImageSet
from geo3d.train.config import TrainConfig

#: What is measured before and after: this many images, this many at a time.
_MEASURED, _MEASURED_BATCH = 256, 64


@dataclass(kw_only=True)
class SparKRun(Run):
    """Pre-train SparK: fill in hidden cells of images, with a convolutional network."""

    data: tuple[Path, ...] = ()
    """Folders of images, at any depth, or of scenes, for their views. None: synthetic rooms are made under `data`."""

    method: MaskedModellingConfig = field(default_factory=MaskedModellingConfig)
    """The task and the network."""


def _tiny() -> SparKRun:
    """Minutes on a CPU: small images, small network, a brisk schedule."""
    train = TrainConfig(steps=300, batch_size=32, lr=2e-3, warmup_steps=20, clip_norm=5.0, workers=1)
    return SparKRun(rooms=16, train=train)


def _paper(encoder: str = "resnet50", beta2: float = 0.95, batch_size: int = 128) -> SparKRun:
    """The published recipe for ImageNet at 224 pixels: 32 GPUs, 4096 images a step, LAMB, 1600 epochs."""
    method = MaskedModellingConfig(encoder, (224, 224), decoder_width=768)
    train = TrainConfig(
        epochs=1600,
        warmup_epochs=40,
        batch_size=batch_size,
        optimizer="lamb",
        betas=(0.9, beta2),
        base_lr=2e-4,
        min_lr=2e-4 * 4096 / 256 * 1e-3,
        weight_decay=0.04,
        weight_decay_end=0.2,
        clip_norm=5.0,
        workers=8,
    )
    return SparKRun(method=method, train=train)


def _paper_convnext() -> SparKRun:
    """The same for ConvNeXt-S, whose second moments decay more slowly."""
    return _paper("convnext_small", 0.999)


def _prepare(run: SparKRun, folder: Path, log: Log, fresh: bool) -> None:
    """Make synthetic rooms where no data is given."""
    with torch.device("meta"):
        MaskedModelling(run.method)  # settings that do not fit each other are told before the work below
    if not run.data:
        make_rooms(run.rooms, run.train.seed, log)


class SparKTask:
    """SparK's method with training images, and held-out images to measure it on."""

    def __init__(self, run: SparKRun, folder: Path, log: Log) -> None:
        images = ImageSet.find(run.data or (rooms_folder(run.rooms, run.train.seed),))
        log_broken(images.datasets, log)
        self.seed = run.train.seed
        self.method = MaskedModelling(run.method, torch.Generator().manual_seed(self.seed))
        rows, held = split_scenes(images.group_count, run.held_out, self.seed)
        train = images.of_groups(rows) if len(held) else images
        self.samples = self.method.samples(train)
        self.measured_images = "held-out" if len(held) else "training"
        self._measured = self.method.samples(images.of_groups(held) if len(held) else train)
        self.count = min(_MEASURED, len(self._measured))
        log(
            f"{len(train)} images of {train.group_count} scenes or photographs to train on; the report is on "
            f"{self.count} {self.measured_images} images"
        )

    def measure(self) -> dict[str, float]:
        """Loss over hidden cells; who predicts each cell's mean has a loss of 1 but for cells of one colour."""
        method = self.method
        device = next(method.parameters()).device
        order = stream_generator(self.seed, Stream.MEASURE_SPARK).permutation(len(self._measured))[: self.count]
        losses: list[float] = []
        means: list[float] = []
        with method.measuring():
            for start in range(0, self.count, _MEASURED_BATCH):
                numbers = range(start, min(start + _MEASURED_BATCH, self.count))
                drawn = [self._draw(int(order[n]), n) for n in numbers]
                batch = {key: value.to(device) for key, value in method.collate(drawn).items()}
                losses += [method(batch).loss.item()] * len(drawn)
                means += [method.loss_of_means(batch).item()] * len(drawn)
        return {"loss": float(np.mean(losses)), "loss_of_means": float(np.mean(means)), "images": self.count}

    def _draw(self, item: int, number: int) -> dict[str, Any]:
        return draw_readable(self._measured, item, stream_generator(self.seed, Stream.MEASURE_SPARK, number))

    def report(self, before: dict[str, float], after: dict[str, float]) -> tuple[dict[str, Any], str]:
        """Loss before and after, beside that of who predicts each cell's mean."""
        text = (
            f"loss over hidden cells of {self.count} {self.measured_images} images: {before['loss']:.4f} untrained, "
            f"{after['loss']:.4f} trained; {after['loss_of_means']:.4f} is who fills each cell with its mean colour"
        )
        change = 100 * (after["loss"] / after["loss_of_means"] - 1)
        figures = {"images": self.measured_images, "before": before, "after": after, "percent_below_means": -change}
        return figures, text


RECIPE = Recipe(
    summary="SparK: fill in hidden cells of images, with a convolutional network",
    run=SparKRun,
    presets={"tiny": _tiny, "paper": _paper, "paper-convnext": _paper_convnext},
    prepare=_prepare,
    task=SparKTask,
)
