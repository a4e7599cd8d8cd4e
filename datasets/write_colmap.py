"""COLMAP's sparse models written, binary and text, from our cameras, poses and tracks; the inverse of the reader."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from geo3d.datasets.colmap import MODEL_PARAMETERS, ColmapModel
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.geometry.rotation import quaternion_of
from geo3d.writing import replacing, writing

_HALF_PIXEL = 0.5
_OBSERVATION = np.dtype([("uv", "<f8", 2), ("point", "<u8")])
_TRACK = np.dtype([("image", "<u4"), ("slot", "<u4")])
_BESIDE = ("rigs", "frames")  # of COLMAP 3.12 and later, which makes them of the cameras and images where they lack
_HEADS = {
    "cameras": "# number, model, width, height, parameters",
    "images": "# number, qw, qx, qy, qz, tx, ty, tz, camera, name; then x, y, number of the point of each observation",
    "points3D": "# number, x, y, z, red, green, blue, error, then image and observation of its track",
}


def camera_to_colmap(camera: Camera) -> tuple[str, tuple[float, ...]]:
    """COLMAP's name of a camera's model, and the parameters in its order: the inverse of ``camera_from_colmap``.

    Principal points are counted from the corner of the upper-left pixel, half a pixel from ours.
    """
    middle = (camera.cx + _HALF_PIXEL, camera.cy + _HALF_PIXEL)
    return camera.model, (camera.fx, camera.fy, *middle, *camera.distortion)


def write_model(folder: str | Path, model: ColmapModel, binary: bool = True) -> None:
    """Write a sparse model: ``cameras``, ``images`` and ``points3D``, which COLMAP and ``read_model`` read.

    Images and points are numbered from 1 in their order; images of equal intrinsics share a camera. What another model
    left in the folder is deleted: files of the other ending, and rigs and frames, which COLMAP would read beside these.

    Args:
        folder: where to write; it is made.
        model: what to write. Poses, points and observations are written in float64.
        binary: ``.bin``; else ``.txt``, with as many digits as float64 has.

    Raises:
        InputError: a name that COLMAP's files cannot hold or that is there twice, arrays that do not fit each other, or
            a file that cannot be written.
    """
    folder = Path(folder)
    _check(folder, model)
    known: dict[Camera, int] = {}
    cameras = [known.setdefault(camera, len(known) + 1) for camera in model.cameras]
    write = _write_binary if binary else _write_text
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write(folder, model, known, cameras)
    other, both = (".txt",) if binary else (".bin",), (".bin", ".txt")
    for name in (*_HEADS, *_BESIDE):
        for ending in other if name in _HEADS else both:
            (folder / f"{name}{ending}").unlink(missing_ok=True)


def _check(folder: Path, model: ColmapModel) -> None:
    images, points, seen = len(model.names), len(model.xyz), len(model.image)
    shapes = (
        ("cameras", len(model.cameras), images),
        ("poses", model.poses.shape, (images, 4, 4)),
        ("xyz", model.xyz.shape, (points, 3)),
        ("error", model.error.shape, (points,)),
        ("colors", model.colors.shape, (points, 3)),
        ("point", model.point.shape, (seen,)),
        ("uv", model.uv.shape, (seen, 2)),
    )
    for name, found, wanted in shapes:
        if found != wanted:
            raise InputError(f"{folder}: {name} of the COLMAP model is {found}, which should be {wanted}")
    if seen and not (model.image.min() >= 0 and model.image.max() < images):
        raise InputError(f"{folder}: observations are of images 0 to {images - 1}, got {model.image.max()}")
    if seen and not (model.point.min() >= 0 and model.point.max() < points):
        raise InputError(f"{folder}: observations are of points 0 to {points - 1}, got {model.point.max()}")
    for name in model.names:
        if not name or name != name.strip() or any(ord(letter) < 32 for letter in name):
            raise InputError(f"{folder}: {name!r} is no name that COLMAP's files can hold; rename the view")
    if len(set(model.names)) < images:
        twice = next(name for name in model.names if model.names.count(name) > 1)
        raise InputError(f"{folder}: image {twice} is there twice; give every view a name of its own")


def _poses(model: ColmapModel) -> Iterator[tuple[float, ...]]:
    """Camera from world of each image: quaternion w, x, y, z and translation."""
    for pose in model.poses:
        rotation = pose[:3, :3].T
        yield (*quaternion_of(rotation).tolist(), *(-rotation @ pose[:3, 3]).tolist())


def _observations(model: ColmapModel) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What each image sees, and the track of each point."""
    order = np.argsort(model.image, kind="stable")
    observed = np.empty(len(order), _OBSERVATION)
    observed["uv"], observed["point"] = model.uv[order] + _HALF_PIXEL, model.point[order] + 1
    starts = np.searchsorted(model.image[order], np.arange(len(model.names) + 1))
    track = np.empty(len(order), _TRACK)
    track["image"] = model.image[order] + 1
    track["slot"] = np.arange(len(order)) - starts[model.image[order]]
    by_point = np.argsort(model.point[order], kind="stable")
    ends = np.searchsorted(model.point[order][by_point], np.arange(len(model.xyz) + 1))
    track = track[by_point]
    return (
        [observed[first:last] for first, last in pairwise(starts)],
        [track[first:last] for first, last in pairwise(ends)],
    )


def _write_binary(folder: Path, model: ColmapModel, known: dict[Camera, int], cameras: list[int]) -> None:
    seen, tracks = _observations(model)
    numbers = list(MODEL_PARAMETERS)

    def camera(number: int, entry: Camera) -> bytes:
        name, values = camera_to_colmap(entry)
        return struct.pack(f"<IiQQ{len(values)}d", number, numbers.index(name), entry.width, entry.height, *values)

    def image(number: int, name: str, pose: tuple[float, ...], of: int, observed: np.ndarray) -> bytes:
        head = struct.pack("<I7dI", number, *pose, of) + name.encode() + b"\0"
        return head + struct.pack("<Q", len(observed)) + observed.tobytes()

    def point(number: int, row: int, track: np.ndarray) -> bytes:
        color = model.colors[row].tolist()
        return struct.pack("<Q3d3BdQ", number, *model.xyz[row], *color, model.error[row], len(track)) + track.tobytes()

    _put(folder / "cameras.bin", len(known), (camera(number, entry) for entry, number in known.items()))
    rows = enumerate(zip(model.names, _poses(model), cameras, seen), 1)
    _put(folder / "images.bin", len(model.names), (image(number, *row) for number, row in rows))
    _put(folder / "points3D.bin", len(tracks), (point(row + 1, row, track) for row, track in enumerate(tracks)))


def _put(path: Path, count: int, records: Iterable[bytes]) -> None:
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(struct.pack("<Q", count))
        file.writelines(records)


def _write_text(folder: Path, model: ColmapModel, known: dict[Camera, int], cameras: list[int]) -> None:
    seen, tracks = _observations(model)
    lines = {name: [head] for name, head in _HEADS.items()}
    for camera, number in known.items():
        name, values = camera_to_colmap(camera)
        lines["cameras"].append(_line(number, name, camera.width, camera.height, *values))
    for number, (name, pose, of, observed) in enumerate(zip(model.names, _poses(model), cameras, seen), 1):
        rows = zip(observed["uv"].tolist(), observed["point"].tolist())
        lines["images"] += [_line(number, *pose, of, name), _line(*(v for (x, y), p in rows for v in (x, y, p)))]
    for row, track in enumerate(tracks):
        ends = (value for entry in track.tolist() for value in entry)
        xyz, color = model.xyz[row].tolist(), model.colors[row].tolist()
        lines["points3D"].append(_line(row + 1, *xyz, *color, float(model.error[row]), *ends))
    for name, content in lines.items():
        with replacing(folder / f"{name}.txt") as unfinished:
            unfinished.write_text("\n".join(content) + "\n", encoding="utf-8")


def _line(*values: object) -> str:
    return " ".join(map(str, values))  # str of a float is the shortest that reads back as it


__all__ = ["camera_to_colmap", "write_model"]
