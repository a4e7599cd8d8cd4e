"""Objects written as MVImgNet instances: photos, object masks and a COLMAP model with true tracks."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.synthetic.render import Rendering, pixel_rays, render
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.write_scannet import encode_jpeg
from geo3d.geometry import Camera

_POINTS_A_VIEW = 100
_SHORTEST_TRACK = 3
_STEEPEST = np.cos(np.radians(75))  # a surface seen more aslant than this is not observed
_OCCLUSION = 2e-3  # metres by which a ray may fall short of the point that it should meet
_PINHOLE = 1  # COLMAP's number of the camera model


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


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion (w, x, y, z) of a rotation matrix: eigenvector of its symmetric 4 x 4 form."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    form = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    quaternion = np.linalg.eigh(form)[1][:, -1]
    return quaternion * (1 if quaternion[0] >= 0 else -1)


def write_colmap(
    folder: Path, camera: Camera, names: list[str], camera_from_world: np.ndarray, model: SparseModel, xyz: np.ndarray
) -> None:
    """Write ``cameras.bin``, ``images.bin`` and ``points3D.bin``; COLMAP puts the first pixel's centre at (0.5, 0.5).

    Args:
        folder: where to write.
        camera: pinhole intrinsics of all images.
        names: image file names.
        camera_from_world: (N, 4, 4).
        model: observations and colours.
        xyz: (P, 3) the model's points in the world of the poses.
    """
    intrinsics = (camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5)
    (folder / "cameras.bin").write_bytes(
        struct.pack("<QiiQQ4d", 1, 1, _PINHOLE, camera.width, camera.height, *intrinsics)
    )
    slot = np.zeros(len(model.view), np.int64)
    images = [struct.pack("<Q", len(names))]
    for i, (name, pose) in enumerate(zip(names, camera_from_world)):
        rows = np.flatnonzero(model.view == i)
        slot[rows] = np.arange(len(rows))
        observations = np.empty(len(rows), [("uv", "<f8", 2), ("point", "<i8")])
        observations["uv"], observations["point"] = model.uv[rows] + 0.5, model.point[rows] + 1
        images.append(struct.pack("<i7di", i + 1, *_quaternion(pose[:3, :3]), *pose[:3, 3], 1))
        images += [name.encode() + b"\0", struct.pack("<Q", len(rows)), observations.tobytes()]
    (folder / "images.bin").write_bytes(b"".join(images))
    local = (
        np.einsum("nij,nj->ni", camera_from_world[model.view, :3, :3], xyz[model.point])
        + camera_from_world[model.view, :3, 3]
    )
    projected = local[:, :2] / local[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    lengths = np.bincount(model.point, minlength=len(xyz))
    errors = np.bincount(model.point, np.linalg.norm(projected - model.uv, axis=1), len(xyz)) / lengths
    order = np.argsort(model.point, kind="stable")
    tracks = np.stack([model.view[order] + 1, slot[order]], 1).astype("<i4")
    ends = np.cumsum(lengths)
    points = [struct.pack("<Q", len(xyz))]
    for i, end in enumerate(ends):
        points.append(struct.pack("<Q3d3BdQ", i + 1, *xyz[i], *model.rgb[i].tolist(), errors[i], lengths[i]))
        points.append(tracks[end - lengths[i] : end].tobytes())
    (folder / "points3D.bin").write_bytes(b"".join(points))


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
    write_colmap(folder / "sparse" / "0", camera, names, np.linalg.inv(world_from_camera), model, xyz)
