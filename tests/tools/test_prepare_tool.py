"""tools/prepare.py and tools/benchmark.py from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import benchmark
import numpy as np
import prepare
import pytest
import torch
from benchmarks.croco_twin import CroCoTwin
from PIL import Image

from geo3d import create_model
from geo3d.cli import command_line
from geo3d.datasets import open_dataset
from geo3d.methods.croco import completion_loss
from geo3d.models.croco import visible_from_mask
from geo3d.nn.patches import patchify


def _call(tool, *args: str) -> int:
    sys.argv = [tool.PROGRAM, *args]
    with pytest.raises(SystemExit) as stop:
        command_line.run(tool.main)
    return stop.value.code


def test_synthetic_then_pairs(tmp_path: Path, capsys) -> None:
    root, index = tmp_path / "made", tmp_path / "pairs.tsv"
    sizes = ["--scenes", "1", "--objects", "0", "--views", "20", "--width", "96", "--height", "72", "--workers", "1"]
    assert _call(prepare, "synthetic", "--output", str(root), *sizes) == 0
    assert open_dataset(root / "scannet")[0].depth(0).shape == (72, 96)
    assert _call(prepare, "pairs", "--data", str(root / "scannet"), "--output", str(index)) == 0
    assert "pairs" in capsys.readouterr().out
    assert index.stat().st_size > 0
    with Image.open(index.with_suffix(".png")) as picture:
        picture.verify()


@pytest.mark.parametrize(
    ("tool", "args", "message"),
    [
        (prepare, [], "name a command: synthetic, pairs"),
        (prepare, ["cook"], "unknown command 'cook'"),
        (prepare, ["synthetic", "--scenes", "-1"], "scenes must be at least 0"),
        (prepare, ["pairs", "--data", "absent"], "absent: no such folder"),
        (
            prepare,
            ["pairs", "--data", "{tmp}/places", "--output", "{tmp}/file/pairs.tsv"],
            "cannot be made as a folder",
        ),
        (benchmark, [], "name a command"),
        (benchmark, ["loader", "--json", "{tmp}/none/rows.json"], "there is no folder"),
        (benchmark, ["croco", "--model", "crocodile"], "unknown model 'crocodile'"),
        (benchmark, ["croco", "--model", "croco_v1_base", "--size", "32"], "rotary embedding only"),
        (benchmark, ["loader", "--pairs", "few"], "--pairs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tool, args, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "places" / "one").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "places" / "one" / f"{number}.png")
    assert _call(tool, *(a.format(tmp=tmp_path) for a in args)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert message in error


def test_a_benchmark_prints_ratios_and_writes_its_rows(tmp_path: Path, capsys) -> None:
    target = tmp_path / "rows.json"
    sizes = ["--model", "croco_tiny", "--size", "64", "--batch", "2", "--turns", "1", "--threads", "1"]
    assert _call(benchmark, "croco", *sizes, "--json", str(target)) == 0
    rows = json.loads(target.read_text())
    assert [row["dtype"] for row in rows] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert all(set(row) >= {"case", "variant", "device", "dtype", "seconds", "peak_mb"} for row in rows)
    assert all(row["seconds"] > 0 and row["peak_mb"] > 0 for row in rows)
    out = capsys.readouterr().out
    assert "1.00 x" in out
    assert torch.__version__ in out


def test_the_twin_computes_the_same_loss() -> None:
    network = create_model("croco_tiny", generator=torch.Generator().manual_seed(0)).double()
    first, second = torch.randn(2, 2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(2, 64, generator=torch.Generator().manual_seed(2)).argsort(1) < 57
    prediction = network(first, second, visible_from_mask(mask)).prediction
    ours = completion_loss(prediction, patchify(first, 8), mask, normalise_patches=True)
    # The twin turns by float32 angles, as one would write it: 1e-7 of the loss.
    assert CroCoTwin(network)(first, second, mask).item() == pytest.approx(ours.item(), rel=1e-5)
