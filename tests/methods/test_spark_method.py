"""Masked modelling: the loss, the mask, the samples, the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d import InputError
from geo3d.methods.images import random_resized_crop
from geo3d.methods.spark import (
    MaskedModelling,
    MaskedModellingConfig,
    fill_in,
    random_active,
    reconstruction_loss,
    seen_count,
)
from geo3d.nn.colors import normalise
from geo3d.nn.patches import patchify

CONFIG = MaskedModellingConfig(image_size=(64, 96), decoder_width=32, drop_path_rate=0.5)


class MadeImages:
    """Smooth pictures, each other than the others."""

    def __len__(self) -> int:
        return 8

    def describe(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int) -> Image.Image:
        coarse = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def method() -> MaskedModelling:
    return MaskedModelling(CONFIG, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def batch(method):
    samples = method.samples(MadeImages())
    return method.collate([samples.draw(i, np.random.default_rng([0, i])) for i in range(4)])


def test_loss_against_numpy_in_float64() -> None:
    rng = np.random.default_rng(0)
    predicted, images = rng.normal(size=(2, 3, 3, 64, 96))
    active = rng.random((3, 1, 2, 3)) < 0.4
    errors = []
    for b in range(3):
        for row in range(2):
            for column in range(3):
                if not active[b, 0, row, column]:
                    window = (b, slice(None), slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32))
                    cell = images[window]
                    target = (cell - cell.mean()) / np.sqrt(cell.var(ddof=1) + 1e-6)
                    errors.append(((predicted[window] - target) ** 2).mean())
    loss = reconstruction_loss(*map(torch.from_numpy, (predicted, images, active)))
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-8)  # the published 1e-8 in the count


def test_loss_is_0_where_nothing_is_hidden_and_nearly_1_for_means() -> None:
    images = torch.rand(2, 3, 64, 64)
    whole = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    assert reconstruction_loss(images, images, whole).item() == 0
    # All cells at their mean: the mean of squares of what has unit (unbiased) variance.
    loss = reconstruction_loss(torch.zeros_like(images), images, ~whole)
    assert loss.item() == pytest.approx(1 - 1 / 3072, rel=1e-4)


def test_filling_in_keeps_seen_pixels_and_restores_what_was_normalised() -> None:
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    active = torch.rand(2, 1, 2, 3) < 0.5
    cells = patchify(images, 32)
    normalised = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, keepdim=True) + 1e-6).sqrt()
    restored = normalised.reshape(2, 2, 3, 32, 32, 3).permute(0, 5, 1, 3, 2, 4).reshape(images.shape)
    torch.testing.assert_close(fill_in(restored, images, active), images)
    seen = active.repeat_interleave(32, 2).repeat_interleave(32, 3).expand_as(images)
    other = fill_in(restored + 1, images, active)
    assert torch.equal(other[seen], images[seen])
    assert not (other[~seen] == images[~seen]).any()


@pytest.mark.parametrize(
    ("grid", "ratio", "seen"), [((7, 7), 0.6, 20), ((12, 12), 0.75, 36), ((3, 3), 0.6, 4), ((2, 3), 0.6, 2)]
)
def test_exactly_the_published_number_is_seen(grid, ratio: float, seen: int) -> None:
    assert seen_count(grid, ratio) == seen
    counts = np.zeros(grid)
    for seed in range(400):
        active = random_active(grid, ratio, np.random.default_rng(seed)).numpy()
        assert active.sum() == seen
        counts += active
    share = seen / counts.size
    sigma = np.sqrt(400 * share * (1 - share))
    assert np.abs(counts - 400 * share).max() < 5 * sigma  # every cell is as likely


def test_samples_are_crops_with_a_mask(method) -> None:
    sample = method.samples(MadeImages()).draw(3, np.random.default_rng([7, 3]))
    assert (sample["image"].shape, sample["image"].dtype) == ((64, 96, 3), torch.uint8)
    assert (sample["active"].shape, sample["active"].dtype) == ((2, 3), torch.bool)


def test_crops_take_the_share_they_are_told_and_every_place() -> None:
    ramp = np.zeros((200, 300, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(300) * 255 // 299, (np.arange(200) * 255 // 199)[:, None]
    shares, lefts = [], []
    for seed in range(300):
        crop = random_resized_crop(Image.fromarray(ramp), (64, 64), (0.5, 0.8), np.random.default_rng(seed))
        pixels = np.asarray(crop, dtype=float)
        width = (pixels[32, -1, 0] - pixels[32, 0, 0]) / 255 * 64 / 63
        height = (pixels[-1, 32, 1] - pixels[0, 32, 1]) / 255 * 64 / 63
        shares.append(width * height)
        lefts.append(pixels[32, 0, 0] / 255)
        assert 0.74 < width * 300 / (height * 200) < 1.36
    assert 0.48 < min(shares) < 0.55
    assert 0.75 < max(shares) < 0.82
    assert min(lefts) < 0.02
    assert max(lefts) > 0.35


def test_an_oblong_image_is_cut_in_the_middle() -> None:
    strip = np.zeros((20, 400, 3), dtype=np.uint8)
    strip[:, 180:220] = 255
    crop = random_resized_crop(Image.fromarray(strip), (32, 32), (0.9, 1.0), np.random.default_rng(0))
    assert np.asarray(crop)[16, 16].min() > 250


def test_forward_is_replayed_by_equal_masks_and_drops_paths(batch) -> None:
    method = MaskedModelling(CONFIG, torch.Generator().manual_seed(0)).train()
    for name, parameter in method.named_parameters():
        if name.endswith("bn3.weight"):  # fresh ones are 0, and so are the residuals
            torch.nn.init.ones_(parameter)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(method(batch).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # of library calls
    assert losses[0] != pytest.approx(losses[2], rel=1e-6)
    method.eval()
    output = method(batch)
    assert output.losses["reconstruction"] == output.loss
    assert method.loss_of_means(batch).item() == pytest.approx(1, rel=1e-3)


def test_learning_lowers_the_loss(batch) -> None:
    torch.manual_seed(0)
    config = MaskedModellingConfig(image_size=(64, 96), decoder_width=64, drop_path_rate=0.0)
    method = MaskedModelling(config, torch.Generator().manual_seed(0)).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = method(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]  # memorises four pictures: 1.0 -> 0.84 when written


def test_tokens_are_kept_out_of_weight_decay(method) -> None:
    assert method.no_weight_decay() == {f"network.mask_tokens.{level}" for level in range(4)}


def test_picture_shows_seen_cells_as_they_are(method, batch) -> None:
    method.eval()
    with torch.no_grad():
        output = method(batch)
    picture = method.picture(batch, output)
    assert picture.dtype == np.uint8
    zoom = round(224 / 64)
    body = picture[-4 * 64 * zoom :: zoom, ::zoom].reshape(4, 64, 3, 96, 3)
    masked, filled, original = (body[:, :, column] for column in range(3))
    assert np.array_equal(original, batch["image"].numpy())
    seen = batch["active"].repeat_interleave(32, 1).repeat_interleave(32, 2).numpy()
    assert np.array_equal(masked[seen], original[seen])
    assert np.array_equal(filled[seen], original[seen])
    assert not np.array_equal(filled, original)
    assert len(np.unique(masked[~seen], axis=0)) == 1


def test_paths_give_equal_losses(batch) -> None:
    losses = []
    for path in ("dense", "tiles"):
        config = MaskedModellingConfig(image_size=(64, 96), decoder_width=32, path=path)
        losses.append(MaskedModelling(config, torch.Generator().manual_seed(0))(batch).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert normalise(batch["image"]).shape == (4, 3, 64, 96)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"mask_ratio": 0.01}, "hides none"),
        ({"image_size": (32, 32)}, "hides none or all of the 1 cells"),
        ({"image_size": (60, 96)}, "multiples of 32"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"encoder": "resnet5"}, "unknown encoder"),
        ({"decoder_width": 33}, "decoder_width"),
        ({"drop_path_rate": 1.5}, "drop_path_rate"),
    ],
)
def test_bad_settings_are_named(fields, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskedModelling(MaskedModellingConfig(**fields))
