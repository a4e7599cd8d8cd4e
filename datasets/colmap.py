"""COLMAP's sparse models, binary and text, as our cameras, poses and tracks.

COLMAP puts the centre of the upper-left pixel at (0.5, 0.5); here it is (0, 0), so principal points and observed
pixels move by half a pixel.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geo3d.datasets.files import are_rigid, read_bytes, read_text, require_finite
from geo3d.datasets.plain_text import split_lines, to_number
from geo3d.datasets.scene import BrokenScene
from geo3d.geometry import Camera
from geo3d.geometry.rotation import quaternion_matrix

_REQUIRED = ("cameras", "images", "points3D")
_LEAST_IMAGE = 73  # bytes of an image in a binary file that has a name of no letters and no observations
_HALF_PIXEL = 0.5
#: COLMAP's camera models that ours can express: our name, and how many focal lengths stand before the principal point.
#: What follows are our coefficients in our order, of which the simpler models leave out the last.
CAMERA_MODELS = {
    "SIMPLE_PINHOLE": ("PINHOLE", 1),
    "PINHOLE": ("PINHOLE", 2),
    "SIMPLE_RADIAL": ("OPENCV", 1),
    "RADIAL": ("OPENCV", 1),
    "OPENCV": ("OPENCV", 2),
    "FULL_OPENCV": ("OPENCV", 2),
    "SIMPLE_FISHEYE": ("OPENCV_FISHEYE", 1),
    "FISHEYE": ("OPENCV_FISHEYE", 2),
    "SIMPLE_RADIAL_FISHEYE": ("OPENCV_FISHEYE", 1),
    "RADIAL_FISHEYE": ("OPENCV_FISHEYE", 1),
    "OPENCV_FISHEYE": ("OPENCV_FISHEYE", 2),
}
#: COLMAP's camera models by their number in binary files, and how many parameters they have (COLMAP 4.2 has 18).
MODEL_PARAMETERS = {
    "SIMPLE_PINHOLE": 3,
    "PINHOLE": 4,
    "SIMPLE_RADIAL": 4,
    "RADIAL": 5,
    "OPENCV": 8,
    "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12,
    "FOV": 5,
    "SIMPLE_RADIAL_FISHEYE": 4,
    "RADIAL_FISHEYE": 5,
    "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16,
    "SIMPLE_DIVISION": 4,
    "DIVISION": 5,
    "SIMPLE_FISHEYE": 3,
    "FISHEYE": 4,
    "EUCM": 6,
    "EQUIRECTANGULAR": 2,
}
# Observations of an image in binary files, of which those of no point have the largest number.
_OBSERVATION = np.dtype([("uv", "<f8", 2), ("point", "<u8")])
_NO_POINT = 2**64 - 1


@dataclass(frozen=True)
class ColmapModel:
    """The registered images of a sparse model and the points they see.

    Args:
        names: name of each image, relative to the image folder; sorted.
        cameras: intrinsics of each image.
        poses: (N, 4, 4) float64 ``world_from_camera``.
        xyz: (P, 3) float64 points, by rising id.
        error: (P,) float64 mean reprojection error, pixels.
        colors: (P, 3) uint8.
        image, point: (O,) int64 image and point of each observation.
        uv: (O, 2) float64 observed pixel.
    """

    names: list[str]
    cameras: list[Camera]
    poses: np.ndarray
    xyz: np.ndarray
    error: np.ndarray
    colors: np.ndarray
    image: np.ndarray
    point: np.ndarray
    uv: np.ndarray


class _Camera(NamedTuple):
    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


class _Image(NamedTuple):
    name: str
    camera: int
    pose: tuple[float, ...]  # camera from world: quaternion w, x, y, z and translation
    observed: np.ndarray  # of _OBSERVATION


@dataclass
class _Points:
    """The points of a file in its order, as columns."""

    number: list[int] = field(default_factory=list)
    xyz: list[tuple[float, ...]] = field(default_factory=list)
    color: list[tuple[int, ...]] = field(default_factory=list)
    error: list[float] = field(default_factory=list)

    def add(self, number: int, xyz: tuple[float, ...], color: tuple[int, ...], error: float) -> None:
        self.number.append(number)
        self.xyz.append(xyz)
        self.color.append(color)
        self.error.append(error)


def model_ending(folder: Path) -> str | None:
    """``.bin`` or ``.txt``: how the files of the sparse model in ``folder`` end; None where there is none."""
    return next((ending for ending in (".bin", ".txt") if (folder / f"cameras{ending}").is_file()), None)


def registered_count(folder: Path, scene: str) -> int:
    """How many images a sparse model has registered; -1 where a file is missing or the list of images is damaged."""
    ending = model_ending(folder)
    if not all((folder / f"{name}{ending}").is_file() for name in _REQUIRED):
        return -1
    try:
        if ending == ".txt":
            return len(_text_images(folder / "images.txt", scene))
        with open(folder / "images.bin", "rb") as file:
            count = int.from_bytes(file.read(8), "little")
            return count if count * _LEAST_IMAGE <= os.fstat(file.fileno()).st_size else -1
    except (BrokenScene, OSError):
        return -1


def read_model(folder: Path, scene: str, observations: bool = True) -> ColmapModel:
    """Read a sparse model, binary (``.bin``) or text (``.txt``).

    Args:
        folder: holds ``cameras``, ``images`` and ``points3D``.
        scene: name for messages.
        observations: read the observations too; without, they are empty.

    Raises:
        BrokenScene: a file is missing, cut or damaged, or a camera model cannot be represented.
    """
    ending = model_ending(folder) or ".txt"
    for name in _REQUIRED:
        if not (folder / f"{name}{ending}").is_file():
            raise BrokenScene(scene, folder / f"{name}{ending}", "the COLMAP model lacks this file")
    files = tuple(folder / f"{name}{ending}" for name in _REQUIRED)
    readers = _BINARY if ending == ".bin" else _TEXT
    cameras, images, points = (read(file, scene) for read, file in zip(readers, files))
    images = sorted(images, key=lambda image: image.name)
    _require_unique([image.name for image in images], files[1], scene, "image")
    known = {
        number: _camera(number, cameras[number], files[0], scene) for number in _used(cameras, images, files, scene)
    }
    poses = _world_from_camera(np.array([image.pose for image in images]).reshape(-1, 7))
    for image in (image for image, good in zip(images, are_rigid(poses)) if not good):
        raise BrokenScene(scene, files[1], f"the pose of image {image.name} is no rigid transform")
    _require_unique(points.number, files[2], scene, "point")
    number = np.array(points.number, dtype=np.uint64)
    order = np.argsort(number)
    xyz = np.array(points.xyz, dtype=np.float64).reshape(-1, 3)
    require_finite(xyz, files[2], scene)
    image, point, uv = _observations(images if observations else [], number[order], scene, folder)
    return ColmapModel(
        names=[image.name for image in images],
        cameras=[known[image.camera] for image in images],
        poses=poses,
        xyz=xyz[order],
        error=np.array(points.error, dtype=np.float64)[order],
        colors=np.array(points.color, dtype=np.uint8).reshape(-1, 3)[order],
        image=image,
        point=point,
        uv=uv,
    )


def camera_from_colmap(model: str, width: int, height: int, parameters: list[float]) -> Camera:
    """Our camera with the projection of one of COLMAP's.

    Args:
        model: COLMAP's name of the camera model.
        width, height: image size in pixels.
        parameters: in COLMAP's order.

    Raises:
        ValueError: the model has terms that :class:`Camera` cannot express, or parameters that make no camera.
    """
    ours, focal_lengths = CAMERA_MODELS.get(model, (None, 0))
    if ours is None:
        raise ValueError(f"camera model {model} cannot be represented; undistort the images with COLMAP first")
    fx, fy, cx, cy, *k = parameters if focal_lengths == 2 else [parameters[0], *parameters]
    if model == "FULL_OPENCV" and any(k[4:]):
        ours = "FULL_OPENCV"
    terms = {"PINHOLE": 0, "FULL_OPENCV": 8}.get(ours, 4)
    if any(k[terms:]):
        raise ValueError(f"camera model {model} with k3 and beyond cannot be represented; undistort the images first")
    distortion = tuple(float(term) for term in [*k, 0, 0, 0, 0][:terms])
    return Camera(width, height, fx, fy, cx - _HALF_PIXEL, cy - _HALF_PIXEL, ours, distortion)


def _camera(number: int, camera: _Camera, file: Path, scene: str) -> Camera:
    try:
        return camera_from_colmap(camera.model, camera.width, camera.height, list(camera.parameters))
    except ValueError as error:
        raise BrokenScene(scene, file, f"camera {number}: {error}") from error


def _used(cameras: dict[int, _Camera], images: list[_Image], files: tuple[Path, ...], scene: str) -> set[int]:
    """Numbers of the cameras that took the images."""
    for image in images:
        if image.camera not in cameras:
            reason = f"image {image.name} was taken by camera {image.camera}, which {files[0].name} lacks"
            raise BrokenScene(scene, files[1], reason)
    return {image.camera for image in images}


def _require_unique(names: list, file: Path, scene: str, what: str) -> None:
    if len(set(names)) < len(names):
        seen: set = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise BrokenScene(scene, file, f"{what} {twice} is there twice")


def _world_from_camera(poses: np.ndarray) -> np.ndarray:
    """Quaternions w, x, y, z and translations (N, 7), camera from world, as (N, 4, 4); NaN for quaternions of zero."""
    rotation = quaternion_matrix(poses[:, :4]).swapaxes(1, 2)  # world from camera
    world_from_camera = np.tile(np.eye(4), (len(poses), 1, 1))
    world_from_camera[:, :3, :3] = rotation
    world_from_camera[:, :3, 3] = -(rotation @ poses[:, 4:, None])[..., 0]
    return world_from_camera


def _observations(
    images: list[_Image], numbers: np.ndarray, scene: str, folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, point row and pixel of every observation of a point; ``numbers`` are those of the points, rising."""
    seen = [image.observed[image.observed["point"] != _NO_POINT] for image in images]
    image = np.repeat(np.arange(len(images)), [len(s) for s in seen])
    joined = np.concatenate(seen) if seen else np.zeros(0, _OBSERVATION)
    unknown = np.setdiff1d(joined["point"], numbers)
    if len(unknown):
        raise BrokenScene(
            scene, folder, f"an image sees point {unknown[0]}, which the list of points lacks: it was cut"
        )
    if not np.isfinite(joined["uv"]).all():
        raise BrokenScene(scene, folder, "an image sees a point at pixels that are no numbers")
    return image, np.searchsorted(numbers, joined["point"]), joined["uv"] - _HALF_PIXEL


# --- binary ---


class _Cut(Exception):
    """The file ends before the record that starts at the cursor's ``record`` is complete."""


class _Cursor:
    """Walks over the records of a binary file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.record = data, 0, 0

    def skip(self, size: int) -> int:
        """Go on by ``size`` bytes; returns where they begin."""
        start = self.position
        self.position += size
        if self.position > len(self.data):
            raise _Cut
        return start

    def take(self, code: str) -> tuple:
        return struct.unpack_from(f"<{code}", self.data, self.skip(struct.calcsize(f"<{code}")))

    def take_text(self) -> bytes:
        start, end = self.position, self.data.find(b"\0", self.position)
        if end < 0:
            raise _Cut
        self.position = end + 1
        return self.data[start:end]


def _records(path: Path, scene: str, read: Callable[[_Cursor], None]) -> None:
    """Hand each record of a binary file to ``read``."""
    cursor = _Cursor(read_bytes(path, scene))
    try:
        (count,) = cursor.take("Q")
        for _ in range(count):
            cursor.record = cursor.position
            read(cursor)
    except _Cut:
        reason = "the file ends inside the record that starts here"
        raise BrokenScene(scene, path, reason, cursor.record) from None


def _binary_cameras(path: Path, scene: str) -> dict[int, _Camera]:
    cameras, models = {}, list(MODEL_PARAMETERS)

    def read(cursor: _Cursor) -> None:
        number, code = cursor.take("Ii")
        if not 0 <= code < len(models):
            raise BrokenScene(scene, path, f"unknown camera model {code}", cursor.position - 4)
        width, height = cursor.take("QQ")
        cameras[number] = _Camera(models[code], width, height, cursor.take(f"{MODEL_PARAMETERS[models[code]]}d"))

    _records(path, scene, read)
    return cameras


def _binary_images(path: Path, scene: str) -> list[_Image]:
    images = []

    def read(cursor: _Cursor) -> None:
        *pose, camera = cursor.take("4x7dI")
        name = cursor.take_text()
        (count,) = cursor.take("Q")
        start = cursor.skip(_OBSERVATION.itemsize * count)
        try:
            text = name.decode()
        except UnicodeDecodeError as error:
            reason = f"an image's name is not UTF-8: {name!r}; rename it"
            raise BrokenScene(scene, path, reason, cursor.record) from error
        images.append(_Image(text, camera, tuple(pose), np.frombuffer(cursor.data, _OBSERVATION, count, start)))

    _records(path, scene, read)
    return images


def _binary_points(path: Path, scene: str) -> _Points:
    points = _Points()

    def read(cursor: _Cursor) -> None:
        number, x, y, z, red, green, blue, error, length = cursor.take("Q3d3BdQ")
        cursor.skip(8 * length)
        points.add(number, (x, y, z), (red, green, blue), error)

    _records(path, scene, read)
    return points


# --- text ---


def _text_records(path: Path, scene: str, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is no comment, nor blank unless ``blank`` ones count."""
    for number, line in enumerate(split_lines(read_text(path, scene)), 1):
        if not line.lstrip().startswith("#") and (blank or line.strip()):
            yield number, line.strip()


def _text_cameras(path: Path, scene: str) -> dict[int, _Camera]:
    cameras = {}
    for line, text in _text_records(path, scene):
        try:
            number, model, width, height, *parameters = text.split()
            wanted = MODEL_PARAMETERS.get(model, len(parameters))
            if len(parameters) != wanted:
                raise ValueError(f"{model} has {wanted} parameters, found {len(parameters)}")
            cameras[_count(number)] = _Camera(model, _count(width), _count(height), tuple(map(to_number, parameters)))
        except ValueError as error:
            reason = f"line {line}: not a camera (number, model, width, height, parameters): {error}"
            raise BrokenScene(scene, path, reason) from error
    return cameras


def _text_images(path: Path, scene: str) -> list[_Image]:
    """Two lines an image, of which the second may be blank; the name is the rest of the first and may hold spaces."""
    images = []
    lines = _text_records(path, scene, blank=True)
    for line, text in lines:
        if not text:
            continue
        try:
            _, *pose, camera, name = text.split(maxsplit=9)
            pose, camera = tuple(map(to_number, pose)), _count(camera)
            if len(pose) != 7:
                raise ValueError(f"{len(pose)} numbers of a pose")
        except ValueError as error:
            reason = f"line {line}: not an image (number, 7 numbers of its pose, camera, name): {error}"
            raise BrokenScene(scene, path, reason) from error
        line, text = next(lines, (line, ""))
        try:
            images.append(_Image(name, camera, pose, _text_observations(text.split())))
        except ValueError as error:
            reason = f"line {line}: not the points of an image (x, y, number of the point): {error}"
            raise BrokenScene(scene, path, reason) from error
    return images


def _text_observations(words: list[str]) -> np.ndarray:
    """Three words an observation, of which the third is -1 for no point."""
    if len(words) % 3:
        raise ValueError(f"{len(words)} numbers")
    observed = np.zeros(len(words) // 3, _OBSERVATION)
    observed["uv"] = np.array([[to_number(word) for word in words[start::3]] for start in (0, 1)]).T
    observed["point"] = [_NO_POINT if word == "-1" else _count(word) for word in words[2::3]]
    return observed


def _text_points(path: Path, scene: str) -> _Points:
    points = _Points()
    for line, text in _text_records(path, scene):
        try:
            number, x, y, z, *color, error = text.split(maxsplit=8)[:8]
            color = tuple(map(_count, color))
            if len(color) != 3 or max(color) > 255:
                raise ValueError(f"colour {color}")
            points.add(_count(number), tuple(map(to_number, (x, y, z))), color, to_number(error))
        except ValueError as error:
            reason = f"line {line}: not a point (number, x, y, z, colour, error, track): {error}"
            raise BrokenScene(scene, path, reason) from error
    return points


def _count(word: str) -> int:
    """A whole number from 0 to 2^64 - 1; raises ValueError for anything else."""
    if not (word.isascii() and word.isdigit() and len(word) <= 20 and int(word) <= _NO_POINT):
        raise ValueError(f"{word!r:.40} is no whole number")
    return int(word)


_BINARY = (_binary_cameras, _binary_images, _binary_points)
_TEXT = (_text_cameras, _text_images, _text_points)
