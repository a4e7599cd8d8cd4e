"""Cropping, jitter and normalisation of images, against what they must be by definition."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d.methods.images import color_jitter, random_crop, to_tensor
from geo3d.nn.colors import IMAGE_MEAN, IMAGE_STD, denormalise, normalise


def _ramp(width: int, height: int) -> Image.Image:
    """Red grows with x, green with y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([255 * x / (width - 1), 255 * y / (height - 1), 0 * x], -1).astype(np.uint8))


def test_crop_at_the_stored_size_is_a_window_of_the_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    crop = np.array(random_crop(image, (224, 224), 256, np.random.default_rng(1)))
    pixels = np.array(image)
    found = [
        (top, left)
        for top in range(33)
        for left in range(33)
        if np.array_equal(crop, pixels[top : top + 224, left : left + 224])
    ]
    assert len(found) == 1


def test_every_window_is_drawn() -> None:
    image = _ramp(256, 256)
    rng = np.random.default_rng(0)
    corners = {np.array(random_crop(image, (254, 255), 256, rng))[0, 0].tolist().__str__() for _ in range(200)}
    assert len(corners) == 3 * 2  # three rows and two columns to start at


@pytest.mark.parametrize("stored", [(640, 480), (480, 640), (1920, 1440), (100, 300)])
def test_crop_shows_a_window_of_the_asked_scale(stored: tuple[int, int]) -> None:
    width, height = stored
    image = _ramp(width, height)
    crop = np.array(random_crop(image, (96, 64), 128, np.random.default_rng(0))).astype(float)
    assert crop.shape == (96, 64, 3)
    scale = 128 / min(stored)
    slope_x = np.diff(crop[..., 0], axis=1).mean() * (width - 1) / 255  # source pixels a target pixel
    slope_y = np.diff(crop[..., 1], axis=0).mean() * (height - 1) / 255
    assert slope_x == pytest.approx(1 / scale, rel=0.05)  # 8-bit rounding over 64 columns
    assert slope_y == pytest.approx(1 / scale, rel=0.05)


def test_a_jpeg_decoded_small_equals_one_decoded_whole() -> None:
    field = np.array(_ramp(64, 48).resize((1600, 1200), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(field).save(file, "JPEG", quality=95)
    crops = []
    for whole in (False, True):
        image = Image.open(file)
        if whole:
            image.load()
        crops.append(np.array(random_crop(image, (96, 96), 128, np.random.default_rng(3))).astype(int))
    # Shrinking in the decoder averages blocks of the same pixels; smooth colours agree to rounding and JPEG noise.
    assert np.abs(crops[0] - crops[1]).max() <= 4


def test_small_images_are_enlarged_to_the_window() -> None:
    assert random_crop(_ramp(20, 30), (64, 64), 32, np.random.default_rng(0)).size == (64, 64)


def test_equal_generators_give_equal_crops_and_jitter() -> None:
    image = _ramp(300, 200)
    a, b = (
        to_tensor(color_jitter(random_crop(image, (64, 64), 72, rng), 0.4, rng))
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert torch.equal(a, b)


def test_jitter_of_gray_changes_brightness_alone() -> None:
    gray = Image.new("RGB", (8, 8), (100, 100, 100))
    values = set()
    for seed in range(200):
        out = np.array(color_jitter(gray, 0.4, np.random.default_rng(seed)))
        assert out.std() == 0  # contrast and saturation leave a flat gray as it is
        values.add(int(out[0, 0, 0]))
    assert min(values) >= 59  # 0.6 x 100, rounding down in Pillow
    assert max(values) <= 140
    assert max(values) - min(values) > 60  # 200 uniform draws over 80 levels


def test_no_strength_no_change() -> None:
    image = _ramp(16, 16)
    assert np.array_equal(np.array(color_jitter(image, 0.0, np.random.default_rng(0))), np.array(image))


def test_normalise_is_the_published_one_and_inverts() -> None:
    images = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    out = normalise(images)
    assert out.shape == (2, 3, 4, 6)
    expected = (images[1, 2, 3, 1].item() / 255 - IMAGE_MEAN[1]) / IMAGE_STD[1]
    assert out[1, 1, 2, 3].item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(denormalise(out), images)
