"""Stereo matching of whole images with a network of tiles: disparities beyond a tile, and left checked against right.

Published inference cuts both images at the same places: what lies farther to the left in the right image than the tile
reaches is not found (users report it: large disparities and textureless areas fail). Here the right image's tiles are
shifted along the rows too, and each pixel keeps what is surest; and what the right image says of the left is compared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.inference.tiling import Blend, Predictor, Tile, Weigh, back_to_size, checked, fit_to_tile, tiles_of

#: By how much of a tile's width one shift differs from the next.
SHIFT = 0.5


class StereoOutput(NamedTuple):
    """Disparities of the left image.

    Args:
        disparity: (B, H, W) pixels; what is at column x is at x - disparity in the right image.
        confidence: (B, H, W) raw, as the network's criterion reads it; lower is surer. None where the network has none.
        consistent: (B, H, W) bool, whether the right image's disparities agree; None where that was not looked at.
    """

    disparity: Tensor
    confidence: Tensor | None
    consistent: Tensor | None


@torch.no_grad()
def match_stereo(
    predict: Predictor,
    left: Tensor,
    right: Tensor,
    crop: tuple[int, int],
    weigh: Weigh,
    overlap: float = 0.7,
    reach: float = 0.0,
    tolerance: float | None = None,
) -> StereoOutput:
    """Disparities by overlapping tiles that are blended by confidence.

    Args:
        predict: the network: left and right tiles -> disparity (B, 1, h, w) and raw confidence (B, h, w).
        left, right: (B, 3, H, W) normalised images of equal size, rectified.
        crop: height and width of a tile, pixels.
        weigh: raw confidences -> weights, such as ``config.tile_confidence.weight``.
        overlap: share of a tile that its neighbour covers too.
        reach: disparities, pixels, up to which the right image's tiles are shifted along the rows, by half a tile at a
            time; each pixel keeps the surest. 0: no shifts, as published. It takes some ``2 * reach / crop[1]`` times
            as long.
        tolerance: how far the disparity of a pixel and that of its match, found by matching the mirrored images, may
            differ, pixels; None: that is not looked at. It takes twice as long.

    Returns:
        A :class:`StereoOutput` at the images' size.

    Raises:
        InputError: images of different shapes; another overlap; a reach or tolerance that is not positive; shifts with
            a network that has no confidence.
    """
    if not reach >= 0 or (tolerance is not None and not tolerance > 0):
        raise InputError(f"stereo: reach must not be negative and tolerance positive, got {reach} and {tolerance}")
    images = checked(left, right)
    size = tuple(left.shape[2:])
    disparity, confidence = _matched(predict, images, crop, weigh, overlap, reach, size)
    if tolerance is None:
        return StereoOutput(disparity, confidence, None)
    mirrored = [image.flip(3) for image in reversed(images)]
    other, _ = _matched(predict, mirrored, crop, weigh, overlap, reach, size)
    return StereoOutput(disparity, confidence, agreeing(disparity, other.flip(2), tolerance))


def agreeing(left: Tensor, right: Tensor, tolerance: float) -> Tensor:
    """Where disparities of the left image agree with those of the right one at their matches.

    Args:
        left, right: (B, H, W) pixels, of each image.
        tolerance: greatest difference, pixels.

    Returns:
        (B, H, W) bool of the left image; false where a match lies outside of the right one.
    """
    columns = torch.arange(left.shape[2], device=left.device)
    match = (columns - left).round()
    inside = (match >= 0) & (match < left.shape[2])
    found = right.gather(2, match.nan_to_num().clamp(0, left.shape[2] - 1).long())
    return inside & ((left - found).abs() <= tolerance)


def _matched(
    predict: Predictor,
    images: list[Tensor],
    crop: tuple[int, int],
    weigh: Weigh,
    overlap: float,
    reach: float,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor | None]:
    """Disparity and raw confidence of the first image, (B, H, W) at its own size."""
    first, second = fit_to_tile(images, crop)
    reach = reach * first.shape[3] / size[1]
    best: tuple[Tensor, Tensor] | None = None
    confident = True
    for shift in shifts_of(reach, crop[1]):
        blend = None
        for tile in tiles_of(tuple(first.shape[2:]), crop, overlap):
            moved = min(shift, tile.left)
            if shift and moved <= shift - max(round(SHIFT * crop[1]), 1):
                continue  # the same place as of an earlier shift, at the image's edge
            values, confidence = predict(tile.cut(first), Tile(tile.top, tile.left - moved, *crop).cut(second))
            confident = confidence is not None
            if reach and not confident:
                raise InputError("stereo: tiles are shifted for networks with a confidence alone; leave out the reach")
            blend = blend or Blend(values, tuple(first.shape[2:]), weigh)
            blend.add(tile, values + moved, confidence)
        if blend is None:
            continue
        values, means = blend.mean()
        if best is None:
            best = values, means
            continue
        surer = (means < best[1]) & blend.covered()
        best = torch.where(surer.unsqueeze(1), values, best[0]), torch.where(surer, means, best[1])
    values, means = best
    disparity = back_to_size(values, size, moves=True)[:, 0]
    if not confident:
        return disparity, None
    if means.shape[1:] != size:
        means = F.interpolate(means.unsqueeze(1), size, mode="bilinear", align_corners=False)[:, 0]
    return disparity, means


def shifts_of(reach: float, width: int) -> list[int]:
    """Shifts, pixels, in ascending order from 0, so that no disparity up to ``reach`` is more than half a tile off."""
    step = max(round(SHIFT * width), 1)
    return list(range(0, max(int(reach), 0) + 1, step))


__all__ = ["SHIFT", "StereoOutput", "agreeing", "match_stereo", "shifts_of"]
