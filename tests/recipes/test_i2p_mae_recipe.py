"""I2P-MAE's recipe: synthetic objects where no data is given, and classes that a linear SVM reads off the encoder."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import records, small_run

from geo3d import InputError
from geo3d.config import load_config
from geo3d.errors import MissingExtra
from geo3d.recipes import get_recipe, pretrain
from geo3d.recipes.i2p_mae import I2PMAERun

CLASSES = ("flat", "long", "round")


def write_objects(root: Path, count: int = 8, classes: int = 3) -> Path:
    """Ellipsoids of three classes in one file."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count)
    axes = np.array([[1, 1, 0.2], [1, 0.2, 0.2], [1, 1, 1]])[labels % 3]
    points = rng.standard_normal((len(labels), 150, 3))
    points *= axes[:, None] / np.linalg.norm(points, axis=2, keepdims=True)
    root.mkdir()
    np.savez(root / "shapes.npz", points=points.astype(np.float32), label=labels, classes=np.array(CLASSES[:classes]))
    return root


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_objects(tmp_path / "objects")


def test_classes_are_read_off_while_training_and_tell_the_best(labelled: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run = small_run("i2p_mae", data=(labelled,), out=tmp_path / "run", measure_every=1, held_out=0.5)
    result, report = pretrain("i2p_mae", run, lines.append)
    measured = [record["measured/svm"] for record in records(tmp_path / "run") if "measured/svm" in record]
    assert len(measured) == 2
    assert result.best_measured == max(measured)
    assert report["after"]["svm"] == measured[-1]
    for figures in (report["before"], report["after"]):
        assert 0 <= figures["svm"] <= 1
        assert {"loss", "points_loss", "features_loss", "svm_spread"} <= figures.keys()
    assert report["after"]["svm"] > 0.5  # flat, long and round are not alike: 0.9 to 1 when written; by chance 0.33
    assert any("a linear SVM learns from " in line for line in lines)
    assert "classes read off by a linear SVM: " in lines[-1]


def test_others_are_read_off_where_they_are_named(labelled: Path, rooms: Path, tmp_path: Path) -> None:
    run = small_run("i2p_mae", data=(rooms,), probe_data=(labelled,), out=tmp_path / "run", pooling="max+mean")
    _, report = pretrain("i2p_mae", run, print)
    assert report["after"]["svm"] > 0.5
    single = write_objects(tmp_path / "single", classes=1)
    with pytest.raises(InputError, match="probe_data: no two classes have 4 objects each"):
        pretrain("i2p_mae", replace(run, probe_data=(single,), out=tmp_path / "other"), print)
    with pytest.raises(InputError, match=r"probe_data: .*absent is not there"):
        pretrain("i2p_mae", replace(run, probe_data=(tmp_path / "absent",), out=tmp_path / "other"), print)


def test_without_scikit_learn_it_says_so_or_refuses(labelled: Path, rooms: Path, tmp_path: Path, monkeypatch) -> None:
    def missing() -> None:
        raise MissingExtra("pip install 'geo3d[svm]'")

    monkeypatch.setattr("geo3d.recipes.i2p_mae.require_scikit_learn", missing)
    lines: list[str] = []
    run = small_run("i2p_mae", data=(labelled,), out=tmp_path / "run", held_out=0.5)
    _, report = pretrain("i2p_mae", run, lines.append)
    assert "svm" not in report["after"]
    assert sum("their classes are not read off: pip install 'geo3d[svm]'" in line for line in lines) == 1
    with pytest.raises(MissingExtra):
        pretrain("i2p_mae", replace(run, data=(rooms,), probe_data=(labelled,), out=tmp_path / "other"), print)


def test_paths_are_the_same_from_wherever_a_run_is_started(labelled: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "teacher.pth"
    run = small_run("i2p_mae", {"teacher_checkpoint": Path("teacher.pth")}, data=(Path("objects"),))
    run = replace(run, probe_data=(Path("objects"),)).resolved()
    assert (run.data, run.probe_data, run.method.teacher_checkpoint) == ((labelled,), (labelled,), weights)


def test_objects_are_made_where_no_data_is_given(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = small_run("i2p_mae", {"points": 100}, objects=12, out=Path("run"), held_out=0.0)
    _, report = pretrain("i2p_mae", run, print)
    assert report["after"]["objects"] == 12
    made = get_recipe("i2p_mae").made_data(run)
    assert made.is_dir()
    assert any(part == "data" for part in made.parts)
    assert load_config(I2PMAERun, Path("run") / "config.yaml").objects == 12
    with pytest.raises(InputError, match="objects must be at least 1, got 0"):
        pretrain("i2p_mae", replace(run, objects=0, out=Path("other")), print)
    assert json.loads((Path("run") / "report.json").read_text())["after"] == report["after"]
    assert os.listdir("data")
