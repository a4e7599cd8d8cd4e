"""Files of disparities and optical flow: PFM, PNG of KITTI and Middlebury, ``.flo``, arrays of NumPy.

In memory what is not known is NaN. Disparities are pixels, positive: what is at column x of the left image is at
x - disparity in the right one. Flow is (x, y) in pixels from the first image to the second.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from geo3d.datasets.files import read_bytes
from geo3d.datasets.image_files import read_grey
from geo3d.datasets.png16 import is_png16, read_png16, write_png16
from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError
from geo3d.writing import replacing

#: Endings that are written; which of them hold what.
DISPARITY_ENDINGS = (".npz", ".pfm", ".png")
FLOW_ENDINGS = (".npz", ".flo", ".png")
#: What a step of KITTI's whole numbers is, pixels, and which of them stands for no flow along an axis.
_KITTI_DISPARITY, _KITTI_FLOW, _KITTI_ZERO = 256.0, 64.0, 1 << 15
_FLO = b"PIEH"
#: Flow that is not known is written as this; all beyond the bound is.
_FLO_UNKNOWN, _FLO_BOUND = 1.6666666e9, 1e9
_PFM = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+0-9.eE]+)[ \t\r]*\n")
_LARGEST = 1 << 28


def read_disparity(path: Path, scene: str = "", scale: float | None = None) -> np.ndarray:
    """A disparity map as (H, W) float32 pixels, NaN where it is not known.

    Read are PFM (Middlebury, SceneFlow, ETH3D: infinite where unknown), PNG of 16 bits (KITTI: 256 a pixel) and of 8
    (Middlebury of 2003 and earlier: a whole number a pixel, see ``scale``), in both of which 0 is unknown; and
    ``disparity``, or the only array, of an ``.npz``, or an ``.npy``. Negative numbers of a PFM count as they are.

    Args:
        path: the file.
        scene: name for messages; the file's when not given.
        scale: what the numbers of the file are divided by; as of KITTI, else 1, when not given. Quarter-size images
            of Middlebury have 4, half-size 2 with some exceptions: the page of the data says it.

    Raises:
        BrokenScene: it is missing, damaged or of another type.
        InputError: a scale that is not positive.
    """
    if scale is not None and not 0 < scale < np.inf:
        raise InputError(f"scale of disparities must be positive, got {scale}")
    scene = scene or path.stem
    values, unknown_at_zero, usual = _values(path, scene, "disparity")
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2:
        raise BrokenScene(scene, path, f"a disparity map has one channel, found an array {values.shape}")
    known = np.isfinite(values) & ((values != 0) if unknown_at_zero else True)
    return np.where(known, values / np.float32(usual if scale is None else scale), np.nan).astype(np.float32)


def read_flow(path: Path, scene: str = "") -> np.ndarray:
    """Optical flow as (H, W, 2) float32 pixels (x, y), NaN where it is not known.

    Read are ``.flo`` (Middlebury, Sintel), PNG of 3 x 16 bits (KITTI), PFM of three channels (SceneFlow), and ``flow``,
    or the only array, of an ``.npz``, or an ``.npy``.

    Raises:
        BrokenScene: it is missing, damaged or of another type.
    """
    scene = scene or path.stem
    data = read_bytes(path, scene)
    if data.startswith(_FLO):
        values = _flo(data, path, scene)
        unknown = ~(np.abs(values) < _FLO_BOUND).all(2)
    elif is_png16(data):
        stored = read_png16(path, scene)
        if stored.shape[2] != 3:
            raise BrokenScene(scene, path, f"flow of KITTI has three channels, this PNG has {stored.shape[2]}")
        values = (stored[..., :2].astype(np.float32) - _KITTI_ZERO) / np.float32(_KITTI_FLOW)
        unknown = stored[..., 2] == 0
    else:
        values, *_ = _values(path, scene, "flow")
        if values.ndim != 3 or values.shape[2] not in (2, 3):
            raise BrokenScene(scene, path, f"flow is expected as (H, W, 2), found an array {values.shape}")
        values = values[..., :2]
        unknown = ~np.isfinite(values).all(2)
    return np.where(unknown[..., None], np.nan, values).astype(np.float32)


def _values(path: Path, scene: str, entry: str) -> tuple[np.ndarray, bool, float]:
    """Numbers as they are stored, whether 0 is unknown, and what they are divided by."""
    data = read_bytes(path, scene)
    if data.startswith((b"Pf", b"PF")):
        return _pfm(data, path, scene), False, 1.0
    if data.startswith((b"\x93NUMPY", b"PK\3\4")):
        return _array(path, scene, entry), False, 1.0
    if is_png16(data):
        return read_png16(path, scene).astype(np.float32), True, _KITTI_DISPARITY
    return read_grey(path, scene).astype(np.float32), True, 1.0


def _array(path: Path, scene: str, entry: str) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded:
                names = loaded.files
                if entry not in names and len(names) != 1:
                    reason = f"holds no {entry}, but {', '.join(names[:8]) or 'nothing'}"
                    raise BrokenScene(scene, path, reason)
                loaded = loaded[entry if entry in names else names[0]]
    except BrokenScene:
        raise
    except Exception as error:  # NumPy lets whatever its parser and zlib raise through
        raise BrokenScene(scene, path, f"is not an array that NumPy can read: {error}") from error
    if loaded.dtype.kind not in "uif":
        raise BrokenScene(scene, path, f"holds values of type {loaded.dtype}; numbers are expected")
    return loaded.astype(np.float32)


def _pfm(data: bytes, path: Path, scene: str) -> np.ndarray:
    found = _PFM.match(data)
    if found is None:
        raise BrokenScene(scene, path, "is damaged: a PFM begins with Pf or PF, its sides and a scale", 0)
    width, height, channels = int(found[2]), int(found[3]), 1 if found[1] == b"Pf" else 3
    try:
        order = "<" if float(found[4]) < 0 else ">"
    except ValueError:
        raise BrokenScene(scene, path, f"is damaged: its scale {found[4]!r} is no number", found.start(4)) from None
    values = _floats(data, found.end(), (height, width, channels), order, path, scene)
    return values[::-1]  # from below to above


def _flo(data: bytes, path: Path, scene: str) -> np.ndarray:
    if len(data) < 12:
        raise BrokenScene(scene, path, "is cut in its header", len(data))
    width, height = struct.unpack("<ii", data[4:12])
    return _floats(data, 12, (height, width, 2), "<", path, scene)


def _floats(data: bytes, start: int, shape: tuple[int, int, int], order: str, path: Path, scene: str) -> np.ndarray:
    count = shape[0] * shape[1] * shape[2]
    if min(shape) <= 0 or count > _LARGEST:
        raise BrokenScene(scene, path, f"is damaged: its header says {shape[1]} x {shape[0]} pixels", start)
    if len(data) - start < 4 * count:
        raise BrokenScene(scene, path, f"is cut: {4 * count} bytes of pixels are expected, {len(data) - start} there")
    return np.frombuffer(data, f"{order}f4", count, start).reshape(shape).astype(np.float32)


def write_disparity(path: Path, disparity: np.ndarray) -> None:
    """Write (H, W) pixels, NaN where not known, by the ending: ``.pfm``, ``.png`` (KITTI) or ``.npz``.

    KITTI's PNG holds 1/256 to 255.99 pixels: what lies beyond is not known in it.

    Raises:
        InputError: another ending or shape, or nothing can be written there.
    """
    _require(path, disparity, 2, DISPARITY_ENDINGS, "disparities")
    if path.suffix == ".png":
        steps = np.rint(np.nan_to_num(disparity, nan=0.0, posinf=0.0, neginf=0.0) * _KITTI_DISPARITY)
        write_png16(path, np.where((steps < 1) | (steps > 65535), 0, steps).astype(np.uint16))
    elif path.suffix == ".pfm":
        write_pfm(path, np.where(np.isfinite(disparity), disparity, np.inf))
    else:
        write_arrays(path, disparity=disparity.astype(np.float32))


def write_flow(path: Path, flow: np.ndarray) -> None:
    """Write (H, W, 2) pixels, NaN where not known, by the ending: ``.flo``, ``.png`` (KITTI) or ``.npz``.

    KITTI's PNG holds -512 to 511.98 pixels: what lies beyond is not known in it.

    Raises:
        InputError: another ending or shape, or nothing can be written there.
    """
    _require(path, flow, 3, FLOW_ENDINGS, "optical flow")
    if path.suffix == ".png":
        steps = np.rint(np.nan_to_num(flow, nan=-1e9, posinf=1e9, neginf=-1e9) * _KITTI_FLOW) + _KITTI_ZERO
        known = ((steps >= 0) & (steps <= 65535)).all(2)
        stored = np.concatenate([steps, np.ones_like(steps[..., :1])], 2)
        write_png16(path, np.where(known[..., None], stored, 0).astype(np.uint16))
    elif path.suffix == ".flo":
        known = np.isfinite(flow).all(2, keepdims=True)
        values = np.where(known, flow, _FLO_UNKNOWN).astype("<f4")
        with replacing(path) as temporary:
            temporary.write_bytes(_FLO + struct.pack("<ii", flow.shape[1], flow.shape[0]) + values.tobytes())
    else:
        write_arrays(path, flow=flow.astype(np.float32))


def write_pfm(path: Path, values: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) numbers as PFM of float32."""
    kind = "Pf" if values.ndim == 2 else "PF"
    header = f"{kind}\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    with replacing(path) as temporary:
        temporary.write_bytes(header + values[::-1].astype("<f4").tobytes())


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as a packed ``.npz``."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _require(path: Path, values: np.ndarray, axes: int, endings: tuple[str, ...], what: str) -> None:
    if path.suffix not in endings:
        raise InputError(f"{path}: {what} are written to files that end in {', '.join(endings)}")
    if values.ndim != axes or 0 in values.shape or (axes == 3 and values.shape[2] != 2):
        raise InputError(f"{path}: {what} are an array {'(H, W)' if axes == 2 else '(H, W, 2)'}, got {values.shape}")


__all__ = [
    "DISPARITY_ENDINGS",
    "FLOW_ENDINGS",
    "read_disparity",
    "read_flow",
    "write_arrays",
    "write_disparity",
    "write_flow",
    "write_pfm",
]
