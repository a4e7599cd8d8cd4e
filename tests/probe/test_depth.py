"""The depth probe: a ridge with a known answer, depths whose logarithm is handed in, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scenes import AnalyticDataset
from PIL import Image

import geo3d
from geo3d import InputError
from geo3d.datasets import scene as scenes
from geo3d.probe import run_probe
from geo3d.probe.depth import DepthConfig, DepthProbe, depth_figures, patch_log_depth
from geo3d.probe.ridge import fit_ridge


@pytest.fixture
def config(monkeypatch, tmp_path: Path) -> DepthConfig:
    """Two scenes of boxes to learn from and one to measure on, and a network with fresh weights."""
    monkeypatch.setattr(scenes, "_REGISTRY", {"analytic": AnalyticDataset, **scenes._REGISTRY})
    path = tmp_path / "resnet.safetensors"
    geo3d.save_model(geo3d.create_model("resnet_tiny", generator=torch.Generator().manual_seed(0)), path)
    data = AnalyticDataset.write(tmp_path / "train", {"a": 4, "b": 5})
    test = AnalyticDataset.write(tmp_path / "test", {"c": 3})
    return DepthConfig(checkpoint=path, data=(data,), test_data=(test,), side=64, patch=8, out=tmp_path / "depth.json")


def test_the_ridge_is_that_of_the_normal_equations() -> None:
    """In float64, of correlated columns, one of which does not vary; weights agree to 1e-4 (measured: 2e-6)."""
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 7
    columns[:, 4] = 3
    targets = columns @ rng.normal(size=5) + rng.normal(size=200)
    deviation = columns.std(0)
    deviation[4] = 1
    rows = (columns - columns.mean(0)) / deviation
    for penalty, readout in fit_ridge(torch.from_numpy(columns), torch.from_numpy(targets), (1e-3, 1.0)).items():
        expected = np.linalg.solve(rows.T @ rows / 200 + penalty * np.eye(5), rows.T @ (targets - targets.mean()) / 200)
        assert readout.weight.numpy() == pytest.approx(expected, abs=1e-4)
        assert readout.predict(torch.from_numpy(columns)).numpy() == pytest.approx(
            rows @ expected + targets.mean(), abs=1e-3
        )


def test_no_column_gives_the_mean() -> None:
    readout = fit_ridge(torch.zeros(4, 0), torch.tensor([1.0, 2, 3, 6]), (1.0,))[1.0]
    assert readout.predict(torch.zeros(2, 0)).tolist() == [3, 3]


def test_figures_are_those_that_are_written_down() -> None:
    truth = torch.tensor([1.0, 2.0, 4.0]).double()
    figures = depth_figures((truth * torch.tensor([1.0, 1.2, 0.5])).log(), truth.log())
    assert figures["rmse"] == pytest.approx(np.sqrt((0.4**2 + 2**2) / 3))
    assert figures["abs_rel"] == pytest.approx((0.2 + 0.5) / 3)
    assert figures["delta1"] == pytest.approx(2 / 3)


def test_the_depth_of_a_patch_is_the_mean_of_logs_where_it_is_known() -> None:
    def depth_at(pixels: torch.Tensor) -> torch.Tensor:
        return torch.where(pixels[:, 0] < 8, 0.0, torch.where(pixels[:, 1] < 4, 1.0, 4.0)).double()

    middles = torch.tensor([[3.5, 3.5], [11.5, 3.5], [7.5, 3.5]], dtype=torch.float64)
    found = patch_log_depth(depth_at, middles, 8)
    assert found[0].isnan()
    assert found[1:].tolist() == pytest.approx([np.log(2)] * 2)


def test_the_logarithm_of_depth_is_read_off_whole(config: DepthConfig) -> None:
    probe = DepthProbe(config, lambda line: None)

    def told(looked_at) -> torch.Tensor:
        logs = patch_log_depth(looked_at.shown.depth_at, looked_at.pixels, looked_at.step)
        return torch.stack([torch.nan_to_num(logs).float(), torch.rand(len(logs))], 1)

    score = probe.measure({"told": told})["told"]
    assert score.rmse < 1e-3
    assert score.delta1 == 1


def test_a_run_gives_figures_table_and_picture(config: DepthConfig) -> None:
    lines: list[str] = []
    scores = run_probe("depth", config, lines.append)
    assert list(scores) == ["checkpoint", "fresh weights, seed 0", "input features", "constant"]
    assert scores["checkpoint"] == scores["fresh weights, seed 0"]  # which is what the file holds
    assert scores["constant"].columns == 0
    assert scores["input features"].rmse_log < scores["constant"].rmse_log  # the floor is below, the far wall above
    assert json.loads(config.out.read_text())["constant"]["scenes"] == 1
    assert Image.open(config.out.with_suffix(".png")).size[0] > 500
    assert "delta < 1.25" in lines[-2]


def test_networks_over_other_things_are_named(config: DepthConfig, tmp_path: Path) -> None:
    path = tmp_path / "points.safetensors"
    geo3d.save_model(geo3d.create_model("i2p_mae_tiny"), path)
    with pytest.raises(InputError, match="i2p_mae reads points; give an encoder of images"):
        run_probe("depth", DepthConfig(checkpoint=path, data=config.data), lambda line: None)
