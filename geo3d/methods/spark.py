"""Masked modelling for convolutional networks (SparK): reconstruct hidden cells from the ones that are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.checks import check_between, check_image_size, check_range
from geo3d.methods.images import decoding, random_resized_crop, to_tensor
from geo3d.methods.method import Method, MethodOutput, SourceSamples
from geo3d.models import create_model
from geo3d.models.spark import CELL
from geo3d.nn.colors import denormalise, normalise
from geo3d.nn.masked_conversion import SparseEncoder, to_sparse
from geo3d.nn.patches import patch_statistics, patchify, unpatchify
from geo3d.samples.images import ImageSet
from geo3d.viz.sheet import captioned_sheet

_COUNT_EPS = 1e-8
_PICTURE_ROWS = 6
_PICTURE_COLUMNS = ("masked", "filled in", "original")


@dataclass(frozen=True)
class MaskedModellingConfig:
    """How SparK is trained."""

    encoder: str = "resnet_tiny"
    """Encoder: resnet50, 101, 152 or 200, convnext_small, _base or _large; for CPUs resnet_tiny or convnext_atto."""
    image_size: tuple[int, int] = (96, 96)
    """Height and width of the crops, pixels; multiples of 32, the side of a cell."""
    mask_ratio: float = 0.6
    """Share of the cells that is hidden (0.75 at 384 pixels, as published)."""
    decoder_width: int = 256
    """Channels of the decoder at its coarsest scale (published: 768); a multiple of 32."""
    drop_path_rate: float | None = None
    """Probability to drop the last block's residual; None: as the encoder was published."""
    scale: tuple[float, float] = (0.67, 1.0)
    """Share of an image's area that a crop takes, from and to."""
    flip: bool = True
    """Mirror every second crop."""
    path: Literal["auto", "tiles", "dense"] = "auto"
    """Layout of the encoder's maps: tiles of seen cells or whole maps. The numbers are the same."""

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "mask_ratio")
        check_range(self, "scale", most=1)
        check_image_size(self)
        if any(side < CELL or side % CELL for side in self.image_size):
            raise InputError(f"image_size must be two multiples of {CELL} pixels, got {self.image_size}")
        if not 0 < seen_count(self.grid, self.mask_ratio) < self.grid[0] * self.grid[1]:
            raise InputError(
                f"mask_ratio {self.mask_ratio} hides none or all of the {self.grid[0] * self.grid[1]} cells of an image"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.image_size[0] // CELL, self.image_size[1] // CELL


def seen_count(grid: tuple[int, int], mask_ratio: float) -> int:
    """How many cells of a grid stay seen: ``round(cells * (1 - mask_ratio))``, as published."""
    return round(grid[0] * grid[1] * (1 - mask_ratio))


def random_active(grid: tuple[int, int], mask_ratio: float, rng: np.random.Generator) -> Tensor:
    """(rows, columns) bool, true at :func:`seen_count` cells drawn at random."""
    cells = grid[0] * grid[1]
    active = np.zeros(cells, dtype=bool)
    active[rng.permutation(cells)[: seen_count(grid, mask_ratio)]] = True
    return torch.from_numpy(active.reshape(grid))


def reconstruction_loss(reconstruction: Tensor, images: Tensor, active: Tensor, cell: int = CELL) -> Tensor:
    """Mean squared error over hidden cells, of colours that are normalised in each cell.

    Args:
        reconstruction: (B, 3, H, W) predicted colours, normalised cell by cell.
        images: (B, 3, H, W).
        active: (B, 1, H / cell, W / cell) bool, true where a cell was seen.
        cell: pixels along a side of a cell.

    Returns:
        Scalar, float32 or wider; 0 where no cell is hidden.
    """
    patches = patchify(images, cell)
    mean, deviation = patch_statistics(patches)
    predicted = patchify(reconstruction.to(patches.dtype), cell)
    error = (predicted - (patches - mean) / deviation).square().mean(-1)
    hidden = ~active.flatten(1)
    return (error * hidden).sum() / (hidden.sum() + _COUNT_EPS)


def fill_in(reconstruction: Tensor, images: Tensor, active: Tensor, cell: int = CELL) -> Tensor:
    """Images (B, 3, H, W) with the reconstruction, brought to the true mean and contrast, in their hidden cells."""
    patches = patchify(images, cell)
    mean, deviation = patch_statistics(patches)
    predicted = patchify(reconstruction.to(patches.dtype), cell) * deviation + mean
    seen = active.flatten(1).unsqueeze(-1)
    return unpatchify(torch.where(seen, patches, predicted), cell, tuple(active.shape[-2:]))


class ModellingSamples(SourceSamples[ImageSet]):
    """Images, cropped, mirrored and masked."""

    def __init__(self, source: ImageSet, config: MaskedModellingConfig) -> None:
        super().__init__(source)
        self.config = config

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One image: ``image`` (H, W, 3) uint8, and ``active`` (rows, columns) bool."""
        config = self.config
        image = self.source.image(index)
        with decoding(self.describe, index):
            crop = random_resized_crop(image, config.image_size, config.scale, rng)
        if config.flip and rng.random() < 0.5:
            crop = ImageOps.mirror(crop)
        return {"image": to_tensor(crop), "active": random_active(config.grid, config.mask_ratio, rng)}


class MaskedModelling(Method):
    """SparK's pretext task on its network.

    Args:
        config: task and network.
        generator: draws the initial weights.
    """

    name = "spark"
    source = ImageSet

    def __init__(self, config: MaskedModellingConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        options = {} if config.drop_path_rate is None else {"drop_path_rate": config.drop_path_rate}
        self.network = create_model(
            "spark", encoder=config.encoder, decoder_width=config.decoder_width, generator=generator, **options
        )

    def samples(self, source: ImageSet) -> ModellingSamples:
        """The training items of a set of images."""
        return ModellingSamples(source, self.config)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """The loss of a batch of drawn items, whose masks come with them; paths are dropped by torch's generator."""
        images, active = normalise(batch["image"]), batch["active"].unsqueeze(1)
        reconstruction = self.network(images, active, self.config.path).reconstruction
        loss = reconstruction_loss(reconstruction, images, active)
        return MethodOutput({"reconstruction": loss}, extras={"reconstruction": reconstruction})

    def loss_of_means(self, batch: dict[str, Any]) -> Tensor:
        """Loss of the baseline that fills every hidden cell with its mean colour: 1, but for cells of one colour."""
        images, active = normalise(batch["image"]), batch["active"].unsqueeze(1)
        return reconstruction_loss(torch.zeros_like(images), images, active)

    def model_names(self) -> tuple[str, ...]:
        """The whole network's, and that of the encoder, which was released alone."""
        return ("spark", self.config.encoder)

    def no_weight_decay(self) -> set[str]:
        """The tokens of hidden cells, as published."""
        return {name for name, _ in self.named_parameters() if "mask_tokens" in name}

    @torch.no_grad()
    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """Rows of: the image with its hidden cells grey, with them filled in, and as it is.

        Colours are predicted but for each cell's mean and contrast, which are taken from the true cell.
        """
        images, active = (batch[name][:_PICTURE_ROWS] for name in ("image", "active"))
        active, seen = active.unsqueeze(1), normalise(images)
        hidden = ~active.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        filled = fill_in(output.extras["reconstruction"][:_PICTURE_ROWS].float(), seen, active)
        columns = [denormalise(seen.masked_fill(hidden, 0)), denormalise(filled), images]
        return captioned_sheet(torch.stack(columns, 1).cpu().numpy(), _PICTURE_COLUMNS)


__all__ = [
    "MaskedModelling",
    "MaskedModellingConfig",
    "ModellingSamples",
    "SparseEncoder",
    "fill_in",
    "random_active",
    "reconstruction_loss",
    "seen_count",
    "to_sparse",
]
