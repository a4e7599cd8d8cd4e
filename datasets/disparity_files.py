"""Files of disparity and optical flow: PFM, KITTI's PNG, ``.flo`` and arrays of NumPy, both ways.

In memory what is unknown is NaN. In files it is

- *PFM* (floats, pixels): infinite, as Middlebury has it; disparity has one channel, flow three, of which the third is
  not used, as SceneFlow has it;
- *PNG and other images of 16 bits*: 0. Disparity counts 256ths of a pixel, as KITTI has it. Flow is KITTI's PNG of
  three channels: 64ths of a pixel above 2^15 to the right, the same down, and whether it is known;
- *images of 8 bits*: 0; disparity in whole pixels;
- ``.flo`` (floats): beyond 1e9, as Middlebury has it;
- ``.npy``, ``.npz`` with one array: not finite, of floats; 0, of whole numbers, which count pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.files import PILLOW_ERRORS, read_bytes
from geo3d.datasets.image_files import open_raw, stored_values
from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError
from geo3d.writing import replacing

#: Endings of the files that are read, in the order in which they are preferred.
DISPARITY_ENDINGS = (".pfm", ".npy", ".npz", ".png", ".tif", ".tiff", ".pgm")
FLOW_ENDINGS = (".flo", ".pfm", ".npy", ".npz", ".png")
_KITTI_DISPARITY, _KITTI_FLOW, _KITTI_ZERO = 256.0, 64.0, 2**15
_SIXTEEN_BITS = 65535
_FLO, _FLO_UNKNOWN = 202021.25, 1e9
_COLOR_PFM = re.compile(rb"PF\s+(\d+)\s+(\d+)\s+([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_disparity(path: Path, scene: str, factor: float | None = None) -> np.ndarray:
    """A map of disparity.

    Args:
        path: the file.
        scene: name for messages.
        factor: what whole numbers are multiplied by; None: 256 in images of 16 bits, else 1.

    Returns:
        (H, W) float32 pixels, NaN where unknown.

    Raises:
        BrokenScene: it is missing, damaged, or of another type.
    """
    values = stored_values(path, scene, "a map of disparity has one channel", eight_bits=True)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[..., 0] if values.shape[2] == 1 else values[0]
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise BrokenScene(scene, path, f"disparity is expected, found {values.dtype} of shape {values.shape}")
    if values.dtype.kind == "f":
        return np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    if factor is None:
        is_image = path.suffix.lower() not in (".npy", ".npz")
        factor = _KITTI_DISPARITY if is_image and values.dtype != np.uint8 else 1.0
    return np.where(values > 0, values / factor, np.nan).astype(np.float32)


def read_flow(path: Path, scene: str) -> np.ndarray:
    """A map of optical flow: ``.flo``, PFM of three channels, KITTI's PNG, or an array (H, W, 2) or (2, H, W).

    Returns:
        (H, W, 2) float32 pixels to the right and down, NaN where unknown.

    Raises:
        BrokenScene: it is missing, damaged, or of another type.
    """
    ending = path.suffix.lower()
    if ending == ".flo":
        return _read_flo(path, scene)
    if ending == ".pfm":
        return _read_flow_pfm(path, scene)
    if ending == ".png":
        return _read_kitti_flow(path, scene)
    values = stored_values(path, scene, "flow is a .flo file, a PFM, a PNG of KITTI or an array")
    if values.ndim == 3 and values.shape[0] == 2 != values.shape[2]:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != 2 or values.dtype.kind != "f":
        raise BrokenScene(scene, path, f"flow (H, W, 2) of floats is expected, found {values.dtype} {values.shape}")
    return _both_known(values.astype(np.float32), np.isfinite(values))


def _both_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known.all(-1, keepdims=True), values, np.float32(np.nan))


def _read_flo(path: Path, scene: str) -> np.ndarray:
    data = read_bytes(path, scene)
    if len(data) < 12 or struct.unpack("<f", data[:4])[0] != _FLO:
        raise BrokenScene(scene, path, "is not a .flo file: it should begin with the number 202021.25", 0)
    width, height = struct.unpack("<ii", data[4:12])
    if width <= 0 or height <= 0 or len(data) - 12 < 8 * width * height:
        raise BrokenScene(scene, path, f"{width} x {height} pixels of flow do not fit in {len(data)} bytes")
    values = np.frombuffer(data, "<f4", 2 * width * height, 12).reshape(height, width, 2)
    return _both_known(values, np.abs(values) < _FLO_UNKNOWN)


def _read_flow_pfm(path: Path, scene: str) -> np.ndarray:
    """Rows lie from the bottom up; the sign of the scale tells the order of bytes. Pillow reads one channel alone."""
    data = read_bytes(path, scene)
    header = _COLOR_PFM.match(data)
    if header is None:
        raise BrokenScene(scene, path, "flow in a PFM has three channels: the file should begin with PF", 0)
    width, height, rest = int(header[1]), int(header[2]), len(data) - header.end()
    if not width or not height or rest < 12 * width * height:
        raise BrokenScene(scene, path, f"{width} x {height} pixels of flow do not fit in {len(data)} bytes")
    order = "<" if header[3].startswith(b"-") else ">"
    values = np.frombuffer(data, f"{order}f4", 3 * width * height, header.end()).reshape(height, width, 3)[::-1, :, :2]
    return _both_known(values.astype(np.float32), np.isfinite(values))


def _read_kitti_flow(path: Path, scene: str) -> np.ndarray:
    """Pillow keeps the upper byte of the 16 bits of coloured images; read as little-endian, it keeps the lower one."""
    halves = []
    for order in ("RGB;16B", "RGB;16L"):
        with open_raw(path, scene) as image:
            if [tile[3] for tile in image.tile] != ["RGB;16B"]:
                raise BrokenScene(scene, path, "flow in a PNG has three channels of 16 bits, as KITTI has it")
            image.tile = [(*image.tile[0][:3], order)]
            try:
                halves.append(np.asarray(image).astype(np.int32))
            except PILLOW_ERRORS as error:
                raise BrokenScene(
                    scene, path, f"the image cannot be decoded: {error or type(error).__name__}"
                ) from error
    values = 256 * halves[0] + halves[1]
    return _both_known(((values[..., :2] - _KITTI_ZERO) / _KITTI_FLOW).astype(np.float32), values[..., 2:] > 0)


def write_pfm(path: Path, values: np.ndarray) -> None:
    """Write a map (H, W) of floats, NaN where unknown, as PFM; infinite where unknown.

    Raises:
        InputError: the file cannot be written.
    """
    height, width = values.shape
    stored = np.where(np.isfinite(values), values, np.inf)[::-1].astype("<f4")
    with replacing(path) as unfinished:
        unfinished.write_bytes(f"Pf\n{width} {height}\n-1.0\n".encode() + stored.tobytes())


def write_disparity_png(path: Path, values: np.ndarray, unit: str = "pixels") -> None:
    """Write disparity (H, W) as KITTI does: 256ths of a pixel in 16 bits, 0 where unknown; at most 255.99 pixels.

    Args:
        path: the file.
        values: the map; what is negative counts as unknown.
        unit: of the values, for messages.

    Raises:
        InputError: values that 16 bits do not hold, or the file cannot be written.
    """
    known = np.isfinite(values) & (values >= 0)
    counts = np.where(known, np.rint(np.where(known, values, 0) * _KITTI_DISPARITY).clip(min=1), 0)
    beyond = counts > _SIXTEEN_BITS
    if beyond.any():
        raise InputError(
            f"{path}: a PNG as KITTI has it holds up to {_SIXTEEN_BITS / _KITTI_DISPARITY:.2f} {unit}; {beyond.sum()} "
            f"pixels have more, up to {values[known].max():.6g}; write a .pfm or .npz instead"
        )
    with replacing(path) as unfinished:
        Image.fromarray(counts.astype(np.uint16)).save(unfinished, format="PNG")


def write_flow(path: Path, values: np.ndarray) -> None:
    """Write flow (H, W, 2) as ``.flo``; 1e10 where unknown.

    Raises:
        InputError: the file cannot be written.
    """
    height, width, _ = values.shape
    stored = np.where(np.isfinite(values), values, 10 * _FLO_UNKNOWN).astype("<f4")
    with replacing(path) as unfinished:
        unfinished.write_bytes(struct.pack("<fii", _FLO, width, height) + stored.tobytes())


def write_flow_png(path: Path, values: np.ndarray) -> None:
    """Write flow (H, W, 2) as KITTI does: 64ths of a pixel in 16 bits, within +-512 pixels.

    Raises:
        InputError: flow that 16 bits do not hold, or the file cannot be written.
    """
    known = np.isfinite(values).all(-1)
    counts = np.rint(np.where(known[..., None], values, 0) * _KITTI_FLOW + _KITTI_ZERO)
    beyond = ((counts < 0) | (counts > _SIXTEEN_BITS)).any(-1)
    if beyond.any():
        raise InputError(
            f"{path}: a PNG as KITTI has it holds flow from {-_KITTI_ZERO / _KITTI_FLOW:.0f} to "
            f"{(_SIXTEEN_BITS - _KITTI_ZERO) / _KITTI_FLOW:.2f} pixels; that of {beyond.sum()} pixels is longer, up to "
            f"{np.abs(values[known]).max():.6g}; write a .flo or .npz instead"
        )
    pixels = np.concatenate([np.where(known[..., None], counts, 0), known[..., None]], -1).astype(">u2")
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 6 * width), np.uint8)  # each row begins with the number of its filter: none
    rows[:, 1:] = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    with replacing(path) as unfinished:
        unfinished.write_bytes(_PNG + b"".join(chunks))


__all__ = [
    "DISPARITY_ENDINGS",
    "FLOW_ENDINGS",
    "read_disparity",
    "read_flow",
    "write_disparity_png",
    "write_flow",
    "write_flow_png",
    "write_pfm",
]
