"""`geo3d prepare` from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_builders import build_frames
from geo3d_command import error_of, run
from PIL import Image

from geo3d.datasets import open_dataset


def test_synthetic_then_pairs(tmp_path: Path, capsys) -> None:
    root, index = tmp_path / "made", tmp_path / "pairs.tsv"
    sizes = ["--scenes", "1", "--objects", "0", "--views", "20", "--width", "96", "--height", "72", "--workers", "1"]
    run("prepare", "synthetic", "--out", root, *sizes)
    assert open_dataset(root / "scannet")[0].depth(0).shape == (72, 96)
    run("prepare", "pairs", "--data", root / "scannet", "--out", index)
    assert "pairs" in capsys.readouterr().out
    assert index.stat().st_size > 0
    with Image.open(index.with_suffix(".png")) as picture:
        picture.verify()


def test_stereo(tmp_path: Path, capsys) -> None:
    sizes = ["--scenes", "1", "--pairs", "1", "--width", "32", "--height", "32", "--workers", "1"]
    run("prepare", "stereo", "--out", tmp_path / "flow", "--task", "flow", *sizes)
    assert "1 scenes written" in capsys.readouterr().out
    assert open_dataset(tmp_path / "flow")[0].flow(0).shape == (32, 32, 2)
    assert "another configuration (task flow instead of stereo" in error_of(
        capsys, "prepare", "stereo", "--out", tmp_path / "flow", *sizes
    )


def test_grids(tmp_path: Path, capsys) -> None:
    build_frames(tmp_path / "data" / "a")
    build_frames(tmp_path / "data" / "b")
    args = ["--data", tmp_path / "data", "--out", tmp_path / "grids", "--route", "depth_fusion", "--longest-side", "16"]
    run("prepare", "grids", *args)
    assert "2 grids made, 0 were there already" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "grids")
    assert [max(scene.grid().sides) for scene in dataset] == [16, 16]
    assert (tmp_path / "grids" / "features" / "a.png").is_file()
    run("prepare", "grids", *args)
    assert "0 grids made, 2 were there already" in capsys.readouterr().out
    # The options of a route stand beside the command's own.
    assert "cut must be at least 2" in error_of(capsys, "prepare", "grids", *args, "--cut", "1")
    assert "did you mean --longest-side?" in error_of(capsys, "prepare", "grids", *args, "--longest-sid", "1")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "geo3d prepare: name a command: synthetic, stereo, pairs, grids"),
        (["cook"], "unknown command 'cook'; known: synthetic, stereo, pairs, grids\n"),
        (["sinthetic"], "did you mean 'synthetic'?"),
        (["synthetic", "--scenes", "-1"], "scenes must be at least 0"),
        (["synthetic", "--scene", "1"], "did you mean --scenes?; see geo3d prepare synthetic --help"),
        (
            ["grids", "--route", "deepfusion"],
            "unknown route 'deepfusion'; known: depth_fusion, nerfstudio, radiance_field",
        ),
        (["grids", "--route", "depth_fusion", "--data", "absent", "--out", "{tmp}/g"], "absent: no such folder"),
        (["pairs"], "Missing from geo3d prepare pairs: --data"),
        (["pairs", "--data", "absent"], "absent: no such folder"),
        (["pairs", "--data", "{tmp}/places", "--out", "{tmp}/file/pairs.tsv"], "cannot be made as a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "places" / "one").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "places" / "one" / f"{number}.png")
    assert message in error_of(capsys, "prepare", *(a.format(tmp=tmp_path) for a in args))
