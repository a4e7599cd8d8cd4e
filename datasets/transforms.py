"""Captures with a ``transforms.json``, as instant-ngp and nerfstudio write them.

Intrinsics stand at the top level or in each frame; camera axes are OpenGL's (x right, y up, z back) and become
OpenCV's; the principal point is counted from the corner of the image and moves by half a pixel. Frames whose image
does not exist are left out.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo3d.datasets.files import (
    IMAGE_SUFFIXES,
    are_rigid,
    check_size,
    image_size,
    numeric_order,
    open_image,
    read_depth,
    read_json,
    read_mask,
    subfolders,
)
from geo3d.datasets.posed import PosedScene, ViewList
from geo3d.datasets.scene import BrokenScene, Remark, SceneDataset
from geo3d.geometry import Camera

_FILE = "transforms.json"
_LOOKED_AT = 8
_HALF_PIXEL = 0.5
_MILLIMETRES = 1000.0
_OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_FISHEYE, _PERSPECTIVE = ("k1", "k2", "k3", "k4"), ("k1", "k2", "p1", "p2")
_PARTS = {"depth": "depth_file_path", "masks": "mask_path"}


class TransformsScene(PosedScene):
    """One capture. Nothing in it says in which unit, so ``metric`` is False.

    ``depth`` and ``masks`` are there when every listed frame names a file (``depth_file_path``: 16-bit PNG, units of
    the poses divided by 1000; ``mask_path``: black where not the object).

    Args:
        name: unique in the dataset.
        root: the capture's folder.

    Raises:
        BrokenScene: the file is missing or damaged, or lists no frames.
    """

    metric = False

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root, self._file = name, root, root / _FILE
        content = read_json(self._file, name)
        frames = content.pop("frames", None)
        if not (isinstance(frames, list) and frames and all(isinstance(f, dict) for f in frames)):
            raise BrokenScene(name, self._file, "'frames' is not a list of frames")
        if not all(isinstance(f.get("file_path"), str) for f in frames):
            raise BrokenScene(name, self._file, "a frame has no 'file_path'")
        self._shared: dict[str, Any] = content
        self._listed = sorted(frames, key=lambda frame: numeric_order(frame["file_path"]))
        also = {part for part, key in _PARTS.items() if all(frame.get(key) for frame in frames)}
        self.parts = frozenset({"views", "poses"} | also)

    @cached_property
    def _selection(self) -> tuple[list[tuple[Path, dict[str, Any]]], tuple[Remark, ...]]:
        """Image and entry of each frame that can be used, and what was skipped."""
        present = [(path, frame) for frame in self._listed if (path := self._image_path(frame)) is not None]
        posed = are_rigid(np.array([self._matrix(frame) for _, frame in present]).reshape(-1, 4, 4))
        usable = [entry for entry, good in zip(present, posed) if good]
        counts = (
            ("frames skipped: their image does not exist", len(self._listed) - len(present)),
            ("frames skipped: their pose is no rigid transform", len(present) - len(usable)),
        )
        skipped = tuple(Remark(self.name, str(self._file), why, count) for why, count in counts if count)
        if not usable:
            reason = f"no usable frame: {'; '.join(f'{r.count} {r.reason}' for r in skipped)}"
            raise BrokenScene(self.name, self._file, reason)
        return usable, skipped

    @property
    def _frames(self) -> list[tuple[Path, dict[str, Any]]]:
        return self._selection[0]

    def _image_path(self, frame: dict[str, Any]) -> Path | None:
        """The frame's image, None when it does not exist; some writers leave out the ending of a PNG."""
        path = self.root / frame["file_path"]
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            path = path.with_name(f"{path.name}.png")
        return path if path.is_file() else None

    def _matrix(self, frame: dict[str, Any]) -> np.ndarray:
        try:
            return np.array(frame["transform_matrix"], dtype=np.float64).reshape(4, 4)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"frame {frame['file_path']}: transform_matrix must be 4 x 4 numbers: {error!r}"
            raise BrokenScene(self.name, self._file, reason) from error

    def read_views(self) -> ViewList:
        frames, skipped = self._selection
        names = [path.relative_to(self.root).as_posix() for path, _ in frames]
        opengl = np.array([self._matrix(frame) for _, frame in frames])
        cameras = [self._camera(path, {**self._shared, **frame}) for path, frame in frames]
        check_size(frames[0][0], self.name, cameras[0])
        return ViewList(names, cameras, opengl @ _OPENGL_FROM_OPENCV, skipped).located()

    def _camera(self, path: Path, values: dict[str, Any]) -> Camera:
        """Camera by the frame's own values over the shared ones."""
        sized = values if {"w", "h"} <= values.keys() else dict(zip("wh", image_size(path, self.name)))
        try:
            return _camera_from_values(int(sized["w"]), int(sized["h"]), values)
        except (TypeError, ValueError) as error:
            raise BrokenScene(self.name, self._file, f"{path.name}: {error}") from error

    def _other(self, index: int, part: str) -> Path:
        self.require(part)
        return self.root / self._frames[index][1][_PARTS[part]]

    def image(self, index: int) -> Image.Image:
        return open_image(self._frames[index][0], self.name)

    def depth(self, index: int) -> np.ndarray:
        return read_depth(self._other(index, "depth"), self.name, _MILLIMETRES)

    def depth_camera(self, index: int) -> Camera:
        width, height = image_size(self._other(index, "depth"), self.name)
        return self.camera(index).resized(width, height)

    def mask(self, index: int) -> np.ndarray:
        return read_mask(self._other(index, "masks"), self.name)


def _camera_from_values(width: int, height: int, values: dict[str, Any]) -> Camera:
    """Camera by the keys of ``transforms.json``.

    Raises:
        ValueError: no focal length, or what :class:`Camera` cannot express.
    """

    def focal(length: str, angle: str, size: int) -> float | None:
        if length in values:
            return float(values[length])
        return 0.5 * size / math.tan(0.5 * float(values[angle])) if angle in values else None

    fx = focal("fl_x", "camera_angle_x", width)
    if fx is None:
        raise ValueError("neither fl_x nor camera_angle_x is given")
    fy = focal("fl_y", "camera_angle_y", height)
    cx, cy = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
    model, distortion = _distortion(values)
    return Camera(width, height, fx, fx if fy is None else fy, cx - _HALF_PIXEL, cy - _HALF_PIXEL, model, distortion)


def _distortion(values: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """Our camera model and its coefficients; raises ValueError for those that it does not know."""
    stated = values.get("camera_model", "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV")
    if stated not in ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "OPENCV_FISHEYE"):
        raise ValueError(f"camera_model {stated} cannot be represented; undistort the images first")
    keys = _FISHEYE if stated == "OPENCV_FISHEYE" else _PERSPECTIVE
    beyond = [key for key in ("k3", "k4", "k5", "k6") if key not in keys and float(values.get(key, 0)) != 0]
    if beyond:
        raise ValueError(f"{beyond[0]} is not zero, which {stated} cannot represent; undistort the images first")
    coefficients = tuple(float(values.get(key, 0)) for key in keys)
    if stated != "OPENCV_FISHEYE" and not any(coefficients):
        return "PINHOLE", ()
    return ("OPENCV_FISHEYE" if stated == "OPENCV_FISHEYE" else "OPENCV"), coefficients


class Transforms(SceneDataset):
    """Captures with a ``transforms.json``: ``root`` is one, or holds a folder for each."""

    kind = "transforms"

    @classmethod
    def detect(cls, root: Path) -> bool:
        return (root / _FILE).is_file() or any((root / n / _FILE).is_file() for n in subfolders(root)[:_LOOKED_AT])

    def names(self) -> list[str]:
        self._alone = (self.root / _FILE).is_file()
        return [self.root.name] if self._alone else subfolders(self.root)

    def open(self, name: str) -> TransformsScene:
        return TransformsScene(name, self.root if self._alone else self.root / name)
