"""Photos with COLMAP models: every camera model against pycolmap, damage of every file, and a genuine capture."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_builders import (
    COLMAP_MODELS,
    COLOR,
    DEPTH,
    POINTS,
    build_instance,
    build_mvimgnet,
    orbit,
    picture,
    project,
    write_colmap,
)
from PIL import Image

from geo3d.datasets import BrokenScene, MVImgNet, Quarantine, open_dataset
from geo3d.datasets.colmap import camera_from_colmap, read_model
from geo3d.datasets.mvimgnet import ColmapScene
from geo3d.errors import InputError

pycolmap = pytest.importorskip("pycolmap")

NAMES = ("001.jpg", "002.jpg", "003.jpg", "010.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_instance(tmp_path / "7" / "1a0001", NAMES)
    return tmp_path / "7" / "1a0001"


def opened(folder: Path) -> ColmapScene:
    return ColmapScene("7/1a0001", folder)


# One representative of each model that can be represented, in COLMAP's order of parameters.
REPRESENTED = {
    "SIMPLE_PINHOLE": (50, 33, 23),
    "PINHOLE": (50, 55, 33, 23),
    "SIMPLE_RADIAL": (50, 33, 23, 0.1),
    "RADIAL": (50, 33, 23, 0.1, -0.05),
    "OPENCV": (50, 55, 33, 23, 0.1, -0.05, 0.002, -0.003),
    "FULL_OPENCV": (50, 55, 33, 23, 0.1, -0.05, 0.002, -0.003, 0, 0, 0, 0),
    "OPENCV_FISHEYE": (50, 55, 33, 23, 0.1, -0.05, 0.02, -0.01),
    "SIMPLE_RADIAL_FISHEYE": (50, 33, 23, 0.1),
    "RADIAL_FISHEYE": (50, 33, 23, 0.1, -0.05),
    "SIMPLE_FISHEYE": (50, 33, 23),
    "FISHEYE": (50, 55, 33, 23),
}
NOT_REPRESENTED = {
    "FULL_OPENCV": (50, 55, 33, 23, 0.1, -0.05, 0.002, -0.003, 0.01, 0, 0, 0),
    "FOV": (50, 55, 33, 23, 0.9),
    "THIN_PRISM_FISHEYE": (50, 55, 33, 23, *[0.0] * 8),
    "SIMPLE_DIVISION": (50, 33, 23, 0.1),
    "EQUIRECTANGULAR": (64, 48),
}


@pytest.mark.parametrize("model", REPRESENTED)
def test_cameras_project_as_in_colmap(model):
    if not hasattr(pycolmap.CameraModelId, model):
        pytest.skip(f"this pycolmap does not know {model}")
    theirs = pycolmap.Camera(model=model, width=64, height=48, params=REPRESENTED[model])
    ours = camera_from_colmap(model, 64, 48, list(map(float, REPRESENTED[model])))
    rng = np.random.default_rng(0)
    xyz = np.concatenate([rng.uniform(-0.5, 0.5, (50, 2)), np.ones((50, 1))], 1) * rng.uniform(1, 5, (50, 1))
    expected = np.array([theirs.img_from_cam(point) for point in xyz]) - 0.5  # COLMAP's first pixel is at (0.5, 0.5)
    np.testing.assert_allclose(ours.project(torch.from_numpy(xyz)), expected, atol=1e-10)  # float64


@pytest.mark.parametrize("model", NOT_REPRESENTED)
def test_cameras_that_cannot_be_represented_are_named(model):
    with pytest.raises(ValueError, match=f"camera model {model} .*cannot be represented; undistort"):
        camera_from_colmap(model, 64, 48, list(map(float, NOT_REPRESENTED[model])))


def test_a_scene_of_such_a_camera_is_broken(folder):
    shutil.rmtree(folder / "sparse")
    write_colmap(folder / "sparse" / "0", NAMES, orbit(), "FOV", (50, 55, 16, 12, 0.9))
    with pytest.raises(BrokenScene, match="camera 1: camera model FOV cannot be represented") as error:
        opened(folder).camera(0)
    assert error.value.file.endswith("cameras.bin")


def test_poses_and_cameras(folder):
    scene = opened(folder)
    assert scene.parts == {"views", "poses", "points", "tracks", "masks"}
    assert scene.view_names == list(NAMES)
    assert not scene.metric
    np.testing.assert_allclose(scene.camera(2).matrix, COLOR.matrix, rtol=1e-12)  # the half pixel went and came back
    for index, pose in enumerate(orbit()):
        expected = pose.copy()
        expected[:3, 3] *= scene.scale
        np.testing.assert_allclose(scene.pose(index), expected, atol=1e-9)  # quaternions in float64


def test_scale_is_normalised_by_the_points(folder):
    scene = opened(folder)
    xyz = scene.points().xyz.double().numpy()
    distance = np.linalg.norm(xyz - np.median(xyz, axis=0), axis=1)
    assert np.quantile(distance, 0.9) == pytest.approx(1, abs=1e-6)  # the points are float32
    np.testing.assert_allclose(xyz, POINTS * scene.scale, atol=1e-6)
    np.testing.assert_allclose(scene.points().colors, np.tile(np.array([10, 20, 30]) / 255, (30, 1)), atol=1e-7)


def test_tracks(folder):
    scene = opened(folder)
    tracks = scene.tracks()
    np.testing.assert_allclose(tracks.xyz, POINTS * scene.scale, atol=1e-12)
    assert tracks.error.tolist() == [0.25] * 30
    assert len(tracks.view) == 4 * 30, "the keypoints that are no points are left out"
    for view, pose in enumerate(orbit()):
        seen = tracks.view == view
        expected = project(COLOR, pose, POINTS)[tracks.point[seen]]
        np.testing.assert_allclose(tracks.uv[seen], expected, atol=1e-9)


def test_masks(folder):
    mask = opened(folder).mask(1)
    assert mask[:, : COLOR.width // 2].all()
    assert not mask[:, COLOR.width // 2 :].any()


@pytest.mark.parametrize("pattern", ["{}.png", "{}.jpg.png"])
def test_both_names_of_masks(folder, pattern):
    shutil.rmtree(folder / "masks")
    (folder / "masks").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("L", (32, 24), number).save(folder / "masks" / pattern.format(Path(name).stem))
    scene = opened(folder)
    assert "masks" in scene.parts
    assert [bool(scene.mask(i).any()) for i in range(4)] == [False, True, True, True]


def test_masks_of_some_images_are_not_used_and_said(folder):
    (folder / "masks" / "003.jpg.png").unlink()
    scene = opened(folder)
    assert "masks" not in scene.parts
    assert [(r.count, r.reason) for r in scene.remarks] == [
        (1, "images have no mask: the masks of the others are not used")
    ]


def test_without_masks(folder):
    shutil.rmtree(folder / "masks")
    assert opened(folder).parts == {"views", "poses", "points", "tracks"}
    assert opened(folder).remarks == ()


def test_missing_images_are_skipped_and_counted(folder):
    (folder / "images" / "002.jpg").unlink()
    picture().save(folder / "images" / "077.jpg")
    scene = opened(folder)
    assert scene.view_names == ["001.jpg", "003.jpg", "010.jpg"]
    np.testing.assert_allclose(scene.pose(1)[:3, :3], orbit()[2][:3, :3], atol=1e-9)
    assert {r.reason.split(":")[0]: r.count for r in scene.remarks} == {
        "registered images skipped": 1,
        "images skipped": 1,
        "images have no mask": 1,
    }
    tracks = scene.tracks()
    assert set(tracks.view) == {0, 1, 2}
    seen = tracks.view == 1
    np.testing.assert_allclose(tracks.uv[seen], project(COLOR, orbit()[2], POINTS)[tracks.point[seen]], atol=1e-9)


def test_fewer_than_two_views_is_broken(folder):
    for name in NAMES[1:]:
        (folder / "images" / name).unlink()
    dataset = MVImgNet(folder.parent)
    assert list(dataset.readable("views")) == []
    (entry,) = dataset.quarantine.entries
    assert entry.reason == "1 of the model's 4 registered images exist in images/; at least 2 are needed"
    with pytest.raises(BrokenScene, match="at least 2 are needed"):
        list(MVImgNet(folder.parent, Quarantine(strict=True)).readable("tracks"))


def test_images_in_subfolders(tmp_path):
    write_colmap(tmp_path / "sparse" / "0", ("left/1.jpg", "right/1.jpg"), orbit(2))
    for side in ("left", "right"):
        (tmp_path / "images" / side).mkdir(parents=True)
        picture().save(tmp_path / "images" / side / "1.jpg")
    (scene,) = open_dataset(tmp_path)
    assert scene.view_names == ["left/1.jpg", "right/1.jpg"]
    assert scene.image(1).size == (COLOR.width, COLOR.height)


def test_a_model_beside_the_numbered_folder(folder):
    shutil.move(folder / "sparse" / "0", folder / "moved")
    shutil.rmtree(folder / "sparse")
    shutil.move(folder / "moved", folder / "sparse")
    assert len(opened(folder).view_names) == 4


def test_resized_images_are_noticed(folder):
    picture(DEPTH).save(folder / "images" / "001.jpg")
    with pytest.raises(BrokenScene, match="is 16 x 12, its camera says 32 x 24"):
        opened(folder).pose(0)


def test_a_model_without_points(folder):
    shutil.rmtree(folder / "sparse")
    write_colmap(folder / "sparse" / "0", NAMES, orbit())
    (folder / "sparse" / "0" / "points3D.bin").write_bytes(struct.pack("<Q", 0))
    images = (
        struct.pack("<Q", 1) + struct.pack("<i7di", 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"001.jpg\0" + struct.pack("<Q", 0)
    )
    second = struct.pack("<i7di", 2, 1, 0, 0, 0, 1, 0, 0, 1) + b"002.jpg\0" + struct.pack("<Q", 0)
    (folder / "sparse" / "0" / "images.bin").write_bytes(struct.pack("<Q", 2) + images[8:] + second)
    scene = opened(folder)
    assert scene.scale == 1
    assert scene.pose(1)[:3, 3].tolist() == [-1, 0, 0]
    assert len(scene.points()) == len(scene.tracks().view) == 0


@pytest.mark.parametrize("form", ["write_binary", "write_text"])
def test_models_that_colmap_itself_writes(folder, form):
    """Rewritten by pycolmap (with rigs and frames, where it knows them) the scene is the same."""
    model, before = folder / "sparse" / "0", opened(folder)
    reconstruction = pycolmap.Reconstruction(str(model))
    tracks, views = before.tracks(), before.views
    for file in model.iterdir():
        file.unlink()
    getattr(reconstruction, form)(str(model))
    after = opened(folder)
    assert after.view_names == views.names
    np.testing.assert_allclose([after.pose(i) for i in range(4)], views.poses, atol=1e-9)
    again = after.tracks()
    order, other = np.lexsort((tracks.point, tracks.view)), np.lexsort((again.point, again.view))
    np.testing.assert_allclose(again.xyz, tracks.xyz, atol=1e-9)
    np.testing.assert_allclose(again.uv[other], tracks.uv[order], atol=1e-9)


def test_roots(tmp_path):
    build_mvimgnet(tmp_path)
    assert list(MVImgNet(tmp_path).scene_names) == ["7/0f0002", "7/1a0001", "12/0c0003"]
    assert list(MVImgNet(tmp_path / "7").scene_names) == ["0f0002", "1a0001"]
    assert list(MVImgNet(tmp_path / "7" / "1a0001").scene_names) == ["1a0001"]


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("images", "the instance has no images"),
        ("sparse", "no COLMAP model: cameras.bin is missing"),
        ("sparse/0/cameras.bin", "no COLMAP model: cameras.bin is missing"),
        ("sparse/0/images.bin", "the COLMAP model lacks this file"),
        ("sparse/0/points3D.bin", "the COLMAP model lacks this file"),
    ],
)
def test_instances_that_lack_something(tmp_path, gone, reason):
    build_mvimgnet(tmp_path)
    path = tmp_path / "7" / "1a0001" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    dataset = open_dataset(tmp_path)
    assert [scene.name for scene in dataset.readable("poses")] == ["7/0f0002", "12/0c0003"]
    (entry,) = dataset.quarantine.entries
    assert entry.scene == "7/1a0001"
    assert reason in entry.reason


@pytest.mark.parametrize("file", ["cameras", "images", "points3D", "rigs", "frames"])
def test_cut_anywhere(folder, file):
    """pycolmap hangs on some cut files and asks for terabytes on others: the reader must not hand them over."""
    model = folder / "sparse" / "0"
    pycolmap.Reconstruction(str(model)).write_binary(str(model))
    path = model / f"{file}.bin"
    if not path.is_file():
        pytest.skip(f"this pycolmap writes no {file}.bin")
    whole = path.read_bytes()
    sizes = {0, 1, 7, 8, 9, 30, len(whole) - 1, *range(0, len(whole), 61)}
    for size in (size for size in sizes if size < len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(BrokenScene, match="ends inside the record that starts here") as error:
            opened(folder).pose(0)
        assert error.value.file == str(path)
        assert 0 <= error.value.offset <= size
    path.write_bytes(whole)
    assert len(opened(folder).view_names) == 4


def test_text_models_that_are_cut(folder):
    model = folder / "sparse" / "0"
    pycolmap.Reconstruction(str(model)).write_text(str(model))
    for file in model.glob("*.bin"):
        file.unlink()
    points = model / "points3D.txt"
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(lines[:-3]))
    with pytest.raises(BrokenScene, match="an image sees point 28, which the list of points lacks"):
        opened(folder).tracks()
    (model / "cameras.txt").write_text("1 PINHOLE 32\n")
    with pytest.raises(BrokenScene, match="pycolmap cannot read the model"):
        opened(folder).pose(0)


@pytest.mark.parametrize(
    ("file", "offset", "value", "reason"),
    [
        ("cameras", 12, struct.pack("<i", 99), "unknown camera model 99"),
        ("cameras", 8, struct.pack("<i", 5), "pycolmap cannot read the model"),
        ("images", 0, struct.pack("<Q", 1 << 50), "ends inside"),
        ("points3D", 0, struct.pack("<Q", 1 << 50), "ends inside"),
        ("images", 12, struct.pack("<d", np.nan), "the pose of image 001.jpg is no rigid transform"),
        ("images", 72, b"\xff", "an image's name is not UTF-8: .*; rename it"),
        ("images", 72 + 8 + 8 + 24 + 16, struct.pack("<Q", 1 << 63), "pycolmap cannot read the model"),
        ("points3D", 16, struct.pack("<d", np.nan), "1 points are damaged; number 0 is"),
        ("points3D", 16, struct.pack("<d", 1e300), "1 points are damaged; number 0 is"),
    ],
)
def test_damaged_numbers(folder, file, offset, value, reason):
    path = folder / "sparse" / "0" / f"{file}.bin"
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(BrokenScene, match=reason):
        opened(folder).tracks()


def test_rigs_with_several_sensors(folder):
    """The walk over rigs.bin knows sensors with and without a pose in their rig."""
    model = folder / "sparse" / "0"
    rigs = (
        struct.pack("<QIIii", 1, 1, 3, 0, 1)
        + struct.pack("<ii?7d", 0, 2, True, *[0.5] * 7)
        + struct.pack("<ii?", 0, 3, False)
    )
    for size in range(len(rigs)):
        (model / "rigs.bin").write_bytes(rigs[:size])
        with pytest.raises(BrokenScene, match="ends inside"):
            read_model(model, "scene")
    (model / "rigs.bin").write_bytes(rigs)
    with pytest.raises(BrokenScene, match="pycolmap cannot read the model"):
        read_model(model, "scene")  # whole, but of cameras that do not exist


def test_pycolmap_is_an_extra(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(InputError, match=r"reading COLMAP models needs pycolmap: pip install 'geo3d\[colmap\]'"):
        opened(folder).pose(0)


def test_numbers_of_camera_models():
    assert {name: int(getattr(pycolmap.CameraModelId, name)) for name in COLMAP_MODELS} == COLMAP_MODELS


def test_genuine_capture(data_folder):
    dataset = open_dataset(data_folder / "mvimgnet")
    (scene,) = dataset.readable("views", "tracks")
    assert (dataset.kind, scene.name) == ("mvimgnet", "0/mouse")
    assert len(list((scene.root / "images").iterdir())) == 59
    assert len(scene.view_names) == 56
    assert [(r.count, r.reason) for r in dataset.quarantine.remarks] == [
        (3, "images skipped: the model has not registered them")
    ]
    tracks = scene.tracks()
    assert len(tracks.xyz) == len(scene.points()) == 4_443
    error = np.zeros(len(tracks.view))
    for view in range(56):
        seen = tracks.view == view
        camera_from_world = np.linalg.inv(scene.pose(view))
        local = tracks.xyz[tracks.point[seen]] @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        assert (local[:, 2] > 0).all()
        pixel = scene.camera(view).project(torch.from_numpy(local)).numpy()
        error[seen] = np.linalg.norm(pixel - tracks.uv[seen], axis=1)
    assert np.median(error) < 0.7
    # COLMAP's own figure for each point: nothing was lost, the half pixels included.
    per_point = np.bincount(tracks.point, error) / np.bincount(tracks.point)
    np.testing.assert_allclose(per_point, tracks.error, atol=1e-9)
    assert tracks.error.mean() == pytest.approx(0.633, abs=5e-4)  # as COLMAP reported it
    view = scene.view(7)
    assert view.image.shape == (view.camera.height, view.camera.width, 3)
    assert sorted(view.image.shape[:2]) == [1440, 1920]
