"""Camera conventions, proven by where both libraries see the same points of the world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from interop_samples import CAMERA, LENSES, make_views, seen_points

from geo3d.geometry import View
from geo3d.interop import colmap, nerfstudio, pytorch3d


def offset_view(number: int = 1) -> View:
    """A view whose principal point is in no way central, and whose focal lengths differ."""
    return make_views(CAMERA)[number]


def test_open3d_sees_a_depth_map_where_geo3d_does() -> None:
    o3d = pytest.importorskip("open3d", reason="open3d is not installed")
    from geo3d.interop import open3d

    view = offset_view()
    wanted, pixel = view.world_points()
    parameters = open3d.to_camera(view)
    rgbd = open3d.to_rgbd(view, leave_out=["mask"])
    cloud = o3d.geometry.PointCloud.create_from_rgbd_image(rgbd, parameters.intrinsic, parameters.extrinsic)
    # Open3D lifts in float64 from depths of float32.
    np.testing.assert_allclose(np.asarray(cloud.points), wanted, atol=1e-12)
    colors = view.image.reshape(-1, 3)[pixel]
    np.testing.assert_allclose(np.asarray(cloud.colors), colors, atol=1e-7)


def test_open3d_projects_points_onto_the_pixels_geo3d_names() -> None:
    o3d = pytest.importorskip("open3d", reason="open3d is not installed")
    from geo3d.interop import open3d

    view = offset_view()
    size = view.camera.width, view.camera.height
    pixel = torch.tensor([[3, 5], [20, 17], [31, 0], [0, 23], [16, 12]])
    local = view.camera.unproject(pixel.double(), torch.linspace(1, 3, 5, dtype=torch.float64))
    world = local @ view.world_from_camera[:3, :3].T + view.world_from_camera[:3, 3]
    parameters = open3d.to_camera(view)
    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(world.float().numpy()))
    matrix, extrinsic = (
        o3d.core.Tensor(np.array(m)) for m in (parameters.intrinsic.intrinsic_matrix, parameters.extrinsic)
    )
    depth = cloud.project_to_depth_image(*size, matrix, extrinsic, 1.0, 10.0).as_tensor().numpy()[..., 0]
    wanted = np.zeros(size[::-1], np.float32)
    wanted[pixel[:, 1], pixel[:, 0]] = local[:, 2]
    np.testing.assert_allclose(depth, wanted, atol=1e-5)  # float32


def test_open3d_casts_the_rays_geo3d_does() -> None:
    o3d = pytest.importorskip("open3d", reason="open3d is not installed")
    from geo3d.interop import open3d

    view = offset_view()
    parameters = open3d.to_camera(view)
    rays = o3d.t.geometry.RaycastingScene.create_rays_pinhole(
        o3d.core.Tensor(np.array(parameters.intrinsic.intrinsic_matrix)),
        o3d.core.Tensor(np.array(parameters.extrinsic)),
        view.camera.width,
        view.camera.height,
    ).numpy()
    # Its ray caster aims at (u + 0.5, v + 0.5) of the matrix that it is given, half a pixel from its own depth images:
    # whoever renders with it adds half a pixel to the principal point.
    uv = view.camera.pixel_grid() + 0.5
    local = view.camera.unproject(uv, torch.ones(uv.shape[:2], dtype=torch.float64))
    np.testing.assert_allclose(rays[..., 3:], local @ view.world_from_camera[:3, :3].T, atol=1e-6)
    np.testing.assert_allclose(rays[0, 0, :3], view.world_from_camera[:3, 3], atol=1e-6)


def test_trimesh_casts_the_rays_geo3d_does() -> None:
    library = pytest.importorskip("trimesh", reason="trimesh is not installed")
    from geo3d.interop import trimesh

    # trimesh spreads the rays of n pixels over the picture in a way of its own: aims are checked by its matrix K, whose
    # middle is the picture's, counted from its corner; axes by its rays.
    view = make_views(replace(CAMERA, cx=15.5, cy=11.5))[2]
    camera, transform = trimesh.to_camera(view)
    scene = library.Scene()
    scene.camera, scene.camera_transform = camera, transform
    world, uv = seen_points(view)
    local = library.transform_points(world.numpy(), np.linalg.inv(scene.camera_transform))
    assert (local[:, 2] < 0).all()  # OpenGL looks along -z
    image = np.stack([local[:, 0], -local[:, 1], -local[:, 2]], 1) @ camera.K.T
    np.testing.assert_allclose(image[:, :2] / image[:, 2:] - 0.5, uv, atol=1e-10)
    origins, directions, pixels = scene.camera_rays()
    np.testing.assert_allclose(origins, np.tile(view.world_from_camera[:3, 3], (len(origins), 1)), atol=1e-12)
    forward = view.world_from_camera[:3, 2].numpy()
    np.testing.assert_allclose(directions.mean(0) / np.linalg.norm(directions.mean(0)), forward, atol=1e-9)
    left_top = directions[(pixels == pixels.min(0)).all(1)][0] @ view.world_from_camera[:3, :3].numpy()
    assert left_top[0] < 0


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("binary", [True, False])
def test_pycolmap_sees_points_where_geo3d_does(lens: str, binary: bool, tmp_path) -> None:
    library = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    views = make_views(LENSES[lens])
    colmap.write_model(tmp_path, views, binary=binary)
    model = library.Reconstruction(str(tmp_path))
    assert model.num_reg_images() == len(views)
    assert len(model.cameras) == 1
    for view in views:
        image = model.find_image_with_name(view.name)
        world, uv = seen_points(view)
        seen = np.array([image.project_point(point) for point in world.numpy()])
        np.testing.assert_allclose(seen - 0.5, uv, atol=1e-9)


def test_pycolmap_reads_tracks_and_finds_no_error_in_them(tmp_path) -> None:
    library = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    from analytic_scenes import BOXES, BoxScene, orbit

    rng = np.random.default_rng(3)
    points = np.concatenate([rng.uniform(-3, 3, (80, 2)), np.zeros((80, 1))], 1)  # on the floor
    parts = ("views", "poses", "tracks")
    scene = BoxScene(orbit(5, 15.0), BOXES, parts=parts, points=points)
    tracks = scene.tracks()
    for binary in (True, False):
        folder = tmp_path / str(binary)
        colmap.write_model(folder, scene, binary=binary)
        model = library.Reconstruction(str(folder))
        assert model.compute_num_observations() == len(tracks.view)
        assert model.num_points3D() == len(points)
        model.update_point_3d_errors()
        errors = [point.error for point in model.points3D.values() if point.track.length() > 1]
        assert len(errors) > 20
        assert max(errors) < 1e-9  # pixels


def documented_pixels(values: dict[str, torch.Tensor], in_ndc: bool, xyz: torch.Tensor) -> torch.Tensor:
    """Screen coordinates (N, 2) of world points, by the formulas of PyTorch3D's notes on cameras.

    View: rows times R plus T, x to the left, y up. NDC: x = fx X / Z + px. Screen and NDC of a camera are related by
    f_ndc = f_screen * 2 / s and p_ndc = -(p_screen - size / 2) * 2 / s, s the shorter side; coordinates of points as
    principal points.
    """
    height, width = values["image_size"][0].tolist()
    size, shorter = torch.tensor([width, height], dtype=torch.float64), min(width, height)
    local = xyz @ values["R"][0] + values["T"][0]
    focal, point = values["focal_length"][0], values["principal_point"][0]
    if not in_ndc:
        focal, point = focal * 2 / shorter, -(point - size / 2) * 2 / shorter
    ndc = focal * local[:, :2] / local[:, 2:] + point
    return size / 2 - ndc * shorter / 2


@pytest.mark.parametrize("in_ndc", [False, True])
@pytest.mark.parametrize("size", [(32, 24), (24, 32), (20, 20)])
def test_pytorch3d_documents_points_where_geo3d_sees_them(in_ndc: bool, size: tuple[int, int]) -> None:
    camera = replace(CAMERA, width=size[0], height=size[1])
    for view in make_views(camera):
        world, uv = seen_points(view)
        values = pytorch3d.camera_values(view, in_ndc)
        # (0, 0) is the corner of the upper-left pixel there, its middle here.
        torch.testing.assert_close(documented_pixels(values, in_ndc, world) - 0.5, uv, atol=1e-10, rtol=0)
        assert torch.linalg.det(values["R"][0]) == pytest.approx(1)


def test_pytorch3d_documents_the_same_example_of_both_spaces() -> None:
    """The example of its notes: (h, w) = (128, 256), 1.2 in NDC is 76.8 on the screen, (0.2, 0.5) is (115.2, 32)."""
    camera = replace(CAMERA, width=256, height=128, fx=76.8, fy=76.8, cx=115.2 - 0.5, cy=32 - 0.5)
    view = replace(make_views()[0], camera=camera, image=None, depth=None, mask=None, depth_camera=None)
    values = pytorch3d.camera_values(view, in_ndc=True)
    torch.testing.assert_close(values["focal_length"], torch.tensor([[1.2, 1.2]], dtype=torch.float64))
    torch.testing.assert_close(values["principal_point"], torch.tensor([[0.2, 0.5]], dtype=torch.float64))


def test_pytorch3d_axes_by_hand() -> None:
    """A camera at the origin of OpenCV's axes: what lies to the right and below has negative x and y there."""
    view = View("a", CAMERA, torch.eye(4, dtype=torch.float64))
    values = pytorch3d.camera_values(view)
    local = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64) @ values["R"][0] + values["T"][0]
    assert local.tolist() == [[-1, -2, 3]]


def test_pytorch3d_places_voxels_where_they_are() -> None:
    """By its documentation: x_world = x_local (size - 1) voxel_size / 2 - volume_translation, x_local from -1 to 1."""
    from interop_samples import make_grid

    grid = make_grid(cubic=False)
    values = pytorch3d.volume_values(grid)
    depth, height, width = values["densities"].shape[2:]
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in (depth, height, width)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    local, size = torch.stack([x, y, z], -1), torch.tensor([width, height, depth])
    world = local * (size - 1) * 0.5 * values["voxel_size"][0] - values["volume_translation"][0]
    torch.testing.assert_close(world.permute(2, 1, 0, 3), grid.centres(), atol=1e-6, rtol=0)
    assert values["densities"][0, 0, 1, 2, 3] == grid.opacity[3, 2, 1]
    assert values["features"][0, :, 1, 2, 3].tolist() == grid.rgb[3, 2, 1].tolist()


def test_pytorch3d_itself_sees_points_where_geo3d_does() -> None:
    pytest.importorskip("pytorch3d", reason="pytorch3d is not installed")
    for in_ndc in (False, True):
        for view in make_views():
            world, uv = seen_points(view)
            seen = pytorch3d.to_cameras(view, in_ndc).transform_points_screen(world.float()[None])[0, :, :2]
            torch.testing.assert_close(seen.double() - 0.5, uv, atol=1e-3, rtol=0)  # float32


@pytest.mark.parametrize("lens", LENSES)
def test_nerfstudio_cameras_by_their_axes(lens: str) -> None:
    """OpenGL's camera: x right, y up, z back; pixels from the corner; k1, k2, k3, k4, p1, p2."""
    view = make_views(LENSES[lens])[1]
    values = {key: value[0] for key, value in nerfstudio.camera_values([view]).items()}
    world, uv = seen_points(view)
    pose = torch.from_numpy(values["camera_to_worlds"])
    local = (world - pose[:, 3]) @ pose[:, :3]
    assert (local[:, 2] < 0).all()
    bent = dict(zip(("k1", "k2", "k3", "k4", "p1", "p2"), values["distortion_params"].tolist()))
    keys = {"opencv": ("k1", "k2", "p1", "p2"), "fisheye": ("k1", "k2", "k3", "k4"), "pinhole": ()}[lens]
    assert values["camera_type"] == (2 if lens == "fisheye" else 1)
    middle = float(values["cx"]) - 0.5, float(values["cy"]) - 0.5
    camera = replace(view.camera, cx=middle[0], cy=middle[1], distortion=tuple(bent[key] for key in keys))
    seen = camera.project(local * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(seen, uv, atol=1e-10, rtol=0)


def test_nerfstudio_itself_casts_the_rays_geo3d_does() -> None:
    pytest.importorskip("nerfstudio", reason="nerfstudio is not installed")
    for lens in LENSES.values():
        view = make_views(lens)[0]
        rays = nerfstudio.to_cameras([view]).generate_rays(camera_indices=0)
        uv = view.camera.pixel_grid()
        local = view.camera.unproject(uv, torch.ones(uv.shape[:2], dtype=torch.float64))
        wanted = torch.nn.functional.normalize(local @ view.world_from_camera[:3, :3].T, dim=-1)
        torch.testing.assert_close(rays.directions.double(), wanted, atol=1e-4, rtol=0)  # float32
