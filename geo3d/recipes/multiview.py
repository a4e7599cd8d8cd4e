"""Multi-view completion's recipe: groups of views of any scenes, and the gain from the other views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from geo3d.methods.multiview import MultiViewCompletion, MultiViewCompletionConfig, first_views, groups_means
from geo3d.random import Stream
from geo3d.recipes.completion import CompletionRecipe
from geo3d.recipes.pairs import PairsRun, near_pairs
from geo3d.train.config import TrainConfig


@dataclass(kw_only=True)
class MultiViewRun(PairsRun):
    """Pre-train on several views of a scene: complete masked views from one another."""

    method: MultiViewCompletionConfig = field(default_factory=MultiViewCompletionConfig)
    """The task and the network."""


def _tiny() -> MultiViewRun:
    """Minutes on a CPU: as CroCo's, in smaller batches, which teach more in the same time."""
    train = TrainConfig(steps=500, batch_size=16, lr=2e-3, warmup_steps=20, clip_norm=1.0, workers=1)
    method = MultiViewCompletionConfig(normalise_patches=False)
    return MultiViewRun(rooms=16, mining=near_pairs(), method=method, train=train)


def _large() -> MultiViewRun:
    """The large encoder on up to eight views, with CroCo v2's schedule."""
    method = MultiViewCompletionConfig("multiview_large", (224, 224), resized=256, views=8)
    train = TrainConfig(epochs=125, schedule_epochs=250, warmup_epochs=12, batch_size=16, base_lr=1.5e-4, workers=8)
    return MultiViewRun(method=method, train=train)


class MultiViewRecipe(CompletionRecipe):
    """Multi-view completion with groups of training views, and held-out groups to measure it on."""

    summary = "multi-view: complete masked views of a scene from one another"
    run = MultiViewRun
    presets: ClassVar = {"tiny": _tiny, "large": _large}
    method_class = MultiViewCompletion
    items = "groups"
    stream = Stream.MEASURE_MULTIVIEW

    def draw_measured(self, item: int, rng: np.random.Generator) -> dict[str, Any]:
        """A group; ``other_views`` and ``other_mask`` have views of another scene after the first, where there is one.

        Where that scene has fewer views that are connected, they stand there more than once.
        """
        sample = super().draw_measured(item, rng)
        count = len(sample["views"])
        if not self.several_scenes:
            return sample
        found = self.of_another_scene(
            item, int(sample["scene"]), rng, lambda samples, index, rng: samples.draw_group(index, count, rng)
        )
        others = torch.arange(count - 1) % (len(found["views"]) - 1) + 1
        replaced = {f"other_{name}": torch.cat([sample[name][:1], found[name][others]]) for name in ("views", "mask")}
        return sample | replaced

    def figures(self) -> dict[str, float]:
        """Masked loss of all views; and of each group's first one with its others, views of another scene, and none."""
        return self.means(self._losses)

    def _losses(self, batch: dict[str, Any]) -> dict[str, float]:
        offsets = batch["offsets"]
        beside = self.method(batch).extras["view_loss"]
        found = {"loss": groups_means(beside, offsets).mean(), "loss_first": beside[offsets[:-1]].mean()}
        if "other_views" in batch:
            replaced = {name: batch[f"other_{name}"] for name in ("views", "mask")}
            found["loss_first_other_scene"] = self.method(batch | replaced).extras["view_loss"][offsets[:-1]].mean()
        found["loss_first_alone"] = self.method(first_views(batch)).loss
        return {name: value.item() for name, value in found.items()}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Loss before and after, and the gain from the other views."""
        elsewhere = (
            f", {after['loss_first_other_scene']:.4f} with views of another scene in their place"
            if "loss_first_other_scene" in after
            else ""
        )
        return (
            f"{super().text(before, after)}\ngain from the other views, of each group's first view: "
            f"{after['loss_first']:.4f} with the true ones{elsewhere}, {after['loss_first_alone']:.4f} alone"
        )
