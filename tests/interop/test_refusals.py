"""What the other library cannot hold is one clear line, never dropped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from interop_samples import CAMERA, LENSES, make_cloud, make_grid, make_mesh, make_views, make_voxels

from geo3d.datasets.write_colmap import write_model
from geo3d.errors import InputError, MissingExtra
from geo3d.geometry import PointCloud, View
from geo3d.interop import colmap, nerfstudio, open3d, pytorch3d, trimesh
from geo3d.viz.feature_colors import Projection

BENT = make_views(LENSES["opencv"], 1)
TWO = PointCloud.pack([make_cloud(), make_cloud()])
WIDE = make_voxels().with_feats(torch.randn(len(make_voxels()), 8))
VIEW = make_views(count=1)[0]

REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "open3d: bent": (lambda _: open3d.to_camera(BENT[0]), "pinhole.*OPENCV.*undistort"),
    "open3d: fisheye": (lambda _: open3d.to_intrinsic(LENSES["fisheye"]), "pinhole.*OPENCV_FISHEYE"),
    "nerfstudio: a ratio": (
        lambda _: nerfstudio.camera_values(
            make_views(replace(CAMERA, model="FULL_OPENCV", distortion=(0.1, 0, 0, 0, 0, 0.1, 0, 0)), 1)
        ),
        "lenses of model FULL_OPENCV are not known there; undistort",
    ),
    "open3d: labels": (
        lambda _: open3d.to_point_cloud(make_cloud()),
        r"hold semantic, instance; make a tensor one \(tensor=True\), or say leave_out=\['semantic', 'instance'\]",
    ),
    "open3d: labels of a mesh": (lambda _: open3d.to_mesh(make_mesh()), "legacy Open3D mesh cannot hold semantic"),
    "open3d: leave_out a word": (lambda _: open3d.to_point_cloud(make_cloud(), leave_out="semantic"), "list of names"),
    "open3d: leave_out strange": (
        lambda _: open3d.to_point_cloud(make_cloud(), leave_out=["colour"]),
        "leave_out names colour; it loses semantic, instance",
    ),
    "open3d: two scenes": (lambda _: open3d.to_point_cloud(TWO, tensor=True), r"one scene, got 2.*scene\(i\)"),
    "open3d: an array": (lambda _: open3d.to_point_cloud(np.zeros((3, 3))), "PointCloud is expected, got a ndarray"),
    "open3d: few features": (
        lambda _: open3d.to_point_cloud(make_cloud(), tensor=True, features=np.zeros((3, 4))),
        r"must be \(50, C\)",
    ),
    "open3d: mask": (lambda _: open3d.to_rgbd(VIEW), "RGBDImage cannot hold mask"),
    "open3d: no depth": (lambda _: open3d.to_rgbd(replace(VIEW, depth=None)), "has no depth"),
    "open3d: two sizes": (
        lambda _: open3d.to_rgbd(replace(VIEW, depth=torch.ones(3, 4), depth_camera=None, camera=None)),
        "of one size",
    ),
    "open3d: two cameras": (
        lambda _: open3d.to_rgbd(replace(VIEW, depth_camera=replace(CAMERA, cx=12.0))),
        "different cameras",
    ),
    "open3d: features as voxels": (lambda _: open3d.to_voxel_grid(WIDE, 0.1), "8 features; give a projection"),
    "open3d: no edge": (lambda _: open3d.to_voxel_grid(make_voxels()), "voxel_size, got None"),
    "open3d: opacity": (lambda _: open3d.to_voxel_grid(make_grid()), "holds no opacity.*least_opacity"),
    "open3d: no cubes": (lambda _: open3d.to_voxel_grid(make_grid(False), least_opacity=0.5), "cubic voxels"),
    "open3d: NaN features": (lambda _: open3d.to_feature(np.full((2, 3), np.nan)), "2 of 2 features are not finite"),
    "open3d: strange cloud": (lambda _: open3d.from_point_cloud(3), "Open3D point cloud is expected, got a int"),
    "open3d: strange mesh": (lambda _: open3d.from_mesh(3), "Open3D mesh is expected, got a int"),
    "trimesh: normals": (lambda _: trimesh.to_point_cloud(make_cloud()), "cannot hold normals, semantic, instance"),
    "trimesh: strange": (lambda _: trimesh.from_mesh(3), "trimesh.Trimesh is expected"),
    "trimesh: not central": (lambda _: trimesh.to_camera(VIEW), "middle of the picture"),
    "trimesh: bent": (lambda _: trimesh.to_camera(BENT[0]), "pinhole"),
    "pytorch3d: bent": (lambda _: pytorch3d.camera_values(BENT), "pinhole.*OPENCV"),
    "pytorch3d: labels": (lambda _: pytorch3d.to_pointclouds(make_cloud()), "Pointclouds cannot hold semantic"),
    "pytorch3d: boxes": (
        lambda _: pytorch3d.volume_values(replace(make_grid(), boxes=torch.zeros(1, 7))),
        "Volumes cannot hold boxes",
    ),
    "pytorch3d: no corners": (lambda _: pytorch3d.volume_values(replace(make_grid(), low=None, high=None)), "corners"),
    "pytorch3d: density": (
        lambda _: pytorch3d.grid_of_values(
            {"densities": torch.full((1, 1, 2, 2, 2), 3.0), "features": torch.ones(1, 3, 2, 2, 2)}
        ),
        r"opacity in \[0, 1\]",
    ),
    "pytorch3d: other cameras": (lambda _: pytorch3d.from_cameras(SimpleNamespace()), "make PerspectiveCameras of it"),
    "nerfstudio: two lenses": (
        lambda to: nerfstudio.write_transforms(to, [VIEW, replace(make_views(LENSES["fisheye"], 1)[0], name="b")]),
        "one kind of lens",
    ),
    "nerfstudio: no image": (
        lambda to: nerfstudio.write_transforms(to, [View("a", CAMERA, torch.eye(4).double())]),
        "view a has no image",
    ),
    "nerfstudio: photo that is not there": (
        lambda to: nerfstudio.write_transforms(to, [VIEW], photos=["images/a.jpg"]),
        "a.jpg",
    ),
    "nerfstudio: photos of some": (
        lambda to: nerfstudio.write_transforms(to, [VIEW], photos=[]),
        "1 views need as many photos, got 0",
    ),
    "nerfstudio: some depth": (
        lambda to: nerfstudio.write_transforms(to, [VIEW, replace(VIEW, name="b", depth=None)]),
        "1 of 2 views have depth",
    ),
    "nerfstudio: out of the folder": (
        lambda to: nerfstudio.write_transforms(to, [replace(VIEW, name="../a.png")]),
        "cannot name a file",
    ),
    "nerfstudio: depth's own lens": (
        lambda to: nerfstudio.write_transforms(to, [replace(VIEW, depth_camera=replace(CAMERA, cx=12.0))]),
        "lens of its own",
    ),
    "nerfstudio: seeds": (
        lambda to: nerfstudio.write_transforms(to, [VIEW], make_cloud()),
        "seeds of splats cannot hold normals, semantic",
    ),
    "nerfstudio: panorama": (
        lambda _: nerfstudio.views_of_values(nerfstudio.camera_values([VIEW]) | {"camera_type": np.array([3])}),
        "kind 3",
    ),
    "nerfstudio: bent too far": (
        lambda _: nerfstudio.views_of_values(
            nerfstudio.camera_values([VIEW]) | {"distortion_params": np.array([[0, 0, 0.1, 0, 0, 0]])}
        ),
        "k3 is not zero",
    ),
    "colmap: no pose": (lambda _: colmap.to_model([View("a", CAMERA)]), "view a has no pose"),
    "colmap: no view": (lambda _: colmap.to_model([]), "there is no view"),
    "colmap: twice": (lambda _: colmap.to_model([VIEW, VIEW]), "names two views"),
    "colmap: points' normals": (lambda _: colmap.to_model([VIEW], make_cloud()), "COLMAP model cannot hold normals"),
    "colmap: a name of two lines": (
        lambda to: colmap.write_model(to, [replace(VIEW, name="a\nb")]),
        "no name that COLMAP's files can hold",
    ),
    "colmap: arrays": (
        lambda to: write_model(to, replace(colmap.to_model([VIEW]), error=np.zeros(2))),
        r"error of the COLMAP model is \(2,\), which should be \(0,\)",
    ),
    "colmap: observations": (
        lambda to: write_model(
            to, replace(colmap.to_model([VIEW]), image=np.array([1]), point=np.array([0]), uv=np.zeros((1, 2)))
        ),
        "observations are of images 0 to 0, got 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    if case.startswith("open3d"):
        pytest.importorskip("open3d", reason="open3d is not installed")
    call, told = REFUSED[case]
    with pytest.raises(InputError, match=told) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "something was written before"


def test_columns_that_a_cloud_has_not_are_named_and_can_be_left_out() -> None:
    o3d = pytest.importorskip("open3d", reason="open3d is not installed")
    cloud = open3d.to_point_cloud(make_cloud(), tensor=True)
    cloud.point["intensity"] = o3d.core.Tensor(np.ones((50, 1), np.float32))
    with pytest.raises(InputError, match="cannot hold intensity; read them by columns_of, or say leave_out="):
        open3d.from_point_cloud(cloud)
    assert len(open3d.from_point_cloud(cloud, leave_out=["intensity"])) == 50
    assert open3d.columns_of(cloud)["intensity"].shape == (50, 1)
    with pytest.raises(InputError, match="keeps no features; it has positions"):
        open3d.features_of(o3d.t.geometry.PointCloud(o3d.core.Tensor(np.zeros((2, 3), np.float32))))


def test_a_grey_rgbd_image_is_refused() -> None:
    o3d = pytest.importorskip("open3d", reason="open3d is not installed")
    rgbd = open3d.to_rgbd(VIEW, leave_out=["mask"])
    grey = o3d.geometry.RGBDImage.create_from_color_and_depth(rgbd.color, rgbd.depth)
    with pytest.raises(InputError, match="convert_rgb_to_intensity=False"):
        open3d.from_rgbd(grey)


def test_depth_of_sixteen_bits_is_read_by_its_scale() -> None:
    o3d = pytest.importorskip("open3d", reason="open3d is not installed")
    rgbd = o3d.t.geometry.RGBDImage(
        o3d.t.geometry.Image(o3d.core.Tensor(np.full((2, 3, 3), 51, np.uint8))),
        o3d.t.geometry.Image(o3d.core.Tensor(np.array([[[1000], [0], [2500]]] * 2, np.uint16))),
        True,
    )
    view = open3d.from_rgbd(rgbd, depth_scale=1000)
    assert view.depth[0].tolist() == [1, 0, 2.5]
    assert view.image[0, 0].tolist() == pytest.approx([0.2] * 3)


def test_features_are_shown_as_colours() -> None:
    pytest.importorskip("open3d", reason="open3d is not installed")
    cloud, features = make_cloud(), np.random.default_rng(0).normal(size=(50, 6))
    features[3] = np.nan
    projection = Projection.fit(features)
    wanted = projection.colors(features) / 255
    legacy = open3d.to_point_cloud(cloud, features=features, leave_out=["semantic", "instance"])
    np.testing.assert_allclose(np.asarray(legacy.colors), wanted, atol=1e-7)
    tensor = open3d.to_point_cloud(cloud, tensor=True, features=features, projection=projection)
    np.testing.assert_allclose(open3d.columns_of(tensor)["colors"], wanted, atol=1e-7)
    np.testing.assert_array_equal(open3d.columns_of(tensor)["features"], features)
    shown = trimesh.to_point_cloud(cloud, features, leave_out=["normals", "semantic", "instance"])
    np.testing.assert_array_equal(np.asarray(shown.colors)[:, :3], projection.colors(features))
    grid = open3d.to_voxel_grid(WIDE, 0.1, projection=Projection.fit(WIDE.feats))
    assert len(grid.get_voxels()) == len(WIDE)


def test_solid_voxels_of_a_grid_lie_where_they_were() -> None:
    pytest.importorskip("open3d", reason="open3d is not installed")
    grid = make_grid()
    voxels, size, origin = open3d.from_voxel_grid(open3d.to_voxel_grid(grid, least_opacity=0.5))
    solid = grid.opacity >= 0.5
    assert size == 0.25
    centres = origin + (voxels.coords[:, 1:].double().numpy() + 0.5) * size
    np.testing.assert_allclose(centres, grid.centres()[solid], atol=1e-12)
    assert torch.equal(voxels.feats, grid.rgb[solid])


def test_a_model_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "frames.bin").write_bytes(b"of another model")
    colmap.write_model(tmp_path, [VIEW], binary=True)
    colmap.write_model(tmp_path, [VIEW], binary=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cameras.txt", "images.txt", "points3D.txt"]


@pytest.mark.parametrize("library", ["open3d", "pycolmap", "pytorch3d", "nerfstudio"])
def test_a_library_that_is_missing_is_told(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Missing(library), *sys.meta_path])
    made = {
        "open3d": lambda: open3d.to_intrinsic(CAMERA),
        "pycolmap": lambda: colmap.to_reconstruction([VIEW]),
        "pytorch3d": lambda: pytorch3d.to_cameras(VIEW),
        "nerfstudio": lambda: nerfstudio.to_cameras([VIEW]),
    }
    with pytest.raises(MissingExtra, match=f"needs {library}"):
        made[library]()


class _Missing:
    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.library:
            raise ModuleNotFoundError(f"No module named {self.library!r}", name=self.library)


def test_the_texture_of_a_mesh_is_not_lost_unasked() -> None:
    library = pytest.importorskip("open3d", reason="open3d is not installed")
    legacy = library.geometry.TriangleMesh.create_box(create_uv_map=True)
    for mesh in (legacy, library.t.geometry.TriangleMesh.from_legacy(legacy)):
        with pytest.raises(InputError, match="a geo3d mesh cannot hold texture_uvs"):
            open3d.from_mesh(mesh)
        assert len(open3d.from_mesh(mesh, ["texture_uvs"])[0].faces) == 12
