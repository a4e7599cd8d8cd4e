"""Tiles: places, weights, images smaller than a tile; matching beyond a tile, and left against right."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from geo3d import InputError
from geo3d.inference.stereo import agreeing, match_stereo, shifts_of
from geo3d.inference.tiling import TiledOutput, tile_offsets, tiled_loss, tiled_prediction, tiles_of
from geo3d.models.croco_downstream import TileConfidence
from geo3d.nn.laplace import CriterionConfig

WEIGH = TileConfidence().weight
#: Raw confidences of a match that is certain, and of none.
SURE, UNSURE = -9.0, 9.0


@pytest.mark.parametrize(("size", "tile", "overlap"), itertools.product((32, 33, 50, 200), (32,), (0.0, 0.5, 0.7, 0.9)))
def test_tiles_reach_from_end_to_end_and_overlap_as_asked(size: int, tile: int, overlap: float) -> None:
    offsets = tile_offsets(size, tile, overlap)
    assert (offsets[0], offsets[-1]) == (0, size - tile)
    gaps = [b - a for a, b in itertools.pairwise(offsets)]
    assert all(0 < gap <= (1 - overlap) * tile + 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_wrong_tiles_are_told() -> None:
    with pytest.raises(InputError, match="do not fit a side of 30"):
        tile_offsets(30, 32, 0.5)
    with pytest.raises(InputError, match=r"overlap of 1.0"):
        tile_offsets(40, 32, 1.0)
    with pytest.raises(InputError, match=r"of one shape, got \(1, 3, 4, 4\) and \(1, 3, 4, 5\)"):
        tiled_prediction(None, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5), (4, 4), WEIGH)


def _columns(first: Tensor, second: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A network that reads a pixel's own colours: value, and confidence."""
    return first[:, :1] * 2, first[:, 1]


def test_what_tiles_agree_on_is_left_as_it_is() -> None:
    image = torch.randn(2, 3, 40, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for weigh in (WEIGH, TileConfidence(3, None).weight, TileConfidence(0).weight):
        out = tiled_prediction(_columns, image, None, (16, 24), weigh, moves=False)
        torch.testing.assert_close(out.values, image[:, :1] * 2)
        torch.testing.assert_close(out.confidence, image[:, 1])


def test_the_surer_tile_counts_by_its_weight() -> None:
    """Two tiles that overlap by half, each with an own value and confidence: the mean by hand."""
    seen = iter([(1.0, 0.5), (3.0, -0.5)])

    def predict(first: Tensor) -> tuple[Tensor, Tensor]:
        value, confidence = next(seen)
        return torch.full_like(first[:, :1], value), torch.full_like(first[:, 0], confidence)

    image = torch.zeros(1, 3, 4, 12, dtype=torch.float64)
    out = tiled_prediction(predict, image, None, (4, 8), WEIGH, overlap=0.5, moves=False)
    a, b = WEIGH(torch.tensor([0.5, -0.5], dtype=torch.float64))
    expected = torch.tensor([1.0] * 4 + [float((a + 3 * b) / (a + b))] * 4 + [3.0] * 4, dtype=torch.float64)
    torch.testing.assert_close(out.values[0, 0, 0], expected)


def test_small_images_are_enlarged_and_their_motion_shrinks_again() -> None:
    """Flow of 6 and 4 pixels in an image three times as large is 2 and 4 / 3."""

    def predict(first: Tensor, second: Tensor) -> tuple[Tensor, None]:
        assert first.shape[2:] == (30, 48)  # of 30 x 60
        return torch.tensor([6.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, *first.shape[2:]), None

    image = torch.zeros(1, 3, 10, 20)
    out = tiled_prediction(predict, image, image, (30, 48), WEIGH, overlap=0)
    assert isinstance(out, TiledOutput)
    torch.testing.assert_close(out.values[0, :, 5, 5], torch.tensor([2.0, 4 / 3]))
    assert (out.values.shape, out.confidence) == ((1, 2, 10, 20), None)


def test_the_loss_of_tiles_is_their_mean() -> None:
    image = torch.randn(1, 3, 8, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.randn(1, 1, 8, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = CriterionConfig("bounded2").build().loss
    found = tiled_loss(_columns, made, image, None, target, (8, 8), overlap=0)
    parts = [made(_columns(tile.cut(image)), tile.cut(target)) for tile in tiles_of((8, 14), (8, 8), 0)]
    torch.testing.assert_close(found, torch.stack(parts).mean())


# Stereo: a matcher whose answer is known


def matcher(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """A stand-in for a network: finds a pixel's equal in the same row of the right tile, and nothing beyond it.

    Of one that is not there it guesses no motion, unsurely.
    """
    equal = (left[:, 0].unsqueeze(3) - right[:, 0].unsqueeze(2)).abs() < 1e-6  # (B, H, left column, right column)
    found = equal.any(3)
    columns = torch.arange(left.shape[3], dtype=left.dtype)
    disparity = torch.where(found, columns - equal.double().argmax(3), 0.0)
    return disparity.unsqueeze(1), torch.where(found, SURE, UNSURE).to(left.dtype)


def scene(disparities: tuple[int, ...] = (4, 70), size: tuple[int, int] = (24, 160)) -> tuple[Tensor, ...]:
    """A wall with a block in front of it, each pixel of an own colour: left, right, disparity, whether both see it."""
    height, width = size
    codes = torch.arange(2 * height * width, dtype=torch.float64).view(2, height, width)
    disparity = torch.full(size, disparities[0])
    disparity[8:16, 90:120] = disparities[1]
    left = codes[0]
    right = codes[1].clone()  # what only the right image sees
    columns = torch.arange(width).expand(size)
    for d in disparities:  # the nearer one over the farther
        rows, at = torch.nonzero((disparity == d) & (columns >= d), as_tuple=True)
        right[rows, at - d] = left[rows, at]
    target = columns - disparity
    inside = target >= 0
    visible = inside & (right.gather(1, target.clamp(min=0)) == left)
    return (*(image.expand(1, 3, -1, -1).contiguous() for image in (left, right)), disparity, visible)


def test_shifted_tiles_find_what_lies_beyond_a_tile() -> None:
    left, right, disparity, visible = scene()
    assert disparity.max() == 70
    plain = tiled_prediction(matcher, left, right, (24, 48), WEIGH)
    near = visible & (disparity == 4)
    far = visible & (disparity == 70)
    assert far.sum() > 200
    torch.testing.assert_close(plain.values[0, 0][near], disparity[near].double(), rtol=0, atol=1e-6)
    assert (plain.values[0, 0][far] < 48).all()  # no tile of 48 pixels holds both
    found = match_stereo(matcher, left, right, (24, 48), WEIGH, reach=80)
    torch.testing.assert_close(found.disparity[0][visible], disparity[visible].double(), rtol=0, atol=1e-6)
    assert (found.confidence[0][visible] < -8).all()
    unshifted = match_stereo(matcher, left, right, (24, 48), WEIGH)
    torch.testing.assert_close(unshifted.disparity, plain.values[:, 0])
    torch.testing.assert_close(unshifted.confidence, plain.confidence)


def test_left_against_right_finds_occlusions() -> None:
    """What the right image does not see has no match that agrees; all that both see has."""
    left, right, _, visible = scene()
    found = match_stereo(matcher, left, right, (24, 48), WEIGH, reach=80, tolerance=1.0)
    occluded = ~visible
    assert 0.05 < occluded.double().mean() < 0.3
    assert found.consistent[0][visible].all()
    assert not found.consistent[0][occluded].any()
    assert match_stereo(matcher, left, right, (24, 48), WEIGH).consistent is None


def test_agreement_by_hand() -> None:
    left = torch.tensor([[[0.0, 1.0, 1.4, 2.0, 9.0, float("nan")]]])
    right = torch.tensor([[[0.5, 1.4, 0.0, 0.0, 0.0, 0.0]]])
    assert agreeing(left, right, 1.0).tolist() == [[[True, True, True, True, False, False]]]
    assert agreeing(left, right, 0.5).tolist() == [[[True, True, True, False, False, False]]][:1]


def test_a_small_pair_is_matched_enlarged() -> None:
    """A tile larger than the images: everything is at their own size and in their own pixels."""

    def predict(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(first[:, :1], 6.0), torch.zeros_like(first[:, 0])

    image = torch.zeros(1, 3, 10, 20)
    found = match_stereo(predict, image, image, (30, 48), WEIGH, tolerance=0.5)
    torch.testing.assert_close(found.disparity, torch.full((1, 10, 20), 2.0))
    assert found.confidence.shape == found.consistent.shape == (1, 10, 20)
    assert found.consistent[0, :, 2:].all()
    assert not found.consistent[0, :, :2].any()


def test_wrong_settings_are_told() -> None:
    image = torch.zeros(1, 3, 8, 8)
    assert shifts_of(0, 48) == [0]
    assert shifts_of(80, 48) == [0, 24, 48, 72]
    with pytest.raises(InputError, match="reach must not be negative"):
        match_stereo(matcher, image, image, (8, 8), WEIGH, reach=-1)
    with pytest.raises(InputError, match="tolerance positive"):
        match_stereo(matcher, image, image, (8, 8), WEIGH, tolerance=0)
    with pytest.raises(InputError, match="for networks with a confidence alone"):
        match_stereo(lambda a, b: (a[:, :1], None), image, image, (8, 8), WEIGH, reach=8)
