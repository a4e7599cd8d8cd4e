"""transforms.json captures: axes and intrinsics against known cameras, what is skipped, damage, and a genuine one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_builders import (
    COLOR,
    DEPTH,
    OPENGL_FROM_OPENCV,
    VIEWS,
    build_capture,
    build_transforms,
    depth_map,
    orbit,
    picture,
)
from PIL import Image

from geo3d.datasets import BrokenScene, MissingPart, Quarantine, Transforms, open_dataset
from geo3d.datasets.transforms import TransformsScene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_capture(tmp_path / "fox", absent=0)
    return tmp_path / "fox"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> TransformsScene:
    """The capture after a change of its transforms.json."""
    file = folder / "transforms.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    (scene,) = Transforms(folder)
    return scene


def opened(folder: Path) -> TransformsScene:
    return edit(folder, lambda content: None)


def test_opengl_axes_become_opencv(folder):
    scene = opened(folder)
    assert scene.view_names == [f"images/{i:03d}.jpg" for i in range(VIEWS)], "sorted, though listed backwards"
    for index, pose in enumerate(orbit()):
        np.testing.assert_allclose(scene.pose(index), pose, atol=1e-12)
        # The cameras were made to look at the origin: it is seen at the principal point.
        local = np.linalg.inv(scene.pose(index))[:3, 3]
        pixel = scene.camera(index).project(torch.from_numpy(local))
        np.testing.assert_allclose(pixel, [COLOR.cx, COLOR.cy], atol=1e-9)
        assert local[2] > 0


def test_an_opengl_camera_by_hand(folder):
    """A camera at (0, 0, 5) with OpenGL's axes along the world's looks down -z; world +y is up in its image."""

    def place(content):
        for frame in content["frames"]:
            matrix = np.eye(4)
            matrix[2, 3] = 5
            frame["transform_matrix"] = matrix.tolist()

    scene = edit(folder, place)
    camera_from_world = np.linalg.inv(scene.pose(0))
    right_and_up = camera_from_world @ [1.0, 2.0, 0.0, 1.0]
    assert right_and_up[:3].tolist() == [1, -2, 5]


def test_intrinsics(folder):
    camera = opened(folder).camera(0)
    assert camera.model == "PINHOLE"
    assert (camera.width, camera.height) == (COLOR.width, COLOR.height)
    np.testing.assert_allclose(camera.matrix, COLOR.matrix, rtol=1e-12)  # the half pixel went and came back


def test_intrinsics_of_a_frame_come_before_the_shared(folder):
    def change(content):
        for frame in content["frames"]:
            if frame["file_path"].endswith("002.jpg"):
                frame.update(fl_x=77.0, cx=10.5)

    scene = edit(folder, change)
    assert [scene.camera(i).fx for i in range(4)] == [COLOR.fx, COLOR.fx, 77.0, COLOR.fx]
    assert [scene.camera(i).cx for i in range(4)] == [COLOR.cx, COLOR.cx, 10.0, COLOR.cx]
    assert scene.camera(2).fy == COLOR.fy


def test_fields_of_view_instead_of_focal_lengths(folder):
    def change(content):
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
            del content[key]
        content["camera_angle_x"] = 2 * math.atan(COLOR.width / (2 * COLOR.fx))

    camera = edit(folder, change).camera(0)
    np.testing.assert_allclose(camera.matrix, COLOR.matrix, rtol=1e-12)
    assert (camera.width, camera.height) == (COLOR.width, COLOR.height), "from the image"
    wide = edit(folder, lambda content: content.update(camera_angle_y=2 * math.atan(0.5)))
    assert wide.camera(0).fy == pytest.approx(COLOR.height)


def test_distortion(folder):
    scene = edit(folder, lambda content: content.update(k1=0.1, k2=-0.02, p1=0.003, p2=0.004))
    assert (scene.camera(0).model, scene.camera(0).distortion) == ("OPENCV", (0.1, -0.02, 0.003, 0.004))
    change = {"camera_model": "OPENCV_FISHEYE", "k3": 0.5, "k4": 0.25}
    scene = edit(folder, lambda content: content.update(change))
    assert (scene.camera(0).model, scene.camera(0).distortion) == ("OPENCV_FISHEYE", (0.1, -0.02, 0.5, 0.25))
    scene = edit(folder, lambda content: (content.pop("camera_model"), content.update(is_fisheye=True)))
    assert scene.camera(0).model == "OPENCV_FISHEYE"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"k3": 0.1}, "k3 is not zero, which OPENCV cannot represent; undistort"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model EQUIRECTANGULAR cannot be represented; undistort"),
        ({"fl_x": 0}, "focal lengths must be positive"),
        ({"fl_x": -3.5}, "fl_x is -3.5: focal lengths must be positive"),
        ({"fl_x": None}, "fl_x is null, a number is expected"),
        ({"fl_y": [1]}, r"fl_y is \[1\], a number is expected"),
        ({"fl_x": "wide"}, "fl_x is 'wide', a number is expected"),
        ({"fl_x": math.nan}, "fl_x is nan, a number is expected"),
        ({"fl_x": 10**400}, "fl_x is 10+, a number is expected"),
        ({"cx": {}}, r"cx is \{\}, a number is expected"),
        ({"k2": True}, "k2 is True, a number is expected"),
        ({"w": -5}, "w is -5: image size must be positive"),
        ({"h": 0}, "h is 0: image size must be positive"),
        ({"w": 31.5}, "w is 31.5: image size must be positive, in whole pixels"),
        ({"w": None}, "w is null, a number is expected"),
        ({"camera_model": None}, "camera_model is null, a name is expected"),
        ({"camera_model": ["OPENCV"]}, "camera_model is .*, a name is expected"),
    ],
)
def test_cameras_that_make_no_sense(folder, change, reason):
    with pytest.raises(BrokenScene, match=reason) as error:
        edit(folder, lambda content: content.update(change)).camera(0)
    assert error.value.file.endswith("transforms.json")
    assert "000.jpg" in error.value.reason


def test_no_focal_length(folder):
    with pytest.raises(BrokenScene, match="neither fl_x nor camera_angle_x is given"):
        edit(folder, lambda content: content.pop("fl_x")).camera(0)


def test_resized_images_are_noticed(folder):
    picture(DEPTH).save(folder / "images" / "000.jpg")
    with pytest.raises(BrokenScene, match="is 16 x 12, its camera says 32 x 24"):
        opened(folder).pose(0)


def test_depth_and_masks(folder):
    scene = opened(folder)
    assert scene.parts == {"views", "poses", "depth", "masks"}
    for index in range(VIEWS):
        np.testing.assert_allclose(scene.depth(index), depth_map(index), atol=5e-4 + 1e-6)  # whole thousandths
    np.testing.assert_allclose(scene.depth_camera(0).matrix, DEPTH.matrix, rtol=1e-12)
    assert scene.mask(0).all()


def test_depth_and_masks_of_some_frames_are_not_listed(folder):
    scene = edit(
        folder, lambda content: (content["frames"][0].pop("depth_file_path"), content["frames"][1].pop("mask_path"))
    )
    assert scene.parts == {"views", "poses"}
    with pytest.raises(MissingPart):
        scene.depth(0)
    assert not scene.metric


def test_absent_images_are_counted(tmp_path):
    build_capture(tmp_path / "fox", absent=3)
    quarantine = Quarantine()
    (scene,) = Transforms(tmp_path / "fox", quarantine).readable("views")
    assert len(scene.view_names) == VIEWS
    assert [(r.count, r.reason) for r in quarantine.remarks] == [(3, "frames skipped: their image does not exist")]


def test_poses_that_are_none(folder):
    def change(content):
        content["frames"][0]["transform_matrix"][0][0] = math.nan
        content["frames"][1]["transform_matrix"] = np.zeros((4, 4)).tolist()

    scene = edit(folder, change)
    assert len(scene.view_names) == VIEWS - 2
    assert [(r.count, r.reason) for r in scene.remarks] == [(2, "frames skipped: their pose is no rigid transform")]


def test_no_usable_frame(folder):
    for image in (folder / "images").iterdir():
        image.unlink()
    first = "no usable frame: 4 frames skipped: their image does not exist; the first: './images/000.jpg'"
    with pytest.raises(BrokenScene, match=first):
        opened(folder).pose(0)


@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "radial"])
def test_models_that_opencv_holds(folder, model):
    camera = edit(folder, lambda content: content.update(camera_model=model, k1=0.1, k2=-0.02)).camera(0)
    assert (camera.model, camera.distortion) == ("OPENCV", (0.1, -0.02, 0, 0))
    xyz = torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64)
    radius2 = 0.3**2 + 0.2**2
    factor = 1 + 0.1 * radius2 - 0.02 * radius2**2
    expected = [COLOR.fx * 0.3 * factor + COLOR.cx, -COLOR.fy * 0.2 * factor + COLOR.cy]
    np.testing.assert_allclose(camera.project(xyz)[0], expected, rtol=1e-12)
    with pytest.raises(BrokenScene, match=f"k3 is not zero, which {model} cannot represent"):
        edit(folder, lambda content: content.update(k3=0.1)).camera(0)


def test_simple_fisheye_models(folder):
    camera = edit(folder, lambda content: content.update(camera_model="RADIAL_FISHEYE", k1=0.1, k2=0.2)).camera(0)
    assert (camera.model, camera.distortion) == ("OPENCV_FISHEYE", (0.1, 0.2, 0, 0))


def test_an_angle_of_a_frame_overrides_a_shared_focal_length(folder):
    def change(content):
        for frame in content["frames"]:
            if frame["file_path"].endswith("002.jpg"):
                frame["camera_angle_x"] = 2 * math.atan(0.25)

    scene = edit(folder, change)
    assert [scene.camera(i).fx for i in range(4)] == pytest.approx([COLOR.fx, COLOR.fx, 2 * COLOR.width, COLOR.fx])


@pytest.mark.parametrize("angle", [0, -1, math.pi, 7, math.nan])
def test_angles_that_make_no_sense(folder, angle):
    change = {"camera_angle_x": angle}
    with pytest.raises(BrokenScene, match=r"000\.jpg: camera_angle_x is "):
        edit(folder, lambda content: (content.pop("fl_x"), content.update(change))).camera(0)


def rename(content: dict[str, Any], name: Callable[[str], str]) -> None:
    for frame in content["frames"]:
        frame["file_path"] = name(frame["file_path"].removeprefix("./"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_file_spelt_otherwise(folder, end, encoding):
    expected = opened(folder).views
    edit(folder, lambda content: rename(content, lambda name: ".\\" + name.replace("/", "\\")))
    file = folder / "transforms.json"
    file.write_bytes(json.dumps(json.loads(file.read_text()), indent=1).replace("\n", end).encode(encoding))
    (scene,) = open_dataset(folder)
    assert scene.view_names == expected.names
    assert np.array_equal([scene.pose(i) for i in range(VIEWS)], expected.poses)
    assert scene.view(0).mask.all()


def test_images_outside_the_capture(folder):
    """Absolute, by a link, and above the folder; a link within it keeps the name of the link."""
    outside = folder.parent / "elsewhere"
    (folder / "images").rename(outside)
    (folder / "linked").symlink_to(outside)
    named = {"000": f"{outside}/000.jpg", "001": "../elsewhere/001.jpg", "002": "linked/002.jpg", "003": "none/003.jpg"}
    scene = edit(folder, lambda content: rename(content, lambda name: named[Path(name).stem]))
    assert scene.view_names == [f"{outside}/001.jpg", f"{outside}/000.jpg", "linked/002.jpg"]
    for index, row in enumerate((1, 0, 2)):
        np.testing.assert_allclose(scene.pose(index), orbit()[row], atol=1e-12)
        assert np.array_equal(np.asarray(scene.image(index)), np.asarray(Image.open(outside / f"{row:03d}.jpg")))


def test_other_endings_are_found_and_said(folder):
    Image.open(folder / "images" / "001.jpg").save(folder / "images" / "001.tif")
    (folder / "images" / "001.jpg").unlink()
    (folder / "images" / "002.jpg").rename(folder / "images" / "002")
    names = {"001": "images/001.jpeg", "002": "images/002"}
    scene = edit(folder, lambda content: rename(content, lambda name: names.get(Path(name).stem, name)))
    assert scene.view_names == ["images/000.jpg", "images/001.tif", "images/002", "images/003.jpg"]
    assert [scene.image(i).format for i in range(VIEWS)] == ["JPEG", "TIFF", "JPEG", "JPEG"]
    assert [str(r.count) + " " + r.reason for r in scene.remarks] == [
        "1 images have another ending than the file says, and are used"
    ]


def test_an_image_that_is_listed_twice_counts_once(folder):
    again = {"file_path": "images/002.jpg", "transform_matrix": np.eye(4).tolist()}
    scene = edit(folder, lambda content: content["frames"].append(content["frames"][0] | again))
    assert len(scene.view_names) == VIEWS
    np.testing.assert_allclose(scene.pose(2), orbit()[2], atol=1e-12)
    assert [(r.count, r.reason) for r in scene.remarks] == [(1, "frames skipped: an earlier frame has their image")]


def test_poses_without_their_last_row(folder):
    def change(content):
        for frame in content["frames"]:
            frame["transform_matrix"] = frame["transform_matrix"][:3]

    np.testing.assert_allclose([edit(folder, change).pose(i) for i in range(VIEWS)], orbit(), atol=1e-12)


@pytest.mark.parametrize(
    ("shared", "scale"),
    [({}, 0.001), ({"depth_unit_scale_factor": 0.0002}, 0.0002), ({"integer_depth_scale": 7}, 0.001)],
)
def test_units_of_depth_by_nerfstudio(folder, shared, scale):
    scene = edit(folder, lambda content: content.update(shared))
    stored = np.rint(depth_map(1) * 1000)
    np.testing.assert_allclose(scene.depth(1), stored * scale, rtol=1e-6)  # float32


def test_depth_by_instant_ngp(folder):
    def change(content):
        for frame in content["frames"]:
            frame["depth_path"] = frame.pop("depth_file_path")

    scene = edit(folder, change)
    assert scene.parts == {"views", "poses", "masks"}
    assert [(r.count, r.reason) for r in scene.remarks] == [
        (4, "depth maps are not used: the length of their unit, integer_depth_scale, is not given")
    ]
    scene = edit(folder, lambda content: content.update(integer_depth_scale=1 / 4000))
    np.testing.assert_allclose(scene.depth(2), np.rint(depth_map(2) * 1000) / 4000, rtol=1e-6)  # float32
    for value, reason in ((None, "is null, a number"), (0, "is 0, the length"), ("x", "is 'x', a number")):
        with pytest.raises(BrokenScene, match=f"integer_depth_scale {reason}"):
            edit(folder, lambda content, value=value: content.update(integer_depth_scale=value))


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_depth_in_arrays(folder, form):
    """Floats are lengths of the poses; the map may be larger or smaller than the image, not of another shape."""

    def change(content):
        for index, frame in enumerate(content["frames"][::-1]):
            frame["depth_file_path"] = f"depth/{index}.{form}"
            save = np.save if form == "npy" else np.savez
            save(folder / "depth" / f"{index}.{form}", depth_map(index))

    scene = edit(folder, change)
    for index in range(VIEWS):
        assert np.array_equal(scene.view(index).depth.numpy(), depth_map(index))
    np.testing.assert_allclose(scene.depth_camera(0).matrix, DEPTH.matrix, rtol=1e-12)
    if form == "npy":
        np.save(folder / "depth" / "0.npy", depth_map().T)
        with pytest.raises(BrokenScene, match=r"0.npy: is 12 x 16, its image 32 x 24, which is of another shape"):
            scene.view(0)


def blender_scene(folder: Path, *splits: str) -> None:
    """One of Blender's synthetic scenes: no size, an angle, RGBA images whose ending is not told."""
    folder.mkdir(parents=True)
    for number, split in enumerate(splits):
        (folder / split).mkdir()
        frames = []
        for index, pose in enumerate(orbit(3 + number)):
            image = picture(seed=index)
            image.putalpha(index)
            image.save(folder / split / f"r_{index}.png")
            matrix = (pose @ OPENGL_FROM_OPENCV).tolist()
            frames.append({"file_path": f"./{split}/r_{index}", "rotation": 0.01, "transform_matrix": matrix})
        content = {"camera_angle_x": 2 * math.atan(COLOR.width / (2 * COLOR.fx)), "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))


def test_blender_scenes(tmp_path):
    blender_scene(tmp_path / "lego", "train", "val", "test")
    blender_scene(tmp_path / "chair", "train", "test")
    dataset = open_dataset(tmp_path, quarantine=Quarantine(strict=True))
    assert dataset.kind == "transforms"
    assert list(dataset.scene_names) == ["chair/train", "chair/test", "lego/train", "lego/val", "lego/test"]
    assert [len(scene.view_names) for scene in dataset.readable("poses")] == [3, 4, 3, 4, 5]
    alone = open_dataset(tmp_path / "lego")
    assert (alone.kind, list(alone.scene_names)) == ("transforms", ["train", "val", "test"])
    scene = alone["val"]
    assert (scene.parts, scene.remarks) == ({"views", "poses"}, ())
    assert scene.view_names == [f"val/r_{i}.png" for i in range(4)]
    for index, pose in enumerate(orbit(4)):
        np.testing.assert_allclose(scene.pose(index), pose, atol=1e-12)
        np.testing.assert_allclose(scene.camera(index).matrix, COLOR.matrix, rtol=1e-12)
        # Colours are what is stored, also where alpha says that they do not show.
        assert np.array_equal((scene.view(index).image * 255).numpy().round(), np.asarray(picture(seed=index)))


def test_a_file_of_all_goes_before_those_of_splits(folder):
    blender_scene(folder / "lego", "train", "test")
    for file in (folder / "lego").glob("*.json"):
        file.rename(folder / file.name)
    (scene,) = open_dataset(folder)
    assert scene.view_names == [f"images/{i:03d}.jpg" for i in range(VIEWS)]
    assert [str(r) for r in scene.remarks] == [
        f"scene fox: {folder}/transforms.json: 2 files beside it are not read, such as transforms_train.json"
    ]


def test_file_paths_without_an_ending(folder):
    for image in (folder / "images").iterdir():
        picture().save(image.with_suffix(".png"))
        image.unlink()

    def change(content):
        for frame in content["frames"]:
            frame["file_path"] = frame["file_path"].removesuffix(".jpg")

    assert edit(folder, change).view_names == [f"images/{i:03d}.png" for i in range(VIEWS)]


@pytest.mark.parametrize(
    ("content", "offset", "reason"),
    [
        (b"", 0, "damaged JSON"),
        (b'{"fl_x": 3, "frames": [', 23, "damaged JSON"),
        ('{"é": 3, "frames": [}'.encode(), 21, "damaged JSON"),
        (b'{"fl_x": \xff}', 9, "not UTF-8"),
        (b"[]", 0, "JSON object is expected, the file holds a list"),
        (b"{}", None, "'frames' is not a list"),
        (b'{"frames": []}', None, "'frames' is not a list"),
        (b'{"frames": [{"transform_matrix": 3}]}', None, "a frame has no 'file_path'"),
    ],
)
def test_damaged_files_are_quarantined(tmp_path, content, offset, reason):
    build_transforms(tmp_path)
    (tmp_path / "fox" / "transforms.json").write_bytes(content)
    dataset = open_dataset(tmp_path)
    assert [scene.name for scene in dataset.readable("poses")] == ["office"]
    (entry,) = dataset.quarantine.entries
    assert (entry.scene, entry.file) == ("fox", str(tmp_path / "fox" / "transforms.json"))
    assert entry.offset == offset
    assert reason in entry.reason
    with pytest.raises(BrokenScene):
        list(open_dataset(tmp_path, quarantine=Quarantine(strict=True)).readable())


def test_matrices_that_are_none(folder):
    scene = edit(folder, lambda content: content["frames"][0].update(transform_matrix=[[1, 0, 0]]))
    with pytest.raises(BrokenScene, match=r"frame ./images/003.jpg: transform_matrix must be 4 x 4 numbers"):
        scene.pose(0)


def test_a_folder_without_the_file(tmp_path):
    build_transforms(tmp_path)
    (tmp_path / "empty").mkdir()
    dataset = open_dataset(tmp_path)
    assert [scene.name for scene in dataset.readable()] == ["fox", "office"]
    assert "scene empty" in dataset.quarantine.report()


def test_genuine_capture(data_folder):
    dataset = open_dataset(data_folder / "fox")
    (scene,) = dataset.readable("poses")
    assert (dataset.kind, scene.name, scene.parts) == ("transforms", "fox", {"views", "poses"})
    assert len(scene.view_names) == 35
    assert [r.count for r in dataset.quarantine.remarks] == [32]
    camera = scene.camera(0)
    assert (camera.width, camera.height, camera.model) == (540, 960, "OPENCV")
    assert (camera.cx, camera.cy) == pytest.approx((277.279 - 0.5, 482.634 - 0.5))
    assert scene.view(4).image.shape == (960, 540, 3)
    # All cameras look at the fox: the point nearest to all optical axes lies in front of each of them, close to every
    # axis compared with its distance. With the axes' signs confused it would lie behind.
    poses = np.array([scene.pose(i) for i in range(35)])
    axes, centres = poses[:, :3, 2], poses[:, :3, 3]
    across = np.eye(3) - axes[:, :, None] * axes[:, None]
    subject = np.linalg.solve(across.sum(0), (across @ centres[..., None]).sum(0))[:, 0]
    depth = ((subject - centres) * axes).sum(1)
    assert (depth > 2).all()
    off_axis = np.linalg.norm((across @ (subject - centres)[..., None])[..., 0], axis=1)
    assert np.median(off_axis / depth) < 0.15
    # Upright photos of a world whose z is up: image down is world down.
    assert (poses[:, 2, 1] < -0.8).all()
    first = json.loads((scene.root / "transforms.json").read_text())["frames"][0]
    np.testing.assert_allclose(poses[0], first["transform_matrix"] @ OPENGL_FROM_OPENCV)
