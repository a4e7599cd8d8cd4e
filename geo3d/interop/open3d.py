"""Open3D: point clouds and meshes, legacy and tensor, cameras, RGB-D images, voxel grids and features, and back.

Open3D's cameras have our axes and pixel centres, its ``extrinsic`` is camera from world. Legacy clouds keep places in
float64 and know colours and normals alone; tensor clouds keep any column, so that labels and features go along.

    >>> from geo3d.interop import open3d
    >>> shown = open3d.to_point_cloud(cloud, features=out.points, leave_out=["semantic"])     # features as colours
    >>> kept = open3d.to_point_cloud(cloud, tensor=True, features=out.points)                  # kept.point["features"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.scene import Mesh, Scene
from geo3d.errors import InputError, require_extra
from geo3d.geometry import Camera, PointCloud, SparseVoxels, View, VolumeGrid
from geo3d.geometry.byte_colors import byte_colors
from geo3d.geometry.origin import find_origin, origin_rows
from geo3d.interop.held import (
    array,
    camera_from_world,
    feature_rows,
    one_scene,
    pinhole,
    posed_views,
    require_held,
    unit_colors,
)
from geo3d.viz.feature_colors import Projection

_LABELS = ("semantic", "instance")
#: Columns of tensor clouds and meshes that are read as fields of ours, and the one that features are kept in.
_POSITIONS, _FEATURES = "positions", "features"
_FIELDS = ("colors", "normals", *_LABELS)


def _open3d() -> Any:
    return require_extra("open3d", "open3d", "converting to Open3D")


# --- point clouds ---


def to_point_cloud(
    cloud: PointCloud,
    tensor: bool = False,
    features: Any = None,
    projection: Projection | None = None,
    leave_out: Sequence[str] = (),
) -> Any:
    """One scene as an Open3D point cloud, places in the world: an origin is put back, and kept by float64.

    Args:
        cloud: of one scene.
        tensor: as ``open3d.t.geometry.PointCloud``, with labels and features as columns of ``point``; else as
            ``open3d.geometry.PointCloud``.
        features: (N, C), such as an encoder's. A tensor cloud keeps them, as ``features``; a legacy cloud shows them as
            colours instead of its own. Rows that are not finite are grey.
        projection: of features to colours, the same for all scenes that are to be compared; fitted to these features
            where a legacy cloud is given none. With ``tensor`` it sets the colours too.
        leave_out: fields that a legacy cloud cannot hold: ``semantic``, ``instance``.

    Raises:
        InputError: fields that would be lost, several scenes, or features of another number of rows.
        MissingExtra: Open3D is not installed.
    """
    one_scene(cloud, "an Open3D point cloud")
    columns = {name: array(v) for name in _FIELDS if (v := getattr(cloud, name)) is not None}
    world = array(cloud.xyz if cloud.origin is None else cloud.world())
    if not tensor:
        _require_legacy(columns, "a legacy Open3D point cloud", leave_out)
    elif leave_out:
        require_held({}, "a tensor point cloud", leave_out)
    columns |= _features(features, len(cloud), tensor, projection)
    o3d = _open3d()
    if tensor:
        made = o3d.t.geometry.PointCloud()
        return _set_columns(made.point, {_POSITIONS: world, **columns}, made)
    made = o3d.geometry.PointCloud(_vectors(world))
    if "colors" in columns:
        made.colors = _vectors(columns["colors"])
    if "normals" in columns:
        made.normals = _vectors(columns["normals"])
    return made


def from_point_cloud(cloud: Any, leave_out: Sequence[str] = ()) -> PointCloud:
    """An Open3D point cloud, legacy or tensor, as one scene; far from zero, less an origin.

    Args:
        cloud: of Open3D. Columns ``semantic`` and ``instance`` of a tensor cloud are read as labels; ``features`` by
            :func:`features_of`.
        leave_out: other columns that it may have.

    Raises:
        InputError: something else, or columns that would be lost.
        MissingExtra: Open3D is not installed.
    """
    o3d = _open3d()
    if isinstance(cloud, o3d.t.geometry.PointCloud):
        columns = _columns(cloud.point)
        lost = {n: True for n in columns if n not in (_POSITIONS, _FEATURES, *_FIELDS)}
        require_held(lost, "a geo3d.PointCloud", [n for n in leave_out if n in lost], "read them by columns_of")
    elif isinstance(cloud, o3d.geometry.PointCloud):
        columns = {_POSITIONS: array(cloud.points)}
        columns |= {"colors": array(cloud.colors)} if cloud.has_colors() else {}
        columns |= {"normals": array(cloud.normals)} if cloud.has_normals() else {}
    else:
        raise InputError(f"an Open3D point cloud is expected, got a {type(cloud).__name__}")
    xyz, origin = _near(columns.get(_POSITIONS, np.zeros((0, 3))))
    return PointCloud(torch.from_numpy(xyz), **_fields(columns), origin=origin_rows(origin))


def columns_of(geometry: Any) -> dict[str, np.ndarray]:
    """All columns of a tensor point cloud, or of the vertices of a tensor mesh, by their name."""
    return _columns(geometry.point if hasattr(geometry, "point") else geometry.vertex)


def features_of(geometry: Any) -> Tensor:
    """The features (N, C) that a tensor point cloud or mesh keeps.

    Raises:
        InputError: it keeps none.
    """
    columns = columns_of(geometry)
    if _FEATURES not in columns:
        raise InputError(f"the geometry keeps no features; it has {', '.join(columns)}")
    return torch.from_numpy(columns[_FEATURES])


# --- meshes ---


def to_mesh(
    mesh: Mesh,
    tensor: bool = False,
    origin: np.ndarray | None = None,
    features: Any = None,
    projection: Projection | None = None,
    leave_out: Sequence[str] = (),
) -> Any:
    """A mesh as an Open3D ``TriangleMesh``.

    Args:
        mesh: triangles.
        tensor: as ``open3d.t.geometry.TriangleMesh``, with labels and features as columns of ``vertex``.
        origin: (3,) of the scene, put back; legacy meshes keep places in float64, tensor meshes then too.
        features: (V, C), as in :func:`to_point_cloud`.
        projection: as in :func:`to_point_cloud`.
        leave_out: as in :func:`to_point_cloud`.

    Raises:
        InputError: fields that would be lost, or features of another number of rows.
        MissingExtra: Open3D is not installed.
    """
    columns = {name: array(v) for name in _FIELDS if (v := getattr(mesh, name)) is not None}
    world = array(mesh.vertices)
    if origin is not None and np.any(origin):
        world = world.astype(np.float64) + np.asarray(origin, np.float64).reshape(3)
    if not tensor:
        _require_legacy(columns, "a legacy Open3D mesh", leave_out)
    columns |= _features(features, len(world), tensor, projection)
    o3d = _open3d()
    if tensor:
        made = o3d.t.geometry.TriangleMesh()
        made.triangle["indices"] = o3d.core.Tensor(array(mesh.faces).astype(np.int64))
        return _set_columns(made.vertex, {_POSITIONS: world, **columns}, made)
    made = o3d.geometry.TriangleMesh(_vectors(world), o3d.utility.Vector3iVector(array(mesh.faces).astype(np.int32)))
    if "colors" in columns:
        made.vertex_colors = _vectors(columns["colors"])
    if "normals" in columns:
        made.vertex_normals = _vectors(columns["normals"])
    return made


def from_mesh(mesh: Any, leave_out: Sequence[str] = ()) -> tuple[Mesh, np.ndarray]:
    """An Open3D mesh, legacy or tensor, and its origin (3,), which was taken off; zeros unless it lies far from zero.

    Args:
        mesh: of Open3D; ``features`` of a tensor mesh are read by :func:`features_of`.
        leave_out: other columns of vertices and triangles that it may have, such as ``texture_uvs``. Normals of
            triangles follow from the vertices.

    Raises:
        InputError: something else, or columns that would be lost.
        MissingExtra: Open3D is not installed.
    """
    o3d = _open3d()
    if isinstance(mesh, o3d.t.geometry.TriangleMesh):
        columns, of_faces = _columns(mesh.vertex), _columns(mesh.triangle)
        faces = of_faces.get("indices", np.zeros((0, 3)))
        lost = {n: True for n in columns if n not in (_POSITIONS, _FEATURES, *_FIELDS)}
        lost |= {n: True for n in of_faces if n not in ("indices", "normals")}
        require_held(lost, "a geo3d mesh", [n for n in leave_out if n in lost], "read them by columns_of")
    elif isinstance(mesh, o3d.geometry.TriangleMesh):
        lost = {"texture_uvs": True} if mesh.has_triangle_uvs() else {}
        require_held(lost, "a geo3d mesh", [n for n in leave_out if n in lost])
        columns, faces = {_POSITIONS: array(mesh.vertices)}, array(mesh.triangles)
        columns |= {"colors": array(mesh.vertex_colors)} if mesh.has_vertex_colors() else {}
        columns |= {"normals": array(mesh.vertex_normals)} if mesh.has_vertex_normals() else {}
    else:
        raise InputError(f"an Open3D mesh is expected, got a {type(mesh).__name__}")
    vertices, origin = _near(columns.get(_POSITIONS, np.zeros((0, 3))))
    known = {name: value.numpy() for name, value in _fields(columns).items()}
    return Mesh(vertices, faces.astype(np.int64), **known), origin


# --- cameras ---


def to_intrinsic(camera: Camera) -> Any:
    """A camera as ``PinholeCameraIntrinsic``.

    Raises:
        InputError: it has distortion, which a pinhole cannot express.
        MissingExtra: Open3D is not installed.
    """
    c = pinhole(camera, "Open3D's PinholeCameraIntrinsic")
    return _open3d().camera.PinholeCameraIntrinsic(c.width, c.height, c.fx, c.fy, c.cx, c.cy)


def from_intrinsic(intrinsic: Any) -> Camera:
    """A ``PinholeCameraIntrinsic`` as a camera.

    Raises:
        InputError: its axes are skewed.
    """
    matrix = np.array(intrinsic.intrinsic_matrix)
    if matrix[0, 1]:
        raise InputError(f"Open3D's intrinsic has a skew of {matrix[0, 1]:g}, which geo3d.Camera cannot express")
    (fx, fy), (cx, cy) = matrix.diagonal()[:2].tolist(), matrix[:2, 2].tolist()
    return Camera(int(intrinsic.width), int(intrinsic.height), fx, fy, cx, cy)


def to_camera(view: View, origin: np.ndarray | None = None) -> Any:
    """A view's camera and pose as ``PinholeCameraParameters``; ``origin`` (3,) is put back.

    Raises:
        InputError: no camera, no pose, or distortion.
        MissingExtra: Open3D is not installed.
    """
    posed = posed_views(view, "Open3D's PinholeCameraParameters", origin)
    made = _open3d().camera.PinholeCameraParameters()
    made.intrinsic = to_intrinsic(posed.cameras[0])
    made.extrinsic = camera_from_world(posed.poses[0])
    return made


def from_camera(parameters: Any, name: str = "view") -> View:
    """``PinholeCameraParameters`` as a view without a picture.

    Raises:
        InputError: as :func:`from_intrinsic`.
    """
    pose = camera_from_world(np.array(parameters.extrinsic))
    return View(name, from_intrinsic(parameters.intrinsic), torch.from_numpy(pose))


def to_trajectory(views: Scene | Sequence[View], origin: np.ndarray | None = None) -> Any:
    """Views as a ``PinholeCameraTrajectory``, which Open3D's viewer plays and its reconstruction reads.

    Raises:
        InputError: as :func:`to_camera`.
        MissingExtra: Open3D is not installed.
    """
    posed = posed_views(views, "Open3D's PinholeCameraTrajectory", origin)
    made = _open3d().camera.PinholeCameraTrajectory()
    rows = zip(posed.names, posed.cameras, posed.poses)
    made.parameters = [to_camera(View(n, c, torch.from_numpy(p))) for n, c, p in rows]
    return made


def from_trajectory(trajectory: Any) -> list[View]:
    """A ``PinholeCameraTrajectory`` as views without pictures, numbered."""
    return [from_camera(parameters, f"{i:05d}") for i, parameters in enumerate(trajectory.parameters)]


# --- RGB-D images ---


def to_rgbd(view: View, tensor: bool = False, leave_out: Sequence[str] = ()) -> Any:
    """A view's image and depth as an ``RGBDImage``; its camera and pose go along by :func:`to_camera`.

    Depth is float32 metres, so that ``depth_scale`` of Open3D's functions is 1. Colours are 8 bits in a legacy image,
    as Open3D makes points of no others, and float32 in a tensor image.

    Args:
        view: with image and depth of one size.
        tensor: as ``open3d.t.geometry.RGBDImage``.
        leave_out: fields that it cannot hold: ``mask``.

    Raises:
        InputError: no image or no depth, two sizes, or a mask that would be lost.
        MissingExtra: Open3D is not installed.
    """
    if view.image is None or view.depth is None:
        raise InputError(f"view {view.name} has no {'depth' if view.image is not None else 'image'}, an RGBDImage both")
    if view.image.shape[:2] != view.depth.shape:
        raise InputError(
            f"view {view.name}: an RGBDImage is of one size, the image is {tuple(view.image.shape[:2])} and the depth "
            f"{tuple(view.depth.shape)}; resize the image and its camera (Camera.resized)"
        )
    if view.depth_camera is not None and view.camera is not None and view.depth_camera != view.camera:
        raise InputError(f"view {view.name}: image and depth have different cameras; register the depth to the image")
    require_held({"mask": view.mask}, "an RGBDImage", leave_out)
    o3d = _open3d()
    image, depth = array(view.image), array(view.depth).astype(np.float32)
    if tensor:
        made = o3d.t.geometry
        return made.RGBDImage(*(made.Image(o3d.core.Tensor(np.ascontiguousarray(v))) for v in (image, depth)), True)
    made = o3d.geometry.RGBDImage()
    made.color, made.depth = o3d.geometry.Image(byte_colors(image)), o3d.geometry.Image(depth)
    return made


def from_rgbd(
    rgbd: Any,
    camera: Camera | None = None,
    world_from_camera: Tensor | None = None,
    name: str = "view",
    depth_scale: float = 1.0,
) -> View:
    """An ``RGBDImage``, legacy or tensor, as a view.

    Args:
        rgbd: of Open3D.
        camera: intrinsics of both images.
        world_from_camera: (4, 4) pose.
        name: of the view.
        depth_scale: units of the depth map in a metre: 1000 for maps of 16 bits as cameras write them.

    Raises:
        InputError: colours that were made grey, or sizes that do not fit.
    """
    image, depth = (np.array(_image(value)) for value in (rgbd.color, rgbd.depth))
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"the RGBDImage has {image.shape} colours, an image of red, green and blue is expected; make it with "
            "convert_rgb_to_intensity=False"
        )
    metres = (depth.reshape(depth.shape[:2]) / np.float32(depth_scale)).astype(np.float32)
    known = torch.from_numpy(np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0)))
    try:
        return View(name, camera, world_from_camera, unit_colors(image), known)
    except ValueError as error:
        raise InputError(str(error)) from error


# --- voxels ---


def to_voxel_grid(
    voxels: SparseVoxels | VolumeGrid,
    voxel_size: float | None = None,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    projection: Projection | None = None,
    least_opacity: float | None = None,
    leave_out: Sequence[str] = (),
) -> Any:
    """Voxels as an Open3D ``VoxelGrid``, which keeps a colour a voxel.

    Args:
        voxels: of one scene; or a grid of cubic voxels whose corners are known.
        voxel_size: edge of a unit of the coordinates of sparse voxels, metres.
        origin: (3,) metres, the corner of the sparse voxel at (0, 0, 0).
        projection: of the features to colours; where it is not given, features of three columns are the colours, and
            none are white.
        least_opacity: voxels of a ``VolumeGrid`` of this opacity or more are kept; what the opacity was is lost.
        leave_out: fields of a ``VolumeGrid`` that are lost: ``labels``, ``boxes``.

    Raises:
        InputError: several scenes, features that are no colours without a projection, voxels that are no cubes, or what
            would be lost.
        MissingExtra: Open3D is not installed.
    """
    o3d = _open3d()
    if isinstance(voxels, VolumeGrid):
        require_held({"labels": voxels.labels, "boxes": voxels.boxes}, "an Open3D VoxelGrid", leave_out)
        if least_opacity is None:
            raise InputError("an Open3D VoxelGrid holds no opacity; say which voxels it keeps: least_opacity=0.5")
        if voxels.low is None:
            raise InputError("an Open3D VoxelGrid has a place; give the grid its corners, low and high")
        edges = voxels.voxel
        if not torch.allclose(edges, edges[:1].expand(3), rtol=1e-6, atol=0):
            raise InputError(f"an Open3D VoxelGrid has cubic voxels, these are {edges.tolist()} metres")
        index = torch.nonzero(voxels.opacity >= least_opacity)
        size, corner, cells = float(edges[0]), voxels.low.tolist(), array(index).astype(np.int32)
        colors = array(voxels.rgb[index.unbind(1)])
    else:
        if voxels.batch_size > 1:
            raise InputError(f"an Open3D VoxelGrid holds one scene, got {voxels.batch_size}")
        if voxel_size is None or not voxel_size > 0:
            raise InputError(f"an Open3D VoxelGrid needs the edge of a voxel, metres: voxel_size, got {voxel_size}")
        cells = array(voxels.coords[:, 1:]) // voxels.stride
        size, corner = voxel_size * voxels.stride, list(origin)
        colors = _voxel_colors(voxels, projection)
    made = o3d.geometry.VoxelGrid()
    made.voxel_size, made.origin = size, np.asarray(corner, np.float64)
    for cell, color in zip(cells, colors.astype(np.float64)):
        made.add_voxel(o3d.geometry.Voxel(cell, color))
    return made


def from_voxel_grid(grid: Any) -> tuple[SparseVoxels, float, np.ndarray]:
    """An Open3D ``VoxelGrid`` as sparse voxels of stride 1.

    Returns:
        Voxels in the order of their coordinates, with colours (N, 3) float32 in [0, 1] as features; the edge of a
        voxel and the corner (3,) of the voxel at (0, 0, 0), metres.

    Raises:
        InputError: a grid that is turned.
    """
    if hasattr(grid, "rotation") and not np.allclose(grid.rotation, np.eye(3), atol=1e-12):
        raise InputError("Open3D's VoxelGrid is turned; SparseVoxels lie along the axes of the world")
    cells = grid.get_voxels()
    index = np.array([cell.grid_index for cell in cells], np.int32).reshape(-1, 3)
    colors = np.array([cell.color for cell in cells], np.float32).reshape(-1, 3)
    order = np.lexsort(index.T[::-1])
    coords = np.concatenate([np.zeros((len(index), 1), np.int32), index[order]], 1)
    voxels = SparseVoxels(torch.from_numpy(coords), torch.from_numpy(colors[order]), batch_size=1)
    return voxels, float(grid.voxel_size), np.array(grid.origin)


# --- features ---


def to_feature(features: Any, normalized: bool = True) -> Any:
    """Features as Open3D's ``Feature``, in the place of FPFH in its functions of registration.

    >>> source, target = open3d.to_feature(out_a.points), open3d.to_feature(out_b.points)
    >>> registration.registration_ransac_based_on_feature_matching(cloud_a, cloud_b, source, target, True, 0.1)

    Open3D matches by the least Euclidean distance, which of rows of unit length is the greatest cosine. Its search
    slows down with the number of columns; :func:`geo3d.interop.registration.balanced` brings them down to 64.

    Args:
        features: (N, C), finite; a row for each point of the cloud, in its order.
        normalized: rows are made of unit length first.

    Raises:
        InputError: something else, or rows that are not finite.
        MissingExtra: Open3D is not installed.
    """
    rows = array(features).astype(np.float64)
    if rows.ndim != 2:
        raise InputError(f"features must be (N, C), got {rows.shape}")
    unknown = int((~np.isfinite(rows).all(1)).sum())
    if unknown:
        raise InputError(f"{unknown} of {len(rows)} features are not finite; leave these points out of the cloud too")
    if normalized:
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(length > 0, length, 1)
    made = _open3d().pipelines.registration.Feature()
    made.data = np.ascontiguousarray(rows.T)
    return made


def from_feature(feature: Any) -> np.ndarray:
    """Open3D's ``Feature``, such as FPFH, as (N, C) float64."""
    return np.array(feature.data).T.copy()


# --- parts ---


def _require_legacy(columns: dict[str, np.ndarray], target: str, leave_out: Sequence[str]) -> None:
    require_held({name: columns.get(name) for name in _LABELS}, target, leave_out, "make a tensor one (tensor=True)")
    for name in leave_out:
        columns.pop(name, None)


def _vectors(values: np.ndarray) -> Any:
    return _open3d().utility.Vector3dVector(np.ascontiguousarray(values, np.float64))


def _features(features: Any, count: int, tensor: bool, projection: Projection | None) -> dict[str, np.ndarray]:
    """Features as columns: kept by tensor geometries, and as colours where a projection or a legacy one asks for it."""
    if features is None:
        return {}
    rows = feature_rows(features, count)
    kept = {_FEATURES: rows} if tensor else {}
    if tensor and projection is None:
        return kept
    shown = (projection or Projection.fit(rows)).colors(rows)
    return {**kept, "colors": shown.astype(np.float32) / np.float32(255)}


def _set_columns(place: Any, columns: dict[str, np.ndarray], made: Any) -> Any:
    tensor = _open3d().core.Tensor
    for name, values in columns.items():
        place[name] = tensor(np.ascontiguousarray(values if values.ndim > 1 else values[:, None]))
    return made


def _columns(place: Any) -> dict[str, np.ndarray]:
    return {name: np.array(values.cpu().numpy()) for name, values in place.items()}


def _fields(columns: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Columns of Open3D as fields of ours."""
    found = {}
    if "colors" in columns:
        found["colors"] = unit_colors(columns["colors"])
    if "normals" in columns:
        found["normals"] = torch.from_numpy(columns["normals"].astype(np.float32))
    for name in _LABELS:
        if name in columns:
            found[name] = torch.from_numpy(columns[name].reshape(-1).astype(np.int64))
    return found


def _near(world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places as float32, less their origin (3,)."""
    origin = find_origin(world)
    return (world.astype(np.float64) - origin).astype(np.float32), origin


def _image(image: Any) -> np.ndarray:
    return image.as_tensor().cpu().numpy() if hasattr(image, "as_tensor") else np.asarray(image)


def _voxel_colors(voxels: SparseVoxels, projection: Projection | None) -> np.ndarray:
    if projection is not None:
        return projection.colors(array(voxels.feats)) / 255
    if voxels.feats.shape[1] == 0:
        return np.ones((len(voxels), 3))
    colors = array(voxels.feats)
    if colors.shape[1] != 3 or not ((colors >= 0) & (colors <= 1)).all():
        raise InputError(
            f"an Open3D VoxelGrid keeps colours, the voxels have {colors.shape[1]} features; give a projection "
            "(geo3d.viz.feature_colors.Projection.fit)"
        )
    return colors


__all__ = [
    "columns_of",
    "features_of",
    "from_camera",
    "from_feature",
    "from_intrinsic",
    "from_mesh",
    "from_point_cloud",
    "from_rgbd",
    "from_trajectory",
    "from_voxel_grid",
    "to_camera",
    "to_feature",
    "to_intrinsic",
    "to_mesh",
    "to_point_cloud",
    "to_rgbd",
    "to_trajectory",
    "to_voxel_grid",
]
