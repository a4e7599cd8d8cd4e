"""Multi-view completion (MuM, CVPR 2026): views of one scene, all masked, filled in from one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.methods.checks import check_at_least
from geo3d.methods.completion import (
    CompletionConfig,
    CompletionMethod,
    masked_and_completed,
    patch_errors,
    random_visible,
)
from geo3d.methods.images import color_jitter, decoding, random_crop, to_tensor
from geo3d.methods.method import MethodOutput, SourceSamples
from geo3d.nn.colors import normalise
from geo3d.nn.patches import patchify
from geo3d.samples.packing import pack
from geo3d.samples.view_groups import ViewGroups
from geo3d.spread import evenly_spread
from geo3d.viz.sheet import captioned_sheet

_PICTURE_GROUPS = 3
_PICTURE_COLUMNS = ("masked", "completed", "true view")


@dataclass(frozen=True)
class MultiViewCompletionConfig(CompletionConfig):
    """How a network is trained to fill in several views of a scene."""

    model: str = "multiview_tiny"
    """Network, one of `geo3d.list_models("multiview*")`."""
    mask_ratio: float = 0.75
    """Share of a masked view's patches that is hidden."""
    views: int = 4
    """Most views of a group; how many it has is drawn, from 2 on (count)."""
    masked_views: int = 0
    """Most views of a group that are masked; the others are whole, one at least. 1 and a mask_ratio of 0.9 is CroCo's
    task with more than one second view. 0: all are masked (count)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 2, "views")
        check_at_least(self, 0, "masked_views")


class MultiViewSamples(SourceSamples[ViewGroups]):
    """Groups of views, cropped, jittered and masked."""

    def __init__(self, source: ViewGroups, config: MultiViewCompletionConfig, tokens: int) -> None:
        super().__init__(source)
        self.config, self.tokens = config, tokens

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A group of a drawn number of views: as :meth:`draw_group`."""
        return self.draw_group(index, int(rng.integers(2, self.config.views + 1)), rng)

    def draw_group(self, index: int, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """A group of at most ``count`` views: ``views`` (n, H, W, 3) uint8, ``mask`` (n, N) bool, ``scene`` (1,)."""
        config = self.config
        images = self.source.images_of(index, self.source.group_of_views(index, count, rng))
        with decoding(self.describe, index):
            crops = [random_crop(image, config.image_size, config.resized, rng) for image in images]
        views = torch.stack([to_tensor(color_jitter(crop, config.color_jitter, rng)) for crop in crops])
        mask = torch.zeros(len(views), self.tokens, dtype=torch.bool)
        masked = min(config.masked_views, len(views) - 1) or len(views)
        for row in mask[:masked]:
            row.fill_(True)[random_visible(self.tokens, config.mask_ratio, rng)] = False
        return {"views": views, "mask": mask, "scene": torch.tensor([self.source.group(index)])}


class MultiViewCompletion(CompletionMethod):
    """Filling in several views of a scene: those that are masked, each from its visible patches and all other views."""

    name = "multiview"
    source = ViewGroups
    trains = "multiview"

    def model_names(self) -> tuple[str, ...]:
        """Files of CroCo's authors fit, whose layers have the same names."""
        return ("croco",)

    def samples(self, source: ViewGroups) -> MultiViewSamples:
        """The training items of a source of groups of views."""
        return MultiViewSamples(source, self.config, self.tokens)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Groups one after the other, the smallest first, with ``offsets`` (B + 1,) of their views."""
        return pack(sorted(samples, key=lambda sample: len(sample["views"])), counted="views")

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """The completion loss of a batch of drawn items, over all hidden patches; the masks come with the items."""
        views, mask = normalise(batch["views"]), batch["mask"]
        prediction = self.network(views, mask, batch["offsets"].diff().tolist()).prediction
        patches = patchify(views, self.network.config.patch_size)
        errors = patch_errors(prediction, patches, self.config.normalise_patches) * mask
        hidden = mask.sum(1)
        extras = {"prediction": prediction, "mask": mask, "view_loss": errors.detach().sum(1) / hidden}
        return MethodOutput({"completion": errors.sum() / hidden.sum()}, extras=extras)

    @torch.no_grad()
    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """Groups side by side, a view a row: masked, completed with the visible patches pasted in, and as it is."""
        prediction, mask = output.extras["prediction"], output.extras["mask"]
        filled = masked_and_completed(self.network, batch["views"], prediction, mask, self.config.normalise_patches)
        images = torch.stack([*filled, batch["views"]], 1).cpu().numpy()  # (V, 3, H, W, 3)
        offsets = batch["offsets"].tolist()
        groups = evenly_spread(len(offsets) - 1, _PICTURE_GROUPS)
        most = max(offsets[n + 1] - offsets[n] for n in groups)
        sheet = np.full((most, len(groups), *images.shape[1:]), 255, np.uint8)
        for column, n in enumerate(groups):
            shown = images[offsets[n] : offsets[n + 1]]
            sheet[: len(shown), column] = shown
        captions = [f"group {n + 1}: {title}" for n in range(len(groups)) for title in _PICTURE_COLUMNS]
        return captioned_sheet(sheet.reshape(most, -1, *images.shape[2:]), captions)


def first_views(batch: dict[str, Any]) -> dict[str, Any]:
    """The first view of each group of a batch, which then is a group of its own."""
    first = batch["offsets"][:-1]
    offsets = torch.arange(len(first) + 1, device=first.device)
    return {"views": batch["views"][first], "mask": batch["mask"][first], "offsets": offsets}


def groups_means(values: Tensor, offsets: Tensor) -> Tensor:
    """(B,) mean over the views of each group of values (V,), without those that are NaN."""
    return torch.stack([part.nanmean() for part in values.split(offsets.diff().tolist())])


__all__ = [
    "MultiViewCompletion",
    "MultiViewCompletionConfig",
    "MultiViewSamples",
    "first_views",
    "groups_means",
]
