"""COLMAP's sparse models as our cameras, poses and tracks; read by pycolmap.

COLMAP puts the centre of the upper-left pixel at (0.5, 0.5); here it is (0, 0), so principal points and observed
pixels move by half a pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.datasets.files import are_rigid, read_bytes, require_finite
from geo3d.datasets.scene import BrokenScene
from geo3d.errors import require_extra
from geo3d.geometry import Camera

_REQUIRED = ("cameras", "images", "points3D")
# What pycolmap raises on damaged models.
_PYCOLMAP_ERRORS = (ValueError, IndexError, KeyError, RuntimeError, MemoryError, OSError)
_HALF_PIXEL = 0.5
# COLMAP's camera models that ours can express: our name, and how many focal lengths stand before the principal point.
# What follows are our coefficients in our order, of which the simpler models leave out the last.
_MODELS = {
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
# How many parameters COLMAP's camera models have, by their number in binary files (COLMAP 4.2 has 18).
_PARAMETER_COUNTS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16, 4, 5, 3, 4, 6, 2)


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


def read_model(folder: Path, scene: str, observations: bool = True) -> ColmapModel:
    """Read a sparse model, binary (``.bin``) or text (``.txt``).

    Args:
        folder: holds ``cameras``, ``images`` and ``points3D``.
        scene: name for messages.
        observations: read the observations too; without, they are empty.

    Raises:
        BrokenScene: a file is missing, cut or damaged, or a camera model cannot be represented.
        MissingExtra: pycolmap is not installed.
    """
    pycolmap = require_extra("pycolmap", "colmap", "reading COLMAP models")
    ending = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    for name in _REQUIRED:
        if not (folder / f"{name}{ending}").is_file():
            raise BrokenScene(scene, folder / f"{name}{ending}", "the COLMAP model lacks this file")
    if ending == ".bin":
        _check_structure(folder, scene)
    try:
        model = pycolmap.Reconstruction(str(folder))
    except _PYCOLMAP_ERRORS as error:
        why = " ".join(str(error).split())
        raise BrokenScene(scene, folder, f"pycolmap cannot read the model: {why}") from error
    cameras = _read_cameras(model, scene, folder / f"cameras{ending}")
    images = _registered_images(model, scene, folder / f"images{ending}")
    poses = np.array([_world_from_camera(image) for image in images]).reshape(-1, 4, 4)
    for image in (image for image, good in zip(images, are_rigid(poses)) if not good):
        raise BrokenScene(scene, folder / f"images{ending}", f"the pose of image {image.name} is no rigid transform")
    point_ids = np.array(sorted(model.points3D.keys()), dtype=np.uint64)
    points = [model.points3D[int(i)] for i in point_ids]
    xyz = np.array([p.xyz for p in points], dtype=np.float64).reshape(-1, 3)
    require_finite(xyz, folder / f"points3D{ending}", scene)
    image, point, uv = _read_observations(images if observations else [], point_ids, scene, folder)
    return ColmapModel(
        names=[image.name for image in images],
        cameras=[cameras[image.camera_id] for image in images],
        poses=poses,
        xyz=xyz,
        error=np.array([p.error for p in points], dtype=np.float64),
        colors=np.array([p.color for p in points], dtype=np.uint8).reshape(-1, 3),
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
    ours, focal_lengths = _MODELS.get(model, (None, 0))
    if ours is None:
        raise ValueError(f"camera model {model} cannot be represented; undistort the images with COLMAP first")
    fx, fy, cx, cy, *k = parameters if focal_lengths == 2 else [parameters[0], *parameters]
    terms = 0 if ours == "PINHOLE" else 4
    if any(k[terms:]):
        raise ValueError(f"camera model {model} with k3 and beyond cannot be represented; undistort the images first")
    distortion = tuple(float(term) for term in [*k, 0, 0, 0, 0][:terms])
    return Camera(width, height, fx, fy, cx - _HALF_PIXEL, cy - _HALF_PIXEL, ours, distortion)


def _read_cameras(model: Any, scene: str, file: Path) -> dict[int, Camera]:
    cameras = {}
    for number, camera in model.cameras.items():
        try:
            parameters = [float(p) for p in camera.params]
            cameras[number] = camera_from_colmap(camera.model.name, camera.width, camera.height, parameters)
        except ValueError as error:
            raise BrokenScene(scene, file, f"camera {number}: {error}") from error
    return cameras


def _registered_images(model: Any, scene: str, file: Path) -> list[Any]:
    """The images that have a pose, sorted by name."""
    try:
        return sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name)
    except UnicodeDecodeError as error:
        raise BrokenScene(scene, file, f"an image's name is not UTF-8: {error.object!r}; rename it") from error


def _world_from_camera(image: Any) -> np.ndarray:
    rigid = image.cam_from_world  # a method since COLMAP knows rigs
    camera_from_world = np.eye(4)
    camera_from_world[:3] = (rigid() if callable(rigid) else rigid).matrix()
    return np.linalg.inv(camera_from_world)


def _read_observations(
    images: list[Any], point_ids: np.ndarray, scene: str, folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, point row and pixel of every observation of a point."""
    seen = [image.get_observation_points2D() for image in images]
    image = np.repeat(np.arange(len(images)), [len(s) for s in seen])
    ids = np.array([p.point3D_id for s in seen for p in s], dtype=np.uint64)
    uv = np.array([p.xy for s in seen for p in s], dtype=np.float64).reshape(-1, 2) - _HALF_PIXEL
    unknown = np.setdiff1d(ids, point_ids)
    if len(unknown):
        raise BrokenScene(
            scene, folder, f"an image sees point {unknown[0]}, which the list of points lacks: it was cut"
        )
    return image, np.searchsorted(point_ids, ids), uv


class _Cut(Exception):
    """The file ends at ``offset``, before the record that starts there is complete."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


class _Cursor:
    """Walks over the records of a binary file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.record = data, 0, 0

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self.data):
            raise _Cut(self.record)

    def take(self, code: str) -> int:
        start = self.position
        self.skip(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.data, start)[0]

    def skip_text(self) -> None:
        end = self.data.find(b"\0", self.position)
        if end < 0:
            raise _Cut(self.record)
        self.position = end + 1


def _check_structure(folder: Path, scene: str) -> None:
    """Walk over the records of the binary files: on a cut one pycolmap asks for absurd memory, or never returns."""

    def camera(cursor: _Cursor) -> None:
        cursor.skip(4)
        start = cursor.position
        code = cursor.take("i")
        if not 0 <= code < len(_PARAMETER_COUNTS):
            raise BrokenScene(scene, folder / "cameras.bin", f"unknown camera model {code}", start)
        cursor.skip(16 + 8 * _PARAMETER_COUNTS[code])

    def image(cursor: _Cursor) -> None:
        cursor.skip(4 + 7 * 8 + 4)
        cursor.skip_text()
        cursor.skip(24 * cursor.take("Q"))

    def point(cursor: _Cursor) -> None:
        cursor.skip(8 + 3 * 8 + 3 + 8)
        cursor.skip(8 * cursor.take("Q"))

    def rig(cursor: _Cursor) -> None:
        cursor.skip(4)
        sensors = cursor.take("I")
        cursor.skip(8 * min(sensors, 1))
        for _ in range(sensors - 1):
            cursor.skip(8)
            cursor.skip(7 * 8 * cursor.take("?"))

    def frame(cursor: _Cursor) -> None:
        cursor.skip(8 + 7 * 8)
        cursor.skip(16 * cursor.take("I"))

    records: dict[str, Callable[[_Cursor], None]] = {"cameras": camera, "images": image, "points3D": point}
    records |= {"rigs": rig, "frames": frame}
    for name, record in records.items():
        path = folder / f"{name}.bin"
        if name not in _REQUIRED and not path.is_file():
            continue
        cursor = _Cursor(read_bytes(path, scene))
        try:
            count = cursor.take("Q")
            for _ in range(count):
                cursor.record = cursor.position
                record(cursor)
        except _Cut as cut:
            raise BrokenScene(scene, path, "the file ends inside the record that starts here", cut.offset) from None
