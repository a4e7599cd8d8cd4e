"""The example of a dataset of one's own: run as it is, and trained on."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import geo3d
from geo3d.datasets import BrokenScene, list_datasets
from geo3d.datasets.scene import _REGISTRY
from geo3d.methods.segmentation import Segmentation, SegmentationConfig
from geo3d.samples.points import LabelledScenes

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_dataset.py"


@pytest.fixture
def orchard(tmp_path, monkeypatch) -> Path:
    """Two plots: ground, with a class a metre of height."""
    rng = np.random.default_rng(0)
    for name in ("south", "north"):
        (tmp_path / name).mkdir()
        xyz = rng.uniform([431000, 5120000, 0], [431003, 5120002, 3], (400, 3))
        np.save(tmp_path / name / "points.npy", xyz)
        np.save(tmp_path / name / "class.npy", xyz[:, 2].astype(np.uint8))
    monkeypatch.setattr("geo3d.datasets.scene._REGISTRY", dict(_REGISTRY))
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), str(tmp_path)])
    return tmp_path


def test_the_example_runs_and_trains(orchard, capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    first, *scenes = capsys.readouterr().out.splitlines()
    assert first == f"Orchard(orchard: 2 scenes in {str(orchard)!r})"
    assert [line.split()[0] for line in scenes] == ["north", "south"]
    assert all(sum(ast.literal_eval(line.split(" ", 1)[1]).values()) == 400 for line in scenes)
    assert list_datasets()[-3:] == ["orchard", "object_folders", "point_files"]

    source = LabelledScenes.find([orchard])
    assert source.classes == ("ground", "leaf", "apple")
    config = SegmentationConfig(signals="XYZ", voxel_size=0.2, max_voxels=150)
    method = Segmentation(config, source.classes, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    samples, losses = method.samples(source), []
    for step in range(8):
        batch = method.collate([samples.draw(index, np.random.default_rng([step, index])) for index in range(2)])
        loss = method(batch, torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


def test_what_the_example_promises_of_damage(orchard):
    (orchard / "north" / "points.npy").write_bytes(b"cut")
    runpy.run_path(str(EXAMPLE))
    with pytest.raises(BrokenScene, match=r"scene north: .*points.npy"):
        geo3d.open_dataset(orchard)["north"].points()
    assert geo3d.open_dataset(orchard)["south"].points().xyz.abs().max() < 5, "points far away get an origin"
