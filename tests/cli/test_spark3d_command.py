"""SparK over voxels from the command line: small scans, point clouds of captures, and encoders that leave the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from corner_scans import write_corner
from geo3d_command import error_of, run
from PIL import Image

from geo3d import InputError, create_model, open_dataset
from geo3d.config import load_config, save_config
from geo3d.datasets.ply import read_ply
from geo3d.geometry import PointCloud
from geo3d.recipes.spark3d import SparK3DRecipe, SparK3DRun

#: Recipe of the fixture `finished`, and the fixture of its data.
FINISHED = ("spark3d", "scans")
QUICK = ["--train.steps", "3", "--train.batch-size", "2", "--train.workers", "0", "--train.warmup-steps", "1"]
QUICK += ["--train.log-every", "1", "--method.voxel-size", "0.1", "--method.max-voxels", "300"]
QUICK += ["--method.decoder-width", "32", "--method.decoder-context", "1"]


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3]
    assert all(0 <= m["metric/occupancy_iou"] <= 1 for m in metrics)
    parts = ("occupancy", "offset", "color", "normal")
    assert metrics[0]["loss"] == pytest.approx(sum(metrics[0][f"loss/{name}"] for name in parts), rel=1e-5)
    report = json.loads((finished / "report.json").read_text())
    assert report["scenes"] == "held-out"
    before, after = report["before"], report["after"]
    assert before["occupancy_iou"] != after["occupancy_iou"] or before["bits"] != after["bits"]
    for name in ("copied_iou", "all_iou", "rate_bits", "voxels"):
        assert before[name] == after[name] > 0  # the same crops and masks
    assert 0 < after["rate_bits"] < 1
    assert {"offset_share", "color_share", "normal_share"} <= after.keys()
    for name in ("loss.png", "filled.png", *(f"pictures/step_{s:08d}.png" for s in (0, 3))):
        with Image.open(finished / name) as picture:
            picture.verify()
    sizes = [len(read_ply(finished / f"{name}.ply", "run").vertex["x"]) for name in ("masked", "original", "filled")]
    assert 0 < sizes[0] < sizes[1]
    assert sizes[0] <= sizes[2]
    points = read_ply(finished / "original.ply", "run").stacked("x", "y", "z")
    assert 1 < (points.max(0) - points.min(0)).max() < 4  # metres


def test_the_encoder_goes_out_of_the_same_door(finished: Path) -> None:
    model = create_model("sparse_resnet_tiny", checkpoint=finished)
    assert model.config.voxel_size == 0.1
    assert model.config.signals == "XYZ_RGB_NORM"
    cloud = PointCloud(*(torch.rand(50, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)))
    features = model.voxel_features(model.inputs(cloud))
    fresh = create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(0))
    assert features.shape == (len(model.inputs(cloud).voxels), sum(model.channels))
    assert not torch.equal(features, fresh.voxel_features(model.inputs(cloud)))
    with pytest.raises(InputError, match=r"holds a sparse_resnet_tiny .*, not a swin3d_tiny"):
        create_model("swin3d_tiny", checkpoint=finished)


def test_swin3d_is_pretrained_without_decoder(scans: Path, tmp_path: Path) -> None:
    run("pretrain", "spark3d", "--data", scans, "--out", tmp_path, *QUICK, "--method.model", "swin3d_tiny")
    encoder = create_model("swin3d_tiny", checkpoint=tmp_path)
    assert (encoder.config.decoder, encoder.config.first_stride) == ("none", 2)
    cloud = open_dataset(scans)[0].points()
    with pytest.raises(InputError, match="an encoder alone"):
        encoder.predict(cloud)
    whole = create_model("swin3d_tiny", checkpoint=tmp_path, fresh_decoder=True, num_classes=5)
    assert whole.predict(cloud).shape == (len(cloud), 5)
    inputs = whole.inputs(cloud)
    torch.testing.assert_close(whole.voxel_features(inputs), encoder.voxel_features(inputs))  # of library calls


def test_the_stored_config_replays_the_run(finished: Path, tmp_path: Path) -> None:
    run("pretrain", "spark3d", "--config", finished / "config.yaml", "--out", tmp_path / "again")
    _assert_same_weights(finished, tmp_path / "again")


def _assert_same_weights(*folders: Path) -> None:
    weights = [create_model("sparse_resnet", checkpoint=folder).state_dict() for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_goes_on_where_it_stopped(scans: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("stopped", "straight")]
    args = ["pretrain", "spark3d", "--data", scans, *QUICK, "--train.schedule", "constant"]
    run(*args, "--out", folders[0], "--train.steps", "1")
    for folder in folders:
        run(*args, "--out", folder)
    _assert_same_weights(*folders)


def test_broken_scans_are_named_and_left_out(scans: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "scans"
    for number in range(3):
        folder = write_corner(root, f"scene{number:04d}_00", number)
    mesh = folder / "scene0002_00_vh_clean_2.ply"
    mesh.write_bytes(mesh.read_bytes()[:2000])
    run("pretrain", "spark3d", "--data", root, "--out", tmp_path / "run", *QUICK)
    said = capsys.readouterr().out
    assert "left out of the report: " in said
    # Three steps do not take an occupancy that begins low above the threshold.
    assert json.loads((tmp_path / "run" / "report.json").read_text())["after"]["filled"] == 0
    assert "no voxel is called occupied yet, so that nothing is filled in" in said
    assert "scene0002_00" in (tmp_path / "run" / "quarantine.txt").read_text()


def test_scenes_without_normals_and_scale_train_too(data_folder: Path, tmp_path: Path) -> None:
    """Sparse points of genuine captures, which have colours alone and no scale."""
    args = ["--data", data_folder / "mvimgnet", "--out", tmp_path, *QUICK, "--method.signals", "XYZ_RGB"]
    run("pretrain", "spark3d", *args)
    report = json.loads((tmp_path / "report.json").read_text())
    assert "normal_share" not in report["after"]
    assert report["after"]["voxels"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method.model", "croco_tiny"], "model must read voxels, such as sparse_resnet_tiny"),
        (["--method.mask-ratio", "1.5"], "mask_ratio must lie between 0 and 1"),
        (["--method.model", "sparse_resnet_huge"], "unknown model 'sparse_resnet_huge'"),
        (["--train.steps", "6", "--train.warmup-steps", "90"], "the warm-up takes 90 steps of a schedule of 6"),
    ],
)
def test_wrong_settings_are_one_line(scans: Path, tmp_path: Path, args: list[str], message: str, capsys) -> None:
    assert message in error_of(capsys, "pretrain", "spark3d", "--data", scans, "--out", tmp_path / "run", *args)


@pytest.mark.parametrize("preset", SparK3DRecipe.presets)
def test_presets_survive_their_files(preset: str, tmp_path: Path) -> None:
    run = SparK3DRecipe.preset(preset)
    run.check()
    save_config(run, tmp_path / "config.yaml")
    assert load_config(SparK3DRun, tmp_path / "config.yaml") == run
    assert np.isfinite(run.method.voxel_size)
