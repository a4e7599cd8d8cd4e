"""The linear read-out from the command line, of checkpoints of small networks over small scans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from corner_scans import write_corner
from geo3d_command import error_of, run

from geo3d import create_model
from geo3d.checkpoints.loading import save_model

QUICK = ["--voxels-per-scene", "60", "--voxel-size", "0.2"]


@pytest.fixture(scope="module", params=["sparse_resnet_tiny", "swin3d_tiny"])
def checkpoint(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    options = {"signals": "XYZ_RGB_NORM"} | ({"decoder": "none"} if "swin3d" in request.param else {})
    save_model(create_model(request.param, generator=torch.Generator().manual_seed(7), **options), path)
    return path


def test_the_table_holds_what_is_compared(checkpoint: Path, scans: Path, tmp_path: Path, capsys) -> None:
    args = ["--checkpoint", checkpoint, "--data", scans, *QUICK, "--fresh", "2", "--seed", "6"]
    for name in ("first", "second"):
        run("probe", "linear", *args, "--out", tmp_path / name / "probe.json")
    said = capsys.readouterr().out
    assert "10 scenes to learn from, 1 held out; voxels of 20 cm" in said
    files = [(tmp_path / name / "probe.json").read_text() for name in ("first", "second")]
    assert files[0] == files[1]
    scores = json.loads(files[0])
    assert list(scores) == ["checkpoint", "fresh weights, seed 6", "fresh weights, seed 7", "input features"]
    for name, figures in scores.items():
        assert f"{name:<21}  {100 * figures['miou']:6.1f} %" in said
    inputs = scores["input features"]
    assert inputs["miou"] == inputs["accuracy"] == 1  # floor and wall are of different colours
    assert inputs["columns"] == 10
    assert {figures["voxels"] for figures in scores.values()} == {inputs["voxels"]}
    assert 200 < inputs["voxels"] <= 242  # 11 x 11 a side where no point has strayed
    assert scores["checkpoint"] == scores["fresh weights, seed 7"]  # which is what the file holds


def test_scenes_of_another_folder_are_measured_on(checkpoint: Path, scans: Path, tmp_path: Path, capsys) -> None:
    write_corner(tmp_path / "scans", "scene0020_00", 20)
    args = ["--checkpoint", checkpoint, "--data", scans, "--test-data", tmp_path / "scans", *QUICK]
    run("probe", "linear", *args)
    assert "11 scenes to learn from, 1 held out" in capsys.readouterr().out
    args += ["--test-data", tmp_path / "scans", scans]
    assert "scene0000_00 is among the scenes to learn from and among those to measure on" in error_of(
        capsys, "probe", "linear", *args
    )


def test_wrong_checkpoints_are_one_line(scans: Path, tmp_path: Path, capsys) -> None:
    def message(name: str, *more: str) -> str:
        return error_of(capsys, "probe", "linear", "--checkpoint", tmp_path / name, "--data", scans, *more)

    save_model(create_model("i2p_mae_tiny"), tmp_path / "points.safetensors")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pth")
    assert "no such checkpoint file" in message("absent")
    assert "i2p_mae reads points; give an encoder of voxels" in message("points.safetensors")
    assert "does not say which model it holds; name it" in message("bare.pth")
    assert "unknown model 'swin4d'" in message("bare.pth", "--model", "swin4d")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "absent"], "absent is not a folder"),
        (["--voxels-per-scene", "0"], "voxels_per_scene must be at least 1"),
        (["--held-out", "0"], "held_out must lie between 0 and 1"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_wrong_settings_are_one_line(args: list[str], message: str, tmp_path: Path, capsys) -> None:
    assert message in error_of(capsys, "probe", "linear", "--checkpoint", tmp_path, *args)


def test_scenes_without_labels_or_too_few_are_one_line(checkpoint: Path, tmp_path: Path, capsys) -> None:
    folder = write_corner(tmp_path / "scans", "scene0000_00", 0)
    args = ["--checkpoint", checkpoint, "--data", tmp_path / "scans"]
    assert "1 scenes are too few to hold any out, which takes 10; give others" in error_of(
        capsys, "probe", "linear", *args
    )
    (folder / "scene0000_00_vh_clean_2.labels.ply").unlink()
    assert "no scene holds labelled points or a labelled mesh" in error_of(capsys, "probe", "linear", *args)
