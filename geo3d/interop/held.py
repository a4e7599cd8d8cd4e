"""What every converter shares: refusing what the other side cannot hold, and reading views of scenes or lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.geometry import Camera, PointCloud, View


def require_held(there: Mapping[str, Any], target: str, leave_out: Sequence[str], instead: str = "") -> None:
    """See that nothing is lost unasked.

    Args:
        there: name -> what the target cannot hold; None where there is nothing to lose.
        target: what is made, for the message.
        leave_out: names that may be lost.
        instead: what to do, for the message; else leaving out is all that is proposed.

    Raises:
        InputError: something would be lost, or ``leave_out`` names what could not.
    """
    if isinstance(leave_out, str):
        raise InputError(f"leave_out is a list of names, such as [{leave_out!r}]")
    strange = [name for name in leave_out if name not in there]
    if strange:
        raise InputError(f"{target}: leave_out names {', '.join(strange)}; it loses {', '.join(there) or 'nothing'}")
    lost = [name for name, value in there.items() if value is not None and name not in leave_out]
    if lost:
        proposed = f"{instead}, or say leave_out={lost}" if instead else f"say leave_out={lost}"
        raise InputError(f"{target} cannot hold {', '.join(lost)}; {proposed}")


def one_scene(cloud: PointCloud, target: str) -> PointCloud:
    """The cloud itself; raises InputError where it holds several scenes."""
    if not isinstance(cloud, PointCloud):
        raise InputError(f"{target}: a geo3d.PointCloud is expected, got a {type(cloud).__name__}")
    if cloud.batch_size != 1:
        raise InputError(f"{target} holds one scene, got {cloud.batch_size}; convert cloud.scene(i) one by one")
    return cloud


def pinhole(camera: Camera, target: str) -> Camera:
    """The camera itself; raises InputError where it has distortion that is not zero."""
    if any(camera.distortion) or camera.model == "OPENCV_FISHEYE":
        raise InputError(
            f"{target} is a pinhole, the camera is {camera.model} with distortion {list(camera.distortion)}; "
            "undistort the image first (such as by COLMAP's image_undistorter)"
        )
    return camera


def array(values: Any) -> np.ndarray:
    """A tensor or array as a numpy array in memory that is its own."""
    return np.array(values.detach().cpu().numpy() if isinstance(values, Tensor) else values)


def feature_rows(features: Any, count: int) -> np.ndarray:
    """Features (N, C) as an array; raises InputError where there is not one for each of ``count`` rows."""
    rows = array(features)
    if rows.ndim != 2 or len(rows) != count:
        raise InputError(f"features must be ({count}, C), a row a point, got {rows.shape}")
    return rows


def unit_colors(colors: np.ndarray) -> Tensor:
    """Colours of 8 or 16 bits, or floats in [0, 1], as float32 in [0, 1]."""
    if colors.dtype.kind == "u":
        return torch.from_numpy(colors.astype(np.float32) / np.float32(np.iinfo(colors.dtype).max))
    return torch.from_numpy(colors.astype(np.float32))


def camera_from_world(world_from_camera: np.ndarray) -> np.ndarray:
    """The inverse (4, 4) float64 of a rigid pose, whose rotation stays that of the pose, transposed."""
    inverse = np.eye(4)
    rotation = np.asarray(world_from_camera, np.float64)[:3, :3].T
    inverse[:3, :3], inverse[:3, 3] = rotation, -rotation @ np.asarray(world_from_camera, np.float64)[:3, 3]
    return inverse


@dataclass
class PosedViews:
    """Views of which each has a camera and a pose.

    Args:
        names: of the views, unique.
        cameras: intrinsics of each.
        poses: (V, 4, 4) float64 ``world_from_camera``, an origin put back.
        source: what they were read from: a scene, or views.
    """

    names: list[str]
    cameras: list[Camera]
    poses: np.ndarray
    source: Scene | Sequence[View]

    def view(self, index: int) -> View:
        """One view with its image and all; of a scene it is read now."""
        return self.source.view(index) if isinstance(self.source, Scene) else self.source[index]


def posed_views(views: Scene | Sequence[View] | View, target: str, origin: np.ndarray | None = None) -> PosedViews:
    """Views with what all formats of posed photos need.

    Args:
        views: a scene, a view or several.
        target: what is made, for the message.
        origin: (3,) what was taken off the poses, and is put back; of a scene its own.

    Raises:
        InputError: no view, one without camera or pose, or two of one name.
    """
    if isinstance(views, Scene):
        views.require("views", "poses")
        names = list(views.view_names)
        numbers = range(len(names))
        cameras, poses = [views.camera(i) for i in numbers], [views.pose(i) for i in numbers]
        origin = views.origin if origin is None else origin
    else:
        views = [views] if isinstance(views, View) else list(views)
        strange = next((type(view).__name__ for view in views if not isinstance(view, View)), None)
        if strange:
            raise InputError(f"{target}: a scene or views are expected, got a {strange}")
        names = [view.name for view in views]
        for view in views:
            if view.camera is None or view.world_from_camera is None:
                raise InputError(f"{target}: view {view.name} has no {'pose' if view.camera else 'camera'}")
        cameras, poses = [view.camera for view in views], [array(view.world_from_camera) for view in views]
    if not names:
        raise InputError(f"{target}: there is no view")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{target}: {twice[0]} names two views; give each a name of its own")
    world = np.array(poses, dtype=np.float64)
    world[:, :3, 3] += 0 if origin is None else np.asarray(origin, np.float64).reshape(3)
    return PosedViews(names, cameras, world, views)


def image_file(name: str, ending: str) -> str:
    """A view's name as a file below a folder: folders stay, what leads out of it is an InputError."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise InputError(f"view {name!r} cannot name a file below a folder; rename it")
    return path.with_name(f"{path.stem}{ending}").as_posix()
