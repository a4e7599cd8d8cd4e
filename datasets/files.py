"""Folders and small text files of a scene; what is missing or damaged is a :class:`BrokenScene` that names it."""

from __future__ import annotations

import codecs
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo3d.datasets.plain_text import split_lines, to_number
from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError

#: What Pillow raises on damaged images, on those of more pixels than its ``MAX_IMAGE_PIXELS``, and where memory ends.
#: Damaged chunks of a PNG are a SyntaxError; readers of TIFF let errors of Python through.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
# Coordinates beyond this are damage, in whatever unit.
_FARTHEST = 1e15
_DIGITS = re.compile(r"([0-9]+)")
# Marks of text files that editors of Windows write, and the encodings that they tell.
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


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
    # Digits without leading zeros compare as numbers by length, then as text: int() refuses thousands of them.
    parts = ((part.lstrip("0") if part[0] in "0123456789" else None, part) for part in _DIGITS.split(name) if part)
    return tuple((1, 0, part, "") if digits is None else (0, len(digits), digits, part) for digits, part in parts)


def entries(folder: Path) -> list[os.DirEntry]:
    """What lies in ``folder``, in no order; hidden things are left out.

    Raises:
        BrokenScene: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise BrokenScene(folder.name, folder, f"cannot be listed: {error.strerror}") from error


def looked_at(folder: Path) -> list[os.DirEntry]:
    """As :func:`entries`; empty where the folder cannot be listed, as ``lost+found`` beside scenes cannot."""
    try:
        return entries(folder)
    except BrokenScene:
        return []


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted; hidden ones are left out. Empty where it cannot be listed."""
    return sorted((entry.name for entry in looked_at(folder) if entry.is_dir()), key=numeric_order)


def folders_below(folder: Path) -> Iterator[Path]:
    """A folder and all below it, in a fixed order; hidden ones are left out, and links that lead back up."""
    yield folder
    for name in subfolders(folder):
        child = folder / name
        if not (child.is_symlink() and folder.resolve().is_relative_to(child.resolve())):
            yield from folders_below(child)


def read_bytes(path: Path, scene: str) -> bytes:
    """The whole file.

    Raises:
        BrokenScene: it is missing, or cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise unreadable(path, scene, error) from error


def unreadable(path: Path, scene: str, error: OSError | ValueError) -> BrokenScene:
    """What a file that cannot be opened is; a ValueError says that its name is none (a zero byte, half a character)."""
    why = error.strerror if isinstance(error, OSError) else f"no file has such a name ({error})"
    return BrokenScene(scene, path, f"cannot be read: {why}")


def read_text(path: Path, scene: str) -> str:
    """The file as text: UTF-8, or UTF-16 where it begins with that mark; the mark is left out.

    Raises:
        BrokenScene: it is missing, or not text.
    """
    data = read_bytes(path, scene)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise BrokenScene(scene, path, f"is not {encoding[:6].upper().rstrip('-')} text", error.start) from error


def read_plain(path: Path, scene: str) -> bytes:
    """The whole file, which may hold more than text, without a byte order mark; UTF-16 becomes UTF-8.

    Raises:
        BrokenScene: it is missing, cannot be read, or is damaged UTF-16.
    """
    data = read_bytes(path, scene)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16").encode()
        except UnicodeError as error:
            raise BrokenScene(scene, path, "begins as UTF-16 and is damaged; save it as UTF-8") from error
    return data.removeprefix(codecs.BOM_UTF8)


def list_line(line: str) -> str:
    """The name that a line of a list holds: without spaces around it, and without quotes where it is quoted.

    Empty for a line that is blank or a comment (``#``).
    """
    line = line.strip()
    if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
        return line[1:-1]
    return "" if line.startswith("#") else line


def read_json(path: Path, scene: str) -> dict[str, Any]:
    """The file as a JSON object.

    Raises:
        BrokenScene: it is missing, cut or not an object, or gives a key twice, with two values.
    """
    text = read_text(path, scene)
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        unseen = len(read_bytes(path, scene)) - len(text.encode())  # the mark of a text in UTF-8
        offset = len(text[: error.pos].encode()) + unseen if unseen in (0, len(codecs.BOM_UTF8)) else None
        raise BrokenScene(scene, path, f"damaged JSON: {error.msg}", offset) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; a thousand brackets
        raise BrokenScene(scene, path, f"damaged JSON: {error}") from error
    if not isinstance(value, dict):
        raise BrokenScene(scene, path, f"a JSON object is expected, the file holds a {type(value).__name__}", 0)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        for key, first in pairs:
            if repr(first) != repr(value[key]):
                raise ValueError(f"key {key!r} is there twice, with different values")
    return value


def read_matrix(path: Path, scene: str, intrinsic: bool = False) -> np.ndarray:
    """A 4 x 4 matrix written as 16 numbers, row by row, or its upper three rows.

    Args:
        path: the file.
        scene: name for messages.
        intrinsic: whether the 9 numbers of a 3 x 3 matrix will do as well.

    Raises:
        BrokenScene: the file is missing or holds anything else.
    """
    return parse_matrix(read_text(path, scene), path, scene, intrinsic)


def parse_matrix(text: str, path: Path, scene: str, intrinsic: bool = False) -> np.ndarray:
    """As :func:`read_matrix`, of text that was found in ``path``.

    Numbers may be parted by commas or semicolons, rows put in brackets, and lines be comments (``#``).
    """
    lines = (line.partition("#")[0] if line.lstrip().startswith("#") else line for line in split_lines(text))
    try:
        values = np.array([to_number(word) for line in lines for word in re.split(r"[\s,;\[\]]+", line) if word])
    except ValueError as error:
        raise BrokenScene(scene, path, f"16 numbers are expected: {error}") from error
    matrix = np.eye(4)
    if intrinsic and values.size == 9:
        matrix[:3, :3] = values.reshape(3, 3)
    elif values.size in (12, 16):
        matrix[: values.size // 4] = values.reshape(-1, 4)
    else:
        raise BrokenScene(scene, path, f"16 numbers are expected, found {values.size}")
    return matrix


def are_rigid(matrices: np.ndarray) -> np.ndarray:
    """Which of ``matrices`` (N, 4, 4) are finite rotations with a translation; those of lost frames are not."""
    sensible = (np.abs(matrices) < _FARTHEST).all((1, 2))
    known = np.where(sensible[:, None, None], matrices, 0).astype(np.float64)
    rotation = known[:, :3, :3]
    gram = rotation @ rotation.transpose(0, 2, 1)
    # Text files carry six decimals and float32 chains drift: 1e-2 tells those from zeros, scalings and noise.
    orthonormal = np.abs(gram - np.eye(3)).max((1, 2), initial=0) < 1e-2
    # A transposed matrix has its translation here.
    last_row = np.abs(known[:, 3] - [0, 0, 0, 1]).max(1, initial=0) < 1e-2
    return sensible & orthonormal & last_row & (np.linalg.det(rotation) > 0)


def require_finite(xyz: np.ndarray, path: Path, scene: str) -> None:
    """Look whether coordinates (N, 3) are numbers of a sensible size.

    Raises:
        BrokenScene: one is not.
    """
    bad = ~(np.abs(xyz) < _FARTHEST).all(1)
    if bad.any():
        row = int(np.argmax(bad))
        raise BrokenScene(scene, path, f"{int(bad.sum())} points are damaged; number {row} is {xyz[row].tolist()}")
