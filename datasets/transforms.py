"""Captures with a ``transforms.json``: instant-ngp's, nerfstudio's, and Blender's ``transforms_train.json``.

Intrinsics stand at the top level or in each frame; camera axes are OpenGL's (x right, y up, z back) and become
OpenCV's; the principal point is counted from the corner of the image and moves by half a pixel. Frames whose image
does not exist are left out.
"""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo3d.datasets.colmap import CAMERA_MODELS
from geo3d.datasets.files import are_rigid, numeric_order, read_json, subfolders
from geo3d.datasets.image_files import (
    check_size,
    count_renamed,
    depth_size,
    find_image,
    find_images,
    image_size,
    open_image,
    read_depth,
    read_mask,
)
from geo3d.datasets.posed import PosedScene, ViewList
from geo3d.datasets.scene import BrokenScene, Remark, SceneDataset
from geo3d.geometry import Camera
from geo3d.geometry.axes import OPENGL_FROM_OPENCV

_FILE = "transforms.json"
# Blender's synthetic scenes have a file for each split, which is a scene of its own.
_SPLITS = ("train", "val", "validation", "test", "eval")
_LOOKED_AT = 8
_HALF_PIXEL = 0.5
_FISHEYE, _PERSPECTIVE = ("k1", "k2", "k3", "k4"), ("k1", "k2", "p1", "p2")
_MASKS = "mask_path"
# Depth maps by nerfstudio and by instant-ngp: key of a frame's file, key of the length that is one unit, its default.
_DEPTHS = (("depth_file_path", "depth_unit_scale_factor", 0.001), ("depth_path", "integer_depth_scale", None))
# Two ways to say the same: a frame that says it in one way overrides what the top level says in the other.
_ALIKE = (("fl_x", "camera_angle_x"), ("fl_y", "camera_angle_y"))
# Sizes in pixels, and lengths of a unit, beyond these (and below the reciprocal) are damage.
_LARGEST_SIZE, _LARGEST_SCALE = 1 << 20, 1e9


class TransformsScene(PosedScene):
    """One capture. Nothing in it says in which unit, so ``metric`` is False.

    ``masks`` are there when every listed frame names a file (``mask_path``: black where not the object), and so is
    ``depth``: ``depth_file_path``, of which whole numbers are thousandths of the poses' unit unless the top level says
    ``depth_unit_scale_factor``; or ``depth_path``, with ``integer_depth_scale`` at the top level.

    Args:
        name: unique in the dataset.
        root: the capture's folder.
        file: which of the files in it.

    Raises:
        BrokenScene: the file is missing or damaged, or lists no frames.
    """

    metric = False

    def __init__(self, name: str, root: Path, file: str = _FILE) -> None:
        self.name, self.root, self._file = name, root, root / file
        content = read_json(self._file, name)
        frames = content.pop("frames", None)
        if not (isinstance(frames, list) and frames and all(isinstance(f, dict) for f in frames)):
            raise BrokenScene(name, self._file, "'frames' is not a list of frames")
        if not all(isinstance(f.get("file_path"), str) for f in frames):
            raise BrokenScene(name, self._file, "a frame has no 'file_path'")
        self._shared: dict[str, Any] = content
        self._listed = sorted(frames, key=lambda frame: numeric_order(frame["file_path"]))
        self._depth_key, self._units, self._notes = self._find_depth()
        also = {"depth": self._depth_key is not None, "masks": self._all_name(_MASKS)}
        self.parts = frozenset({"views", "poses"} | {part for part, there in also.items() if there})

    def _all_name(self, key: str) -> bool:
        return all(isinstance(frame.get(key), str) and frame[key] for frame in self._listed)

    def _find_depth(self) -> tuple[str | None, float, tuple[Remark, ...]]:
        """Key of the frames' depth maps, None where there are none; units per length of the poses; why not."""
        for key, scale_key, default in _DEPTHS:
            if not self._all_name(key):
                continue
            if scale_key not in self._shared and default is None:
                reason = f"depth maps are not used: the length of their unit, {scale_key}, is not given"
                return None, 1.0, (Remark(self.name, str(self._file), reason, len(self._listed)),)
            try:
                scale = _number(self._shared, scale_key, default)
            except ValueError as error:
                raise BrokenScene(self.name, self._file, str(error)) from error
            if not 1 / _LARGEST_SCALE <= scale <= _LARGEST_SCALE:
                reason = f"{scale_key} is {scale:g}, the length of one unit of the depth maps is expected"
                raise BrokenScene(self.name, self._file, reason)
            return key, 1 / scale, ()
        return None, 1.0, ()

    @cached_property
    def _selection(self) -> tuple[list[tuple[Path, dict[str, Any]]], tuple[Remark, ...]]:
        """Image and entry of each frame that can be used, and what was skipped."""
        found = list(zip(find_images(self.root, [f["file_path"] for f in self._listed]), self._listed))
        present: dict[Path, dict[str, Any]] = {}
        for path, frame in found:
            if path is not None:
                present.setdefault(path, frame)
        posed = are_rigid(np.array([self._matrix(frame) for frame in present.values()]).reshape(-1, 4, 4))
        usable = [entry for entry, good in zip(present.items(), posed) if good]
        missing = [frame["file_path"] for path, frame in found if path is None]
        renamed = count_renamed([path for path, _ in usable], [frame["file_path"] for _, frame in usable])
        counts = (
            ("frames skipped: their image does not exist", len(missing)),
            ("frames skipped: an earlier frame has their image", len(found) - len(missing) - len(present)),
            ("frames skipped: their pose is no rigid transform", len(present) - len(usable)),
            ("images have another ending than the file says, and are used", renamed),
        )
        remarks = tuple(Remark(self.name, str(self._file), why, count) for why, count in counts if count)
        if not usable:
            first = f"; the first: {missing[0]!r}" if missing else ""
            reason = f"no usable frame: {'; '.join(f'{r.count} {r.reason}' for r in remarks)}{first}"
            raise BrokenScene(self.name, self._file, reason)
        return usable, (*remarks, *self._notes, *self._files_beside())

    def _files_beside(self) -> tuple[Remark, ...]:
        beside = [] if self._file.name != _FILE else _split_files(self.root)
        reason = f"files beside it are not read, such as {beside[0]}" if beside else ""
        return (Remark(self.name, str(self._file), reason, len(beside)),) * bool(beside)

    @property
    def _frames(self) -> list[tuple[Path, dict[str, Any]]]:
        return self._selection[0]

    def _matrix(self, frame: dict[str, Any]) -> np.ndarray:
        """The frame's pose; the last row may be left out."""
        matrix = np.eye(4)
        try:
            values = np.array(frame["transform_matrix"], dtype=np.float64)
            rows = 4 if values.size == 16 else 3
            matrix[:rows] = values.reshape(rows, 4)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            reason = f"frame {frame['file_path']}: transform_matrix must be 4 x 4 numbers: {error!r}"
            raise BrokenScene(self.name, self._file, reason) from error
        return matrix

    def read_views(self) -> ViewList:
        frames, remarks = self._selection
        names = [_relative(path, self.root) for path, _ in frames]
        opengl = np.array([self._matrix(frame) for _, frame in frames])
        cameras = [self._camera(path, frame) for path, frame in frames]
        check_size(frames[0][0], self.name, cameras[0])
        return ViewList(names, cameras, opengl @ OPENGL_FROM_OPENCV, remarks).located()

    def _camera(self, path: Path, frame: dict[str, Any]) -> Camera:
        """Camera by the frame's own values over the shared ones."""
        overridden = {key for keys in _ALIKE if frame.keys() & set(keys) for key in keys}
        values = {key: value for key, value in self._shared.items() if key not in overridden} | frame
        try:
            if {"w", "h"} <= values.keys():
                width, height = (_pixels(values, key) for key in "wh")
            else:
                width, height = image_size(path, self.name)
            return _camera_from_values(width, height, values)
        except BrokenScene:
            raise
        except ValueError as error:
            raise BrokenScene(self.name, self._file, f"{path.name}: {error}") from error

    def _other(self, index: int, part: str, key: str) -> Path:
        self.require(part)
        listed = self._frames[index][1][key]
        return find_image(self.root, listed) or self.root / listed

    def image(self, index: int) -> Image.Image:
        return open_image(self._frames[index][0], self.name)

    def depth(self, index: int) -> np.ndarray:
        return read_depth(self._other(index, "depth", self._depth_key), self.name, self._units)

    def depth_camera(self, index: int) -> Camera:
        path, camera = self._other(index, "depth", self._depth_key), self.camera(index)
        width, height = depth_size(path, self.name)
        if not 0.98 < width * camera.height / (height * camera.width) < 1.02:
            reason = f"is {width} x {height}, its image {camera.width} x {camera.height}, which is of another shape"
            raise BrokenScene(self.name, path, reason)
        return camera.resized(width, height)

    def mask(self, index: int) -> np.ndarray:
        return read_mask(self._other(index, "masks", _MASKS), self.name)


def _relative(path: Path, root: Path) -> str:
    """Name of an image: relative to the capture where it lies in it, the whole path otherwise."""
    path = Path(os.path.normpath(path))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _number(values: dict[str, Any], key: str, default: float | None = None) -> float:
    """A finite number, by its key; raises ValueError that names the key."""
    value = values.get(key, default)
    number = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        shown = "null" if value is None else f"{value!r:.40}"
        raise ValueError(f"{key} is {shown}, a number is expected")
    return number


def _pixels(values: dict[str, Any], key: str) -> int:
    """Width or height of an image."""
    size = _number(values, key)
    if not (0 < size <= _LARGEST_SIZE and size == int(size)):
        raise ValueError(f"{key} is {size:g}: image size must be positive, in whole pixels")
    return int(size)


def _camera_from_values(width: int, height: int, values: dict[str, Any]) -> Camera:
    """Camera by the keys of ``transforms.json``.

    Raises:
        ValueError: no focal length, or what :class:`Camera` cannot express.
    """

    def focal(length: str, angle: str, size: int) -> float | None:
        if length in values:
            key, focal = length, _number(values, length)
        elif angle in values:
            key, turn = angle, _number(values, angle)
            focal = 0.5 * size / math.tan(0.5 * turn) if 0 < turn < math.pi else 0.0
        else:
            return None
        if not focal > 0:
            wanted = "focal lengths must be positive" if key == length else "it must lie between 0 and pi"
            raise ValueError(f"{key} is {_number(values, key):g}: {wanted}")
        return focal

    fx = focal("fl_x", "camera_angle_x", width)
    if fx is None:
        raise ValueError("neither fl_x nor camera_angle_x is given")
    fy = focal("fl_y", "camera_angle_y", height)
    cx, cy = _number(values, "cx", width / 2), _number(values, "cy", height / 2)
    model, distortion = _distortion(values)
    return Camera(width, height, fx, fx if fy is None else fy, cx - _HALF_PIXEL, cy - _HALF_PIXEL, model, distortion)


def _distortion(values: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """Our camera model and its coefficients; raises ValueError for those that it does not know."""
    stated = values.get("camera_model", "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV")
    if not isinstance(stated, str):
        raise ValueError(f"camera_model is {'null' if stated is None else repr(stated)}, a name is expected")
    model, _ = CAMERA_MODELS.get(stated.upper(), (None, 0))
    if model is None:
        raise ValueError(f"camera_model {stated} cannot be represented; undistort the images first")
    keys = _FISHEYE if model == "OPENCV_FISHEYE" else _PERSPECTIVE
    beyond = [key for key in ("k3", "k4", "k5", "k6") if key not in keys and _number(values, key, 0) != 0]
    if beyond:
        raise ValueError(f"{beyond[0]} is not zero, which {stated} cannot represent; undistort the images first")
    coefficients = tuple(_number(values, key, 0) for key in keys)
    if model != "OPENCV_FISHEYE":
        # PINHOLE beside coefficients is a habit of writers that know no better.
        return ("OPENCV", coefficients) if any(coefficients) else ("PINHOLE", ())
    return model, coefficients


def _split_files(folder: Path) -> list[str]:
    """The files of Blender's splits in ``folder``."""
    return [name for split in _SPLITS if (folder / (name := f"transforms_{split}.json")).is_file()]


def _captures(folder: Path) -> list[str]:
    """Files in ``folder`` that are captures: ``transforms.json``, or else those of its splits."""
    return [_FILE] if (folder / _FILE).is_file() else _split_files(folder)


class Transforms(SceneDataset):
    """Captures with a ``transforms.json``: ``root`` is one, or holds a folder for each.

    Where a folder has ``transforms_train.json`` and its like instead, each of these is a scene, ``<folder>/train``.
    """

    kind = "transforms"

    @classmethod
    def detect(cls, root: Path) -> bool:
        return cls.is_scene(root) or any(_captures(root / name) for name in subfolders(root)[:_LOOKED_AT])

    @classmethod
    def is_scene(cls, root: Path) -> bool:
        return bool(_captures(root))

    def names(self) -> list[str]:
        self._places: dict[str, tuple[Path, str]] = {}
        alone = self.is_scene(self.root)
        for name in [self.root.name] if alone else subfolders(self.root):
            folder = self.root if alone else self.root / name
            files = _captures(folder) or [_FILE]
            for file in files:
                split = file.removeprefix("transforms_").removesuffix(".json")
                scene = name if file == _FILE else split if alone else f"{name}/{split}"
                self._places[scene] = folder, file
        return list(self._places)

    def open(self, name: str) -> TransformsScene:
        return TransformsScene(name, *self._places[name])
