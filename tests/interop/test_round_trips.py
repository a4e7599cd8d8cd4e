"""Every module of interop, to the library and back: what comes back is what went, bit by bit where types allow."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from interop_samples import (
    LENSES,
    make_cloud,
    make_grid,
    make_mesh,
    make_views,
    make_voxels,
    same_cloud,
    same_mesh,
    same_views,
)

from geo3d.datasets import open_dataset
from geo3d.datasets.colmap import read_model

LABELS = ["semantic", "instance"]
ALL = ("colors", "normals", "semantic", "instance")


def _library(name: str, needs: str | None = None):
    pytest.importorskip(needs or name, reason=f"{needs or name} is not installed")
    return importlib.import_module(f"geo3d.interop.{name}")


def open3d_legacy_cloud(tmp_path: Path) -> None:
    o3d = _library("open3d")
    cloud = make_cloud()
    same_cloud(o3d.from_point_cloud(o3d.to_point_cloud(cloud, leave_out=LABELS)), cloud, ALL[:2])


def open3d_legacy_cloud_far_away(tmp_path: Path) -> None:
    o3d = _library("open3d")
    cloud = make_cloud(far=True)
    back = o3d.from_point_cloud(o3d.to_point_cloud(cloud, leave_out=LABELS))
    same_cloud(back, cloud, ALL[:2])
    assert torch.equal(back.origin, cloud.origin)


def open3d_tensor_cloud(tmp_path: Path) -> None:
    o3d = _library("open3d")
    cloud, features = make_cloud(), torch.randn(50, 7)
    there = o3d.to_point_cloud(cloud, tensor=True, features=features)
    assert str(there.point["positions"].dtype) == "Float32"
    same_cloud(o3d.from_point_cloud(there), cloud, ALL)
    assert torch.equal(o3d.features_of(there), features)


def open3d_tensor_cloud_far_away(tmp_path: Path) -> None:
    o3d = _library("open3d")
    cloud = make_cloud(far=True)
    there = o3d.to_point_cloud(cloud, tensor=True)
    assert str(there.point["positions"].dtype) == "Float64"
    same_cloud(o3d.from_point_cloud(there), cloud, ALL)


def open3d_legacy_mesh(tmp_path: Path) -> None:
    o3d = _library("open3d")
    mesh, (back, origin) = make_mesh(), o3d.from_mesh(o3d.to_mesh(make_mesh(), leave_out=LABELS))
    same_mesh(back, mesh, ALL[:2])
    assert not origin.any()


def open3d_tensor_mesh(tmp_path: Path) -> None:
    o3d = _library("open3d")
    features, shift = np.arange(24.0).reshape(8, 3), np.array([5000.0, 0, 7])
    there = o3d.to_mesh(make_mesh(), tensor=True, origin=shift, features=features)
    back, origin = o3d.from_mesh(there)
    np.testing.assert_array_equal(back.vertices + origin, make_mesh().vertices + shift)
    same_mesh(replace(back, vertices=make_mesh().vertices), make_mesh(), ALL)
    np.testing.assert_array_equal(o3d.features_of(there), features)


def open3d_intrinsic(tmp_path: Path) -> None:
    o3d = _library("open3d")
    assert o3d.from_intrinsic(o3d.to_intrinsic(LENSES["pinhole"])) == LENSES["pinhole"]


def open3d_trajectory(tmp_path: Path) -> None:
    o3d = _library("open3d")
    same_views(o3d.from_trajectory(o3d.to_trajectory(make_views())), make_views())


def open3d_rgbd(tmp_path: Path) -> None:
    _rgbd(tensor=False)


def open3d_tensor_rgbd(tmp_path: Path) -> None:
    _rgbd(tensor=True)


def _rgbd(tensor: bool) -> None:
    o3d, view = _library("open3d"), make_views()[1]
    there = o3d.to_rgbd(view, tensor, leave_out=["mask"])
    back = o3d.from_rgbd(there, view.camera, view.world_from_camera, view.name)
    assert torch.equal(back.image, view.image)
    assert torch.equal(back.depth, view.depth)
    same_views([back], [view])


def open3d_voxel_grid(tmp_path: Path) -> None:
    o3d, voxels = _library("open3d"), make_voxels()
    back, size, origin = o3d.from_voxel_grid(o3d.to_voxel_grid(voxels, 0.05, (1, 2, 3)))
    assert size == 0.05
    assert origin.tolist() == [1, 2, 3]
    assert torch.equal(back.coords, voxels.coords)  # both in the order of coordinates
    assert torch.equal(back.feats, voxels.feats)


def open3d_feature(tmp_path: Path) -> None:
    o3d, features = _library("open3d"), np.random.default_rng(0).normal(size=(9, 5))
    np.testing.assert_array_equal(o3d.from_feature(o3d.to_feature(features, normalized=False)), features)
    unit = o3d.from_feature(o3d.to_feature(torch.from_numpy(features)))
    np.testing.assert_allclose(unit, features / np.linalg.norm(features, axis=1, keepdims=True), rtol=1e-15)


def trimesh_cloud(tmp_path: Path) -> None:
    library, cloud = _library("trimesh"), make_cloud(far=True)
    back = library.from_point_cloud(library.to_point_cloud(cloud, leave_out=["normals", *LABELS]))
    same_cloud(back, cloud, ("colors",))


def trimesh_mesh(tmp_path: Path) -> None:
    library = _library("trimesh")
    there = library.to_mesh(make_mesh(), features=np.ones((8, 4)))
    assert there.vertex_attributes["features"].shape == (8, 4)
    back, origin = library.from_mesh(there)
    same_mesh(back, make_mesh(), ALL)
    assert not origin.any()


def trimesh_bare_mesh(tmp_path: Path) -> None:
    library = _library("trimesh")
    bare = replace(make_mesh(), colors=None, normals=None, semantic=None, instance=None)
    same_mesh(library.from_mesh(library.to_mesh(bare))[0], bare, ())


def trimesh_camera(tmp_path: Path) -> None:
    library = _library("trimesh")
    view = make_views(replace(LENSES["pinhole"], cx=15.5, cy=11.5))[0]
    same_views([library.from_camera(*library.to_camera(view))], [view])


def pytorch3d_camera_values(tmp_path: Path) -> None:
    library = _library("pytorch3d", "torch")
    for in_ndc in (False, True):  # NDC divides by 12 pixels and multiplies again
        back = library.views_of_values(library.camera_values(make_views(), in_ndc), in_ndc)
        same_views(back, make_views(), 1e-15)


def pytorch3d_volume_values(tmp_path: Path) -> None:
    library, grid = _library("pytorch3d", "torch"), make_grid(cubic=False)
    back = library.grid_of_values(library.volume_values(grid))
    for name in ("rgb", "opacity", "low", "high"):
        assert torch.equal(getattr(back, name), getattr(grid, name)), name


def pytorch3d_cameras(tmp_path: Path) -> None:
    library = _library("pytorch3d")
    same_views(library.from_cameras(library.to_cameras(make_views())), make_views(), 1e-6)  # float32


def pytorch3d_pointclouds(tmp_path: Path) -> None:
    library, cloud = _library("pytorch3d"), make_cloud(far=True)
    back, features = library.from_pointclouds(*library.to_pointclouds(cloud, leave_out=LABELS))
    same_cloud(back, cloud, ALL[:2])
    assert features is None


def pytorch3d_volumes(tmp_path: Path) -> None:
    library, grid = _library("pytorch3d"), make_grid()
    back = library.from_volumes(library.to_volumes(grid))
    assert torch.equal(back.rgb, grid.rgb)
    torch.testing.assert_close(back.low, grid.low, atol=1e-5, rtol=0)


def nerfstudio_camera_values(tmp_path: Path) -> None:
    library = _library("nerfstudio", "torch")
    views = [view for lens in LENSES.values() for view in make_views(lens, 2)]
    views = [replace(view, name=str(number)) for number, view in enumerate(views)]
    same_views(library.views_of_values(library.camera_values(views)), views)


def nerfstudio_cameras(tmp_path: Path) -> None:
    library = _library("nerfstudio")
    same_views(library.from_cameras(library.to_cameras(make_views())), make_views(), 1e-6)  # float32


def nerfstudio_transforms(tmp_path: Path) -> None:
    library = _library("nerfstudio", "torch")
    for name, lens in LENSES.items():
        views = make_views(lens)
        library.write_transforms(tmp_path / name, views, make_cloud(), leave_out=["normals", *LABELS])
        if name == "pinhole":  # once more, of the photos that are there now
            bare = [replace(view, image=None) for view in views]
            library.write_transforms(tmp_path / name, bare, photos=[f"images/{view.name}" for view in views])
        (scene,) = open_dataset(tmp_path / name)
        assert not scene.remarks
        for number, view in enumerate(views):
            back = scene.view(number)
            assert back.camera == view.camera
            assert torch.equal(back.world_from_camera, view.world_from_camera)
            assert torch.equal(back.image, view.image)
            assert torch.equal(back.depth, view.depth)
            assert torch.equal(back.mask, view.mask)


def colmap_binary(tmp_path: Path) -> None:
    _colmap(tmp_path, binary=True)


def colmap_text(tmp_path: Path) -> None:
    _colmap(tmp_path, binary=False)


def _colmap(tmp_path: Path, binary: bool) -> None:
    library = _library("colmap", "torch")
    for name, lens in LENSES.items():
        cloud = make_cloud(far=True)
        model = library.to_model(make_views(lens), cloud, cloud.origin[0], leave_out=["normals", *LABELS])
        library.write_model(tmp_path / name, model, binary=binary)
        back = read_model(tmp_path / name, name)
        assert back.names == model.names
        assert back.cameras == model.cameras
        np.testing.assert_array_equal(back.xyz, model.xyz)
        np.testing.assert_array_equal(back.colors, model.colors)
        # Quaternions hold a rotation to a few roundings; translations are turned into the camera and back, and
        # coordinates of 5,000 km have steps of 1e-9 m.
        np.testing.assert_allclose(back.poses[:, :3, :3], model.poses[:, :3, :3], rtol=0, atol=2e-15)
        np.testing.assert_allclose(back.poses[:, :3, 3], model.poses[:, :3, 3], rtol=0, atol=2e-8)


def colmap_reconstruction(tmp_path: Path) -> None:
    library = _library("colmap", "pycolmap")
    for lens in LENSES.values():
        model = library.to_model(make_views(lens))
        same_views(
            library.to_views(library.from_reconstruction(library.to_reconstruction(model))),
            library.to_views(model),
            2e-15,
        )


TRIPS: tuple[Callable[[Path], None], ...] = (
    open3d_legacy_cloud, open3d_legacy_cloud_far_away, open3d_tensor_cloud, open3d_tensor_cloud_far_away,
    open3d_legacy_mesh, open3d_tensor_mesh, open3d_intrinsic, open3d_trajectory, open3d_rgbd, open3d_tensor_rgbd,
    open3d_voxel_grid, open3d_feature,
    trimesh_cloud, trimesh_mesh, trimesh_bare_mesh, trimesh_camera,
    pytorch3d_camera_values, pytorch3d_volume_values, pytorch3d_cameras, pytorch3d_pointclouds, pytorch3d_volumes,
    nerfstudio_camera_values, nerfstudio_cameras, nerfstudio_transforms,
    colmap_binary, colmap_text, colmap_reconstruction,
)  # fmt: skip


@pytest.mark.parametrize("trip", TRIPS, ids=lambda trip: trip.__name__)
def test_there_and_back(trip: Callable[[Path], None], tmp_path: Path) -> None:
    trip(tmp_path)


def test_every_converter_has_a_trip() -> None:
    """Each `to_` of a module has its `from_`, and both stand in a trip above."""
    source = Path(__file__).read_text()
    for name in ("open3d", "trimesh", "pytorch3d", "nerfstudio", "colmap"):
        offered = importlib.import_module(f"geo3d.interop.{name}").__all__
        for function in offered:
            if function.startswith("to_") and function not in ("to_model", "to_views"):
                assert f"from_{function[3:]}" in offered, f"{name}.{function}"
                assert f"{function}(" in source, f"{name}.{function}"
