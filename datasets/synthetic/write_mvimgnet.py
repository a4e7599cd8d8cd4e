"""Objects written as MVImgNet instances: photos, object masks and a COLMAP model with true tracks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.colmap import ColmapModel
from geo3d.datasets.synthetic.render import Rendering, pixel_rays, render
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.write_scannet import encode_jpeg
from geo3d.datasets.write_colmap import write_model
from geo3d.geometry import Camera

_POINTS_A_VIEW = 100
_SHORTEST_TRACK = 3
_STEEPEST = np.cos(np.radians(75))  # a surface seen more aslant than this is not observed
_OCCLUSION = 2e-3  # metres by which a ray may fall short of the point that it should meet


@dataclass(frozen=True)
class SparseModel:
    """Surface points and the views that see them.

    Args:
        xyz: (P, 3) metres in the room.
        rgb: (P, 3) uint8.
        view, point: (O,) int64, of every observation, sorted by view.
        uv: (O, 2) pixels, upper-left pixel centre at (0, 0).
    """

    xyz: np.ndarray
    rgb: np.ndarray
    view: np.ndarray
    point: np.ndarray
    uv: np.ndarray


def _sample_surface(
    views: list[Rendering], camera: Camera, poses: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points under random pixels, half of them on the object: xyz, normal, colour."""
    rays = pixel_rays(camera)
    xyz, normal, rgb = [], [], []
    for view, pose in zip(views, poses):
        on_object = np.flatnonzero(view.instance.ravel() == view.instance.max())
        everywhere = np.flatnonzero(view.depth.ravel() > 0)
        pixel = np.concatenate([rng.choice(pool, _POINTS_A_VIEW // 2) for pool in (on_object, everywhere) if len(pool)])
        local = rays[pixel] * view.depth.ravel()[pixel, None]
        xyz.append(local @ pose[:3, :3].T + pose[:3, 3])
        normal.append(view.normal.reshape(-1, 3)[pixel])
        rgb.append(view.color.reshape(-1, 3)[pixel])
    return np.concatenate(xyz), np.concatenate(normal), np.concatenate(rgb)


def sparse_model(
    stage: Stage, camera: Camera, poses: np.ndarray, views: list[Rendering], rng: np.random.Generator
) -> SparseModel:
    """Points on the surfaces with every view that really sees them: in the image, not too aslant, not occluded."""
    xyz, normal, rgb = _sample_surface(views, camera, poses, rng)
    view_of, point_of, uv_of = [], [], []
    for i, pose in enumerate(poses):
        towards = xyz - pose[:3, 3]
        local = towards @ pose[:3, :3]
        z = np.maximum(local[:, 2], 1e-6)
        uv = local[:, :2] / z[:, None] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
        length = np.linalg.norm(towards, axis=1)
        inside = (local[:, 2] > 0) & (uv >= 0).all(1) & (uv <= [camera.width - 1, camera.height - 1]).all(1)
        facing = -(towards * normal).sum(1) > _STEEPEST * length
        candidate = np.flatnonzero(inside & facing)
        reached = stage.tracer.distance(
            np.broadcast_to(pose[:3, 3], (len(candidate), 3)), towards[candidate] / length[candidate, None]
        )
        seen = candidate[reached > length[candidate] - _OCCLUSION]
        view_of.append(np.full(len(seen), i))
        point_of.append(seen)
        uv_of.append(uv[seen])
    view, point, uv = np.concatenate(view_of), np.concatenate(point_of), np.concatenate(uv_of)
    tracked = np.bincount(point, minlength=len(xyz)) >= _SHORTEST_TRACK
    renumber = np.cumsum(tracked) - 1
    kept = tracked[point]
    return SparseModel(xyz[tracked], rgb[tracked], view[kept], renumber[point[kept]], uv[kept])


def colmap_model(
    camera: Camera, names: list[str], world_from_camera: np.ndarray, model: SparseModel, xyz: np.ndarray
) -> ColmapModel:
    """The model as COLMAP has it.

    Args:
        camera: pinhole intrinsics of all images.
        names: image file names.
        world_from_camera: (N, 4, 4).
        model: observations and colours.
        xyz: (P, 3) the model's points in the world of the poses.
    """
    camera_from_world = np.linalg.inv(world_from_camera)
    local = (
        np.einsum("nij,nj->ni", camera_from_world[model.view, :3, :3], xyz[model.point])
        + camera_from_world[model.view, :3, 3]
    )
    projected = local[:, :2] / local[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    lengths = np.bincount(model.point, minlength=len(xyz))
    errors = np.bincount(model.point, np.linalg.norm(projected - model.uv, axis=1), len(xyz)) / lengths
    cameras = [camera] * len(names)
    return ColmapModel(names, cameras, world_from_camera, xyz, errors, model.rgb, model.view, model.point, model.uv)


def write_instance(
    folder: Path,
    stage: Stage,
    camera: Camera,
    poses: np.ndarray,
    scale: float,
    rotation: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Write one instance into an existing folder; the object is the stage's last thing.

    Args:
        folder: where to write.
        stage: the scene, lit.
        camera: intrinsics of every photo.
        poses: (N, 4, 4) ``room_from_camera``.
        scale: units of the COLMAP model per metre: structure from motion knows no scale,
        rotation: (3, 3) from the room to the model's world: nor does it know which way is up.
        rng: draws the sparse points.
    """
    for part in ("images", "masks", "sparse/0"):
        (folder / part).mkdir(parents=True)
    views = [render(stage, camera, pose) for pose in poses]
    names = [f"{i:03d}.jpg" for i in range(1, len(poses) + 1)]
    for name, view in zip(names, views):
        (folder / "images" / name).write_bytes(encode_jpeg(view.color))
        mask = (view.instance == len(stage.things) - 1).astype(np.uint8) * 255
        Image.fromarray(mask).save(folder / "masks" / f"{Path(name).stem}.png")
    model = sparse_model(stage, camera, poses, views, rng)
    world_from_camera = poses.copy()
    world_from_camera[:, :3, :3] = rotation @ poses[:, :3, :3]
    world_from_camera[:, :3, 3] = scale * poses[:, :3, 3] @ rotation.T
    xyz = scale * model.xyz @ rotation.T
    write_model(folder / "sparse" / "0", colmap_model(camera, names, world_from_camera, model, xyz))
