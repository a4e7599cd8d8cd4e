"""Images, masks and depth maps of every stored type, what is no image, and images larger than Pillow reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_builders import build_frames, build_instance, picture
from PIL import ExifTags, Image

from geo3d.datasets import BrokenScene, open_dataset
from geo3d.datasets.image_files import (
    IMAGE_ENDINGS,
    depth_size,
    find_image,
    find_images,
    image_names,
    image_size,
    open_image,
    read_depth,
    read_mask,
    read_photo,
    to_rgb,
)
from geo3d.errors import InputError
from geo3d.methods.images import random_crop
from geo3d.samples.images import ImageSet

GREY = np.linspace(0, 255, 12 * 16).round().reshape(12, 16)
SIXTEEN = (GREY * 257).astype(np.uint16)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1).astype(np.uint8)
ALPHA = np.tile(np.array([0, 128], np.uint8), (12, 8))


def palette(**options) -> Image.Image:
    image = Image.fromarray((GREY // 16).astype(np.uint8), "L").convert("P")
    image.putpalette([value for level in range(16) for value in (16 * level, 255 - 16 * level, 7)])
    return image


def indexed() -> np.ndarray:
    level = (GREY // 16).astype(int)
    return np.stack([16 * level, 255 - 16 * level, np.full_like(level, 7)], -1)


def grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, 2)


# Stored form -> (ending, what writes it, its colours).
STORED: dict[str, tuple[str, Callable[[Path], None], np.ndarray]] = {
    "16 bits": (".png", lambda p: Image.fromarray(SIXTEEN).save(p), grey(GREY)),
    "16 bits, TIFF": (".tif", lambda p: Image.fromarray(SIXTEEN).save(p), grey(GREY)),
    "16 bits, big-endian TIFF": (".tif", lambda p: Image.fromarray(SIXTEEN.astype(">u2")).save(p), grey(GREY)),
    "16 bits, PGM": (".pgm", lambda p: Image.fromarray(SIXTEEN).save(p), grey(GREY)),
    "12 bits, PGM": (
        ".pgm",
        lambda p: p.write_bytes(b"P5 16 12 4095\n" + (GREY * 4095 / 255).astype(">u2").tobytes()),
        grey(GREY),
    ),
    "32 bits": (".tif", lambda p: Image.fromarray(SIXTEEN.astype(np.int32)).save(p), grey(GREY)),
    "float to 1": (".tif", lambda p: Image.fromarray((GREY / 255).astype(np.float32)).save(p), grey(GREY)),
    "float to 255": (".tif", lambda p: Image.fromarray(GREY.astype(np.float32)).save(p), grey(GREY)),
    "8 bits": (".png", lambda p: Image.fromarray(GREY.astype(np.uint8)).save(p), grey(GREY)),
    "1 bit": (".png", lambda p: Image.fromarray(GREY > 99).save(p), grey((GREY > 99) * 255)),
    "grey with alpha": (
        ".png",
        lambda p: Image.merge("LA", [Image.fromarray(GREY.astype(np.uint8)), Image.fromarray(ALPHA)]).save(p),
        grey(GREY),
    ),
    "RGB with alpha": (".png", lambda p: Image.fromarray(np.dstack([COLOUR, ALPHA])).save(p), COLOUR),
    "palette": (".png", lambda p: palette().save(p), indexed()),
    "palette with alpha": (".png", lambda p: palette().save(p, transparency=bytes(range(16))), indexed()),
    "CMYK": (".tif", lambda p: Image.fromarray(COLOUR).convert("CMYK").save(p), COLOUR),
    "BMP": (".bmp", lambda p: Image.fromarray(COLOUR).save(p), COLOUR),
    "WebP": (".webp", lambda p: Image.fromarray(COLOUR).save(p, lossless=True), COLOUR),
    "odd ending": (".JPE", lambda p: Image.fromarray(COLOUR).save(p, "PNG"), COLOUR),
    "no ending": ("", lambda p: Image.fromarray(COLOUR).save(p, "PNG"), COLOUR),
}


@pytest.mark.parametrize("form", STORED)
def test_colours_of_every_stored_type(tmp_path, form):
    """Seen through everything that hands out images."""
    ending, write, colours = STORED[form]
    for name in "ab":
        write(tmp_path / f"{name}{ending}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (scene,) = open_dataset(tmp_path)
        rounding = 1 if form in ("12 bits, PGM", "16 bits, PGM") else 0.51  # truncated to 12 bits above
        assert np.abs(scene.view(0).image.numpy() * 255 - colours).max() <= rounding
        assert np.abs(np.asarray(scene.image(1).convert("RGB")).astype(float) - colours).max() <= rounding
        photographs = ImageSet.find(tmp_path)
        assert len(photographs) == 2
        crop = random_crop(photographs.image(1), (12, 16), 12, np.random.default_rng(0))
    assert np.abs(np.asarray(crop).astype(float) - colours).max() <= rounding


@pytest.mark.parametrize(
    ("values", "found"), [((0, 256.0), "0 to 256"), ((-1.0, 2), "-1 to 2"), ((0, np.nan), "nan"), ((0, np.inf), "inf")]
)
def test_floats_that_are_no_colours(tmp_path, values, found):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenScene, match=rf"a.tif: holds colours from .*{found}.*0 to 1, or 0 to 255 is expected"):
        open_image(tmp_path / "a.tif", "scene")


def test_overshoot_of_resampling_is_cut(tmp_path):
    Image.fromarray(np.array([[-0.02, 0.4, 0.4, 1.01]], np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(open_image(tmp_path / "a.tif", "scene"))[0, :, 0].tolist() == [0, 102, 102, 255]


def test_whole_numbers_that_are_no_colours():
    image = Image.fromarray(np.array([[0, 70_000]], np.int32))
    with pytest.raises(BrokenScene, match="here: holds colours from 0 to 70000, where 0 to 65535 is expected"):
        to_rgb(image, "here", "scene")


def test_a_jpeg_is_not_decoded_before_it_is_shrunk(tmp_path):
    picture().resize((640, 480)).save(tmp_path / "a.jpg")
    image = open_image(tmp_path / "a.jpg", "scene")
    assert image.draft("RGB", (80, 60)) is not None
    assert image.size == (80, 60)


@pytest.mark.parametrize("limit", [100, 60], ids=["warning", "error"])
def test_images_larger_than_pillow_reads(tmp_path, monkeypatch, limit):
    """Wherever an image is opened it is one line; photos that Pillow only warns of are read."""
    build_instance(tmp_path / "colmap")
    build_frames(tmp_path / "frames")
    colmap, frames = open_dataset(tmp_path / "colmap")[0], open_dataset(tmp_path / "frames")[0]
    size = len(colmap.view_names), len(frames.view_names)
    assert size == (4, 4)
    photographs = ImageSet.find(tmp_path / "frames" / "color")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    depth, image = tmp_path / "frames" / "depth" / "0.png", tmp_path / "frames" / "color" / "0.jpg"
    asked = {
        "001.jpg": [lambda: colmap.view(0), lambda: colmap.image(0)],
        "001.jpg.png": [lambda: colmap.mask(0)],
        "0.png": [lambda: frames.depth(0), lambda: depth_size(depth, "scene"), lambda: read_mask(depth, "scene")],
        "0.jpg": [lambda: frames.view(0), lambda: photographs.image(0), lambda: image_size(image, "scene")],
    }
    for name, functions in asked.items():
        for ask in functions:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(InputError, match=rf"/{name}: is larger than Pillow reads .*; shrink it"):
                    ask()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.warns(Image.DecompressionBombWarning):
        assert colmap.view(0).image.shape == (24, 32, 3)


def test_what_counts_as_an_image(tmp_path):
    for number, ending in enumerate((*IMAGE_ENDINGS, ".JPG", ".Tiff")):
        (tmp_path / f"{number}{ending}").touch()
    forms = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "webp": "WEBP", "bmp": "BMP", "ppm": "PPM"}
    for name, form in forms.items():
        picture().save(tmp_path / name, form)
    Image.fromarray(SIXTEEN.astype(">u2")).save(tmp_path / "big-endian", "TIFF")
    others = {
        "README": b"BMW and other cars",
        "Makefile": b"all:",
        "empty": b"",
        "a.txt": b"",
        "b.exr": b"",
        ".c.jpg": b"",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    numbered = [f"{number}{ending}" for number, ending in enumerate((*IMAGE_ENDINGS, ".JPG", ".Tiff"))]
    assert image_names(tmp_path) == [*numbered, *sorted([*forms, "big-endian", "lost.jpg"])]
    with pytest.raises(BrokenScene, match=r"lost\.jpg: cannot be read: No such file"):
        open_image(tmp_path / "lost.jpg", "scene")


def test_finding_an_image(tmp_path):
    for name in ("a.JPG", "b", "c.d.webp", r"e\f.png", "sub/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for listed, found in (
        ("a", "a.JPG"), ("./a.jpg", None), ("./a.JPG", "a.JPG"), ("b", "b"), ("b.png", None), ("c.d", "c.d.webp"),
        ("c", None), (r"e\f.png", r"e\f.png"), (r"sub\e", "sub/e.png"), ("sub", None), ("", None), ("\0", None),
        ("x" * 5000, None), ("\ud800", None), ("..", None),
    ):  # fmt: skip
        assert find_image(tmp_path, listed) == (tmp_path / found if found else None)
    listed = ["a.jpeg", "a.png", "b.png", "c.webp", "sub/e.jpg", "sub/e.png", "x.jpg"]
    found = ["a.JPG", None, "b", None, None, "sub/e.png", None]  # an image goes to whoever names it
    assert find_images(tmp_path, listed) == [tmp_path / name if name else None for name in found]


UNITS = np.array([[0, 1000, 2500], [65535, 40000, 7]], np.uint16)
METRES = UNITS.astype(np.float32) / 1000
DEPTHS: dict[str, Callable[[Path], None]] = {
    "16.png": lambda p: Image.fromarray(UNITS).save(p),
    "16.tif": lambda p: Image.fromarray(UNITS).save(p),
    "big.tif": lambda p: Image.fromarray(UNITS.astype(">u2")).save(p),
    "32.tif": lambda p: Image.fromarray(UNITS.astype(np.int32)).save(p),
    "float.tif": lambda p: Image.fromarray(METRES).save(p),
    "full.pgm": lambda p: p.write_bytes(b"P5\n# depth\n3 2\n65535\n" + UNITS.astype(">u2").tobytes()),
    "16.npy": lambda p: np.save(p, UNITS),
    "big.npy": lambda p: np.save(p, UNITS.astype(">u2")),
    "float.npy": lambda p: np.save(p, METRES),
    "double.npy": lambda p: np.save(p, METRES.astype(np.float64)),
    "channel.npy": lambda p: np.save(p, METRES[..., None]),
    "first.npy": lambda p: np.save(p, METRES[None]),
    "float.npz": lambda p: np.savez(p, depth=METRES),
    "packed.npz": lambda p: np.savez_compressed(p, UNITS),
    "float.pfm": lambda p: Image.fromarray(METRES).save(p),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_of_every_stored_type(tmp_path, name):
    DEPTHS[name](tmp_path / name)
    depth = read_depth(tmp_path / name, "scene", 1000.0)
    assert (depth.dtype, depth.shape) == (np.float32, (2, 3))
    assert np.array_equal(depth, METRES)
    assert depth_size(tmp_path / name, "scene") == (3, 2)


def test_a_number_that_stands_for_unknown(tmp_path):
    np.save(tmp_path / "a.npy", UNITS)
    assert read_depth(tmp_path / "a.npy", "scene", 1000.0, invalid=65535)[1].tolist() == [0, 40, np.float32(0.007)]


def test_a_pgm_keeps_its_numbers_whatever_maximum_it_states(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 10000\n" + np.array([0, 2500, 10000], ">u2").tobytes())
    assert read_depth(tmp_path / "a.pgm", "scene", 1000.0).tolist() == [[0, 2.5, 10]]


def test_depth_that_is_no_length_is_unknown(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[np.nan, np.inf, -np.inf, -1.0, 0.0, 2.0]]))
    assert read_depth(tmp_path / "a.npy", "scene", 1000.0).tolist() == [[0, 0, 0, 0, 0, 2]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"v/1\x01" + bytes(40), "is an OpenEXR file, which is not read; convert it"),
        (b"", "is not an image that Pillow can read"),
        (b"\x93NUMPY\x01\0", "is not one array that NumPy can read"),
        (b"PK\3\4" + bytes(40), "is not one array that NumPy can read"),
        (b"P5 3 2 65535\n" + bytes(5), "the image cannot be decoded: 3 x 2 pixels"),
        (b"P2 1 1 65535\n7\n", "a PGM depth map is binary"),
        (np.zeros((2, 3, 3)), r"a depth map is expected, found float64 of shape \(2, 3, 3\)"),
        (np.zeros((2, 3), complex), "a depth map is expected, found complex128"),
        (np.array([["a"]]), "a depth map is expected, found <U1"),
        (np.array([[None]]), "is not one array that NumPy can read: Object arrays"),
        (Image.new("RGB", (3, 2)), "a depth map has 16 bits and one channel, this image is of mode RGB"),
        ({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, "is not one array that NumPy can read: too many values"),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, Image.Image) else str(value),
)
def test_what_is_no_depth_map(tmp_path, content, reason):
    path = tmp_path / "depth"
    with open(path, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        elif isinstance(content, Image.Image):
            content.save(file, "PNG")
        elif isinstance(content, dict):
            np.savez(file, **content)
        else:
            np.save(file, content)
    with pytest.raises(BrokenScene, match=f"{path}.*: {reason}"):
        read_depth(path, "scene", 1000.0)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"\x93NUMPY\x01\0", "is an array of NumPy, not an image"),
        ("a.jpg", b"\0\0\0 ftypheic\0\0", "is a HEIC photo, which Pillow does not read; convert it to JPEG"),
        ("a.jpg", b"PK\3\4", "is a zip or .npz file"),
        ("a.jpg", b"hello", "is not an image that Pillow can read"),
    ],
)
def test_what_is_no_image(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenScene, match=f"{name} at byte 0: {reason}"):
        open_image(tmp_path / name, "scene")


@pytest.mark.parametrize("value", [1, 255, 256, 65535])
def test_masks_of_every_stored_type(tmp_path, value):
    mask = np.array([[0, value], [value, 0]])
    for number, stored in enumerate((mask.astype(np.uint16), mask.astype(np.int32), mask.astype(np.float32))):
        Image.fromarray(stored).save(tmp_path / f"{number}.tif")
        assert np.array_equal(read_mask(tmp_path / f"{number}.tif", "scene"), mask > 0)
    if value < 256:
        Image.fromarray(np.dstack([0 * mask, 0 * mask, mask]).astype(np.uint8)).save(tmp_path / "blue.png")
        assert np.array_equal(read_mask(tmp_path / "blue.png", "scene"), mask > 0)


def test_loose_photos_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    upright = np.zeros((8, 4, 3), np.uint8)
    upright[:4] = 200  # the upper half is bright
    image, exif = Image.fromarray(np.rot90(upright)), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored turned a quarter to the left
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "damaged.webp", exif=exif, lossless=True)
    damaged = (tmp_path / "damaged.webp").read_bytes()
    assert b"MM\0*" in damaged
    (tmp_path / "damaged.webp").write_bytes(damaged.replace(b"MM\0*", b"MMMM"))
    assert np.array_equal(read_photo(tmp_path / "damaged.webp"), np.rot90(upright))
    grey = np.arange(32, dtype=np.uint16).reshape(8, 4) * 2056  # of 16 bits
    Image.fromarray(np.ascontiguousarray(np.rot90(grey))).save(tmp_path / "grey.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "grey.png")[..., 0], np.arange(32).reshape(8, 4) * 8)
    Image.fromarray(upright).save(tmp_path / "plain.png")
    assert np.array_equal(read_photo(tmp_path / "turned.png"), upright)
    assert np.array_equal(read_photo(tmp_path / "plain.png"), upright)
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:45])
    with pytest.raises(InputError, match=r"cut\.png"):
        read_photo(tmp_path / "cut.png")
