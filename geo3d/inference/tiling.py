"""Dense prediction on images larger than a network's: tiles, blended by confidence (CroCo v2, section 4).

:func:`tiled_prediction` is the published way. Both images are cut at the same places there, so that what has moved out
of the tile is not found: :func:`geo3d.inference.stereo.match_stereo` shifts the second image's tiles too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError

#: A network: tiles of the first image and the second (B, 3, h, w) -> values (B, C, h, w) and raw confidence (B, h, w).
Predictor = Callable[..., tuple[Tensor, Tensor | None]]
#: Raw confidences -> weights of tiles.
Weigh = Callable[[Tensor], Tensor]

#: Where weights begin, as published, so that nothing is divided by zero.
_LEAST_WEIGHT = 1e-16


class TiledOutput(NamedTuple):
    """Blended tiles.

    Args:
        values: (B, C, H, W) at the size of the images.
        confidence: (B, h, w) weighted mean of the raw confidences, at the size that the tiles were cut from: the
            images' own unless these were smaller than a tile. None where the network has none.
    """

    values: Tensor
    confidence: Tensor | None


class Tile(NamedTuple):
    """A place in an image, pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Tensor) -> Tensor:
        """Its part of an image (..., H, W)."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


def tile_offsets(size: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side, evenly from one end to the other.

    Args:
        size: pixels along the side, at least ``tile``.
        tile: pixels of a tile.
        overlap: least share of a tile that its neighbour covers too, in [0, 1).

    Raises:
        InputError: a tile that is larger than the side, or another overlap.
    """
    if not 0 < tile <= size or not 0 <= overlap < 1:
        raise InputError(f"tiles of {tile} pixels with an overlap of {overlap} do not fit a side of {size}")
    count = 1 + math.ceil((size - tile) / ((1 - overlap) * tile))
    return torch.linspace(0, size - tile, count, dtype=torch.float64).round().long().tolist()


def tiles_of(size: tuple[int, int], crop: tuple[int, int], overlap: float) -> list[Tile]:
    """The tiles of an image, row by row.

    Args:
        size, crop: height and width of image and tile, pixels.
        overlap: as :func:`tile_offsets` takes it.
    """
    rows, columns = (tile_offsets(s, c, overlap) for s, c in zip(size, crop, strict=True))
    return [Tile(top, left, *crop) for top in rows for left in columns]


def fit_to_tile(images: list[Tensor], crop: tuple[int, int]) -> list[Tensor]:
    """Images (B, 3, H, W) that are smaller than a tile along a side enlarged, as one, until they are not (bicubic)."""
    height, width = images[0].shape[2:]
    if height >= crop[0] and width >= crop[1]:
        return images
    factor = max(crop[0] / height, crop[1] / width)
    sides = max(round(height * factor), crop[0]), max(round(width * factor), crop[1])
    return [F.interpolate(image, sides, mode="bicubic", align_corners=False) for image in images]


class Blend:
    """Sums of weighted maps of tiles, at their places in an image.

    Args:
        like: (B, C, h, w) of a tile, for type, device and channels.
        size: height and width of the image.
        weigh: raw confidences -> weights; tiles without a confidence all weigh alike.
    """

    def __init__(self, like: Tensor, size: tuple[int, int], weigh: Weigh) -> None:
        batch, channels = like.shape[:2]
        self.weigh = weigh
        self.values = like.new_zeros(batch, channels, *size)
        self.confidence = like.new_zeros(batch, *size)
        self.weight = like.new_full((batch, *size), _LEAST_WEIGHT)

    def add(self, tile: Tile, values: Tensor, confidence: Tensor | None) -> None:
        """Add a tile's values (B, C, h, w) by its raw confidence (B, h, w)."""
        weight = torch.ones_like(values[:, 0]) if confidence is None else self.weigh(confidence)
        tile.cut(self.values).add_(values * weight.unsqueeze(1))
        tile.cut(self.weight).add_(weight)
        if confidence is not None:
            tile.cut(self.confidence).add_(confidence * weight)

    def covered(self) -> Tensor:
        """(B, H, W) bool, where there is a tile."""
        return self.weight > _LEAST_WEIGHT

    def mean(self) -> tuple[Tensor, Tensor]:
        """Weighted means of values and raw confidences."""
        return self.values / self.weight.unsqueeze(1), self.confidence / self.weight


@torch.no_grad()
def tiled_prediction(
    predict: Predictor,
    first: Tensor,
    second: Tensor | None,
    crop: tuple[int, int],
    weigh: Weigh,
    overlap: float = 0.7,
    moves: bool = True,
) -> TiledOutput:
    """Predict tile by tile, as published: the same places are cut from both images.

    Images that are smaller than a tile are enlarged (bicubic), and the prediction is brought back to their size.

    Args:
        predict: the network, such as a :class:`~geo3d.models.croco_downstream.CroCoDownstream`.
        first, second: (B, 3, H, W) normalised images of equal size; no second one of a network of one view.
        crop: height and width of a tile, pixels.
        weigh: raw confidences -> weights, such as ``config.tile_confidence.weight``.
        overlap: share of a tile that its neighbour covers too; the authors' 0.7, and 0.9 for submissions.
        moves: values are pixels, x and then y, and shrink with the image; those of depth do not.

    Returns:
        A :class:`TiledOutput`.

    Raises:
        InputError: images of different shapes, or another overlap.
    """
    images = fit_to_tile(checked(first, second), crop)
    blend = None
    for tile, values, confidence in _predicted(predict, images, crop, overlap):
        blend = blend or Blend(values, tuple(images[0].shape[2:]), weigh)
        blend.add(tile, values, confidence)
    values, means = blend.mean()
    return TiledOutput(back_to_size(values, tuple(first.shape[2:]), moves), None if confidence is None else means)


@torch.no_grad()
def tiled_loss(
    predict: Predictor,
    criterion: Callable[[tuple[Tensor, Tensor | None], Tensor], Tensor],
    first: Tensor,
    second: Tensor | None,
    target: Tensor,
    crop: tuple[int, int],
    overlap: float = 0.7,
) -> Tensor:
    """Mean over tiles of a loss, as published: each tile's own prediction against its part of the target.

    Args:
        predict, first, second, crop, overlap: as :func:`tiled_prediction`.
        criterion: (values, confidence), target -> scalar, such as ``Criterion.loss``.
        target: (B, C, H, W), not finite where it is not known.

    Raises:
        InputError: images smaller than a tile, whose targets would have to be made up; or as :func:`tiled_prediction`.
    """
    images = checked(first, second)
    losses = [
        criterion((values, confidence), tile.cut(target))
        for tile, values, confidence in _predicted(predict, images, crop, overlap)
    ]
    return torch.stack(losses).mean()


def _predicted(
    predict: Predictor, images: list[Tensor], crop: tuple[int, int], overlap: float
) -> Iterator[tuple[Tile, Tensor, Tensor | None]]:
    """Each tile with what the network says of it."""
    for tile in tiles_of(tuple(images[0].shape[2:]), crop, overlap):
        yield tile, *predict(*map(tile.cut, images))


def checked(first: Tensor, second: Tensor | None) -> list[Tensor]:
    """The images that there are.

    Raises:
        InputError: they are no batches of images, or of different shapes.
    """
    if first.ndim != 4 or (second is not None and second.shape != first.shape):
        shapes = f"{tuple(first.shape)}" + ("" if second is None else f" and {tuple(second.shape)}")
        raise InputError(f"tiles: images must be (B, 3, H, W) of one shape, got {shapes}")
    return [first] if second is None else [first, second]


def back_to_size(values: Tensor, size: tuple[int, int], moves: bool) -> Tensor:
    """Values (B, C, h, w) of enlarged images at these' own size; of ``moves``, x first, then y, shrunk alike."""
    height, width = values.shape[2:]
    if (height, width) == size:
        return values
    values = F.interpolate(values, size, mode="bicubic", align_corners=False)
    if not moves:
        return values
    factors = values.new_tensor([size[1] / width, size[0] / height])[: values.shape[1]]
    return values * factors.view(1, -1, 1, 1)


__all__ = [
    "Blend",
    "Predictor",
    "Tile",
    "TiledOutput",
    "back_to_size",
    "checked",
    "fit_to_tile",
    "tile_offsets",
    "tiled_loss",
    "tiled_prediction",
    "tiles_of",
]
