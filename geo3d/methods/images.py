"""Images as samples: decoding, cropping, colour jitter and normalisation, driven by a generator that is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from geo3d.datasets.files import PILLOW_ERRORS
from geo3d.errors import InputError

# Pillow may first shrink by a whole factor as long as this many source pixels remain for every target pixel.
_REDUCING_GAP = 2.0
# Windows of random shape: width over height, and how many are tried before the middle of the image is taken.
_SHAPES, _TRIES = (3 / 4, 4 / 3), 10
_JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def random_crop(image: Image.Image, size: tuple[int, int], resized: int, rng: np.random.Generator) -> Image.Image:
    """Resize so that the shorter side measures ``resized`` pixels and cut a window at a random whole pixel.

    Only the window is resampled, and a JPEG is decoded no larger than it is needed.

    Args:
        image: any mode, decoded or not.
        size: height and width of the window, pixels.
        resized: shorter side before the cut, pixels; raised to what the window needs.
        rng: draws the window.

    Returns:
        RGB image of ``size``.
    """
    height, width = size
    scale = max(resized / min(image.size), width / image.width, height / image.height)
    full = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (int(rng.integers(total - part + 1)) for total, part in zip(full, (width, height), strict=True))
    return resized_window(image, full, (left, top), size)


def resized_window(
    image: Image.Image, full: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> Image.Image:
    """A window of an image that is resized; only the window is resampled, and a JPEG decoded no larger than needed.

    Args:
        image: any mode, decoded or not.
        full: width and height of the whole image after resizing, pixels.
        corner: left and top of the window in it.
        size: height and width of the window.

    Returns:
        RGB image of ``size``.
    """
    (left, top), (height, width) = corner, size
    image.draft("RGB", full)
    image = image.convert("RGB")
    sx, sy = image.width / full[0], image.height / full[1]
    box = (left * sx, top * sy, (left + width) * sx, (top + height) * sy)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def random_resized_crop(
    image: Image.Image, size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> Image.Image:
    """A window of random area and shape, resized; the usual augmentation of ImageNet.

    Args:
        image: any mode, decoded or not.
        size: height and width of the result, pixels.
        scale: share of the image's area that the window takes, from and to.
        rng: draws area, shape (width over height 3/4 to 4/3) and place of the window.

    Returns:
        RGB image of ``size``.
    """
    for _ in range(_TRIES):
        area = image.width * image.height * rng.uniform(*scale)
        shape = np.exp(rng.uniform(*np.log(_SHAPES)))
        width, height = round(float(np.sqrt(area * shape))), round(float(np.sqrt(area / shape)))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
            break
    else:  # an oblong image: the largest window of an allowed shape, in the middle
        width = min(image.width, round(image.height * _SHAPES[1]))
        height = min(image.height, round(image.width / _SHAPES[0]))
        left, top = (image.width - width) // 2, (image.height - height) // 2
    full = image.size
    image.draft("RGB", (round(size[1] * full[0] / width), round(size[0] * full[1] / height)))
    image = image.convert("RGB")
    sx, sy = image.width / full[0], image.height / full[1]
    box = (left * sx, top * sy, (left + width) * sx, (top + height) * sy)
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors of 1 +- ``strength``, in random order.

    Args:
        image: RGB.
        strength: 0 leaves the image as it is.
        rng: draws order and factors.
    """
    for number in rng.permutation(len(_JITTERS)):
        image = _JITTERS[number](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


@contextmanager
def decoding(describe: Callable[[int], str], index: int) -> Iterator[None]:
    """Context in which the images of an item are decoded, which Pillow puts off until their pixels are asked for.

    Args:
        describe: says where an item comes from.
        index: of the item.

    Raises:
        InputError: an image is damaged.
    """
    try:
        yield
    except PILLOW_ERRORS as error:
        raise InputError(f"{describe(index)}: an image cannot be decoded ({error})") from error


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 (H, W, 3)."""
    return torch.from_numpy(np.array(image))
