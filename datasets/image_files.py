"""Reading images, masks and depth maps of a scene, whatever type they are stored in.

What is missing, damaged or of a type that has no meaning here is a :class:`BrokenScene` that names the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from geo3d.datasets.files import PILLOW_ERRORS, entries, looked_at, numeric_order, read_bytes, unreadable
from geo3d.datasets.point_columns import mostly_above
from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError
from geo3d.geometry import Camera

#: Endings of image files, in the order in which they are tried where a list leaves them out.
IMAGE_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
_IMAGE_SUFFIXES = frozenset(IMAGE_ENDINGS)
_ENDINGS = (*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS))
# How the files begin whose names have no ending.
_SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|II\*\0|MM\0\*|RIFF....WEBP|BM....\0\0\0\0|P[56]\s", re.DOTALL)
_SIGNATURE_SIZE = 12
# Beginnings of files that are often taken for images, what they are and what to do.
_NO_IMAGES = (
    (b"\x93NUMPY", "is an array of NumPy, not an image"),
    (b"PK\3\4", "is a zip or .npz file, not an image"),
    (b"v/1\1", "is an OpenEXR file, which is not read; convert it (depth maps to .npy, or to PNG of 16 bits)"),
    (b"\0\0\0 ftyphei", "is a HEIC photo, which Pillow does not read; convert it to JPEG"),
)
# Modes that Pillow itself turns into RGB as they should be, when their pixels are asked for.
_CONVERTED_BY_PILLOW = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
_SIXTEEN_BITS = 65535
_PGM = re.compile(rb"P5(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s")


def image_names(folder: Path) -> list[str]:
    """Names of the image files in ``folder``, sorted as numbers; empty when there is no such folder.

    Those are files with one of :data:`IMAGE_ENDINGS`, in any case, and files without an ending that begin like one.
    """
    if not folder.is_dir():
        return []
    return sorted((entry.name for entry in entries(folder) if _is_image(entry)), key=numeric_order)


def holds_images(folder: Path, count: int = 1) -> bool:
    """Whether there are ``count`` image files in ``folder``; looks no further than these."""
    return any(number == count for number, _ in enumerate(filter(_is_image, looked_at(folder)), 1))


def _is_image(entry: os.DirEntry) -> bool:
    ending = os.path.splitext(entry.name)[1]
    if ending:
        # A link that leads nowhere counts: it is an image that cannot be read, and is said to be.
        return ending.lower() in _IMAGE_SUFFIXES and not entry.is_dir()
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            return _SIGNATURE.match(file.read(_SIGNATURE_SIZE)) is not None
    except OSError:  # nothing tells that it is an image
        return False


def find_image(folder: Path, listed: str) -> Path | None:
    """The image that a list names, None when it does not exist.

    Backslashes part folders too; an ending that is left out is looked for.

    Args:
        folder: what the name is relative to.
        listed: the name in the list.
    """
    return next(_found(folder, listed), None)


def find_images(folder: Path, listed: Sequence[str]) -> list[Path | None]:
    """As :func:`find_image`; images that do not exist are looked for with other endings, among those not listed."""
    found = [find_image(folder, name) for name in listed]
    taken = set(found)
    for index, name in enumerate(listed):
        stem, ending = os.path.splitext(name)
        if found[index] is None and ending.lower() in _IMAGE_SUFFIXES:
            found[index] = next((path for path in _found(folder, stem) if path not in taken), None)
            taken.add(found[index])
    return found


def count_renamed(found: Sequence[Path], listed: Sequence[str]) -> int:
    """How many images were found with another ending than the list gives them; lists may leave endings out."""
    names = (name.replace("\\", "/") for name in listed)
    return sum(not name.endswith((path.name, os.path.splitext(path.name)[0])) for path, name in zip(found, names))


def _found(folder: Path, name: str) -> Iterator[Path]:
    """The files of a name, as it is or with an ending."""
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        paths = (folder / f"{spelling}{ending}" for ending in ("", *_ENDINGS))
        yield from filter(os.path.isfile, paths)  # Path.is_file raises on names that are too long for a file


def open_raw(path: Path, scene: str) -> Image.Image:
    """The image as Pillow opens it, not decoded; raises as :func:`open_image`."""
    try:
        return Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"is larger than Pillow reads ({error}); shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS"
        raise BrokenScene(scene, path, reason) from error
    except PILLOW_ERRORS as error:
        start = _beginning(path, scene)
        known = (what for signature, what in _NO_IMAGES if start.startswith(signature))
        unknown = "is not an image that Pillow can read, or is cut in its header"
        raise BrokenScene(scene, path, next(known, unknown), 0) from error


def _beginning(path: Path, scene: str) -> bytes:
    """The first bytes of a file, which tell what it is."""
    try:
        with open(path, "rb") as file:
            return file.read(_SIGNATURE_SIZE)
    except (OSError, ValueError) as error:
        raise unreadable(path, scene, error) from error


def open_image(path: Path, scene: str) -> Image.Image:
    """The image, to be converted to RGB of 8 bits by whoever decodes it.

    Pixels are decoded when asked for, except those of images that Pillow would not convert rightly: see :func:`to_rgb`.

    Raises:
        BrokenScene: it is missing, or no image, or larger than Pillow reads.
    """
    image = open_raw(path, scene)
    if _is_converted_by_pillow(image):
        return image
    with image:
        return to_rgb(image, path, scene)


def _is_converted_by_pillow(image: Image.Image) -> bool:
    return image.mode in _CONVERTED_BY_PILLOW and not (image.mode == "P" and "transparency" in image.info)


def to_rgb(image: Image.Image, path: Path | str, scene: str) -> Image.Image:
    """An image of any stored type as RGB of 8 bits.

    Whole numbers of more than 8 bits count to 65535; floats to 255 where most are above 1, else to 1, and what
    resampling or highlights put beyond that is cut. Alpha is left out.

    Raises:
        BrokenScene: the pixels are damaged, or numbers lie outside these ranges.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        try:
            return (image if _is_converted_by_pillow(image) else image.convert("RGBA")).convert("RGB")
        except PILLOW_ERRORS as error:
            raise _undecodable(path, scene, error) from error
    values = _pixels(image, path, scene)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    top = _SIXTEEN_BITS
    if image.mode == "F":
        top = 255 if mostly_above(values, 1) else 1
        if top == 1 and low >= -0.1 and np.isfinite(high):
            values = values.clip(0, 1)
            low, high = max(low, 0), min(high, 1)
    if not 0 <= low <= high <= top:
        wanted = "0 to 1, or 0 to 255" if image.mode == "F" else f"0 to {_SIXTEEN_BITS}"
        raise BrokenScene(scene, path, f"holds colours from {low:g} to {high:g}, where {wanted} is expected")
    grey = np.rint(values * (255 / top)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _pixels(image: Image.Image, path: Path | str, scene: str) -> np.ndarray:
    """Pixels as they are stored."""
    try:
        return np.array(image)
    except PILLOW_ERRORS as error:
        raise _undecodable(path, scene, error) from error


def _undecodable(path: Path | str, scene: str, error: Exception) -> BrokenScene:
    return BrokenScene(scene, path, f"the image cannot be decoded: {error or type(error).__name__}")


def decode(image: Image.Image, path: Path | str, scene: str) -> np.ndarray:
    """Colours of ``image`` as (H, W, 3) uint8.

    Raises:
        BrokenScene: as :func:`to_rgb`.
    """
    return _pixels(to_rgb(image, path, scene), path, scene)


def open_photo(path: Path, scene: str) -> Image.Image:
    """As :func:`open_image`, of a loose photo: the way up that people see it, turned as its EXIF orientation says.

    Photos of a scene with cameras are never turned: their cameras are of the pixels as they are stored. EXIF that
    cannot be read turns nothing, as in viewers.
    """
    image = open_raw(path, scene)
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except PILLOW_ERRORS:  # of EXIF; those of pixels are raised again where these are decoded
        turned = False
    try:
        image = ImageOps.exif_transpose(image) if turned else image
    except PILLOW_ERRORS as error:
        raise _undecodable(path, scene, error) from error
    return image if _is_converted_by_pillow(image) else to_rgb(image, path, scene)


def read_photo(path: Path) -> np.ndarray:
    """The colours of a loose photo, turned as :func:`open_photo` does.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return decode(open_photo(path, path.stem), path, path.stem)
    except BrokenScene as broken:
        raise InputError(broken.detail) from broken


def image_size(path: Path, scene: str) -> tuple[int, int]:
    """Width and height of the image in ``path``; raises as :func:`open_image`."""
    with open_raw(path, scene) as image:
        return image.size


def check_size(path: Path, scene: str, camera: Camera) -> None:
    """Look whether an image has its camera's size.

    Raises:
        BrokenScene: it has not, or cannot be opened.
    """
    width, height = image_size(path, scene)
    if (width, height) != (camera.width, camera.height):
        reason = f"is {width} x {height}, its camera says {camera.width} x {camera.height}; scale one to the other"
        raise BrokenScene(scene, path, reason)


def read_mask(path: Path, scene: str) -> np.ndarray:
    """A mask image as (H, W) bool, True where it is not black.

    Raises:
        BrokenScene: it is missing or damaged.
    """
    with open_raw(path, scene) as image:
        if image.mode.startswith("I") or image.mode == "F":
            return _pixels(image, path, scene) > 0
        return decode(image, path, scene).any(2)


def read_depth(path: Path, scene: str, units_per_metre: float, invalid: int | None = None) -> np.ndarray:
    """A depth map as (H, W) float32 metres, 0 where unknown.

    Read are images of one channel (PNG, TIFF, PGM of 16 bits; TIFF and PFM of floats) and arrays of NumPy (``.npy``, or
    the only one of an ``.npz``). Whole numbers count ``units_per_metre``; floats are metres.

    Args:
        path: the file.
        scene: name for messages.
        units_per_metre: what whole numbers count.
        invalid: value that stands for unknown besides 0 and what is no positive number.

    Raises:
        BrokenScene: it is missing, damaged, or of another type.
    """
    values = _depth_values(path, scene)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[..., 0] if values.shape[2] == 1 else values[0]
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise BrokenScene(scene, path, f"a depth map is expected, found {values.dtype} of shape {values.shape}")
    known = np.isfinite(values) & (values > 0)
    if invalid is not None:
        known &= values != invalid
    depth = np.where(known, values, 0).astype(np.float32)
    return depth if values.dtype.kind == "f" else depth / np.float32(units_per_metre)


def depth_size(path: Path, scene: str) -> tuple[int, int]:
    """Width and height of a depth map; raises as :func:`read_depth`."""
    if _is_array(path, scene):
        height, width = read_depth(path, scene, 1.0).shape
        return width, height
    return image_size(path, scene)


def _is_array(path: Path, scene: str) -> bool:
    return _beginning(path, scene).startswith((b"\x93NUMPY", b"PK\3\4"))


def _depth_values(path: Path, scene: str) -> np.ndarray:
    """A depth map as it is stored."""
    return stored_values(path, scene, "a depth map has 16 bits and one channel")


def stored_values(path: Path, scene: str, wanted: str, eight_bits: bool = False) -> np.ndarray:
    """What an image of one channel or an array of NumPy holds, as it is stored.

    Args:
        path: the file.
        scene: name for messages.
        wanted: what is expected, for messages.
        eight_bits: whether images of 8 bits will do.

    Raises:
        BrokenScene: it is missing or damaged, or an image of another type.
    """
    if _is_array(path, scene):
        return _array(path, scene)
    with open_raw(path, scene) as image:
        if not (image.mode.startswith("I") or image.mode == "F" or (eight_bits and image.mode == "L")):
            raise BrokenScene(scene, path, f"{wanted}, this image is of mode {image.mode}")
        if image.format == "PPM" and image.mode == "I":
            return _pgm(path, scene)
        return _pixels(image, path, scene)


def _pgm(path: Path, scene: str) -> np.ndarray:
    """A PGM of 16 bits; Pillow would stretch its numbers to 65535 where the header states a smaller maximum."""
    data = read_bytes(path, scene)
    header = _PGM.match(data)
    if header is None:
        raise BrokenScene(scene, path, "a PGM depth map is binary (P5), this one is not; write PNG of 16 bits", 0)
    width, height = int(header[1]), int(header[2])
    if len(data) - header.end() < 2 * width * height:
        reason = f"the image cannot be decoded: {width} x {height} pixels of 16 bits do not fit in {len(data)} bytes"
        raise BrokenScene(scene, path, reason)
    return np.frombuffer(data, ">u2", width * height, header.end()).reshape(height, width)


def _array(path: Path, scene: str) -> np.ndarray:
    """The array of an ``.npy`` file, or the only one of an ``.npz``."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            (name,) = loaded.files
            return loaded[name]
    except Exception as error:  # NumPy lets whatever its parser and zlib raise through
        raise BrokenScene(scene, path, f"is not one array that NumPy can read: {error}") from error
