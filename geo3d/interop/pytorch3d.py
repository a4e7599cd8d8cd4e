"""PyTorch3D: ``PerspectiveCameras``, ``Pointclouds`` and ``Volumes``, and back.

PyTorch3D's cameras look along z with x to the *left* and y *up*; points are rows, ``x_view = x_world @ R + T``. Screen
space is counted in pixels from the outer corner of the upper-left one. NDC runs from 1 to -1, left to right and top to
bottom, over the shorter side. What follows from that are numbers, in :func:`camera_values` and :func:`volume_values`,
which need no PyTorch3D; ``to_...`` hand them to its classes.

    >>> from geo3d.interop import pytorch3d
    >>> cameras = pytorch3d.to_cameras([view])           # a batch of one
    >>> volumes = pytorch3d.to_volumes(grid)             # densities are opacity, features colours
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError, MissingExtra, require_extra
from geo3d.geometry import Camera, PointCloud, View, VolumeGrid
from geo3d.interop.held import pinhole, posed_views, require_held

_HALF_PIXEL = 0.5
#: From OpenCV's camera axes to PyTorch3D's: x to the left, y up. Its own inverse.
_FLIP = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))


def camera_values(
    views: Scene | Sequence[View] | View, in_ndc: bool = False, origin: np.ndarray | None = None
) -> dict[str, Tensor]:
    """What ``PerspectiveCameras`` are made of, in float64.

    Args:
        views: a scene, a view or several, each with pinhole camera and pose.
        in_ndc: focal lengths and principal points in NDC; else in screen space, pixels.
        origin: (3,) what was taken off the poses, and is put back; of a scene its own.

    Returns:
        ``R`` (V, 3, 3), ``T`` (V, 3), ``focal_length`` (V, 2), ``principal_point`` (V, 2) and ``image_size`` (V, 2),
        height and width.

    Raises:
        InputError: views without camera or pose, or with distortion.
    """
    target = "PyTorch3D's PerspectiveCameras"
    posed = posed_views(views, target, origin)
    lenses = [pinhole(camera, target) for camera in posed.cameras]
    poses = torch.from_numpy(posed.poses)
    turned = poses[:, :3, :3] @ _FLIP  # world from camera is what a row is multiplied by: (R^-1)^T = R
    shift = -(poses[:, None, :3, 3] @ turned)[:, 0]
    focal = torch.tensor([[c.fx, c.fy] for c in lenses], dtype=torch.float64)
    middle = torch.tensor([[c.cx, c.cy] for c in lenses], dtype=torch.float64) + _HALF_PIXEL
    size = torch.tensor([[c.height, c.width] for c in lenses], dtype=torch.float64)
    if in_ndc:
        focal, middle = _ndc(focal, middle, size)
    return {"R": turned, "T": shift, "focal_length": focal, "principal_point": middle, "image_size": size}


def views_of_values(values: dict[str, Tensor], in_ndc: bool = False, names: Sequence[str] | None = None) -> list[View]:
    """Inverse of :func:`camera_values`: views without pictures, poses in float64.

    Raises:
        InputError: no size of the image, or sizes that are not positive.
    """
    size = values["image_size"].double()
    turned, shift = values["R"].double(), values["T"].double()
    count = len(turned)
    focal, middle = (_pairs(values[key], count) for key in ("focal_length", "principal_point"))
    if not (size > 0).all():
        raise InputError("PyTorch3D's cameras tell no image_size; give it, as (height, width)")
    size = size.expand(count, 2)
    if in_ndc:
        focal, middle = _screen(focal, middle, size)
    names = [f"{i:05d}" for i in range(count)] if names is None else list(names)
    if len(names) != count:
        raise InputError(f"{count} cameras need as many names, got {len(names)}")
    views = []
    for name, one, moved, lens, point, sides in zip(names, turned, shift, focal, middle, size):
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = one @ _FLIP, -(one @ moved)
        height, width = (round(side) for side in sides.tolist())
        camera = Camera(width, height, *lens.tolist(), *(point - _HALF_PIXEL).tolist())
        views.append(View(name, camera, pose))
    return views


def to_cameras(
    views: Scene | Sequence[View] | View,
    in_ndc: bool = False,
    device: torch.device | str = "cpu",
    origin: np.ndarray | None = None,
) -> Any:
    """Posed views as ``PerspectiveCameras``, float32.

    Raises:
        InputError: as :func:`camera_values`.
        MissingExtra: PyTorch3D is not installed.
    """
    values = {key: value.float() for key, value in camera_values(views, in_ndc, origin).items()}
    renderer = _library("renderer")
    return renderer.PerspectiveCameras(**values, in_ndc=in_ndc, device=device)


def from_cameras(
    cameras: Any, names: Sequence[str] | None = None, image_size: Sequence[tuple[int, int]] | None = None
) -> list[View]:
    """``PerspectiveCameras`` as views without pictures.

    Args:
        cameras: of PyTorch3D.
        names: of the views; numbers when not given.
        image_size: (height, width) of each, where the cameras do not tell.

    Raises:
        InputError: as :func:`views_of_values`, or another kind of camera.
    """
    if type(cameras).__name__ != "PerspectiveCameras":
        raise InputError(f"PyTorch3D's {type(cameras).__name__} is not read; make PerspectiveCameras of it")
    if getattr(cameras, "K", None) is not None:
        raise InputError("PyTorch3D's cameras with a matrix K of their own are not read; give focal_length instead")
    size = cameras.image_size if image_size is None else torch.tensor(image_size, dtype=torch.float64)
    if size is None:
        raise InputError("PyTorch3D's cameras tell no image_size; give it, as (height, width)")
    named = {key: getattr(cameras, key).detach().cpu() for key in ("R", "T", "focal_length", "principal_point")}
    return views_of_values({**named, "image_size": size.detach().cpu()}, cameras.in_ndc(), names)


def to_pointclouds(cloud: PointCloud, features: Any = None, leave_out: Sequence[str] = ()) -> tuple[Any, Tensor | None]:
    """The scenes of a cloud as ``Pointclouds``.

    Args:
        cloud: of one scene or several.
        features: (N, C) instead of the colours, which ``Pointclouds`` keep in the same place.
        leave_out: fields that it cannot hold: ``semantic``, ``instance``; ``colors`` where features take their place.

    Returns:
        ``Pointclouds``, and the origin (B, 3) float64 that its points are less, or None.

    Raises:
        InputError: fields that would be lost, or features of another number of rows.
        MissingExtra: PyTorch3D is not installed.
    """
    lost = {name: getattr(cloud, name) for name in ("semantic", "instance")}
    require_held(lost | ({} if features is None else {"colors": cloud.colors}), "Pointclouds", leave_out)
    structures = _library("structures")
    rows = cloud.colors if features is None else torch.as_tensor(features)
    if rows is not None and len(rows) != len(cloud):
        raise InputError(f"features must be ({len(cloud)}, C), a row a point, got {tuple(rows.shape)}")
    sizes = cloud.offsets.diff().tolist()
    split = [None if v is None else list(v.float().split(sizes)) for v in (cloud.xyz, cloud.normals, rows)]
    return structures.Pointclouds(points=split[0], normals=split[1], features=split[2]), cloud.origin


def from_pointclouds(clouds: Any, origin: Tensor | None = None) -> tuple[PointCloud, Tensor | None]:
    """``Pointclouds`` as one packed cloud.

    Args:
        clouds: of PyTorch3D.
        origin: (B, 3) float64 that its points are less.

    Returns:
        The cloud, whose colours are features of three columns in [0, 1], and the features (N, C) where they are none.
    """
    points = clouds.points_packed()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), clouds.num_points_per_cloud().cpu().cumsum(0)])
    features = clouds.features_packed()
    are_colors = features is not None and features.shape[1] == 3 and bool(((features >= 0) & (features <= 1)).all())
    cloud = PointCloud(
        points,
        features if are_colors else None,
        clouds.normals_packed(),
        offsets=offsets.to(points.device),
        origin=origin,
    )
    return cloud, None if are_colors else features


def volume_values(grid: VolumeGrid, leave_out: Sequence[str] = ()) -> dict[str, Tensor]:
    """What ``Volumes`` are made of: of one grid, float32.

    Args:
        grid: whose corners are known.
        leave_out: fields that it cannot hold: ``labels``, ``boxes``.

    Returns:
        ``densities`` (1, 1, Z, Y, X), the opacity, as PyTorch3D's ``EmissionAbsorptionRaymarcher`` reads it;
        ``features`` (1, 3, Z, Y, X) colours; ``voxel_size`` (1, 3) x, y, z, metres; ``volume_translation`` (1, 3), the
        negative of the middle, metres. Voxels lie as by ``align_corners=True``, PyTorch3D's default.

    Raises:
        InputError: fields that would be lost, or corners that are not known.
    """
    require_held({"labels": grid.labels, "boxes": grid.boxes}, "PyTorch3D's Volumes", leave_out)
    if grid.low is None or grid.high is None:
        raise InputError("PyTorch3D's Volumes have a place; give the grid its corners, low and high")
    values = grid.values.permute(0, 3, 2, 1).unsqueeze(0)
    middle = (grid.low + grid.high) / 2
    return {
        "densities": values[:, 3:].contiguous(),
        "features": values[:, :3].contiguous(),
        "voxel_size": grid.voxel.float().unsqueeze(0),
        "volume_translation": -middle.float().unsqueeze(0),
    }


def grid_of_values(values: dict[str, Tensor]) -> VolumeGrid:
    """Inverse of :func:`volume_values`; corners are what float32 leaves of them.

    Raises:
        InputError: several volumes, densities of several channels or outside of [0, 1], or features but no colours.
    """
    densities, features = values["densities"], values["features"]
    if densities.ndim != 5 or densities.shape[:2] != (1, 1) or features is None or features.shape[:2] != (1, 3):
        told = "none" if features is None else tuple(features.shape)
        raise InputError(
            f"one volume of one density and three colours is read, got {tuple(densities.shape)} and {told}"
        )
    if not ((densities >= 0) & (densities <= 1)).all():
        raise InputError("densities of Volumes must be opacity in [0, 1]; of densities take 1 - exp(-density * side)")
    rgb, opacity = features[0].permute(3, 2, 1, 0), densities[0, 0].permute(2, 1, 0)
    sides = torch.tensor(opacity.shape, dtype=torch.float64)
    half = values["voxel_size"][0].double() * sides / 2
    middle = -values["volume_translation"][0].double()
    return VolumeGrid(rgb.contiguous(), opacity.contiguous(), middle - half, middle + half)


def to_volumes(grid: VolumeGrid, leave_out: Sequence[str] = ()) -> Any:
    """A grid as ``Volumes`` of one.

    Raises:
        InputError: as :func:`volume_values`.
        MissingExtra: PyTorch3D is not installed.
    """
    values = volume_values(grid, leave_out)
    return _library("structures").Volumes(**values)


def from_volumes(volumes: Any) -> VolumeGrid:
    """``Volumes`` of one as a grid.

    Raises:
        InputError: as :func:`grid_of_values`, or a volume that is turned.
    """
    matrix = volumes.get_local_to_world_coords_transform().get_matrix()[0].detach().cpu().double()
    scale = matrix[:3, :3].diagonal()
    if not torch.allclose(matrix[:3, :3], scale.diag(), atol=1e-6):
        raise InputError("PyTorch3D's Volumes are turned; a VolumeGrid lies along the axes of the world")
    sides = torch.tensor(volumes.densities().shape[-3:][::-1], dtype=torch.float64)
    if (sides < 2).any():
        raise InputError(f"PyTorch3D's Volumes of {sides.long().tolist()} voxels do not tell the size of a voxel")
    voxel = 2 * scale / (sides - 1)
    values = {name: getattr(volumes, name)().detach().cpu() for name in ("densities", "features")}
    values |= {"voxel_size": voxel[None], "volume_translation": -matrix[None, 3, :3]}
    return grid_of_values(values)


def _library(part: str) -> Any:
    """A module of PyTorch3D, which no extra can bring: there is no wheel of it for most systems."""
    try:
        return require_extra(f"pytorch3d.{part}", "all", "converting to PyTorch3D")
    except MissingExtra as error:
        told = "converting to PyTorch3D needs pytorch3d: install it by its own instructions, no extra of geo3d's has it"
        raise MissingExtra(told) from error


def _pairs(values: Tensor, count: int) -> Tensor:
    """Focal lengths or principal points as (V, 2)."""
    return (values if values.ndim == 2 else values.reshape(-1, 1)).double().expand(count, 2)


def _half(size: Tensor) -> Tensor:
    """Half of the shorter side (V, 1) of images of (height, width): the pixels that are 1 in NDC."""
    return size.min(1, keepdim=True).values / 2


def _ndc(focal: Tensor, middle: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Screen space to NDC, by PyTorch3D's notes on cameras."""
    return focal / _half(size), -(middle - size.flip(1) / 2) / _half(size)


def _screen(focal: Tensor, middle: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """NDC to screen space."""
    return focal * _half(size), size.flip(1) / 2 - middle * _half(size)


__all__ = [
    "camera_values",
    "from_cameras",
    "from_pointclouds",
    "from_volumes",
    "grid_of_values",
    "to_cameras",
    "to_pointclouds",
    "to_volumes",
    "views_of_values",
    "volume_values",
]
