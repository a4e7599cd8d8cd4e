"""CroCo's recipe: view pairs of any scenes, and the gain from the second view."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from geo3d.methods.croco import CrossViewCompletion, CrossViewCompletionConfig
from geo3d.random import Stream
from geo3d.recipes.completion import CompletionRecipe
from geo3d.recipes.pairs import PairsRun, near_pairs
from geo3d.recipes.recipe import MEASURED_BATCH
from geo3d.train.config import TrainConfig


@dataclass(kw_only=True)
class CroCoRun(PairsRun):
    """Pre-train CroCo: complete a masked view from another view of the same scene."""

    method: CrossViewCompletionConfig = field(default_factory=CrossViewCompletionConfig)
    """The task and the network."""


def _tiny() -> CroCoRun:
    """Minutes on a CPU: small images, small network, a brisk schedule.

    Views are near each other and patches are compared as they are: what the second view shows is learnt to be used
    sooner, and of a patch of bare wall little but noise would be left.
    """
    train = TrainConfig(steps=350, batch_size=32, lr=2e-3, warmup_steps=15, clip_norm=1.0, workers=1)
    method = CrossViewCompletionConfig(normalise_patches=False)
    return CroCoRun(rooms=16, mining=near_pairs(), method=method, train=train)


def _paper() -> CroCoRun:
    """CroCo v2 with the large encoder: 8 GPUs x 64 pairs, stopped half-way down the cosine."""
    method = CrossViewCompletionConfig("croco_v2_large_base", (224, 224), resized=256)
    train = TrainConfig(epochs=125, schedule_epochs=250, warmup_epochs=12, batch_size=64, base_lr=1.5e-4, workers=8)
    return CroCoRun(method=method, train=train)


def _paper_v1() -> CroCoRun:
    """CroCo v1: 4 GPUs x 64 pairs in half precision, 400 epochs of a cosine over 800."""
    method = CrossViewCompletionConfig("croco_v1_base", (224, 224), resized=256)
    train = TrainConfig(
        epochs=400, schedule_epochs=800, warmup_epochs=40, batch_size=64, base_lr=1.5e-4, workers=8, precision="fp16"
    )
    return CroCoRun(method=method, train=train)


class CroCoRecipe(CompletionRecipe):
    """CroCo's method with training pairs, and held-out pairs to measure it on."""

    summary = "CroCo: complete a masked view from another view of the same scene"
    run = CroCoRun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper, "paper-v1": _paper_v1}
    method_class = CrossViewCompletion
    stream = Stream.MEASURE_CROCO

    def draw_measured(self, item: int, rng: np.random.Generator) -> dict[str, Any]:
        """A pair; ``other`` is the second view of a pair of another scene, where there is one."""
        sample = super().draw_measured(item, rng)
        if not self.several_scenes:
            return sample
        found = self.of_another_scene(item, sample["scene"], rng, lambda samples, *drawn: samples.draw(*drawn))
        return sample | {"other": found["second"]}

    def figures(self) -> dict[str, float]:
        """Masked loss with the true second view, and with a view of another scene in its place."""
        return self.means(self._losses, least=MEASURED_BATCH)

    def _losses(self, batch: dict[str, Any]) -> dict[str, float]:
        found = {"loss": self.method(batch).loss.item()}
        if "other" in batch:
            found["loss_other_scene"] = self.method(batch | {"second": batch["other"]}).loss.item()
        return found

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Loss before and after, and the gain from the second view."""
        gain = (
            f"gain from the second view: {after['loss']:.4f} with the true one, {after['loss_other_scene']:.4f} with a "
            "view of another scene in its place"
            if "loss_other_scene" in after
            else "gain from the second view: was not measured, since that takes pairs of two scenes"
        )
        return f"{super().text(before, after)}\n{gain}"
