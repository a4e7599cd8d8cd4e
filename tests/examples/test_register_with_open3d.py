"""The example that aligns two scans in Open3D: run small, with fresh weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import geo3d

EXAMPLE = Path(__file__).parents[2] / "examples" / "register_with_open3d.py"


def test_it_registers_a_pair_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d", reason="open3d is not installed")
    pytest.importorskip("embreex", reason="embreex, of the extra synthetic, is not installed")
    model = geo3d.create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(0))
    geo3d.save_model(model, tmp_path / "encoder.safetensors")
    example = runpy.run_path(str(EXAMPLE))
    scores = example["main"](str(tmp_path / "encoder.safetensors"), None, 1, 300, tmp_path / "picture.png")
    assert list(scores) == ["FPFH", "FPFH, rooted", "geo3d", "geo3d and FPFH"]
    for (score,) in scores.values():
        assert 0 <= score.inlier_ratio[0] <= score.inlier_ratio[1] <= score.inlier_ratio[2] <= 1
        assert np.linalg.det(score.motion[:3, :3]) == pytest.approx(1)
    assert len(capsys.readouterr().out.splitlines()) == 5
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    assert picture.std() > 10
