"""PNG of 16 bits a channel, of which Pillow reads and writes one channel alone: optical flow of KITTI has three."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from geo3d.datasets.files import read_bytes
from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError
from geo3d.writing import replacing

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Colour type of the header -> channels; a palette has none of 16 bits.
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_TYPES = {channels: kind for kind, channels in _CHANNELS.items()}
_LARGEST = 1 << 28
_UP = 2


def is_png16(data: bytes) -> bool:
    """Whether a file that begins so is a PNG of 16 bits a channel."""
    return data.startswith(_SIGNATURE) and data[12:16] == b"IHDR" and data[24:25] == b"\x10"


def read_png16(path: Path, scene: str) -> np.ndarray:
    """A PNG of 16 bits as (H, W, C) uint16, C being 1 to 4.

    Raises:
        BrokenScene: it is missing, damaged, or another PNG.
    """
    data = read_bytes(path, scene)
    if not is_png16(data):
        raise BrokenScene(scene, path, "is no PNG of 16 bits a channel", 0)
    width, height, _, kind, *methods = struct.unpack(">IIBBBBB", data[16:29])
    if kind not in _CHANNELS or not 0 < width * height <= _LARGEST:
        raise BrokenScene(
            scene, path, f"is damaged: its header says {width} x {height} pixels of colour type {kind}", 16
        )
    if any(methods):
        raise BrokenScene(scene, path, "is an interlaced PNG, which is not read with 16 bits; write it without", 28)
    packed = b"".join(_image_data(data, path, scene))
    step = 2 * _CHANNELS[kind]
    wanted = height * (1 + width * step)
    try:
        raw = zlib.decompressobj().decompress(packed, wanted)
    except zlib.error as error:
        raise BrokenScene(scene, path, f"is damaged: its pixels cannot be unpacked ({error})") from error
    if len(raw) < wanted:
        raise BrokenScene(scene, path, f"is cut: {len(raw)} of {wanted} bytes of pixels are there")
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    if rows[:, 0].max() > 4:
        raise BrokenScene(scene, path, f"is damaged: a row is filtered by method {rows[:, 0].max()}")
    plain = _unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, step))
    return plain.view(">u2").astype(np.uint16)


def _image_data(data: bytes, path: Path, scene: str):
    """The chunks with packed pixels."""
    place = len(_SIGNATURE)
    while place + 12 <= len(data):
        (length,), name = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        check = data[place + 8 + length : place + 12 + length]
        if len(check) < 4:
            break
        if struct.unpack(">I", check)[0] != zlib.crc32(name + body):
            raise BrokenScene(scene, path, f"is damaged: its chunk {name!r} has another checksum", place)
        if name == b"IDAT":
            yield body
        if name == b"IEND":
            return
        place += 12 + length
    raise BrokenScene(scene, path, "is cut: it has no end", place)


def _unfiltered(filters: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Bytes of pixels (H, W, bytes) of rows whose bytes are differences from what is left of and above them.

    Each needs its neighbours to the left, above and both: those on one diagonal need only earlier diagonals.
    """
    height, width, step = data.shape
    out = np.zeros((height + 1, width + 1, step), np.int16)
    for diagonal in range(height + width - 1):
        rows = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        columns = diagonal - rows
        left, above, both = out[rows + 1, columns], out[rows, columns + 1], out[rows, columns]
        guess = left + above - both
        far = [np.abs(guess - side) for side in (left, above, both)]
        near = np.where(far[1] <= far[2], above, both)
        near = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, near)
        choices = (np.zeros_like(left), left, above, (left + above) // 2, near)
        predicted = np.choose(filters[rows, None], choices)
        out[rows + 1, columns + 1] = (data[rows, columns] + predicted) & 255
    return np.ascontiguousarray(out[1:, 1:].astype(np.uint8))


def write_png16(path: Path, values: np.ndarray) -> None:
    """Write (H, W) or (H, W, C) uint16, C being 1 to 4, as PNG.

    Raises:
        InputError: another type or shape, or nothing can be written there.
    """
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] not in _TYPES or 0 in values.shape:
        raise InputError(f"{path}: a PNG of 16 bits holds (H, W, 1 to 4) uint16, not {values.shape} of {values.dtype}")
    height, width, channels = values.shape
    rows = np.ascontiguousarray(values.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 16, _TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_SIGNATURE)
        for name, body in chunks:
            file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))


__all__ = ["is_png16", "read_png16", "write_png16"]
