"""Exported ScanNet frames: order, what is skipped, intrinsics of the right size, damage, and genuine frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_builders import (
    COLOR,
    DEPTH,
    build_frames,
    depth_map,
    intrinsic_matrix,
    lost_pose,
    orbit,
    picture,
    save_matrix,
)
from PIL import Image

from geo3d.datasets import BrokenScene, MissingPart, Quarantine, ScanNetFrames, open_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_frames(tmp_path / "scene0000_00")
    return tmp_path / "scene0000_00"


def opened(folder: Path):
    (scene,) = ScanNetFrames(folder.parent)
    return scene


def test_frames_sort_as_numbers(folder):
    scene = opened(folder)
    assert scene.view_names == ["0", "3", "20", "100"]
    for index, pose in enumerate(orbit()):
        np.testing.assert_allclose(scene.pose(index), pose, atol=1e-8)  # nine decimals in the text
        np.testing.assert_allclose(scene.depth(index), depth_map(index), atol=5e-4 + 1e-6)  # whole millimetres
    assert scene.remarks == ()
    assert scene.metric


def test_each_kind_of_image_has_its_own_intrinsics(folder):
    scene = opened(folder)
    for camera, expected in ((scene.camera(0), COLOR), (scene.depth_camera(0), DEPTH)):
        assert (camera.width, camera.height) == (expected.width, expected.height)
        np.testing.assert_allclose(camera.matrix, expected.matrix, atol=1e-8)


@pytest.mark.parametrize("pattern", ["intrinsic/intrinsic_{}.txt", "intrinsics_{}.txt"])
def test_both_places_of_intrinsics(folder, pattern):
    for kind, camera in (("color", COLOR), ("depth", DEPTH)):
        (folder / "intrinsic" / f"intrinsic_{kind}.txt").unlink()
        save_matrix(folder / pattern.format(kind), intrinsic_matrix(camera))
    assert opened(folder).camera(0).fx == pytest.approx(COLOR.fx)
    assert opened(folder).depth_camera(0).fx == pytest.approx(DEPTH.fx)


def test_images_at_depth_resolution_need_one_matrix(folder):
    (folder / "intrinsic" / "intrinsic_color.txt").unlink()
    for file in (folder / "color").iterdir():
        picture(DEPTH).save(file)
    scene = opened(folder)
    assert scene.camera(0).width == DEPTH.width
    np.testing.assert_allclose(scene.camera(0).matrix, DEPTH.matrix, atol=1e-8)


def test_a_damaged_image_does_not_take_the_camera_of_the_others(folder):
    (folder / "color" / "0.jpg").write_bytes(b"cut")
    (folder / "depth" / "0.png").write_bytes(b"")
    scene = opened(folder)
    assert scene.view(1).image.shape == (COLOR.height, COLOR.width, 3)
    with pytest.raises(BrokenScene, match=r"0\.jpg"):
        scene.view(0)
    for file in (folder / "color").iterdir():
        file.write_bytes(b"cut")
    with pytest.raises(BrokenScene, match=r"0\.jpg"):
        opened(folder).camera(1)


def test_intrinsics_of_another_size_are_refused(folder):
    """Frames are often shrunk without their matrix; poses would then be meaningless without a word."""
    save_matrix(folder / "intrinsic" / "intrinsic_color.txt", intrinsic_matrix(COLOR.resized(1296, 968)))
    with pytest.raises(
        BrokenScene, match=r"principal point \(647.5, 483.5\) is not near the centre .* 32 x 24"
    ) as error:
        opened(folder).camera(0)
    assert error.value.file.endswith("intrinsic_color.txt")


def test_what_is_skipped_is_counted(folder):
    (folder / "color" / "20.jpg").unlink()
    (folder / "depth" / "3.png").unlink()
    save_matrix(folder / "pose" / "100.txt", lost_pose())
    picture().save(folder / "color" / "7.jpg")
    quarantine = Quarantine()
    (scene,) = ScanNetFrames(folder.parent, quarantine).readable("views")
    assert scene.view_names == ["0"]
    reasons = {remark.reason: remark.count for remark in quarantine.remarks}
    assert reasons == {
        "frames skipped: they have no image": 1,
        "frames skipped: they have no pose file": 1,
        "frames skipped: they have no depth map": 1,
        "frames skipped: their pose was lost": 1,
    }
    assert len(quarantine) == 0


def test_without_depth(folder):
    for file in (folder / "depth").iterdir():
        file.unlink()
    scene = opened(folder)
    assert scene.parts == {"views", "poses"}
    assert len(scene.view_names) == 4
    with pytest.raises(MissingPart, match="depth"):
        scene.depth_camera(0)
    assert scene.view(0).depth is None


def test_no_usable_frame(folder):
    for file in (folder / "pose").iterdir():
        save_matrix(file, lost_pose())
    with pytest.raises(BrokenScene, match="no usable frame: 4 frames skipped: their pose was lost"):
        opened(folder).pose(0)


def test_no_frame_at_all(folder):
    for file in [*(folder / "pose").iterdir(), *(folder / "color").iterdir()]:
        file.unlink()
    with pytest.raises(BrokenScene, match="no usable frame: the folder is empty"):
        opened(folder).pose(0)


@pytest.mark.parametrize(
    ("file", "content", "read", "reason"),
    [
        ("pose/3.txt", b"1 0 0 0", "pose", "16 numbers are expected, found 4"),
        ("pose/3.txt", b"", "pose", "16 numbers are expected, found 0"),
        ("pose/3.txt", b"1 " * 15 + b"one", "pose", "16 numbers are expected: .* is not a number"),
        ("intrinsic/intrinsic_color.txt", b"\x00\xff", "camera", "is not UTF-8 text"),
        (
            "intrinsic/intrinsic_color.txt",
            b"0 0 15.5 0 0 0 11.5 0" + b" 0" * 8,
            "camera",
            "focal lengths must be positive",
        ),
        ("color/3.jpg", b"JFIF?", "image", "is not an image"),
        ("depth/3.png", b"\x89PNG", "depth", "is not an image"),
        ("depth/3.png", b"\x89PNG\r\n\x1a\n\0\0\0\3IHDR\0\0\0\0\0\0\0", "depth", "is not an image"),
    ],
)
def test_damage_is_named(folder, file, content, read, reason):
    (folder / file).write_bytes(content)
    with pytest.raises(BrokenScene, match=reason) as error:
        getattr(opened(folder), read)(1)
    assert error.value.scene == "scene0000_00"
    assert error.value.file == str(folder / file)


def test_images_that_are_cut(folder):
    color, depth = folder / "color" / "3.jpg", folder / "depth" / "3.png"
    color.write_bytes(color.read_bytes()[:-60])
    depth.write_bytes(depth.read_bytes()[:-30])
    with pytest.raises(BrokenScene, match="the image cannot be decoded") as error:
        opened(folder).view(1)
    assert "view 3" in error.value.file
    with pytest.raises(BrokenScene, match="the image cannot be decoded"):
        opened(folder).depth(1)


def test_depth_of_eight_bits_is_refused(folder):
    Image.new("L", (DEPTH.width, DEPTH.height)).save(folder / "depth" / "3.png")
    with pytest.raises(BrokenScene, match="16 bits and one channel, this image is of mode L"):
        opened(folder).depth(1)


def test_an_image_of_another_size_is_named(folder):
    picture(DEPTH).save(folder / "color" / "3.jpg")
    with pytest.raises(BrokenScene, match=r"image is \(12, 16\).* its camera says \(24, 32\)"):
        opened(folder).view(1)


def test_a_folder_that_is_no_scene(folder):
    (folder.parent / "scene0001_00" / "color").mkdir(parents=True)
    dataset = open_dataset(folder.parent)
    assert [scene.name for scene in dataset.readable("poses")] == ["scene0000_00"]
    assert "scene scene0001_00" in dataset.quarantine.report()


def test_scenes_in_a_folder_of_scans(folder):
    folder.parent.joinpath("scans").mkdir()
    folder.rename(folder.parent / "scans" / folder.name)
    dataset = open_dataset(folder.parent)
    assert (dataset.kind, list(dataset.scene_names)) == ("scannet_frames", ["scene0000_00"])


def build_flat(folder: Path, color: str = "png", depth: str = "png") -> None:
    """A sequence as 7-Scenes and the SDK's exporter in C++ lay them out."""
    folder.mkdir(parents=True)
    for index, pose in enumerate(orbit()):
        stem = folder / f"frame-{index:06d}"
        picture(seed=index).save(f"{stem}.color.{color}", quality=95)
        units = np.rint(depth_map(index) * 1000).astype(np.uint16)
        units[0, :2] = 65535
        Image.fromarray(units).save(f"{stem}.depth.{depth}")
        save_matrix(Path(f"{stem}.pose.txt"), pose)


@pytest.mark.parametrize(("color", "depth"), [("png", "png"), ("jpg", "pgm")])
def test_flat_frames(tmp_path, color, depth):
    for name in ("chess/seq-02", "chess/seq-01", "fire/seq-01"):
        build_flat(tmp_path / name, color, depth)
    (tmp_path / "chess" / "TrainSplit.txt").write_text("sequence1\n")
    dataset = open_dataset(tmp_path, quarantine=Quarantine(strict=True))
    assert (dataset.kind, list(dataset.scene_names)) == (
        "scannet_frames",
        ["chess/seq-01", "chess/seq-02", "fire/seq-01"],
    )
    assert list(open_dataset(tmp_path / "chess").scene_names) == ["seq-01", "seq-02"]
    (scene,) = open_dataset(tmp_path / "chess" / "seq-01")
    assert (scene.parts, scene.metric) == ({"views", "poses", "depth"}, True)
    assert scene.view_names == [f"frame-{i:06d}" for i in range(4)]
    for index, pose in enumerate(orbit()):
        np.testing.assert_allclose(scene.pose(index), pose, atol=1e-8)  # nine decimals in the text
        expected = depth_map(index)
        expected[0, :2] = 0
        np.testing.assert_allclose(scene.view(index).depth, expected, atol=5e-4 + 1e-6)  # whole millimetres
    for camera, size in ((scene.camera(0), COLOR), (scene.depth_camera(0), DEPTH)):
        assert (camera.width, camera.height) == (size.width, size.height)
        assert (camera.fx, camera.fy) == pytest.approx((585 / 640 * size.width,) * 2)
        assert (camera.cx, camera.cy) == ((size.width - 1) / 2, (size.height - 1) / 2)
    assert [(r.count, r.reason) for r in scene.remarks] == [
        (4, "views without a file of intrinsics: a focal length of 585 pixels of 640 is assumed, as in 7-Scenes")
    ]


@pytest.mark.parametrize(
    "place", ["camera-intrinsics.txt", "../camera-intrinsics.txt", "intrinsics_color.txt", "_info.txt"]
)
def test_intrinsics_of_flat_frames(tmp_path, place):
    folder = tmp_path / "seq-01"
    build_flat(folder)
    for file in folder.glob("*.color.png"):
        picture(DEPTH).save(file)
    if place == "_info.txt":
        matrix = " ".join(map(str, intrinsic_matrix(DEPTH).reshape(-1)))
        lines = [
            "m_versionNumber = 4",
            f"m_calibrationColorIntrinsic = {matrix}",
            f"m_calibrationDepthIntrinsic = {matrix}",
        ]
        (folder / place).write_text("\r\n".join([*lines, "m_depthShift = 500", ""]))
    else:
        (folder / place).write_text("\n".join(" ".join(map(str, row)) for row in DEPTH.matrix.tolist()))
    (scene,) = open_dataset(folder)
    assert scene.remarks == ()
    for camera in (scene.camera(0), scene.depth_camera(0)):
        np.testing.assert_allclose(camera.matrix, DEPTH.matrix, rtol=1e-12)
    assert scene.depth(0)[5, 5] == pytest.approx(5.0 if place == "_info.txt" else 2.5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "m_calibrationColorIntrinsic is not given"),
        ("m_calibrationColorIntrinsic = 1 2", "16 numbers are expected, found 2"),
    ],
)
def test_damaged_descriptions_of_flat_frames(tmp_path, content, reason):
    build_flat(tmp_path / "seq-01")
    (tmp_path / "seq-01" / "_info.txt").write_text(content)
    with pytest.raises(BrokenScene, match=f"_info.txt: {reason}"):
        open_dataset(tmp_path)[0].camera(0)


def test_flat_frames_are_skipped_and_counted(tmp_path):
    folder = tmp_path / "seq-01"
    build_flat(folder)
    (folder / "frame-000001.pose.txt").write_text("1.#QNAN " * 16)
    (folder / "frame-000002.depth.png").unlink()
    (folder / "frame-000003.color.png").unlink()
    (scene,) = open_dataset(tmp_path)
    assert scene.view_names == ["frame-000000"]
    assert [remark.count for remark in scene.remarks] == [1] * 4
    (folder / "frame-000000.pose.txt").unlink()
    with pytest.raises(BrokenScene, match="seq-01: no usable frame: 1 frames skipped: they have no image; 1 frames"):
        open_dataset(tmp_path)[0].pose(0)


def test_depth_of_other_endings(folder):
    for number in ("0", "3", "20", "100"):
        (folder / "depth" / f"{number}.png").unlink()
        np.save(folder / "depth" / f"{number}.npy", np.rint(depth_map() * 1000).astype(np.uint16))
    scene = opened(folder)
    assert len(scene.view_names) == 4
    np.testing.assert_allclose(scene.view(1).depth, depth_map(), atol=5e-4 + 1e-6)


def test_genuine_frames(data_folder):
    dataset = open_dataset(data_folder / "scannet_frames")
    (scene,) = dataset.readable("poses")
    assert (dataset.kind, scene.name, scene.parts) == ("scannet_frames", "scene_a", {"views", "poses"})
    assert scene.view_names == ["0048", "0054", "0060", "0066"]
    camera = scene.camera(0)
    assert (camera.width, camera.height, camera.fx, camera.cy) == (640, 480, 577.590698, 242.683609)
    assert scene.image(2).format == "PNG"
    np.testing.assert_allclose(scene.pose(0)[:3, 3], [1.896290, 2.467417, 1.399475])
    assert scene.view(3).image.shape == (480, 640, 3)
    # A hand-held camera, held level enough that image down is world down, z being up.
    for index in range(4):
        assert scene.pose(index)[2, 1] < -0.7
