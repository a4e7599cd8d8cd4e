"""Scenes far from zero keep millimetres: every format of points, COLMAP models, captures, frames and scans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_builders import (
    COLOR,
    CUBE,
    CUBE_FACES,
    POINTS,
    build_capture,
    build_frames,
    build_scan,
    cube_properties,
    orbit,
    picture,
    write_colmap,
)
from point_writers import WRITERS, pcd, ply_of

from geo3d.datasets import Scene, open_dataset, read_points
from geo3d.datasets.ply import read_ply
from geo3d.viz.ply import write_ply
from geo3d.viz.points import write_labelled_points, write_points

UTM = np.array([500000.123, 5400000.456, 300.789])
ECEF = np.array([-2694045.25, -4266368.5, 3887311.75])
TENTH_OF_A_MILLIMETRE = 1e-4


def grid() -> tuple[np.ndarray, np.ndarray]:
    """A surface with ripples of a few millimetres: (N, 3) around zero, and its faces."""
    u, v = np.meshgrid(np.arange(12), np.arange(9))
    xyz = np.stack([0.2 * u, 0.2 * v, 0.004 * np.sin(u + 2 * v)], -1).reshape(-1, 3).round(6)
    corner = np.arange(8)[:, None] * 12 + np.arange(11)
    return xyz, np.stack([corner, corner + 1, corner + 13, corner, corner + 13, corner + 12], -1).reshape(-1, 3)


@pytest.mark.parametrize("form", WRITERS)
def test_points_in_every_format(tmp_path, form):
    ending, write = WRITERS[form]
    xyz, faces = grid()
    cloud = read_points(write(tmp_path / f"a{ending}", xyz + UTM, faces))
    assert cloud.xyz.dtype == torch.float32
    assert cloud.xyz.abs().max() < 5
    assert cloud.origin.tolist() == cloud.origin.round().tolist(), "whole metres"
    found, truth = cloud.world().numpy(), xyz + UTM
    if form == "stl text":  # whose vertices come in the order of the faces
        found, truth = (rows[np.lexsort(rows.T[:2].round(1))] for rows in (found, truth))
    assert np.abs(found - truth).max() < TENTH_OF_A_MILLIMETRE

    write_points(tmp_path / "written.ply", cloud)
    again = read_points(tmp_path / "written.ply")
    assert (again.world() - cloud.world()).abs().max() < TENTH_OF_A_MILLIMETRE
    labels = np.arange(len(cloud)) % 3
    write_labelled_points(tmp_path / "labelled.ply", cloud.xyz.numpy(), labels, 3, cloud.origin.numpy())
    ply = read_ply(tmp_path / "labelled.ply", "a")
    assert ply.vertex["x"].dtype == np.float64
    assert np.abs(ply.stacked("x", "y", "z") - cloud.world().numpy()).max() < 1e-8
    assert ply.vertex["label"].tolist() == labels.tolist()


@pytest.mark.parametrize("form", ["ply", "pcd"])
def test_text_files_keep_the_digits_that_their_stated_type_would_lose(tmp_path, form):
    xyz, _ = grid()
    columns = {axis: (xyz + UTM)[:, i] for i, axis in enumerate("xyz")}
    if form == "ply":
        path = ply_of("ascii")(tmp_path / "a.ply", columns)
        path.write_text(path.read_text().replace("property double", "property float"))
    else:
        path = pcd(tmp_path / "a.pcd", columns, "ascii")
        path.write_text(path.read_text().replace("SIZE 8 8 8", "SIZE 4 4 4"))
    assert np.abs(read_points(path).world().numpy() - xyz - UTM).max() < TENTH_OF_A_MILLIMETRE


def test_samples_of_a_surface(tmp_path):
    xyz, faces = grid()
    for number, shift in enumerate((np.zeros(3), UTM)):
        write_ply(tmp_path / f"{number}.ply", {axis: (xyz + shift)[:, i] for i, axis in enumerate("xyz")}, faces)
    near, far = (read_points(tmp_path / f"{number}.ply", samples=500) for number in (0, 1))
    assert np.abs(far.world().numpy() - near.world().numpy() - UTM).max() < TENTH_OF_A_MILLIMETRE


def test_points_near_zero_are_written_as_before(tmp_path):
    xyz, _ = grid()
    np.save(tmp_path / "a.npy", xyz)
    cloud = read_points(tmp_path / "a.npy")
    write_points(tmp_path / "a.ply", cloud)
    write_points(tmp_path / "b.ply", type(cloud)(cloud.xyz, origin=torch.zeros(1, 3, dtype=torch.float64)))
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert read_ply(tmp_path / "a.ply", "a").vertex["x"].dtype == np.float32
    packed = type(cloud).pack(
        [read_points(tmp_path / "a.ply"), type(cloud)(cloud.xyz, origin=torch.ones(1, 3).double())]
    )
    with pytest.raises(ValueError, match="one by one, got 2"):
        write_points(tmp_path / "c.ply", packed)


def in_file(scene: Scene, local: np.ndarray, scale: float = 1.0) -> np.ndarray:
    return (np.asarray(local, dtype=np.float64) + scene.origin) / scale


@pytest.mark.parametrize("form", ["binary", "text"])
@pytest.mark.parametrize("shift", [UTM, ECEF], ids=["UTM", "ECEF"])
def test_colmap_models(tmp_path, form, shift):
    root = tmp_path / "capture"
    names = [f"{i}.png" for i in range(4)]
    write_colmap(root / "sparse" / "0", names, orbit(4), shift=shift)
    (root / "images").mkdir()
    for seed, name in enumerate(names):
        picture(seed=seed).save(root / "images" / name)
    if form == "text":
        pycolmap = pytest.importorskip("pycolmap")
        model = pycolmap.Reconstruction(str(root / "sparse" / "0"))
        model.write_text(str(root / "sparse" / "0"))
        for file in (root / "sparse" / "0").glob("*.bin"):
            file.unlink()
    (scene,) = open_dataset(root)
    points, tracks, scale = scene.points(), scene.tracks(), scene.scale
    assert points.xyz.abs().max() < 10
    assert points.origin.tolist() == [scene.origin.tolist()]
    assert np.abs(in_file(scene, points.xyz, scale) - POINTS - shift).max() < TENTH_OF_A_MILLIMETRE
    assert np.abs(points.world().numpy() / scale - POINTS - shift).max() < TENTH_OF_A_MILLIMETRE
    assert np.abs(in_file(scene, tracks.xyz, scale) - POINTS - shift).max() < 1e-8
    for index, pose in enumerate(orbit(4)):
        assert np.abs(in_file(scene, scene.pose(index)[:3, 3], scale) - pose[:3, 3] - shift).max() < 1e-6
        # Points, poses and pixels agree: float64 at 5400 km resolves 1e-9 m, here 1e-8 pixels.
        seen = tracks.view == index
        local = (tracks.xyz[tracks.point[seen]] - scene.pose(index)[:3, 3]) @ scene.pose(index)[:3, :3]
        np.testing.assert_allclose(COLOR.project(torch.from_numpy(local)).numpy(), tracks.uv[seen], atol=1e-6)


def test_a_model_near_zero_is_read_as_before(tmp_path):
    root = tmp_path / "capture"
    write_colmap(root / "sparse" / "0", ["0.png", "1.png"], orbit(2))
    (root / "images").mkdir()
    for name in ("0.png", "1.png"):
        picture().save(root / "images" / name)
    (scene,) = open_dataset(root)
    assert scene.origin.tolist() == [0, 0, 0]
    assert np.array_equal(scene.points().xyz.numpy(), (POINTS * scene.scale).astype(np.float32))


@pytest.mark.parametrize("shift", [UTM, ECEF], ids=["UTM", "ECEF"])
def test_captures_with_transforms(tmp_path, shift):
    build_capture(tmp_path / "a", absent=0)
    content = json.loads((tmp_path / "a" / "transforms.json").read_text())
    for frame in content["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, 3] += shift
        frame["transform_matrix"] = matrix.tolist()
    (tmp_path / "a" / "transforms.json").write_text(json.dumps(content))
    (scene,) = open_dataset(tmp_path / "a")
    for index, pose in enumerate(orbit()):
        assert np.abs(scene.pose(index)[:3, 3]).max() < 5
        assert np.abs(in_file(scene, scene.pose(index)[:3, 3]) - pose[:3, 3] - shift).max() < 1e-8
        assert np.array_equal(scene.view(index).world_from_camera.numpy(), scene.pose(index))


def test_exported_frames(tmp_path):
    build_frames(tmp_path / "a")
    for file in (tmp_path / "a" / "pose").glob("*.txt"):
        pose = np.loadtxt(file)
        pose[:3, 3] += UTM
        np.savetxt(file, pose, fmt="%.9f")
    (scene,) = open_dataset(tmp_path / "a")
    assert (scene.origin != 0).all()
    for index, pose in enumerate(orbit()):
        assert np.abs(in_file(scene, scene.pose(index)[:3, 3]) - pose[:3, 3] - UTM).max() < 1e-7


def move_scan(folder: Path) -> None:
    """Put mesh and alignment of a scan far away; its stream keeps float32 poses near zero."""
    stem = folder / folder.name
    alignment = np.eye(4)
    alignment[:3, 3] = UTM
    Path(f"{stem}.txt").write_text(f"axisAlignment = {' '.join(map(repr, alignment.reshape(-1).tolist()))}\n")


def test_scans_share_the_origin_of_the_mesh(tmp_path):
    build_scan(tmp_path / "scene0000_00", orbit())
    move_scan(tmp_path / "scene0000_00")
    untouched, first_mesh, first_pose = (open_dataset(tmp_path / "scene0000_00")[0] for _ in range(3))
    vertices, pose = first_mesh.mesh().vertices, first_pose.pose(0)
    for scene in (untouched, first_mesh, first_pose):
        assert np.abs(in_file(scene, vertices) - CUBE - UTM).max() < TENTH_OF_A_MILLIMETRE
        assert np.abs(in_file(scene, pose[:3, 3]) - orbit()[0, :3, 3] - UTM).max() < 1e-6  # float32 in the stream
    assert first_pose.points().origin.tolist() == [first_mesh.origin.tolist()]
    assert np.array_equal(first_pose.mesh().vertices, vertices)


def test_meshes_stored_in_double(tmp_path):
    folder = tmp_path / "scene0000_00"
    build_scan(folder, orbit())
    far = cube_properties() | {axis: CUBE[:, i].astype(np.float64) + UTM[i] for i, axis in enumerate("xyz")}
    write_ply(folder / "scene0000_00_vh_clean_2.ply", far, CUBE_FACES)
    (folder / "scene0000_00.txt").unlink()
    (scene,) = open_dataset(folder)
    assert np.abs(scene.points().world().numpy() - CUBE - UTM).max() < TENTH_OF_A_MILLIMETRE
    assert scene.points().normals.isfinite().all()


def test_a_mesh_that_cannot_be_read_leaves_the_views(tmp_path):
    folder = tmp_path / "scene0000_00"
    build_scan(folder, orbit())
    move_scan(folder)
    mesh = folder / "scene0000_00_vh_clean_2.ply"
    mesh.write_bytes(mesh.read_bytes()[:300])
    (scene,) = open_dataset(folder)
    assert np.abs(in_file(scene, scene.pose(0)[:3, 3]) - orbit()[0, :3, 3] - UTM).max() < 1e-6
