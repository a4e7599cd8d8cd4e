"""nerfstudio: its ``Cameras``, and captures with a ``transforms.json`` as its tools and instant-ngp's read them.

Axes of cameras become OpenGL's (x right, y up, z back), principal points are counted from the corner of the picture.
The world stays ours, z up. Radiance grids of trained runs are read by :mod:`geo3d.reconstruction.nerfstudio`.

    >>> from geo3d.interop import nerfstudio
    >>> nerfstudio.write_transforms("capture", scene)        # ns-train nerfacto --data capture
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from geo3d.datasets.image_files import check_size
from geo3d.datasets.scene import Scene
from geo3d.errors import InputError, require_extra
from geo3d.geometry import Camera, PointCloud, View
from geo3d.geometry.axes import OPENGL_FROM_OPENCV
from geo3d.geometry.byte_colors import byte_colors
from geo3d.interop.held import PosedViews, array, image_file, one_scene, posed_views, require_held
from geo3d.viz.points import write_points
from geo3d.writing import replacing, writing

_HALF_PIXEL = 0.5
_FILE = "transforms.json"
#: nerfstudio's numbers of camera kinds, and the order of its distortion parameters.
PERSPECTIVE, FISHEYE = 1, 2
_ORDER = ("k1", "k2", "k3", "k4", "p1", "p2")
_KEYS = {"PINHOLE": (), "OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}


def camera_values(views: Scene | Sequence[View], origin: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What nerfstudio's ``Cameras`` are made of, in float64.

    Returns:
        ``camera_to_worlds`` (V, 3, 4) in OpenGL's axes; ``fx``, ``fy``, ``cx``, ``cy`` (V,) pixels, principal points
        from the corner of the picture; ``width``, ``height`` and ``camera_type`` (V,) int64; ``distortion_params``
        (V, 6) k1, k2, k3, k4, p1, p2.

    Raises:
        InputError: views without camera or pose.
    """
    posed = posed_views(views, "nerfstudio's Cameras", origin)
    bent = np.zeros((len(posed.names), len(_ORDER)))
    for row, camera in zip(bent, posed.cameras):
        for key, value in _bent(camera).items():
            row[_ORDER.index(key)] = value
    cameras = posed.cameras
    return {
        "camera_to_worlds": (posed.poses @ OPENGL_FROM_OPENCV)[:, :3],
        "fx": np.array([camera.fx for camera in cameras]),
        "fy": np.array([camera.fy for camera in cameras]),
        "cx": np.array([camera.cx + _HALF_PIXEL for camera in cameras]),
        "cy": np.array([camera.cy + _HALF_PIXEL for camera in cameras]),
        "width": np.array([camera.width for camera in cameras]),
        "height": np.array([camera.height for camera in cameras]),
        "distortion_params": bent,
        "camera_type": np.array([FISHEYE if c.model == "OPENCV_FISHEYE" else PERSPECTIVE for c in cameras]),
    }


def views_of_values(values: dict[str, np.ndarray], names: Sequence[str] | None = None) -> list[View]:
    """Inverse of :func:`camera_values`.

    Args:
        values: as :func:`camera_values` gives them.
        names: of the views; numbers when not given.

    Raises:
        InputError: a kind of camera, or distortion, that :class:`geo3d.Camera` cannot express.
    """
    count = len(values["camera_to_worlds"])
    names = [f"{i:05d}" for i in range(count)] if names is None else list(names)
    if len(names) != count:
        raise InputError(f"{count} cameras need as many names, got {len(names)}")
    views = []
    for row, name in enumerate(names):
        one = {key: value[row] for key, value in values.items()}
        kind = int(one["camera_type"])
        if kind not in (PERSPECTIVE, FISHEYE):
            raise InputError(f"camera {name}: nerfstudio's kind {kind} is no lens that geo3d.Camera can express")
        model = "OPENCV_FISHEYE" if kind == FISHEYE else "OPENCV" if one["distortion_params"].any() else "PINHOLE"
        bent = dict(zip(_ORDER, one["distortion_params"].tolist()))
        beyond = [key for key, value in bent.items() if value and key not in _KEYS[model]]
        if beyond:
            raise InputError(f"camera {name}: {beyond[0]} is not zero, which {model} cannot express; undistort first")
        lens = (float(one[key]) for key in ("fx", "fy"))
        middle = (float(one[key]) - _HALF_PIXEL for key in ("cx", "cy"))
        distortion = tuple(bent[key] for key in _KEYS[model])
        camera = Camera(int(one["width"]), int(one["height"]), *lens, *middle, model, distortion)
        pose = np.vstack([one["camera_to_worlds"], [0, 0, 0, 1]]).astype(np.float64) @ OPENGL_FROM_OPENCV
        views.append(View(name, camera, torch.from_numpy(pose)))
    return views


def to_cameras(views: Scene | Sequence[View], origin: np.ndarray | None = None) -> Any:
    """Posed views as nerfstudio's ``Cameras``, float32 as all that it computes.

    Raises:
        InputError: as :func:`camera_values`.
        MissingExtra: nerfstudio is not installed.
    """
    values = camera_values(views, origin)
    module = require_extra("nerfstudio.cameras.cameras", "nerfstudio", "making nerfstudio's Cameras")
    whole = ("width", "height", "camera_type")
    columns = {
        key: torch.from_numpy(np.ascontiguousarray(v)).to(torch.int64 if key in whole else torch.float32)
        for key, v in values.items()
    }
    return module.Cameras(**{k: v if v.ndim > 1 else v.unsqueeze(-1) for k, v in columns.items()})


def from_cameras(cameras: Any, names: Sequence[str] | None = None) -> list[View]:
    """nerfstudio's ``Cameras`` as views without pictures, in their world and to their float32.

    Raises:
        InputError: as :func:`views_of_values`.
    """
    columns = {}
    poses = array(cameras.camera_to_worlds).astype(np.float64).reshape(-1, 3, 4)
    for key in ("fx", "fy", "cx", "cy", "width", "height", "camera_type"):
        columns[key] = array(getattr(cameras, key)).reshape(-1)
    bent = cameras.distortion_params
    columns["distortion_params"] = (
        np.zeros((len(poses), 6)) if bent is None else array(bent).astype(np.float64).reshape(-1, 6)
    )
    return views_of_values({"camera_to_worlds": poses, **columns}, names)


def write_transforms(
    folder: str | Path,
    views: Scene | Sequence[View],
    points: PointCloud | None = None,
    origin: np.ndarray | None = None,
    leave_out: Sequence[str] = (),
    photos: Sequence[str] | None = None,
) -> Path:
    """Write a capture: photos, depth, masks and ``transforms.json``, as nerfstudio and :func:`geo3d.open_dataset` read.

    Photos are PNG files of 8 bits, depth maps arrays of float32 metres (``.npy``), masks white on the object. Read
    back by :func:`geo3d.open_dataset`, poses, colours of 8 bits, depth and masks are what they were, bit by bit, and
    principal points but for the rounding of the half pixel they are moved by.

    Args:
        folder: of the capture; it is made.
        views: a scene, which is read view by view, or views; all with camera and pose, and with image, unless the
            photos are there.
        points: seeds of Gaussian splats, written as ``points.ply`` with their colours.
        origin: (3,) what was taken off the poses, and is put back; of a scene its own.
        leave_out: fields of ``points`` that seeds cannot hold: ``normals``, ``semantic``, ``instance``.
        photos: of each view, its photo below ``folder`` such as ``images/a.jpg``, where these are there already: none
            is written then.

    Returns:
        Path of ``transforms.json``.

    Raises:
        InputError: a view without image, camera or pose, a photo that is not there or of another size, fisheye and
            other lenses in one capture, depth of another field of view than its image, depth or masks of some views
            alone, names that are no files, points with fields that would be lost, or a file that cannot be written.
    """
    folder = Path(folder)
    posed = posed_views(views, f"{folder / _FILE}", origin)
    models = {camera.model for camera in posed.cameras}
    if "OPENCV_FISHEYE" in models and len(models) > 1:
        raise InputError(
            f"{folder / _FILE}: holds one kind of lens, got {', '.join(sorted(models))}; write two captures"
        )
    files = _photos_there(folder, posed, photos)
    stems = [image_file(name.removeprefix("images/"), "") for name in posed.names]
    if len(set(stems)) < len(stems):
        raise InputError(f"{folder}: two views differ in the ending of their name alone; rename one")
    _check_held(posed, folder, files is None)
    cloud = None
    if points is not None:
        cloud = one_scene(points, "seeds of splats")
        lost = {name: getattr(cloud, name) for name in ("normals", "semantic", "instance")}
        require_held(lost, "seeds of splats", leave_out)
    shared = _intrinsics(posed.cameras[0]) if len(set(posed.cameras)) == 1 else {}
    frames = []
    for index, stem in enumerate(stems):
        view = posed.view(index)
        _check_view(view, folder, files is None)
        frame = {"file_path": f"images/{stem}.png" if files is None else files[index]}
        frame |= {} if shared else _intrinsics(posed.cameras[index])
        frame["transform_matrix"] = (posed.poses[index] @ OPENGL_FROM_OPENCV + 0.0).tolist()
        if files is None:
            _write_image(folder / frame["file_path"], byte_colors(array(view.image)))
        if view.depth is not None:
            frame["depth_file_path"] = f"depth/{stem}.npy"
            with _place(folder / frame["depth_file_path"]) as unfinished, unfinished.open("wb") as file:
                np.save(file, array(view.depth).astype(np.float32))
        if view.mask is not None:
            frame["mask_path"] = f"masks/{stem}.png"
            _write_image(folder / frame["mask_path"], array(view.mask).astype(np.uint8) * 255)
        frames.append(frame)
    model = "OPENCV_FISHEYE" if models == {"OPENCV_FISHEYE"} else "OPENCV" if "OPENCV" in models else "PINHOLE"
    content: dict[str, Any] = {"camera_model": model, **shared}
    if any("depth_file_path" in frame for frame in frames):
        content["depth_unit_scale_factor"] = 1.0  # arrays of floats are metres already, for nerfstudio too
    if cloud is not None:
        write_points(folder / "points.ply", cloud)
        content["ply_file_path"] = "points.ply"
    with _place(folder / _FILE) as unfinished:
        unfinished.write_text(json.dumps({**content, "frames": frames}, indent=1), encoding="utf-8")
    return folder / _FILE


def _place(path: Path) -> Any:
    """Where a file is written; its folder is made."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return replacing(path)


def _write_image(path: Path, pixels: np.ndarray) -> None:
    with _place(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, "PNG")


def _intrinsics(camera: Camera) -> dict[str, Any]:
    values = {"w": camera.width, "h": camera.height, "fl_x": camera.fx, "fl_y": camera.fy}
    values |= {"cx": camera.cx + _HALF_PIXEL, "cy": camera.cy + _HALF_PIXEL}
    return values | _bent(camera)


def _bent(camera: Camera) -> dict[str, float]:
    """Coefficients of distortion by nerfstudio's names; raises InputError for a lens that it does not know."""
    if camera.model not in _KEYS:
        raise InputError(f"nerfstudio: lenses of model {camera.model} are not known there; undistort the images first")
    return dict(zip(_KEYS[camera.model], camera.distortion))


def _photos_there(folder: Path, posed: PosedViews, photos: Sequence[str] | None) -> list[str] | None:
    """The photos that are there already, looked at; None where they are to be written."""
    if photos is None:
        return None
    if len(photos) != len(posed.names):
        raise InputError(f"{folder}: {len(posed.names)} views need as many photos, got {len(photos)}")
    files = [image_file(name, PurePosixPath(name).suffix) for name in photos]
    for file, camera in zip(files, posed.cameras):
        check_size(folder / file, folder.name, camera)
    return files


def _check_held(posed: PosedViews, folder: Path, with_image: bool) -> None:
    """Look at views in memory before anything is written; a scene has a part of all its views or of none."""
    if isinstance(posed.source, Scene):
        return
    for view in posed.source:
        _check_view(view, folder, with_image)
    for field in ("depth", "mask"):
        known = sum(getattr(view, field) is not None for view in posed.source)
        if 0 < known < len(posed.source):
            raise InputError(f"{folder}: {known} of {len(posed.source)} views have {field}; all or none must")


def _check_view(view: View, folder: Path, with_image: bool) -> None:
    if with_image and view.image is None:
        raise InputError(f"{folder}: view {view.name} has no image to write")
    if view.depth is None or view.depth_camera is None:
        return
    height, width = view.depth.shape
    wanted, found = view.camera.resized(width, height), view.depth_camera
    lenses = [(c.fx, c.fy, c.cx, c.cy) for c in (wanted, found)]
    if not np.allclose(*lenses, atol=0.01) or wanted.distortion != found.distortion:
        raise InputError(
            f"{folder}: the depth of view {view.name} has a lens of its own, which a {_FILE} cannot say; register the "
            "depth to the image, or write the views without it"
        )


__all__ = ["camera_values", "from_cameras", "to_cameras", "views_of_values", "write_transforms"]
