"""Loading of photographs for DUSt3R: sizes, and where pixels come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d import Camera, InputError
from geo3d.geometry import View
from geo3d.models.dust3r_images import load_image

#: Width, height, size -> height and width; of what the published code does.
SIZES = [
    (640, 480, 512, (384, 512)), (1080, 1920, 512, (512, 288)), (500, 500, 512, (384, 512)),
    (300, 200, 512, (336, 512)), (1000, 333, 512, (160, 512)), (641, 479, 224, (224, 224)), (80, 100, 224, (224, 224)),
]  # fmt: skip


@pytest.mark.parametrize(("width", "height", "size", "expected"), SIZES)
def test_sizes(width: int, height: int, size: int, expected: tuple[int, int]) -> None:
    assert load_image(Image.new("RGB", (width, height)), size).size == expected


def test_squares_are_whole_patches_at_any_size() -> None:
    square = Image.new("RGB", (90, 90))
    assert load_image(square, 80).size == (48, 80)  # a quarter less would be 60, which no patch of 16 divides
    assert load_image(square, 80, square_ok=True).size == (80, 80)
    assert load_image(square, 64, patch_size=8).size == (48, 64)
    loaded = load_image(Image.new("RGB", (90, 60)), 64, patch_size=8, square=True)
    assert (loaded.size, loaded.resized_size, loaded.offset) == ((64, 64), (64, 96), (0, 16))


@pytest.mark.parametrize(("width", "height", "size"), [(200, 133, 96), (90, 161, 96), (100, 80, 224), (101, 103, 224)])
def test_pixels_and_cameras_are_mapped_there_and_back(width: int, height: int, size: int) -> None:
    """A scene point projects to the same place by the mapped camera as by the mapped pixel."""
    camera = Camera(width, height, 150.0, 140.0, 0.45 * width, 0.55 * height)
    loaded = load_image(Image.new("RGB", (width, height)), size)
    points = torch.tensor([[0.1, -0.2, 1.5], [-0.3, 0.1, 2.0]], dtype=torch.float64)
    mapped = loaded.camera(camera)
    assert (mapped.height, mapped.width) == loaded.size
    torch.testing.assert_close(mapped.project(points), loaded.from_source(camera.project(points)))
    torch.testing.assert_close(loaded.to_source(loaded.from_source(points[:, :2])), points[:, :2])
    back = loaded.source_camera(mapped)
    torch.testing.assert_close(back.matrix, camera.matrix)
    assert (back.width, back.height) == (width, height)
    with pytest.raises(InputError, match="the camera is of"):
        loaded.camera(mapped)


def test_a_mark_in_the_photograph_is_found_where_the_mapping_says() -> None:
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[70:76, 140:146] = 255
    loaded = load_image(pixels, 96)
    weight = loaded.pixels[..., 0].double()
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in loaded.size)
    centre = torch.stack([(weight.sum(0) * columns).sum(), (weight.sum(1) * rows).sum()]) / weight.sum()
    source = loaded.to_source(centre)
    assert (source - torch.tensor([142.5, 72.5], dtype=torch.float64)).abs().max() < 0.1  # of LANCZOS' rings


def test_every_form_of_an_image_is_loaded_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    photo.save(tmp_path / "a.png")
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = load_image(photo, 64)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path / "turned.png", pixels, torch.from_numpy(pixels)]
    forms += [View("a", image=torch.from_numpy(pixels) / 255), pixels / 255, photo.convert("RGBA")]
    for form in forms:
        assert torch.equal(load_image(form, 64).pixels, expected.pixels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Image.new("RGB", (400, 10)), "10 x 400 pixels has no whole patch of 16 left at size 64"),
        (lambda p: p / "absent.jpg", "absent.jpg: No such file"),
        (lambda p: (p / "text.jpg").write_text("no image") and p / "text.jpg", "text.jpg: no image that can be read"),
        (lambda p: Image.new("I;16", (64, 64)), "more than 8 bits"),
        (lambda p: np.zeros((2, 64, 64, 3), np.uint8), "one image at a time, got 2"),
        (lambda p: None, "not a NoneType"),
    ],
)
def test_what_is_no_image_is_one_line(make, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(make(tmp_path), 64)
    assert "\n" not in str(caught.value)


def test_a_size_below_a_patch() -> None:
    with pytest.raises(InputError, match="size 8 is smaller than a patch of 16"):
        load_image(Image.new("RGB", (64, 64)), 8)
