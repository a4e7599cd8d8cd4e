"""Cross-view completion (CroCo, section 3; CroCo v2, section 3): fill in a masked view from another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geo3d.methods.completion import (
    CompletionConfig,
    CompletionMethod,
    completion_loss,
    masked_and_completed,
    random_visible,
)
from geo3d.methods.images import color_jitter, decoding, random_crop, to_tensor
from geo3d.methods.method import MethodOutput, SourceSamples
from geo3d.nn.colors import normalise
from geo3d.nn.patches import patchify
from geo3d.samples.pairs import ViewPairs
from geo3d.viz.sheet import captioned_sheet

_PICTURE_ROWS = 6
_PICTURE_COLUMNS = ("second view", "first, masked", "completed", "first view")


@dataclass(frozen=True)
class CrossViewCompletionConfig(CompletionConfig):
    """How CroCo is trained."""

    model: str = "croco_tiny"
    """Network, one of `geo3d.list_models("croco*")`."""
    swap_views: bool = True
    """Take either view of a pair as the masked one, at random."""


class CompletionSamples(SourceSamples[ViewPairs]):
    """View pairs, cropped, jittered and masked."""

    def __init__(self, source: ViewPairs, config: CrossViewCompletionConfig, tokens: int) -> None:
        super().__init__(source)
        self.config, self.tokens = config, tokens

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One pair: ``first`` and ``second`` (H, W, 3) uint8, ``visible`` (V,) int64, ``scene`` its group."""
        config = self.config
        views = self.source.images(index)
        if config.swap_views and rng.random() < 0.5:
            views = views[::-1]
        with decoding(self.describe, index):
            crops = [random_crop(view, config.image_size, config.resized, rng) for view in views]
        first, second = (to_tensor(color_jitter(crop, config.color_jitter, rng)) for crop in crops)
        visible = random_visible(self.tokens, config.mask_ratio, rng)
        return {"first": first, "second": second, "visible": visible, "scene": self.source.group(index)}


class CrossViewCompletion(CompletionMethod):
    """CroCo's pretext task on its network."""

    name = "croco"
    source = ViewPairs
    trains = "croco"

    def samples(self, source: ViewPairs) -> CompletionSamples:
        """The training items of a set of view pairs."""
        return CompletionSamples(source, self.config, self.tokens)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """The completion loss of a batch of drawn items; nothing is drawn here, the masks come with the items."""
        first, second, visible = normalise(batch["first"]), normalise(batch["second"]), batch["visible"]
        prediction = self.network(first, second, visible).prediction
        patches = patchify(first, self.network.config.patch_size)
        mask = torch.ones(prediction.shape[:2], device=prediction.device).scatter(1, visible, 0.0)
        loss = completion_loss(prediction, patches, mask, self.config.normalise_patches)
        return MethodOutput({"completion": loss}, extras={"prediction": prediction, "mask": mask})

    @torch.no_grad()
    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """Rows of: second view, masked first view, completion with the visible patches pasted in, first view."""
        first, second = (batch[name][:_PICTURE_ROWS] for name in ("first", "second"))
        prediction, mask = (output.extras[name][:_PICTURE_ROWS] for name in ("prediction", "mask"))
        filled = masked_and_completed(self.network, first, prediction, mask, self.config.normalise_patches)
        images = [second, *filled, first]
        return captioned_sheet(torch.stack(images, 1).cpu().numpy(), _PICTURE_COLUMNS)


__all__ = [
    "CompletionSamples",
    "CrossViewCompletion",
    "CrossViewCompletionConfig",
    "completion_loss",
    "random_visible",
]
