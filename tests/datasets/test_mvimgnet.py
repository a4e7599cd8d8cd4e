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
from geo3d.datasets.colmap import MODEL_PARAMETERS, camera_from_colmap, read_model
from geo3d.datasets.mvimgnet import ColmapScene

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
    "FULL_OPENCV": (50, 55, 33, 23, 0.1, -0.05, 0.002, -0.003, 0.07, 0.3, -0.2, 0.1),
    "OPENCV_FISHEYE": (50, 55, 33, 23, 0.1, -0.05, 0.02, -0.01),
    "SIMPLE_RADIAL_FISHEYE": (50, 33, 23, 0.1),
    "RADIAL_FISHEYE": (50, 33, 23, 0.1, -0.05),
    "SIMPLE_FISHEYE": (50, 33, 23),
    "FISHEYE": (50, 55, 33, 23),
}
NOT_REPRESENTED = {
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


@pytest.mark.parametrize("file", ["cameras", "images", "points3D"])
def test_cut_anywhere(folder, file):
    path = folder / "sparse" / "0" / f"{file}.bin"
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
    model = as_text(folder / "sparse" / "0")
    points = model / "points3D.txt"
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(lines[:-3]))
    with pytest.raises(BrokenScene, match="an image sees point 28, which the list of points lacks"):
        opened(folder).tracks()
    (model / "cameras.txt").write_text("1 PINHOLE 32\n")
    with pytest.raises(BrokenScene, match=r"cameras.txt: line 1: not a camera \(number, .*not enough values"):
        opened(folder).pose(0)


@pytest.mark.parametrize(
    ("file", "offset", "value", "reason"),
    [
        ("cameras", 12, struct.pack("<i", 99), "unknown camera model 99"),
        ("cameras", 8, struct.pack("<i", 5), "image 001.jpg was taken by camera 1, which cameras.bin lacks"),
        ("cameras", 16, struct.pack("<Q", 0), "camera 1: Camera: image size must be positive"),
        ("cameras", 32, struct.pack("<d", -5), "camera 1: Camera: focal lengths must be positive"),
        ("images", 0, struct.pack("<Q", 1 << 50), "ends inside"),
        ("points3D", 0, struct.pack("<Q", 1 << 50), "ends inside"),
        ("images", 12, struct.pack("<d", np.nan), "the pose of image 001.jpg is no rigid transform"),
        ("images", 72, b"\xff", "an image's name is not UTF-8: .*; rename it"),
        ("images", 12, struct.pack("<4d", 0, 0, 0, 0), "the pose of image 001.jpg is no rigid transform"),
        ("images", 72, b"002", "image 002.jpg is there twice"),
        ("images", 72 + 8 + 8 + 24, struct.pack("<d", np.nan), "sees a point at pixels that are no numbers"),
        ("images", 72 + 8 + 8 + 24 + 16, struct.pack("<Q", 1 << 63), "an image sees point 9223372036854775808"),
        ("points3D", 8, struct.pack("<Q", 2), "point 2 is there twice"),
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


def test_rigs_with_several_sensors(tmp_path):
    """Models of rigs store the pose of every image too."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_cameras_per_rig = 3
    options.sensor_from_rig_translation_stddev = 0.3
    model = pycolmap.synthesize_dataset(options)
    model.write_binary(str(tmp_path))
    found = read_model(tmp_path, "scene")
    truth = {image.name: image.cam_from_world().matrix() for image in model.images.values()}
    assert len(found.names) == model.num_reg_images()
    for name, pose in zip(found.names, found.poses):
        np.testing.assert_allclose(np.linalg.inv(pose)[:3], truth[name], atol=1e-12)


def as_text(model: Path) -> Path:
    """Rewrite a binary model as text."""
    pycolmap.Reconstruction(str(model)).write_text(str(model))
    for file in model.glob("*.bin"):
        file.unlink()
    return model


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_models_spelt_otherwise(folder, end):
    """Names with spaces, folders parted by backslashes, other endings, a mark at the beginning, other line ends."""
    before = opened(folder).tracks()
    images, model = folder / "images", as_text(folder / "sparse" / "0")
    renamed = ("old town.jpg", "sub/2.JPG", "3", "10.webp")
    (images / "sub").mkdir()
    for name, new in zip(NAMES, renamed):
        picture().save(images / new, "WEBP" if new == "10.webp" else "JPEG")
        (images / name).unlink()
    text = (model / "images.txt").read_text()
    for name, new in zip(NAMES, ("old town.jpg", r"sub\2.jpg", "3", "10.png")):
        text = text.replace(f" {name}\n", f" {new}\n")
    (model / "images.txt").write_text(text)
    for file in model.glob("*.txt"):
        file.write_bytes(end.join(file.read_text().split("\n")).encode("utf-8-sig"))
    scene = opened(folder)
    assert scene.view_names == ["10.png", "3", "old town.jpg", r"sub\2.jpg"]
    for index, row in enumerate((3, 2, 0, 1)):
        np.testing.assert_allclose(scene.pose(index)[:3, :3], orbit()[row][:3, :3], atol=1e-9)
        assert scene.view(index).image.shape == (COLOR.height, COLOR.width, 3)
    assert len(scene.tracks().uv) == len(before.uv)
    assert "masks" not in scene.parts
    assert [str(r.count) + " " + r.reason for r in scene.remarks if r.file.endswith("images")] == [
        "2 images have another ending than the model says, and are used"
    ]


def test_an_image_is_not_used_for_another_of_its_name(folder):
    shutil.rmtree(folder / "sparse")
    write_colmap(folder / "sparse" / "0", ("001.jpeg", "001.jpg", "002.jpg", "003.jpg"), orbit())
    scene = opened(folder)
    assert scene.view_names == ["001.jpg", "002.jpg", "003.jpg"]
    np.testing.assert_allclose(scene.pose(0)[:3, :3], orbit()[1][:3, :3], atol=1e-9)


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("cameras", "1 PINHOLE 32 24 20 20 16", "line 1: not a camera .*PINHOLE has 4 parameters, found 3"),
        ("cameras", "1 PINHOLE -32 24 20 20 16 12", "line 1: not a camera .*'-32' is no whole number"),
        ("cameras", "² PINHOLE 32 24 20 20 16 12", "line 1: not a camera .*'²' is no whole number"),
        ("cameras", "1 PINHOLE 32 24 nan(ind) 20 16 12", "camera 1: Camera: focal lengths must be positive"),
        ("cameras", "1 LENS 32 24 20 20 16 12", "camera model LENS cannot be represented"),
        ("images", "1 1 0 0 0 0 0 0 1", "line 1: not an image"),
        ("images", "1 1 0 0 0 0 0 0 1 001.jpg\n4 5", "line 2: not the points of an image .* 2 numbers"),
        ("images", "1 1.#QNAN 0 0 0 0 0 0 1 001.jpg\n", "the pose of image 001.jpg is no rigid transform"),
        ("images", "1 1 0 0 0 0 0 0 7 001.jpg\n", "was taken by camera 7, which cameras.txt lacks"),
        ("points3D", "1 0 0 0 1 2", "line 1: not a point"),
        ("points3D", "1 0 0 0 1 2 256 0.5", r"line 1: not a point .*colour \(1, 2, 256\)"),
        ("points3D", "1 0 nan 0 1 2 3 0.5", "1 points are damaged"),
    ],
)
def test_damaged_lines(folder, file, line, reason):
    path = as_text(folder / "sparse" / "0") / f"{file}.txt"
    path.write_text(line + "\n")
    with pytest.raises(BrokenScene, match=reason):
        opened(folder).points()


@pytest.mark.parametrize("form", ["binary", "text"])
def test_the_model_with_the_most_images_is_taken(folder, form):
    sparse = folder / "sparse"
    shutil.move(sparse / "0", sparse / "10")
    write_colmap(sparse / "0", NAMES[:2], orbit(2))
    write_colmap(sparse / "2", NAMES[:3], orbit(3))
    if form == "text":
        for number in ("0", "2", "10"):
            as_text(sparse / number)
    scene = opened(folder)
    assert scene.view_names == list(NAMES)
    (remark,) = scene.remarks
    assert (remark.file, remark.count) == (str(sparse), 2)
    assert (
        remark.reason == "models with fewer registered images, or damaged ones, are not used: sparse/10 has the most, 4"
    )
    shutil.rmtree(sparse / "10")
    (scene,) = open_dataset(folder)
    assert len(scene.view_names) == 3
    assert "sparse/2 has the most, 3" in str(scene.remarks)


@pytest.mark.parametrize("damage", ["no points", "cut", "text"])
def test_an_unfinished_model_leaves_the_others_to_serve(folder, damage):
    other = folder / "sparse" / "1"
    write_colmap(other, NAMES, orbit())
    if damage == "no points":
        (other / "points3D.bin").unlink()
        (other / "images.bin").write_bytes(struct.pack("<Q", 32))
    elif damage == "cut":
        (other / "images.bin").write_bytes(struct.pack("<Q", 32))
    else:
        as_text(other)
        (other / "images.txt").write_text("1 2 3\n")
    scene = opened(folder)
    assert scene.view_names == list(NAMES)
    assert "sparse/0 has the most, 4" in str(scene.remarks)


def test_images_outside_the_folder_are_not_used(folder):
    shutil.rmtree(folder / "sparse")
    write_colmap(folder / "sparse" / "0", ("../1.jpg", *NAMES[1:]), orbit())
    picture().save(folder / "1.jpg")
    scene = opened(folder)
    assert scene.view_names == list(NAMES[1:])
    assert {remark.reason.split(":")[0]: remark.count for remark in scene.remarks} == {
        "registered images skipped": 1,
        "images skipped": 1,
    }


def test_numbers_of_camera_models():
    assert {name: int(getattr(pycolmap.CameraModelId, name)) for name in COLMAP_MODELS} == COLMAP_MODELS
    theirs = {int(code): name for name, code in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
    for code, (name, count) in enumerate(MODEL_PARAMETERS.items()):
        if code in theirs:  # older releases know fewer
            assert theirs[code] == name
            assert len(pycolmap.Camera(model=name, width=4, height=4, params=[1.0] * count).params) == count


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
