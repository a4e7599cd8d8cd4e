"""The SVM probe: sticks, plates and balls, the protocol that is printed, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import geo3d
from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import InputError, MissingExtra
from geo3d.probe import run_probe
from geo3d.probe.svm import SvmConfig, SvmProbe
from geo3d.samples.objects import ObjectClouds

_QUICK = {"per_class": 3, "splits": 3, "points": 128, "resamplings": 2, "rotations": 3, "batch": 7}


def _run(statistics: Path, objects: Path, **options) -> tuple[dict, str]:
    lines: list[str] = []
    config = SvmConfig(checkpoint=statistics, data=(objects,), **(_QUICK | options))
    return run_probe("svm", config, lines.append), "\n".join(lines)


def test_the_table_holds_what_is_compared_and_all_that_one_must_know(
    statistics: Path, objects: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        scores, said = _run(statistics, objects, seed=2, fresh=2, out=tmp_path / f"{name}.json")
    assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()
    names = ["checkpoint", "fresh weights, seed 2", "fresh weights, seed 3", "input features", "local histograms"]
    assert list(scores) == names
    assert scores["checkpoint"] == scores["fresh weights, seed 3"]  # which is what the file holds
    assert scores["checkpoint"] != scores["fresh weights, seed 2"]
    for score in scores.values():
        for pose, of_splits in score.of_splits.items():
            assert len(of_splits) == 3
            assert score.accuracy[pose] == pytest.approx(np.mean(of_splits))
            assert score.spread[pose] == pytest.approx(np.std(of_splits, ddof=1))
    local = scores["local histograms"]
    assert local.accuracy == {"stored": 1, "rotated": 1, "averaged": 1}  # of such shapes, in any pose
    assert scores["input features"].accuracy["stored"] == 1
    assert scores["checkpoint"].accuracy["stored"] > 0.5
    assert scores["checkpoint"].columns == 12
    written = json.loads((tmp_path / "first.json").read_text())
    assert list(written) == names
    assert written["checkpoint"]["accuracy"] == scores["checkpoint"].accuracy
    assert written["checkpoint"]["protocol"]["C"] == 0.01
    for text in (
        "18 objects of 3 classes",
        "linear SVM, C = 0.01, features standardised, max pooling of the last stage's tokens, 128 points a cloud",
        "mean ± sample deviation over 3 random splits of seed 2: 9 objects to learn from, 9 to measure on (3 a class",
        "3 classes; always the most frequent class: 33.3 %",
        "stored: mean of 2 resamplings",
        "averaged: mean of 3 random rotations",
        "100.0 ± 0.0 %",
    ):
        assert text in said


def test_poses_can_be_chosen_and_pooling_is_handed_on(statistics: Path, objects: Path) -> None:
    scores, said = _run(statistics, objects, poses=("stored",), pooling="max+mean", C=0.5, standardise=False)
    assert scores["checkpoint"].columns == 24
    assert list(scores["checkpoint"].cells()) == ["stored", "features"]
    assert "C = 0.5, features as they are, max+mean pooling" in said
    assert "rotated" not in said


def test_weights_and_gradients_are_left_alone(statistics: Path, objects: Path) -> None:
    config = SvmConfig(checkpoint=statistics, data=(objects,), **_QUICK)
    probe = SvmProbe(config, lambda line: None)
    before = {name: tensor.clone() for name, tensor in probe.network.state_dict().items()}
    probe.measure({"network": probe.network_features(probe.network)})
    assert all(torch.equal(before[name], tensor) for name, tensor in probe.network.state_dict().items())
    assert all(weight.grad is None for weight in probe.network.parameters())
    assert torch.is_grad_enabled()


def test_the_split_of_the_data_itself_is_taken(statistics: Path, objects: Path, monkeypatch) -> None:
    monkeypatch.setattr(ObjectClouds, "subset", lambda self, index: ("train", "test", "train", "")[index % 4])
    scores, said = _run(statistics, objects, splits="published", poses=("stored",))
    protocol = scores["checkpoint"].protocol
    assert (protocol.train, protocol.test, protocol.split_count, protocol.per_class) == (9, 5, 1, None)
    assert scores["checkpoint"].spread == {"stored": None}
    assert "±" not in said
    assert "the data's own split: 9 objects to learn from, 5 to measure on; 3 classes" in said


def test_objects_that_cannot_be_read_are_named_and_left_out(statistics: Path, objects: Path, monkeypatch) -> None:
    read = ObjectClouds.cloud

    def cloud(self, index, *args):
        if index == 4:
            raise BrokenScene("four", "objects.npz", "it is damaged")
        return read(self, index, *args)

    monkeypatch.setattr(ObjectClouds, "cloud", cloud)
    scores, said = _run(statistics, objects)
    assert scores["local histograms"].accuracy["stored"] == 1
    assert scores["checkpoint"].protocol.left_out == 1
    assert "scene four: objects.npz: it is damaged" in said
    assert "1 objects cannot be read and are left out, as named above" in said
    with pytest.raises(BrokenScene, match="it is damaged"):
        _run(statistics, objects, strict=True)
    monkeypatch.setattr(ObjectClouds, "cloud", lambda self, *args: cloud(self, 4))
    with pytest.raises(InputError, match="none of the objects can be read"):
        _run(statistics, objects)


def test_features_that_are_not_finite_are_named(statistics: Path, objects: Path) -> None:
    network = geo3d.create_model(checkpoint=statistics)
    torch.nn.init.constant_(network.layer.bias, torch.nan)
    geo3d.save_model(network, statistics)
    with pytest.raises(InputError, match="checkpoint: linear SVM: features hold NaN or infinite values"):
        _run(statistics, objects)


def test_wrong_objects_and_checkpoints_are_one_line(
    statistics: Path, objects: Path, write_objects: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"stick has 6 objects: too few to learn from 6 .* at most 5 a class"):
        _run(statistics, objects, per_class=6)
    with pytest.raises(InputError, match=r"0 objects are named as training and 0 as test objects.* --splits 5"):
        _run(statistics, objects, splits="published")
    with pytest.raises(InputError, match="give objects that are labelled with two classes or more"):
        _run(statistics, write_objects(tmp_path / "sticks", ["stick"]))
    clouds = np.load(objects / "objects.npz")["points"]
    (tmp_path / "bare").mkdir()
    np.savez(tmp_path / "bare" / "clouds.npz", points=clouds)
    with pytest.raises(InputError, match=r"bare: the objects have no classes to be told apart; give objects by class"):
        _run(statistics, tmp_path / "bare")
    voxels = tmp_path / "voxels.safetensors"
    geo3d.save_model(geo3d.create_model("sparse_resnet_tiny"), voxels)
    with pytest.raises(InputError, match="sparse_resnet reads voxels; give an encoder of points, such as i2p_mae"):
        _run(voxels, objects)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": 0}, "splits must be at least 1, got 0"),
        ({"splits": "own"}, "splits: expected one of published, found 'own'"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"C": 0}, "C must be positive"),
        ({"points": 0}, "points must be at least 1"),
        ({"pooling": "sum"}, "pooling: expected one of max, mean, max\\+mean, found 'sum'"),
        ({"poses": ("upright",)}, "poses: expected one of stored, rotated, averaged"),
        ({"poses": ()}, "poses: name one or more of stored, rotated, averaged"),
        ({"resamplings": 0}, "resamplings must be at least 1"),
        ({"data": ("nowhere",)}, "nowhere is not there"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SvmConfig(checkpoint=Path("weights"), **options)


def test_a_missing_extra_is_told_before_the_work(statistics: Path, objects: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'geo3d\[svm\]'"):
        SvmProbe(SvmConfig(checkpoint=statistics, data=(objects,)), print)


def test_without_data_synthetic_objects_are_told_apart(statistics: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    config = SvmConfig(checkpoint=statistics, objects=3 * 87, **(_QUICK | {"per_class": 2}), poses=("stored",))
    scores = run_probe("svm", config, lines.append)
    protocol = scores["checkpoint"].protocol
    assert (protocol.classes, protocol.train, protocol.test) == (87, 174, 87)
    assert scores["local histograms"].accuracy["stored"] > 10 / 87
    assert "making 261 synthetic objects" in lines[0]


def test_it_is_a_command(statistics: Path, objects: Path, capsys) -> None:
    from geo3d.cli.main import main

    quick = ["--per-class", "3", "--splits", "2", "--points", "64", "--poses", "stored", "--resamplings", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["probe", "svm", "--checkpoint", str(statistics), "--data", str(objects), *quick])
    assert stop.value.code == 0
    assert "local histograms       100.0 ± 0.0 %" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["probe", "svm", "--checkpoint", str(statistics), "--data", str(objects), "--per-class", "9"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: stick has 6 objects: too few")


def test_real_objects_are_told_apart_by_their_histograms(statistics: Path, data_folder: Path) -> None:
    scores, _ = _run(statistics, data_folder / "objects19", per_class=10, splits=5, poses=("stored",), resamplings=1)
    # Of 128 points; measured 0.69, and chance is 0.05.
    assert scores["input features"].protocol.classes == 19
    assert 0.6 < scores["input features"].accuracy["stored"] < 0.8
