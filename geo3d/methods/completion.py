"""What methods that fill in masked views share: their settings, masks, the loss and what pictures show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_below_one, check_between, check_image_size
from geo3d.methods.method import Method
from geo3d.models import create_model
from geo3d.models.encoder import Encoder
from geo3d.nn.colors import denormalise, normalise
from geo3d.nn.patches import patch_statistics, patchify, unpatchify


@dataclass(frozen=True)
class CompletionConfig:
    """How a network is trained to fill in masked views; methods add their own fields."""

    model: str
    """Network."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width of the crops, pixels; multiples of the network's patch."""
    resized: int = 72
    """Shorter side of a view before the crop, pixels (published: 256 for crops of 224)."""
    mask_ratio: float = 0.9
    """Share of a masked view's patches that is hidden."""
    normalise_patches: bool = True
    """Compare with patches of zero mean and unit variance, as published."""
    color_jitter: float = 0.4
    """Brightness, contrast and saturation vary by factors of 1 +- this, for each view on its own."""

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "mask_ratio")
        check_below_one(self, "color_jitter")
        check_at_least(self, 1, "resized")
        check_image_size(self)


class CompletionMethod(Method):
    """A method whose network fills in masked views.

    Args:
        config: task and network.
        generator: draws the initial weights.

    Raises:
        InputError: image size and patch do not fit, or the mask hides nothing or everything.
    """

    #: Beginning of the names of the models that it trains.
    trains: ClassVar[str]

    def __init__(self, config: CompletionConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.network = create_model(config.model, image_size=config.image_size, generator=generator)
        if self.network.family != self.trains:
            raise InputError(f"model must be one of the family {self.trains}, not {config.model!r}")
        rows, columns = self.network.config.grid
        self.tokens = rows * columns
        if not 0 < int(config.mask_ratio * self.tokens) < self.tokens:
            raise InputError(
                f"mask_ratio {config.mask_ratio} hides none or all of the {self.tokens} patches of an image"
            )


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
    error = patch_errors(prediction, patches, normalise_patches)
    mask = mask.to(error.dtype)
    return (error * mask).sum() / mask.sum()


def patch_errors(prediction: Tensor, patches: Tensor, normalise_patches: bool) -> Tensor:
    """(B, N) mean squared error of each patch; arguments as of :func:`completion_loss`."""
    if normalise_patches:
        mean, deviation = patch_statistics(patches)
        patches = (patches - mean) / deviation
    return (prediction.to(patches.dtype) - patches).square().mean(-1)


def random_visible(tokens: int, mask_ratio: float, rng: np.random.Generator) -> Tensor:
    """Tokens that stay visible: all but ``int(mask_ratio * tokens)``, ascending, (V,) int64."""
    hidden = int(mask_ratio * tokens)
    return torch.from_numpy(np.sort(rng.permutation(tokens)[hidden:]))


def masked_and_completed(
    network: Encoder, images: Tensor, prediction: Tensor, mask: Tensor, normalise_patches: bool
) -> tuple[Tensor, Tensor]:
    """What pictures show of views: with grey in the place of hidden patches, and with what is predicted there.

    Args:
        network: of patches of ``config.patch_size`` in a grid ``config.grid``.
        images: (B, H, W, 3) uint8.
        prediction: (B, N, C) of all patches.
        mask: (B, N), true or above 0 where hidden.
        normalise_patches: whether predictions are of patches of zero mean and unit variance; they then get the true
            patches' mean and deviation.

    Returns:
        Two of (B, H, W, 3) uint8.
    """
    patch, grid = network.config.patch_size, network.config.grid
    patches, predicted, hidden = patchify(normalise(images), patch), prediction.float(), mask.unsqueeze(-1) > 0
    if normalise_patches:
        mean, deviation = patch_statistics(patches)
        predicted = predicted * deviation + mean
    masked, completed = patches.masked_fill(hidden, 0), torch.where(hidden, predicted, patches)
    return tuple(denormalise(unpatchify(shown, patch, grid)) for shown in (masked, completed))


__all__ = [
    "CompletionConfig",
    "CompletionMethod",
    "completion_loss",
    "masked_and_completed",
    "patch_errors",
    "random_visible",
]
