"""Swin3D from the command line: pre-training on small scans, and the trained network run over one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from corner_scans import write_corner
from geo3d_command import error_of, run
from PIL import Image

from geo3d import create_model
from geo3d.config import load_config, save_config
from geo3d.datasets.ply import read_ply
from geo3d.datasets.scannet import SCANNET20_CLASSES, ScanNet
from geo3d.predict.segment import SegmentOptions, predict
from geo3d.recipes.swin3d import Swin3DRecipe, Swin3DRun
from geo3d.viz.ply import write_ply

#: Recipe of the fixture `finished`, and the fixture of its data.
FINISHED = ("swin3d", "scans")
QUICK = ["--train.steps", "3", "--train.batch-size", "2", "--train.workers", "0", "--train.warmup-steps", "1"]
QUICK += ["--train.log-every", "1", "--method.voxel-size", "0.2", "--method.max-voxels", "200"]


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3]
    assert 0 <= metrics[0]["metric/accuracy"] <= 1
    report = json.loads((finished / "report.json").read_text())
    assert report["scenes"] == "held-out"
    assert report["after"]["points"] == 882
    assert report["after"]["majority"] == 0.5
    assert report["after"]["miou"] != report["before"]["miou"]
    for name in ("loss.png", "segmentation.png", *(f"pictures/step_{s:08d}.png" for s in (0, 3))):
        with Image.open(finished / name) as picture:
            picture.verify()
    assert len(read_ply(finished / "segmentation.ply", "run").vertex["label"]) == 882


def test_the_checkpoint_goes_out_of_the_same_door(finished: Path) -> None:
    model = create_model("swin3d_tiny", checkpoint=finished)
    assert model.config.num_classes == 20
    assert model.config.voxel_size == 0.2
    assert model.config.signals == "XYZ_RGB_NORM"


def test_the_stored_config_replays_the_run(finished: Path, tmp_path: Path) -> None:
    run("pretrain", "swin3d", "--config", finished / "config.yaml", "--out", tmp_path / "again")
    weights = [create_model("swin3d", checkpoint=folder).state_dict() for folder in (finished, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_goes_on_where_it_stopped(scans: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("stopped", "straight")]
    args = ["pretrain", "swin3d", "--data", scans, *QUICK, "--train.schedule", "constant"]
    run(*args, "--out", folders[0], "--train.steps", "1")
    for folder in folders:
        run(*args, "--out", folder)
    weights = [create_model("swin3d", checkpoint=folder).state_dict() for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_broken_scans_are_named_and_left_out(scans: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "scans"
    for number in range(3):
        folder = write_corner(root, f"scene{number:04d}_00", number)
    mesh = folder / "scene0002_00_vh_clean_2.ply"
    mesh.write_bytes(mesh.read_bytes()[:2000])
    out = tmp_path / "run"
    run("pretrain", "swin3d", "--data", root, "--out", out, *QUICK)
    assert "left out of the report: " in capsys.readouterr().out
    assert "scene0002_00" in (out / "quarantine.txt").read_text()
    args = ["pretrain", "swin3d", "--data", root, "--out", tmp_path / "strict", "--strict", *QUICK]
    assert "scene0002_00" in error_of(capsys, *args)


def test_a_scene_is_segmented_from_its_folder_and_from_a_ply(finished, scans, tmp_path, capsys) -> None:
    scan = scans / "scene0003_00"
    run("predict", "segment", "--checkpoint", finished, "--scene", scan, "--out", tmp_path / "a.ply")
    assert "mean IoU" in capsys.readouterr().out
    mesh = scan / "scene0003_00_vh_clean_2.ply"
    run("predict", "segment", "--checkpoint", finished, "--scene", mesh, "--out", tmp_path / "b.ply")
    said = capsys.readouterr().out
    assert "mean IoU" not in said
    assert str(tmp_path / "b.png") in said
    first, second = (read_ply(tmp_path / name, "scene") for name in ("a.ply", "b.ply"))
    np.testing.assert_array_equal(first.vertex["label"], second.vertex["label"])
    expected = read_ply(mesh, "scene").stacked("x", "y", "z")
    np.testing.assert_array_equal(first.stacked("x", "y", "z"), expected)
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            picture.verify()


def test_a_scan_far_from_zero_is_segmented_where_it_is(finished, scans, tmp_path, capsys) -> None:
    mesh = read_ply(scans / "scene0003_00" / "scene0003_00_vh_clean_2.ply", "scan")
    shift = np.array([500000.0, 5400000.0, 301.0])
    far = {axis: mesh.vertex[axis].astype(np.float64) + shift[i] for i, axis in enumerate("xyz")}
    write_ply(tmp_path / "far.ply", mesh.vertex | far, mesh.faces)
    write_ply(tmp_path / "near.ply", mesh.vertex, mesh.faces)
    for name in ("near", "far"):
        out = tmp_path / f"{name}_labels.ply"
        run("predict", "segment", "--checkpoint", finished, "--scene", tmp_path / f"{name}.ply", "--out", out)
        assert "mean IoU" not in capsys.readouterr().out
    found = read_ply(tmp_path / "far_labels.ply", "scan")
    assert np.abs(found.stacked("x", "y", "z") - np.stack(list(far.values()), 1)).max() < 1e-6
    agreeing = found.vertex["label"] == read_ply(tmp_path / "near_labels.ply", "scan").vertex["label"]
    assert agreeing.mean() > 0.9, "voxels begin at the least coordinates, which differ by rounding"


def test_from_python_classes_are_called_as_the_dataset_calls_them(finished, scans, tmp_path, monkeypatch) -> None:
    config = SegmentOptions(checkpoint=finished, scene=scans / "scene0003_00", out=tmp_path / "new" / "a.ply")
    expected = predict(config)
    own = tuple(f"own {name}" for name in SCANNET20_CLASSES)
    monkeypatch.setattr(ScanNet, "classes", own, raising=False)
    shares, scores, *_ = predict(config).splitlines()
    assert all(share.startswith("own ") for share in shares.split(", "))
    assert shares.replace("own ", "") == expected.splitlines()[0]
    assert scores == expected.splitlines()[1]
    monkeypatch.setattr(ScanNet, "classes", own[:5])  # which the network's 20 cannot be compared with
    assert "mean IoU" not in predict(config)


def test_a_genuine_scan_is_segmented(finished, data_folder, tmp_path, capsys) -> None:
    scan = data_folder / "scannet" / "scans" / "scene0000_00"
    run("predict", "segment", "--checkpoint", finished, "--scene", scan, "--out", tmp_path / "scan.ply")
    assert "mean IoU" in capsys.readouterr().out
    labels = read_ply(tmp_path / "scan.ply", "scan").vertex["label"]
    assert len(labels) == 81_369
    assert labels.min() >= 0
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize(
    ("scene", "message"),
    [("", "holds 11 scenes"), ("scene0000_00/absent.ply", "cannot be read"), ("absent", "no such folder")],
)
def test_wrong_scenes_are_one_line(finished, scans, scene: str, message: str, capsys) -> None:
    assert message in error_of(capsys, "predict", "segment", "--checkpoint", finished, "--scene", scans / scene)


def test_points_without_what_the_network_reads_are_one_line(finished, tmp_path, capsys) -> None:
    write_ply(tmp_path / "bare.ply", {axis: np.zeros(3, np.float32) for axis in "xyz"})
    error = error_of(capsys, "predict", "segment", "--checkpoint", finished, "--scene", tmp_path / "bare.ply")
    assert "reads colours, but the points have none" in error


def test_a_place_where_nothing_can_be_written_is_one_line(finished, scans, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    args = ["--checkpoint", finished, "--scene", scans / "scene0000_00", "--out", tmp_path / "file" / "a.ply"]
    assert f"a.ply: cannot be written ({tmp_path / 'file'} is a file, where a folder should be)" in error_of(
        capsys, "predict", "segment", *args
    )
    args[-1] = tmp_path
    assert "cannot be written (it is a folder)" in error_of(capsys, "predict", "segment", *args)
    args[-1] = tmp_path / "a.png"
    assert "the picture will be there" in error_of(capsys, "predict", "segment", *args)


def test_presets_are_whole_configs_and_survive_a_file(tmp_path: Path) -> None:
    for name in Swin3DRecipe.presets:
        config = Swin3DRecipe.preset(name)
        config.check()
        save_config(config, tmp_path / "config.yaml")
        assert load_config(Swin3DRun, tmp_path / "config.yaml") == config


def test_classes_of_ones_own_layout_go_by_their_names(tmp_path: Path, capsys) -> None:
    """A run keeps the names of its dataset's classes, so that a bare file of points is told in them too."""
    root, rng = tmp_path / "own", np.random.default_rng(0)
    root.mkdir()
    (root / "classes.txt").write_text("rock\nmoss\n")
    for number in range(2):
        vertex = {axis: rng.random(300).astype(np.float32) for axis in "xyz"}
        vertex |= {color: rng.integers(0, 255, 300).astype(np.uint8) for color in ("red", "green", "blue")}
        vertex |= {f"n{axis}": np.full(300, axis == "z", np.float32) for axis in "xyz"}
        write_ply(root / f"{number}.ply", vertex | {"label": rng.integers(0, 2, 300).astype(np.uint8)})
    write_ply(tmp_path / "bare.ply", vertex)
    run("pretrain", "swin3d", "--data", root, "--out", tmp_path / "run", *QUICK)
    assert create_model(checkpoint=tmp_path / "run").classes == ("rock", "moss")
    capsys.readouterr()
    run(
        "predict",
        "segment",
        "--checkpoint",
        tmp_path / "run",
        "--scene",
        tmp_path / "bare.ply",
        "--out",
        tmp_path / "out.ply",
    )
    shares = capsys.readouterr().out.splitlines()[0].split(", ")
    assert {share.split()[0] for share in shares} <= {"rock", "moss"}
