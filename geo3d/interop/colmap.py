"""COLMAP: posed views and points as a sparse model on disk, or in memory as pycolmap's ``Reconstruction``, and back.

COLMAP puts the centre of the upper-left pixel at (0.5, 0.5) and poses the other way round, camera from world; the
axes of cameras are ours. Its models PINHOLE, OPENCV and OPENCV_FISHEYE are those of :class:`geo3d.Camera`, so that
every camera is written as it is.

    >>> from geo3d.interop import colmap
    >>> colmap.write_model("capture/sparse/0", scene)
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.datasets import write_colmap
from geo3d.datasets.colmap import ColmapModel, read_model
from geo3d.datasets.scene import Scene
from geo3d.errors import InputError, require_extra
from geo3d.geometry import PointCloud, View
from geo3d.geometry.byte_colors import byte_colors
from geo3d.interop.held import array, one_scene, posed_views, require_held

_TARGET = "a COLMAP model"


def to_model(
    views: Scene | Sequence[View],
    points: PointCloud | None = None,
    origin: np.ndarray | None = None,
    leave_out: Sequence[str] = (),
) -> ColmapModel:
    """Posed views as a sparse model.

    Args:
        views: a scene, whose tracks become the points and observations where it has any; or views.
        points: (N, 3) that stand for the model's points, without observations: such as seeds of Gaussian splats.
        origin: (3,) what was taken off the views' poses, and is put back; of a scene its own.
        leave_out: fields of ``points`` that a model cannot hold: ``normals``, ``semantic``, ``instance``.

    Raises:
        InputError: views without camera or pose, or points with fields that would be lost.
    """
    posed = posed_views(views, _TARGET, origin)
    none = np.zeros(0, np.int64)
    model = {"image": none, "point": none, "uv": np.zeros((0, 2))}
    if points is not None:
        cloud = one_scene(points, _TARGET)
        require_held({name: getattr(cloud, name) for name in ("normals", "semantic", "instance")}, _TARGET, leave_out)
        xyz = array(cloud.world())
        grey = np.full((len(xyz), 3), 128, np.uint8)
        colors = grey if cloud.colors is None else byte_colors(array(cloud.colors))
        model |= {"xyz": xyz, "error": np.zeros(len(xyz)), "colors": colors}
    elif isinstance(views, Scene) and "tracks" in views.parts:
        tracks = views.tracks()
        cloud = views.points() if "points" in views.parts else None
        known = cloud is not None and cloud.colors is not None and len(cloud) == len(tracks.xyz)
        colors = byte_colors(array(cloud.colors)) if known else np.full(tracks.xyz.shape, 128, np.uint8)
        model |= {
            "xyz": tracks.xyz + (views.origin if origin is None else origin),
            "error": tracks.error,
            "colors": colors,
        }
        model |= {"image": tracks.view, "point": tracks.point, "uv": tracks.uv}
    else:
        model |= {"xyz": np.zeros((0, 3)), "error": np.zeros(0), "colors": np.zeros((0, 3), np.uint8)}
    return ColmapModel(posed.names, posed.cameras, posed.poses, **model)


def write_model(
    folder: str | Path,
    views: Scene | Sequence[View] | ColmapModel,
    points: PointCloud | None = None,
    binary: bool = True,
    origin: np.ndarray | None = None,
    leave_out: Sequence[str] = (),
) -> None:
    """Write posed views as a COLMAP model, which COLMAP, pycolmap and :func:`geo3d.open_dataset` read.

    Only the model is written. For :func:`geo3d.open_dataset` the photos lie in ``images/``, the model in
    ``sparse/0/``.

    Args:
        folder: where ``cameras``, ``images`` and ``points3D`` are written; it is made.
        views: as :func:`to_model`, or its result.
        points: as :func:`to_model`.
        binary: ``.bin``; else ``.txt``.
        origin: as :func:`to_model`.
        leave_out: as :func:`to_model`.

    Raises:
        InputError: as :func:`to_model`, a name that COLMAP cannot hold, or a file that cannot be written.
    """
    if isinstance(views, ColmapModel) and (points is not None or origin is not None or leave_out):
        raise InputError("a COLMAP model holds its points and places; give points, origin and leave_out to to_model")
    model = views if isinstance(views, ColmapModel) else to_model(views, points, origin, leave_out)
    write_colmap.write_model(folder, model, binary)


def to_reconstruction(
    views: Scene | Sequence[View] | ColmapModel,
    points: PointCloud | None = None,
    origin: np.ndarray | None = None,
    leave_out: Sequence[str] = (),
) -> Any:
    """Posed views as a ``pycolmap.Reconstruction``; arguments as :func:`write_model`.

    Raises:
        InputError: as :func:`write_model`.
        MissingExtra: pycolmap is not installed.
    """
    pycolmap = require_extra("pycolmap", "colmap", "making a pycolmap Reconstruction")
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, views, points, True, origin, leave_out)
        return pycolmap.Reconstruction(folder)


def from_reconstruction(reconstruction: Any) -> ColmapModel:
    """A ``pycolmap.Reconstruction`` as our cameras, poses, points and observations, images sorted by name.

    Raises:
        InputError: a camera that :class:`geo3d.Camera` cannot express, named in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        reconstruction.write_binary(folder)
        return read_model(Path(folder), "reconstruction")


def to_views(model: ColmapModel) -> list[View]:
    """The images of a model as views without pictures: name, camera and pose, in the model's world."""
    import torch

    rows = zip(model.names, model.cameras, model.poses)
    return [View(name, camera, torch.from_numpy(pose.copy())) for name, camera, pose in rows]


__all__ = ["from_reconstruction", "to_model", "to_reconstruction", "to_views", "write_model"]
