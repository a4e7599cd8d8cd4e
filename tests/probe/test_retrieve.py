"""Retrieval: orders that are known, objects by class, and views by scene."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scenes import AnalyticDataset

import geo3d
from geo3d.datasets import scene as scenes
from geo3d.probe import run_probe
from geo3d.probe.retrieval import retrieve
from geo3d.probe.retrieve import RetrieveConfig


def test_classes_told_by_the_features_are_all_found() -> None:
    labels = np.arange(40) % 4
    found = retrieve(np.eye(4)[labels] + 100, labels)
    assert found.precision == found.recall == 1
    assert found.queries == 40
    assert found.chance == pytest.approx(9 / 39)


def test_precision_is_that_which_is_written_down() -> None:
    """On a circle, by the definition written out; two are of classes of which there is no other."""
    angles = np.radians([0, 10, 20, 30, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    points -= points.mean(0)  # so that nothing is taken off
    labels = np.array([0, 0, 1, 0, 2])
    alike = points @ points.T / np.linalg.norm(points, axis=1) / np.linalg.norm(points, axis=1)[:, None]
    expected = []
    for row in (0, 1, 3):
        order = [n for n in np.argsort(-alike[row], kind="stable") if n != row]
        right = np.array([labels[n] == labels[row] for n in order])
        expected.append(np.mean([right[: n + 1].mean() for n in np.flatnonzero(right)]))
    found = retrieve(points, labels)
    assert found.precision == pytest.approx(np.mean(expected))
    assert found.queries == 3


def test_objects_are_asked_for(statistics: Path, objects: Path, tmp_path: Path) -> None:
    out = tmp_path / "retrieve.json"
    config = RetrieveConfig(checkpoint=statistics, data=(objects,), points=100, out=out)
    lines: list[str] = []
    scores = run_probe("retrieve", config, lines.append)
    assert list(scores) == ["checkpoint", "fresh weights, seed 0", "input features", "local histograms"]
    assert scores["local histograms"].recall_at_1 == 1  # sticks, plates and balls
    assert scores["checkpoint"].queries == 18
    assert json.loads(out.read_text())["checkpoint"]["chance"] == pytest.approx(5 / 17)
    assert out.with_suffix(".png").is_file()


def test_views_are_asked_for_by_scene(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scenes, "_REGISTRY", {"analytic": AnalyticDataset, **scenes._REGISTRY})
    path = tmp_path / "resnet.safetensors"
    geo3d.save_model(geo3d.create_model("resnet_tiny", generator=torch.Generator().manual_seed(0)), path)
    data = AnalyticDataset.write(tmp_path / "boxes", {"a": 4, "b": 3})
    config = RetrieveConfig(checkpoint=path, test_data=(data,), side=64)
    scores = run_probe("retrieve", config, lambda line: None)
    assert list(scores) == ["checkpoint", "fresh weights, seed 0", "input features"]
    assert scores["checkpoint"].queries == 7
    assert scores["input features"].columns == 192
