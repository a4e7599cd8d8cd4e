"""`geo3d predict` after `geo3d finetune`: what was trained says of files what it says in Python."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from corner_scans import write_corner
from geo3d_command import error_of, run
from PIL import ExifTags, Image

from geo3d import create_model, save_model
from geo3d.datasets import read_cloud
from geo3d.datasets.ply import read_ply
from geo3d.datasets.radiance_grids import read_grid
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.geometry import PointCloud, VolumeGrid
from geo3d.methods.classify import class_logits
from geo3d.predict.tasks import TASKS
from geo3d.reconstruction.grid_file import grid_path, write_grid
from geo3d.viz.points import write_points

VOXELS = {"stem": 8, "depths": (1,), "channels": (16,), "signals": "XYZ_RGB", "voxel_size": 0.1}
POINTS = {"groups": (16, 8, 4), "neighbors": (4, 4, 2), "dims": (12, 12, 24), "embed_dim": 8, "points": 64}


def made(name: str, path: Path, classes: tuple[str, ...] = (), **options) -> Path:
    """A file of a network with fresh weights."""
    model = create_model(name, generator=torch.Generator().manual_seed(0), **options)
    model.classes = classes
    save_model(model, path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    return [write_corner(tmp_path / "scans", f"scene{number:04d}_00", number) for number in range(2)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("voxel_segmenter", {"encoder_options": VOXELS}),
        ("point_segmenter", {"encoder_options": POINTS, "voxel_size": 0.4}),
    ],
)
def test_scenes_are_segmented_as_in_python(name: str, options: dict, scans, tmp_path, capsys) -> None:
    checkpoint = made(name, tmp_path / "model.safetensors", num_classes=20, **options)
    run("predict", "segment", *scans, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "over 2 labelled scenes: mean IoU" in said
    model = create_model(checkpoint=checkpoint)
    for scan in scans:
        expected = model.predict(read_cloud(scan)[0]).argmax(1).numpy()
        found = read_ply(tmp_path / "out" / f"{scan.name}.ply", "scene").vertex["label"]
        np.testing.assert_array_equal(found, expected)
        Image.open(tmp_path / "out" / f"{scan.name}.png").verify()


def test_a_network_that_names_no_class_is_refused(scans, tmp_path, capsys) -> None:
    encoder = made("sparse_resnet_tiny", tmp_path / "encoder.safetensors", channels=(8, 8, 16))
    error = error_of(capsys, "predict", "segment", scans[0], "--checkpoint", encoder)
    assert "without a head, and nothing that names the class of points; give a run of `geo3d finetune segment`" in error
    other = made("point_segmenter", tmp_path / "segmenter.safetensors", encoder_options=POINTS)
    error = error_of(capsys, "predict", "classify", tmp_path / "a.ply", "--checkpoint", other)
    assert "holds a point_segmenter (segment), and nothing that names the class of objects or images" in error
    grids = made("nerf_mae_semantic_tiny", tmp_path / "grids.safetensors")
    error = error_of(capsys, "predict", "segment", scans[0], "--checkpoint", grids)
    assert "names the class of voxels of radiance grids, and does not read points" in error
    assert "scenes: give one or more" in error_of(capsys, "predict", "segment", "--checkpoint", other)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cloud_classifier", {"encoder_options": POINTS}),
        ("voxel_classifier", {"encoder_options": VOXELS}),
        ("voxel_classifier", {"encoder_options": VOXELS | {"signals": "XYZ_RGB_NORM"}}),
        ("i2p_mae_modelnet40", POINTS),
    ],
)
def test_objects_are_named_as_in_python(name: str, options: dict, tmp_path, capsys) -> None:
    classes = ("chair", "table", "lamp")
    checkpoint = made(name, tmp_path / "model.safetensors", classes, num_classes=3, **options)
    clouds = [PointCloud(torch.rand(200, 3, generator=torch.Generator().manual_seed(n)) + n) for n in range(2)]
    files = [tmp_path / f"{n}.ply" for n in range(2)]
    for file, cloud in zip(files, clouds):
        write_points(file, cloud)
    run("predict", "classify", *files, "--checkpoint", checkpoint, "--out", tmp_path / "found.json", "--top", 2)
    assert f"{files[1]}: " in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    model = create_model(checkpoint=checkpoint)
    expected = class_logits(model, [read_cloud(file)[0] for file in files]).double().softmax(1)
    for one, file, row in zip(found, files, expected):
        assert (one["file"], one["class"], len(one["top"])) == (str(file), classes[row.argmax()], 2)
        assert one["probability"] == pytest.approx(float(row.max()), abs=1e-5)  # written with six digits
    run("predict", "classify", *files, "--checkpoint", checkpoint, "--out", tmp_path / "found.csv")
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert [row["class_1"] for row in rows] == [one["class"] for one in found]
    assert sum(float(rows[0][f"probability_{n}"]) for n in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    # an object is the same wherever it lies and whatever its unit is
    moved = [PointCloud(1000 * cloud.xyz.double() + 5) for cloud in clouds]
    again = class_logits(model, moved).double().softmax(1)
    torch.testing.assert_close(again, class_logits(model, clouds).double().softmax(1), rtol=0, atol=1e-3)


def test_images_are_named_as_in_python(tmp_path, capsys) -> None:
    checkpoint = made("image_classifier", tmp_path / "model.safetensors", ("a", "b"), num_classes=2, image_size=64)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    run("predict", "classify", tmp_path / "photo.png", "--checkpoint", checkpoint, "--out", tmp_path / "c.json")
    (found,) = json.loads((tmp_path / "c.json").read_text())
    model = create_model(checkpoint=checkpoint)
    (expected,) = class_logits(model, [Image.open(tmp_path / "photo.png")], 64).softmax(1).tolist()
    assert found["class"] == "ab"[int(np.argmax(expected))]
    assert found["probability"] == pytest.approx(max(expected), abs=1e-5)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # stored upside down
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    run("predict", "classify", tmp_path / "turned.png", "--checkpoint", checkpoint, "--out", tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())[0]["top"] == found["top"]
    capsys.readouterr()
    (tmp_path / "broken.png").write_bytes((tmp_path / "photo.png").read_bytes()[:900])
    assert "broken.png" in error_of(capsys, "predict", "classify", tmp_path / "broken.png", "--checkpoint", checkpoint)
    error = error_of(capsys, "predict", "classify", tmp_path / "none.png", "--checkpoint", checkpoint)
    assert "none.png: no such image" in error
    args = [tmp_path / "photo.png", "--checkpoint", checkpoint, "--out", tmp_path / "c.txt"]
    assert "should end in .json or .csv" in error_of(capsys, "predict", "classify", *args)


def test_objects_in_grids_are_found_as_in_python(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = made("nerf_mae_detector_tiny", tmp_path / "model.safetensors", pyramid_channels=16, tower_depth=1)
    rng = torch.Generator().manual_seed(0)
    low = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    grid = VolumeGrid(
        torch.rand(32, 24, 20, 3, generator=rng),
        torch.rand(32, 24, 20, generator=rng),
        low,
        low + 0.1 * torch.tensor([32, 24, 20]),
    )
    for name in ("one", "two"):
        write_grid(grid_path(tmp_path / "grids", name), grid)
    file = grid_path(tmp_path / "grids", "one")
    args = ["--checkpoint", checkpoint, "--out", tmp_path / "boxes.json", "--least-score", 0.0]
    run("predict", "detect", file, *args)
    (found,) = json.loads((tmp_path / "boxes.json").read_text())
    stored = read_grid(file)
    expected = create_model(checkpoint=checkpoint).detect(stored)[0]
    assert len(found["objects"]) == len(expected.boxes) > 0
    first, box = found["objects"][0], expected.boxes[0]
    np.testing.assert_allclose(first["voxels"]["centre"], box[:3], atol=1e-3)
    np.testing.assert_allclose(first["metres"]["centre"], low + 0.1 * box[:3], atol=1e-3)
    np.testing.assert_allclose(first["metres"]["sides"], 0.1 * box[3:6], atol=1e-3)
    Image.open(tmp_path / "boxes.png").verify()
    run("predict", "detect", tmp_path / "grids", *args)
    both = json.loads((tmp_path / "boxes.json").read_text())
    assert [len(one["objects"]) for one in both] == 2 * [len(found["objects"])]
    Image.open(tmp_path / "boxes_2.png").verify()
    capsys.readouterr()
    assert "no such file or folder" in error_of(capsys, "predict", "detect", tmp_path / "none", *args)


def test_objects_in_scenes_are_found_in_grids_that_are_made_of_them(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = made("nerf_mae_detector_tiny", tmp_path / "model.safetensors", pyramid_channels=16, tower_depth=1)
    small = {"views": 4, "width": 64, "height": 48, "mesh_edge": 0.2, "workers": 1}
    write_synthetic(SyntheticConfig(tmp_path / "rooms", scenes=2, objects=0, **small))
    args = ["--checkpoint", checkpoint, "--out", "boxes.json", "--least-score", 0.0, "--side", 32]
    run("predict", "detect", tmp_path / "rooms" / "scannet", *args)
    said = capsys.readouterr().out
    assert "2 grids made, 0 were there already" in said
    (grids,) = (tmp_path / "data" / "grids").iterdir()
    both, model = json.loads((tmp_path / "boxes.json").read_text()), create_model(checkpoint=checkpoint)
    for number, found in enumerate(both):
        name = f"scene{number:04d}_00"
        assert found["grid"] == f"{tmp_path / 'rooms' / 'scannet'}: {name}"
        grid = read_grid(grid_path(grids, name))
        expected = model.detect(grid)[0]
        assert len(found["objects"]) == len(expected.boxes) > 0
        centres = [one["metres"]["centre"] for one in found["objects"]]
        np.testing.assert_allclose(centres, grid.low + grid.voxel * expected.boxes[:, :3], atol=1e-3)
        Image.open(tmp_path / f"boxes_{number + 1}.png").verify()
    # one scene by its own folder; what was made is used again; grids as they are say the same
    one = tmp_path / "rooms" / "scannet" / "scans" / "scene0001_00"
    for _ in range(2):
        run("predict", "detect", one, *args)
        assert json.loads((tmp_path / "boxes.json").read_text())[0]["objects"] == both[1]["objects"]
    assert "0 grids made, 1 were there already" in capsys.readouterr().out
    # lengths of a scene of unknown unit are not called metres
    file = grid_path(tmp_path / "unknown", "scene")
    write_grid(file, grid, metric=False)
    run("predict", "detect", file, *args)
    (found,) = json.loads((tmp_path / "boxes.json").read_text())
    assert [one["scene_units"] for one in found["objects"]] == [one["metres"] for one in both[1]["objects"]]
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    assert "empty: not recognised as any of" in error_of(capsys, "predict", "detect", tmp_path / "empty", *args)


def test_inputs_have_names_and_one_is_needed(tmp_path, capsys) -> None:
    assert list(TASKS) == sorted(TASKS)
    for task, inputs in (("stereo", "LEFT RIGHT"), ("flow", "FIRST SECOND"), ("depth", "IMAGE ...")):
        run("predict", task, "--help")
        assert inputs in capsys.readouterr().out
    for task in TASKS:
        text = error_of(capsys, "predict", task, "--checkpoint", tmp_path / "none")
        assert any(line in text for line in ("give", "name one image or more", "Missing from geo3d predict"))
        assert "no such checkpoint" not in text
    text = error_of(capsys, "predict", "classify", "a.ply", "--checkpoint", tmp_path, "--device", "abacus")
    assert "predict classify: 'abacus' is no device" in text
