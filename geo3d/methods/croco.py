"""Cross-view completion (CroCo, section 3; CroCo v2, section 3): fill in a masked view from another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_between, check_image_size
from geo3d.methods.images import color_jitter, decoding, random_crop, to_tensor
from geo3d.methods.method import Method, MethodOutput, SourceSamples
from geo3d.models import create_model
from geo3d.nn.colors import denormalise, normalise
from geo3d.nn.patches import patch_statistics, patchify, unpatchify
from geo3d.samples.pairs import ViewPairs
from geo3d.viz.sheet import captioned_sheet

_PICTURE_ROWS = 6
_PICTURE_COLUMNS = ("second view", "first, masked", "completed", "first view")


@dataclass(frozen=True)
class CrossViewCompletionConfig:
    """How CroCo is trained."""

    model: str = "croco_tiny"
    """Network, one of `geo3d.list_models("croco*")`."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width of the crops, pixels; multiples of the network's patch."""
    resized: int = 72
    """Shorter side of a view before the crop, pixels (published: 256 for crops of 224)."""
    mask_ratio: float = 0.9
    """Share of the first view's patches that is hidden."""
    normalise_patches: bool = True
    """Compare with patches of zero mean and unit variance, as published."""
    color_jitter: float = 0.4
    """Brightness, contrast and saturation vary by factors of 1 +- this, for each view on its own."""
    swap_views: bool = True
    """Take either view of a pair as the masked one, at random."""

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "mask_ratio")
        if not 0 <= self.color_jitter < 1:
            raise InputError(f"color_jitter must lie in [0, 1), got {self.color_jitter}")
        check_at_least(self, 1, "resized")
        check_image_size(self)


def completion_loss(prediction: Tensor, patches: Tensor, mask: Tensor, normalise_patches: bool) -> Tensor:
    """Mean squared error over the masked patches of all samples.

    Args:
        prediction: (B, N, C) predicted patches.
        patches: (B, N, C) true patches.
        mask: (B, N), true where masked.
        normalise_patches: bring each true patch to zero mean and unit (unbiased) variance first.

    Returns:
        Scalar, float32 or wider.
    """
    if normalise_patches:
        mean, deviation = patch_statistics(patches)
        patches = (patches - mean) / deviation
    error = (prediction.to(patches.dtype) - patches).square().mean(-1)
    mask = mask.to(error.dtype)
    return (error * mask).sum() / mask.sum()


def random_visible(tokens: int, mask_ratio: float, rng: np.random.Generator) -> Tensor:
    """Tokens that stay visible: all but ``int(mask_ratio * tokens)``, ascending, (V,) int64."""
    hidden = int(mask_ratio * tokens)
    return torch.from_numpy(np.sort(rng.permutation(tokens)[hidden:]))


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


class CrossViewCompletion(Method):
    """CroCo's pretext task on its network.

    Args:
        config: task and network.
        generator: draws the initial weights.

    Raises:
        InputError: image size and patch do not fit, or the mask hides nothing or everything.
    """

    name = "croco"
    source = ViewPairs

    def __init__(self, config: CrossViewCompletionConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.network = create_model(config.model, image_size=config.image_size, generator=generator)
        rows, columns = self.network.config.grid
        self.tokens = rows * columns
        if not 0 < int(config.mask_ratio * self.tokens) < self.tokens:
            raise InputError(
                f"mask_ratio {config.mask_ratio} hides none or all of the {self.tokens} patches of an image"
            )

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
        patch, grid = self.network.config.patch_size, self.network.config.grid
        first = normalise(batch["first"][:_PICTURE_ROWS])
        patches = patchify(first, patch)
        predicted = output.extras["prediction"][:_PICTURE_ROWS].float()
        if self.config.normalise_patches:
            mean, deviation = patch_statistics(patches)
            predicted = predicted * deviation + mean
        hidden = output.extras["mask"][:_PICTURE_ROWS].unsqueeze(-1) > 0
        images = [
            batch["second"][:_PICTURE_ROWS],
            denormalise(unpatchify(patches.masked_fill(hidden, 0), patch, grid)),
            denormalise(unpatchify(torch.where(hidden, predicted, patches), patch, grid)),
            batch["first"][:_PICTURE_ROWS],
        ]
        return captioned_sheet(torch.stack(images, 1).cpu().numpy(), _PICTURE_COLUMNS)


__all__ = ["CompletionSamples", "CrossViewCompletion", "CrossViewCompletionConfig", "completion_loss", "random_visible"]
