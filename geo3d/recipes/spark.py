"""SparK's recipe: single images of any scenes or folders, and how well hidden cells of held-out ones are filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from geo3d.methods.spark import MaskedModelling, MaskedModellingConfig
from geo3d.random import Stream
from geo3d.recipes.recipe import Recipe, RoomsRun
from geo3d.train.config import TrainConfig


@dataclass(kw_only=True)
class SparKRun(RoomsRun):
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


class SparKRecipe(Recipe):
    """SparK's method with training images, and held-out images to measure it on."""

    summary = "SparK: fill in hidden cells of images, with a convolutional network"
    run = SparKRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper, "paper-convnext": _paper_convnext}
    method_class = MaskedModelling
    items, groups, measured_key = "images", "scenes or photographs", "images"
    loss_name = "loss over hidden cells"
    stream = Stream.MEASURE_SPARK

    def figures(self) -> dict[str, float]:
        """Loss over hidden cells; that of each cell's mean colour is 1 but for cells of one colour."""
        return self.means(
            lambda batch: {
                "loss": self.method(batch).loss.item(),
                "loss_of_means": self.method.loss_of_means(batch).item(),
            }
        )

    def comparison(self, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
        """How far the loss lies below that of the baseline."""
        return {"percent_below_means": -100 * (after["loss"] / after["loss_of_means"] - 1)}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Loss before and after, beside that of the baseline."""
        return (
            f"{super().text(before, after)}; the baseline that fills each cell with its mean colour: "
            f"{after['loss_of_means']:.4f}"
        )
