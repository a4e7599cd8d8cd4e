"""trimesh: point clouds, triangle meshes and pinhole cameras, and back.

trimesh keeps coordinates in float64, so that origins are put back, and colours in 8 bits. Its cameras have OpenGL's
axes and their principal point in the middle of the picture.

    >>> from geo3d.interop import trimesh
    >>> trimesh.to_mesh(scene.mesh(), origin=scene.origin).export("scene.glb")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from geo3d.datasets.scene import Mesh
from geo3d.errors import InputError
from geo3d.geometry import Camera, PointCloud, View
from geo3d.geometry.axes import OPENGL_FROM_OPENCV
from geo3d.geometry.byte_colors import byte_colors
from geo3d.geometry.origin import find_origin, origin_rows
from geo3d.interop.held import (
    array,
    feature_rows,
    one_scene,
    pinhole,
    posed_views,
    require_held,
    unit_colors,
)
from geo3d.viz.feature_colors import Projection

#: What meshes carry beside colours and normals, as ``vertex_attributes``.
_ATTRIBUTES = ("semantic", "instance")


def to_point_cloud(
    cloud: PointCloud, features: Any = None, projection: Projection | None = None, leave_out: Sequence[str] = ()
) -> Any:
    """One scene as a ``trimesh.PointCloud``: places in the world, and colours of 8 bits.

    Args:
        cloud: of one scene.
        features: (N, C) that are shown as colours instead of the cloud's own.
        projection: of features to colours; fitted to these where it is not given.
        leave_out: fields that it cannot hold: ``normals``, ``semantic``, ``instance``.

    Raises:
        InputError: fields that would be lost, several scenes, or features of another number of rows.
    """
    lost = {name: getattr(one_scene(cloud, "a trimesh.PointCloud"), name) for name in ("normals", *_ATTRIBUTES)}
    require_held(lost, "a trimesh.PointCloud", leave_out)
    colors = _colors(cloud.colors, features, projection, len(cloud))
    return _trimesh().PointCloud(array(cloud.world()), colors=colors)


def from_point_cloud(cloud: Any) -> PointCloud:
    """A ``trimesh.PointCloud``, less an origin where it lies far from zero.

    Raises:
        InputError: something else.
    """
    if not isinstance(cloud, _trimesh().PointCloud):
        raise InputError(f"a trimesh.PointCloud is expected, got a {type(cloud).__name__}")
    world = array(cloud.vertices).astype(np.float64)
    origin = find_origin(world)
    colors = unit_colors(array(cloud.colors)[:, :3]) if len(np.shape(cloud.colors)) == 2 and len(cloud.colors) else None
    return PointCloud(torch.from_numpy((world - origin).astype(np.float32)), colors, origin=origin_rows(origin))


def to_mesh(
    mesh: Mesh, origin: np.ndarray | None = None, features: Any = None, projection: Projection | None = None
) -> Any:
    """A mesh as a ``trimesh.Trimesh``; labels and features become ``vertex_attributes``.

    Vertices are neither merged nor sorted.

    Args:
        mesh: triangles.
        origin: (3,) of the scene, put back.
        features: (V, C), kept as the attribute ``features``, and as colours where a projection is given.
        projection: of features to colours.

    Raises:
        InputError: features of another number of rows.
    """
    attributes = {name: array(v) for name in _ATTRIBUTES if (v := getattr(mesh, name)) is not None}
    shown = None
    if features is not None:
        attributes["features"] = shown = feature_rows(features, len(mesh.vertices))
    world = mesh.vertices.astype(np.float64) + (0 if origin is None else np.asarray(origin, np.float64).reshape(3))
    made = _trimesh().Trimesh(
        world,
        array(mesh.faces),
        vertex_normals=None if mesh.normals is None else array(mesh.normals).astype(np.float64),
        vertex_attributes=attributes,
        process=False,
    )
    colors = _colors(mesh.colors, None if projection is None else shown, projection, len(world))
    if colors is not None:
        made.visual.vertex_colors = colors
    return made


def from_mesh(mesh: Any) -> tuple[Mesh, np.ndarray]:
    """A ``trimesh.Trimesh`` and its origin (3,), which was taken off; zeros unless it lies far from zero.

    Normals are read where they are stored; colours where each vertex has one. Features are ``vertex_attributes`` of
    the mesh itself.

    Raises:
        InputError: something else, such as a scene of several meshes, or colours that faces or a texture have.
    """
    trimesh = _trimesh()
    if not isinstance(mesh, trimesh.Trimesh):
        raise InputError(f"a trimesh.Trimesh is expected, got a {type(mesh).__name__}; of a Scene take to_mesh()")
    world = array(mesh.vertices).astype(np.float64)
    origin = find_origin(world)
    kind = mesh.visual.kind
    if kind in ("face", "texture"):
        raise InputError(f"the mesh's colours are of its {kind}; make them of its vertices: mesh.visual.to_color()")
    colors = unit_colors(array(mesh.visual.vertex_colors)[:, :3]).numpy() if kind == "vertex" else None
    stored = "vertex_normals" in mesh._cache.cache
    labels = {n: array(mesh.vertex_attributes[n]).astype(np.int64) for n in _ATTRIBUTES if n in mesh.vertex_attributes}
    return (
        Mesh(
            (world - origin).astype(np.float32),
            array(mesh.faces).astype(np.int64),
            colors,
            array(mesh.vertex_normals).astype(np.float32) if stored else None,
            **labels,
        ),
        origin,
    )


def to_camera(view: View) -> tuple[Any, np.ndarray]:
    """A view's camera as a ``trimesh.scene.Camera``, and its transform (4, 4), as ``Scene.camera_transform`` takes it.

    Raises:
        InputError: no camera or pose, distortion, or a principal point that is not in the middle of the picture.
    """
    posed = posed_views(view, "a trimesh camera")
    lens = pinhole(posed.cameras[0], "a trimesh camera")
    middle = ((lens.width - 1) / 2, (lens.height - 1) / 2)
    if not np.allclose((lens.cx, lens.cy), middle, atol=1e-6):
        raise InputError(
            f"a trimesh camera has its principal point in the middle of the picture, {middle}, this one ({lens.cx:g}, "
            f"{lens.cy:g}); crop the picture to it first (Camera.cropped)"
        )
    camera = _trimesh().scene.Camera(
        name=posed.names[0], resolution=(lens.width, lens.height), focal=(lens.fx, lens.fy)
    )
    return camera, posed.poses[0] @ OPENGL_FROM_OPENCV


def from_camera(camera: Any, transform: np.ndarray) -> View:
    """A ``trimesh.scene.Camera`` and its transform as a view without a picture."""
    width, height = (int(side) for side in camera.resolution)
    fx, fy = (float(length) for length in camera.focal)
    lens = Camera(width, height, fx, fy, (width - 1) / 2, (height - 1) / 2)
    return View(str(camera.name), lens, torch.from_numpy(np.asarray(transform, np.float64) @ OPENGL_FROM_OPENCV))


def _trimesh() -> Any:
    import trimesh  # the library, which geo3d depends on; slow to import

    return trimesh


def _colors(own: Any, features: Any, projection: Projection | None, count: int) -> np.ndarray | None:
    """(N, 3) uint8: features by their projection, or the own colours; None where there are none."""
    if features is None:
        return None if own is None else byte_colors(array(own))
    rows = feature_rows(features, count)
    return (projection or Projection.fit(rows)).colors(rows)


__all__ = ["from_camera", "from_mesh", "from_point_cloud", "to_camera", "to_mesh", "to_point_cloud"]
