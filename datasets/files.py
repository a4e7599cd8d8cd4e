"""Reading small files of a scene; what is missing or damaged is a :class:`BrokenScene` that names it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError
from geo3d.geometry import Camera

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
#: What Pillow raises on damaged images; damaged chunks of a PNG are a SyntaxError.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError)
# Coordinates beyond this are damage, in whatever unit.
_FARTHEST = 1e15
_DIGITS = re.compile(r"(\d+)")


def make_folder(path: Path) -> Path:
    """Make a folder to write into, with those above it; returns it.

    Raises:
        InputError: it cannot be made, or a file stands in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made as a folder ({error.strerror}); give another output") from error
    return path


def numeric_order(name: str) -> tuple:
    """Sort key under which ``2`` comes before ``10``."""
    return tuple((0, int(part), part) if part.isdigit() else (1, 0, part) for part in _DIGITS.split(name) if part)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted((e.name for e in entries if not e.name.startswith(".") and e.is_dir()), key=numeric_order)


def image_names(folder: Path) -> list[str]:
    """Names of the image files in ``folder`` (JPEG and PNG), sorted as numbers; empty when there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".")]
    return sorted((n for n in names if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES), key=numeric_order)


def read_bytes(path: Path, scene: str) -> bytes:
    """The whole file.

    Raises:
        BrokenScene: it is missing, or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenScene(scene, path, f"cannot be read: {error.strerror}") from error


def read_text(path: Path, scene: str) -> str:
    """The file as UTF-8 text.

    Raises:
        BrokenScene: it is missing, or not text.
    """
    try:
        return read_bytes(path, scene).decode()
    except UnicodeDecodeError as error:
        raise BrokenScene(scene, path, "is not UTF-8 text", error.start) from error


def read_json(path: Path, scene: str) -> dict[str, Any]:
    """The file as a JSON object.

    Raises:
        BrokenScene: it is missing, cut or not an object.
    """
    text = read_text(path, scene)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BrokenScene(scene, path, f"damaged JSON: {error.msg}", len(text[: error.pos].encode())) from error
    if not isinstance(value, dict):
        raise BrokenScene(scene, path, f"a JSON object is expected, the file holds a {type(value).__name__}", 0)
    return value


def read_matrix(path: Path, scene: str) -> np.ndarray:
    """A 4 x 4 matrix written as 16 numbers, row by row.

    Raises:
        BrokenScene: the file is missing or holds anything else.
    """
    return parse_matrix(read_text(path, scene), path, scene)


def parse_matrix(text: str, path: Path, scene: str) -> np.ndarray:
    """As :func:`read_matrix`, of text that was found in ``path``."""
    try:
        values = np.array(text.split(), dtype=np.float64)
    except ValueError as error:
        raise BrokenScene(scene, path, f"16 numbers are expected: {error}") from error
    if values.size != 16:
        raise BrokenScene(scene, path, f"16 numbers are expected, found {values.size}")
    return values.reshape(4, 4)


def are_rigid(matrices: np.ndarray) -> np.ndarray:
    """Which of ``matrices`` (N, 4, 4) are finite rotations with a translation; those of lost frames are not."""
    finite = np.isfinite(matrices).all((1, 2))
    rotation = np.where(finite[:, None, None], matrices, 0)[:, :3, :3].astype(np.float64)
    gram = rotation @ rotation.transpose(0, 2, 1)
    # Text files carry six decimals and float32 chains drift: 1e-2 tells those from zeros, scalings and noise.
    orthonormal = np.abs(gram - np.eye(3)).max((1, 2), initial=0) < 1e-2
    return finite & orthonormal & (np.linalg.det(rotation) > 0)


def require_finite(xyz: np.ndarray, path: Path, scene: str) -> None:
    """Look whether coordinates (N, 3) are numbers of a sensible size.

    Raises:
        BrokenScene: one is not.
    """
    bad = ~(np.abs(xyz) < _FARTHEST).all(1)
    if bad.any():
        row = int(np.argmax(bad))
        raise BrokenScene(scene, path, f"{int(bad.sum())} points are damaged; number {row} is {xyz[row].tolist()}")


def open_image(path: Path, scene: str) -> Image.Image:
    """The image, of which only the header is read; pixels are decoded when asked for.

    Raises:
        BrokenScene: it is missing, or no image.
    """
    try:
        return Image.open(path)
    except PILLOW_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:
            raise BrokenScene(scene, path, f"cannot be read: {error.strerror}") from error
        raise BrokenScene(scene, path, "is not an image that Pillow can read, or is cut in its header", 0) from error


def image_size(path: Path, scene: str) -> tuple[int, int]:
    """Width and height of the image in ``path``; raises as :func:`open_image`."""
    with open_image(path, scene) as image:
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


def decode(image: Image.Image, path: Path | str, scene: str, mode: str | None = None) -> np.ndarray:
    """Pixels of ``image`` as an array, converted to ``mode`` first where one is given.

    Raises:
        BrokenScene: the pixels are cut or damaged.
    """
    try:
        return np.array(image if mode is None else image.convert(mode))
    except PILLOW_ERRORS as error:
        raise BrokenScene(scene, path, f"the image cannot be decoded: {error}") from error


def read_mask(path: Path, scene: str) -> np.ndarray:
    """A mask image as (H, W) bool, True where it is not black.

    Raises:
        BrokenScene: it is missing or damaged.
    """
    with open_image(path, scene) as image:
        return decode(image, path, scene, "L") > 0


def read_depth(path: Path, scene: str, units_per_metre: float) -> np.ndarray:
    """A depth map stored as 16-bit PNG, (H, W) float32 metres, 0 where unknown.

    Raises:
        BrokenScene: it is missing, damaged, or not of 16 bits and one channel.
    """
    with open_image(path, scene) as image:
        if not image.mode.startswith("I"):
            reason = f"a depth map has 16 bits and one channel, this image is of mode {image.mode}"
            raise BrokenScene(scene, path, reason)
        return decode(image, path, scene).astype(np.float32) / np.float32(units_per_metre)
