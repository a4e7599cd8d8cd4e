"""``sensor_msgs/Image`` and ``CameraInfo``: views with a camera."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from geo3d.errors import InputError, did_you_mean
from geo3d.geometry import Camera, View
from geo3d.interop.ros2.messages import bytes_of, count_of, field_of, nanoseconds, numbers_of
from geo3d.interop.ros2.transforms import as_matrix

_KIND, _INFO = "Image", "CameraInfo"
#: Encoding -> type of a number, numbers a pixel, and which of them are red, green and blue.
_COLORS = {
    "rgb8": ("u1", 3, (0, 1, 2)),
    "bgr8": ("u1", 3, (2, 1, 0)),
    "rgba8": ("u1", 4, (0, 1, 2)),
    "bgra8": ("u1", 4, (2, 1, 0)),
    "mono8": ("u1", 1, (0, 0, 0)),
    "mono16": ("u2", 1, (0, 0, 0)),
    "rgb16": ("u2", 3, (0, 1, 2)),
    "bgr16": ("u2", 3, (2, 1, 0)),
}
#: Encoding of depth -> type of a number, and metres for 1 (REP 118).
_DEPTHS = {"16UC1": ("u2", 1e-3), "mono16": ("u2", 1e-3), "32FC1": ("f4", 1.0)}
#: Model of distortion -> ours, and how many coefficients it may have.
_MODELS = {
    "plumb_bob": ("FULL_OPENCV", 5),
    "rational_polynomial": ("FULL_OPENCV", 8),
    "equidistant": ("OPENCV_FISHEYE", 4),
    "fisheye": ("OPENCV_FISHEYE", 4),
}


def from_image(message: Any) -> Tensor:
    """The colours of an image.

    Args:
        message: a ``sensor_msgs/Image`` of encoding ``rgb8``, ``bgr8``, ``rgba8``, ``bgra8``, ``mono8``, or of 16 bits
            (``mono16``, ``rgb16``, ``bgr16``: 65535 is 1), or a ``CompressedImage`` of JPEG or PNG with 8 bits.

    Returns:
        (H, W, 3) float32 in [0, 1], without transparency.

    Raises:
        InputError: another encoding; a field is missing or does not fit the others.
    """
    if not hasattr(message, "encoding") and hasattr(message, "format"):
        return _decompressed(message)
    kind, channels, order = _encoding(message, _COLORS, "hand in depth as depth=, convert others first")
    pixels = _pixels(message, kind, channels)[..., list(order)]
    return torch.from_numpy(pixels.astype(np.float32) / np.iinfo(kind).max)


def from_depth_image(message: Any) -> Tensor:
    """The depth of an image.

    Args:
        message: a ``sensor_msgs/Image`` of encoding ``16UC1`` (or ``mono16``), millimetres, or ``32FC1``, metres.

    Returns:
        (H, W) float32 metres along z, 0 where unknown: where the message has 0, a negative number, NaN or infinity.

    Raises:
        InputError: another encoding; a field is missing or does not fit the others.
    """
    kind, unit = _encoding(message, _DEPTHS, "colours are no depth")
    depth = _pixels(message, kind, 1)[..., 0].astype(np.float32) * np.float32(unit)
    return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0)))


def from_camera_info(message: Any, rectified: bool = False) -> Camera:
    """The camera of an image.

    Args:
        message: a ``sensor_msgs/CameraInfo``; without distortion, or ``plumb_bob``, ``rational_polynomial`` or
            ``equidistant``. A region of interest and binning are taken into account.
        rectified: the image is a rectified one (``image_rect``): its camera is that of ``P``, without distortion. The
            message is the same one for both kinds of images, so that nothing but the topic tells them apart.

    Returns:
        The camera of the image as it is published. The centre of its upper-left pixel is (0, 0), in ROS as here.

    Raises:
        InputError: the camera was never calibrated (K of zeros), another model of distortion, or a field is missing or
            does not fit the others.
    """
    width, height = count_of(message, "width", _INFO), count_of(message, "height", _INFO)
    name, count = ("p", 12) if rectified else ("k", 9)
    matrix = numbers_of(message, name, _INFO, count).reshape(3, -1)
    if not matrix.any():
        raise InputError(f"{_INFO}: {name} is all zeros, so the camera was never calibrated; calibrate it first")
    if matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1]:
        raise InputError(f"{_INFO}: {name} holds skew, which a Camera has not: {matrix.tolist()}")
    model, coefficients = ("PINHOLE", ()) if rectified else _distortion(message)
    (fx, _, cx), (_, fy, cy) = matrix[:2, :3].tolist()
    try:
        camera = Camera(width, height, fx, fy, cx, cy, model, coefficients)
    except ValueError as error:
        raise InputError(f"{_INFO}: width, height or {name}: {error}") from error
    return _region(message, camera)


def to_view(
    image: Any = None,
    camera_info: Any = None,
    *,
    depth: Any = None,
    depth_camera_info: Any = None,
    transform: Any = None,
    rectified: bool = False,
    name: str | None = None,
) -> View:
    """A view of messages that were taken at the same time; all of them may be absent but one of the images.

    Args:
        image: as :func:`from_image` reads it.
        camera_info: of the image, and of the depth where that has none of its own.
        depth: as :func:`from_depth_image` reads it.
        depth_camera_info: of the depth, where it is not aligned with the image.
        transform: from the camera's optical frame (``header.frame_id`` of the images, x right, y down, z forward) to
            the world's: a ``TransformStamped`` or a matrix (4, 4).
        rectified: the images are rectified; see :func:`from_camera_info`. The pose then takes ``R`` of the camera's
            message into account.
        name: of the view; the stamp of the image when not given.

    Raises:
        InputError: neither image nor depth; an image whose size is not that of its camera; or as those that are read.
    """
    first = image if image is not None else depth
    if first is None:
        raise InputError("to_view: neither image nor depth is given")
    if name is None:
        sec, nanosec = divmod(nanoseconds(field_of(first, "header", _KIND)), 10**9)
        name = f"{sec}.{nanosec:09d}"
    pose = None if transform is None else torch.from_numpy(as_matrix(transform).copy())
    if pose is not None and rectified and camera_info is not None:
        turn = numbers_of(camera_info, "r", _INFO, 9).reshape(3, 3)
        if turn.any():  # a monocular camera may leave it empty
            pose[:3, :3] = pose[:3, :3] @ torch.from_numpy(turn).T
    try:
        return View(
            name,
            camera=None if camera_info is None else from_camera_info(camera_info, rectified),
            world_from_camera=pose,
            image=None if image is None else from_image(image),
            depth=None if depth is None else from_depth_image(depth),
            depth_camera=None if depth_camera_info is None else from_camera_info(depth_camera_info, rectified),
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}; width and height of camera_info are not those of the message") from error


def _encoding(message: Any, known: dict[str, Any], advice: str) -> Any:
    encoding = str(field_of(message, "encoding", _KIND))
    if encoding not in known:
        raise InputError(
            f"{_KIND}: encoding {encoding!r} is not read here, only {', '.join(known)}{did_you_mean(encoding, known)}; "
            f"{advice}"
        )
    return known[encoding]


def _pixels(message: Any, kind: str, channels: int) -> np.ndarray:
    """(H, W, channels) numbers of a type, in the byte order of this machine."""
    height, width, step = (count_of(message, name, _KIND) for name in ("height", "width", "step"))
    if not height or not width:
        raise InputError(f"{_KIND}: width {width} and height {height} make an empty image")
    row = width * channels * np.dtype(kind).itemsize
    data = bytes_of(message, _KIND)
    if step < row:
        raise InputError(f"{_KIND}: step is {step}, but {width} pixels of {message.encoding} take {row} bytes")
    if len(data) < height * step:
        raise InputError(
            f"{_KIND}: data holds {len(data)} bytes, but height {height} and step {step} make {height * step}; the "
            "message was cut"
        )
    order = ">" if field_of(message, "is_bigendian", _KIND) else "<"
    rows = np.ascontiguousarray(data[: height * step].reshape(height, step)[:, :row])
    numbers = rows.view(np.dtype(order + kind)).reshape(height, width, channels)
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _decompressed(message: Any) -> Tensor:
    """The colours (H, W, 3) of a ``CompressedImage``."""
    kind = "CompressedImage"
    data = bytes_of(message, kind)
    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=("JPEG", "PNG")) as picture:
            if picture.mode not in ("L", "RGB", "RGBA"):
                raise InputError(f"{kind}: mode {picture.mode} (format {message.format!r}) is not read, only 8 bits")
            return torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{kind}: data is no JPEG or PNG (format {message.format!r}): {error}") from error


def _distortion(message: Any) -> tuple[str, tuple[float, ...]]:
    """Our camera model and its coefficients."""
    coefficients = numbers_of(message, "d", _INFO)
    if not coefficients.any():
        return "PINHOLE", ()
    stated = str(field_of(message, "distortion_model", _INFO))
    if stated not in _MODELS:
        raise InputError(
            f"{_INFO}: distortion_model {stated!r} is not known, only {', '.join(_MODELS)}"
            f"{did_you_mean(stated, _MODELS)}; rectify the images first and hand in rectified=True"
        )
    model, most = _MODELS[stated]
    if len(coefficients) < 4 or coefficients[most:].any():
        raise InputError(f"{_INFO}: d has {len(coefficients)} numbers, {stated} takes {most}")
    values = np.zeros(8)
    values[: min(len(coefficients), most)] = coefficients[:most]
    if model == "FULL_OPENCV" and not values[4:].any():
        return "OPENCV", tuple(values[:4].tolist())
    return model, tuple(values[: 4 if model == "OPENCV_FISHEYE" else 8].tolist())


def _region(message: Any, camera: Camera) -> Camera:
    """The camera of the part of the sensor that is published, in larger pixels where it is binned."""
    region = getattr(message, "roi", None)
    width, height = (0, 0) if region is None else (count_of(region, side, "roi") for side in ("width", "height"))
    if width and height:
        left, top = count_of(region, "x_offset", "roi"), count_of(region, "y_offset", "roi")
        if left + width > camera.width or top + height > camera.height:
            raise InputError(f"{_INFO}: roi reaches beyond width {camera.width} and height {camera.height}")
        camera = camera.cropped(left, top, width, height)
    across, down = (max(1, int(getattr(message, f"binning_{axis}", 1))) for axis in "xy")  # 0 is 1
    if (across, down) == (1, 1):
        return camera
    return camera.resized(camera.width // across, camera.height // down)


__all__ = ["from_camera_info", "from_depth_image", "from_image", "to_view"]
