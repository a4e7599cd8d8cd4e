"""What all readers share: the quarantine, splits, recognising layouts, small files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_builders import BUILDERS, build_scannet, lost_pose, orbit, picture

from geo3d.datasets import BrokenScene, Quarantine, Remark, Scene, SceneDataset, list_datasets, open_dataset
from geo3d.datasets.files import are_rigid, numeric_order, read_json, read_matrix
from geo3d.datasets.image_files import check_size, decode, open_image
from geo3d.datasets.scene import register_dataset
from geo3d.errors import InputError
from geo3d.geometry import Camera


def test_broken_scenes_travel_between_processes():
    broken = BrokenScene("scene7", Path("a.sens"), "cut", 42)
    assert str(broken) == "scene scene7: a.sens at byte 42: cut"
    copy = pickle.loads(pickle.dumps(broken))
    assert (str(copy), copy.scene, copy.file, copy.reason, copy.offset) == (str(broken), "scene7", "a.sens", "cut", 42)
    assert isinstance(copy, InputError)


def test_quarantine_reports_each_scene_once():
    quarantine = Quarantine()
    assert (len(quarantine), quarantine.report()) == (0, "")
    for _ in range(2):
        quarantine.add(BrokenScene("a", "x.ply", "cut", 3))
        quarantine.note([Remark("b", "y.json", "frames skipped: no pose", 5)])
    quarantine.add(BrokenScene("a", "x.ply", "cut", 4))
    assert len(quarantine) == 2
    assert quarantine.report().splitlines() == [
        "scene a: x.ply at byte 3: cut",
        "scene a: x.ply at byte 4: cut",
        "scene b: y.json: 5 frames skipped: no pose",
    ]


def test_a_strict_quarantine_raises_broken_scenes_and_keeps_remarks():
    quarantine = Quarantine(strict=True)
    quarantine.note([Remark("b", "y.sens", "frames are missing", 5, 77)])
    with pytest.raises(BrokenScene, match="scene a"):
        quarantine.add(BrokenScene("a", "x.ply", "cut"))
    assert quarantine.report() == "scene b: y.sens at byte 77: 5 frames are missing"


class _ListedTwice(SceneDataset):
    kind = "scannet"


def test_a_kind_is_registered_once():
    before = list_datasets()
    with pytest.raises(ValueError, match="'scannet' is registered twice"):
        register_dataset(_ListedTwice)
    assert list_datasets() == before


def test_folders_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / ("x" * 300))
    (tmp_path / "file.ply").touch()
    with pytest.raises(InputError, match=r"is a file; .*geo3d.read_points"):
        open_dataset(tmp_path / "file.ply")
    (tmp_path / "file.ply").unlink()
    with pytest.raises(InputError, match=r"not recognised as any of scannet, .*docs/datasets.md"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="unknown dataset kind 'kitti'; known: scannet"):
        open_dataset(tmp_path, "kitti")
    with pytest.raises(InputError, match=r"unknown dataset kind 'scanet'; known: .*; did you mean 'scannet'\?"):
        open_dataset(tmp_path, "scanet")
    with pytest.raises(InputError, match="no scene found in the scannet layout"):
        open_dataset(tmp_path, "scannet")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"# none yet\r\n\r\n", "is empty"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_splits_that_cannot_be_used(tmp_path, content, reason):
    build_scannet(tmp_path / "scannet")
    split = tmp_path / "split.txt"
    if content is not None:
        split.write_bytes(content)
    with pytest.raises(InputError, match=f"split.txt: the split list {reason}"):
        open_dataset(tmp_path / "scannet", split=split)


def test_splits_that_list_nothing_that_is_there(tmp_path):
    build_scannet(tmp_path)
    (tmp_path / "split.txt").write_text("scene0000_0\nother\n")
    with pytest.raises(InputError, match=r"none of the 2 scenes that it lists is in .*'scene0000_0'; did you mean"):
        open_dataset(tmp_path, split=tmp_path / "split.txt")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_splits_spelt_otherwise(tmp_path, end, encoding):
    names = ("büro/old town", "chess/seq-01", "fire 2", "#1", "office")
    for name in names:
        for image in "ab":
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            picture().save(tmp_path / "data" / name / f"{image}.jpg")
    lines = ["# scenes", "", " büro\\old town ", '"fire 2"', "chess/seq-01/", "#1", "office  # the last", "fire 2", ""]
    (tmp_path / "split.txt").write_bytes(end.join(lines).encode(encoding))
    dataset = open_dataset(tmp_path / "data", split=tmp_path / "split.txt")
    assert list(dataset.scene_names) == ["büro/old town", "fire 2", "chess/seq-01", "#1", "office"]
    assert len(dataset.quarantine) == 0


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_matrices_spelt_otherwise(tmp_path, mark, end):
    matrix = np.arange(16.0).reshape(4, 4)
    rows = [" ".join(map(str, row)) for row in matrix]
    for text in (
        end.join(rows),
        end.join(["# pose", *rows, ""]),
        f"[{'; '.join(rows)}]",
        ",".join(" ".join(rows).split()),
    ):
        (tmp_path / "a.txt").write_bytes((mark + text).encode())
        assert np.array_equal(read_matrix(tmp_path / "a.txt", "scene"), matrix)
    (tmp_path / "a.txt").write_bytes((mark + end.join(rows[:3])).encode())
    upper = np.concatenate([matrix[:3], [[0, 0, 0, 1]]])
    assert np.array_equal(read_matrix(tmp_path / "a.txt", "scene"), upper)
    (tmp_path / "a.txt").write_text("500 0 320\n0 510 240\n0 0 1\n")
    assert read_matrix(tmp_path / "a.txt", "scene", intrinsic=True)[1].tolist() == [0, 510, 240, 0]
    with pytest.raises(BrokenScene, match="16 numbers are expected, found 9"):
        read_matrix(tmp_path / "a.txt", "scene")


def test_keys_that_are_there_twice(tmp_path):
    (tmp_path / "a.json").write_text('{"w": 3, "frames": [1], "w": 3}')
    assert read_json(tmp_path / "a.json", "scene") == {"w": 3, "frames": [1]}
    (tmp_path / "a.json").write_text('{"w": 3, "deep": {"x": 1, "x": 2}}')
    with pytest.raises(BrokenScene, match="key 'x' is there twice, with different values"):
        read_json(tmp_path / "a.json", "scene")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_json_beyond_what_python_parses(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BrokenScene, match="damaged JSON"):
        read_json(tmp_path / "a.json", "scene")


def test_messages_are_one_line_that_any_stream_takes():
    broken = BrokenScene("sc\nene", Path("a\r\udcff.txt"), "x" * 5000)
    assert str(broken).startswith(r"scene sc\nene: a\r\udcff.txt: xxx")
    assert len(str(broken)) < 2000
    str(broken).encode()
    assert str(Remark("a", "b\n.txt", "skipped", 2)) == r"scene a: b\n.txt: 2 skipped"


def test_folders_that_cannot_be_listed(tmp_path, monkeypatch):
    scandir, refused = os.scandir, tmp_path / "lost+found"

    def refuse(path="."):
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for kind, build in BUILDERS.items():
        build(tmp_path / kind)
        refused = tmp_path / kind / "lost+found"
        refused.mkdir()
        assert open_dataset(tmp_path / kind).kind == kind
    refused = tmp_path
    with pytest.raises(InputError, match="cannot be listed: Permission denied"):
        open_dataset(tmp_path)


def test_a_scene_of_another_package_counts_by_its_parts():
    class Bare(Scene):
        name, root = "bare", Path("nowhere")

    for read in ("camera", "pose", "image", "depth", "mask"):
        with pytest.raises(InputError, match="scene bare has no"):
            getattr(Bare(), read)(0)
    assert Bare().remarks == ()


def test_a_relative_root(tmp_path, monkeypatch):
    build_scannet(tmp_path)
    monkeypatch.chdir(tmp_path / "scans" / "scene0001_00")
    (scene,) = open_dataset(".")
    assert scene.name == "scene0001_00"
    monkeypatch.chdir(tmp_path)
    assert len(scene.mesh().vertices) == 8, "a change of the working folder does not matter"


def test_numeric_order():
    names = ["10.jpg", "9.jpg", "a2", "a10", "010.jpg", "b"]
    assert sorted(names, key=numeric_order) == ["9.jpg", "010.jpg", "10.jpg", "a2", "a10", "b"]
    odd = ["²", "1²", "٣", "1" * 5000, "0", "00"]  # digits that are no decimals, and more than int() takes
    assert sorted(odd, key=numeric_order) == ["0", "00", "1²", "1" * 5000, "²", "٣"]


def test_are_rigid():
    pose = orbit(1)[0]
    mirrored, scaled, nan = pose @ np.diag([1.0, 1, -1, 1]), pose @ np.diag([2.0, 2, 2, 1]), pose.copy()
    nan[0, 3] = np.nan
    printed = np.round(pose, 6)
    distant, transposed = pose.copy(), pose.T
    distant[0, 3] = 1e300
    poses = np.stack([pose, printed, mirrored, scaled, nan, lost_pose(), np.zeros((4, 4)), distant, transposed])
    assert are_rigid(poses).tolist() == [True, True] + [False] * 7
    assert are_rigid(np.zeros((0, 4, 4))).tolist() == []


def test_images_are_opened_without_decoding(tmp_path):
    picture(Camera.from_fov(640, 480, 1.0)).save(tmp_path / "a.jpg")
    image = open_image(tmp_path / "a.jpg", "scene")
    assert image.draft("RGB", (160, 120)) is not None
    assert decode(image, tmp_path / "a.jpg", "scene").shape == (120, 160, 3)
    check_size(tmp_path / "a.jpg", "scene", Camera.from_fov(640, 480, 1.0))
    with pytest.raises(BrokenScene, match="is 640 x 480, its camera says 480 x 640"):
        check_size(tmp_path / "a.jpg", "scene", Camera.from_fov(480, 640, 1.0))
    with pytest.raises(BrokenScene, match="No such file"):
        open_image(tmp_path / "b.jpg", "scene")
    with pytest.raises(BrokenScene, match="cannot be read"):
        open_image(tmp_path, "scene")
