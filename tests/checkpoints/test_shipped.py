"""The weights that come with geo3d: small, whole, described, and better than none; and files in half precision."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import geo3d
from geo3d.checkpoints import hub, shipped
from geo3d.cli import pretrain
from geo3d.datasets.synthetic.object_kinds import OBJECT_KINDS
from geo3d.datasets.synthetic.objects import object_points
from geo3d.geometry.rotation import random_rotation
from geo3d.linear_svm import object_splits, svm_accuracy
from geo3d.models import encoder_of, family_of
from geo3d.probe.linear import fit_readout
from geo3d.samples.posed_objects import pooled_features

_MOST, _MOST_TOGETHER = 8e6, 20e6  # bytes
_NAMES = shipped.shipped_names()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails the test."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a connection is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _cloud(seed: int = 0, points: int = 3000) -> geo3d.PointCloud:
    """The walls and floor of a corner, in colours."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(0, 2, (points, 3)).astype(np.float32)
    axis = rng.integers(0, 3, points)
    xyz[np.arange(points), axis] = 0
    normals = np.eye(3, dtype=np.float32)[axis]
    return geo3d.PointCloud(torch.from_numpy(xyz), colors=torch.rand(points, 3), normals=torch.from_numpy(normals))


def _features(encoder: geo3d.Encoder) -> list[Tensor]:
    """Features of all stages of something that an encoder reads, as rows or maps."""
    if encoder.kind == "image":
        rng = np.random.default_rng(0)
        return encoder.features(encoder.prepare(Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8))))
    return [stage.feats for stage in encoder.features(encoder.prepare(_cloud()))]


def test_they_are_small() -> None:
    sizes = [shipped.require_shipped(name).stat().st_size for name in _NAMES]
    assert _NAMES
    assert max(sizes) <= _MOST
    assert sum(sizes) <= _MOST_TOGETHER
    assert {path.name for path in shipped.require_shipped(_NAMES[0]).parent.iterdir()} == {
        f"{name}.safetensors" for name in _NAMES
    }


@pytest.mark.parametrize("name", _NAMES)
@torch.no_grad()
def test_they_load_by_name_and_give_features(name: str) -> None:
    encoder = geo3d.create_model(name, checkpoint="shipped")
    assert encoder.name == name
    assert not encoder.licence  # none that binds beyond that of geo3d: nothing is warned of
    assert all(value.dtype == torch.float32 for value in encoder.parameters())
    found = _features(encoder)
    assert len(found) == len(encoder.feature_info)
    for stage, values, fresh in zip(encoder.feature_info, found, _features(encoder.fresh())):
        assert stage.channels in values.shape
        assert values.isfinite().all()
        assert values.std() > 0
        assert not torch.equal(values, fresh)
    loaded = geo3d.load_encoder(name, device="cpu")
    assert loaded.trained
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), encoder.parameters()))
    assert not geo3d.load_encoder(name, device="cpu", fresh=0).trained


@pytest.mark.parametrize("name", _NAMES)
def test_they_say_what_they_are(name: str) -> None:
    weights = shipped.shipped_info(name)
    assert tuple(sorted(weights.about)) == tuple(sorted(shipped.ABOUT))
    assert all(isinstance(text, str) and text for text in weights.about.values())
    assert weights.about["licence"] == "Apache-2.0"
    assert weights.about["command"].startswith("geo3d pretrain ")
    with safe_open(weights.path, framework="pt") as file:
        types = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 (no mapping)
    assert types <= {torch.float16, torch.int64}
    assert torch.float16 in types
    info = geo3d.model_info(name)
    assert info.shipped == weights
    assert f"comes with geo3d: {name}.safetensors" in str(info)


@pytest.mark.parametrize("name", _NAMES)
def test_the_command_that_made_them_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are there, and it trains this model; nothing is trained."""
    runs = []
    monkeypatch.setattr("geo3d.recipes.pretrain", lambda name, run: runs.append(run))
    pretrain.main(shipped.shipped_info(name).about["command"].split()[2:], "geo3d pretrain")
    (run,) = runs
    run.check()
    assert name in (getattr(run.method, "model", None), getattr(run.method, "encoder", None))


def test_other_models_have_none() -> None:
    assert shipped.shipped_weights("swin3d_s") is None
    assert geo3d.model_info("swin3d_s").shipped is None
    with pytest.raises(
        geo3d.InputError, match=r"no weights of swin3d_s come with geo3d, only those of .*; give a file"
    ):
        geo3d.create_model("swin3d_s", checkpoint="shipped")
    with pytest.raises(geo3d.InputError, match="no weights of swin3d_s come with geo3d"):
        geo3d.load_encoder("swin3d_s")
    with pytest.raises(geo3d.InputError, match="'shipped' goes with the name of a model"):
        geo3d.create_model(checkpoint="shipped")


def test_a_name_stands_for_its_weights_where_no_file_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = _NAMES[0]
    assert hub.resolve(name) == hub.resolve(Path(name)) == hub.resolve("shipped", name) == shipped.shipped_weights(name)
    assert hub.absolute(Path(name)) == Path(name)
    assert geo3d.create_model(checkpoint=name).name == name
    Path(name).mkdir()
    assert hub.resolve(name) == Path(name)
    assert hub.absolute(Path(name)) == tmp_path / name


# Better than none: small probes on objects and rooms that were not trained on


def _objects_told_apart(encoder: geo3d.Encoder) -> float:
    """Accuracy of a linear SVM on 12 kinds of synthetic objects, each turned in its own way, three of a kind learnt."""
    kinds, each = np.arange(12), 6
    rng = np.random.default_rng(0)
    clouds = [
        torch.from_numpy(object_points(5 * kind + len(OBJECT_KINDS) * number, 7, 1024) @ random_rotation(rng).T).float()
        for kind in kinds.tolist()
        for number in range(each)
    ]
    features = pooled_features(encoder, "max+mean")
    rows = torch.cat([features(clouds[first : first + 32]) for first in range(0, len(clouds), 32)])
    labels = np.repeat(kinds, each)
    return float(svm_accuracy(rows, labels, object_splits(labels, 5, each // 2)).mean())


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Six furnished rooms of another seed than that of any training."""
    pytest.importorskip("embreex", reason="the extra synthetic is not installed")
    from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic

    folder = tmp_path_factory.mktemp("rooms")
    write_synthetic(
        SyntheticConfig(out=folder, scenes=6, objects=0, views=2, width=32, height=32, seed=77, mesh_edge=0.05)
    )
    return list(geo3d.open_dataset(folder / "scannet"))


@torch.no_grad()
def _classes_read_off(encoder: geo3d.Encoder, rooms: list[Any]) -> float:
    """Accuracy of a linear read-out of the classes of voxels, learnt in four rooms and measured in the two others."""
    parts: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for number, room in enumerate(rooms):
        cloud = room.points()
        inputs = encoder.inputs(cloud)
        labels = cloud.semantic[inputs.index].long()
        rows = (labels >= 0).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(number))[:1000]]
        parts[number >= 4].append((encoder.voxel_features(inputs)[rows], labels[rows]))
    (train, labels), (test, truth) = ([torch.cat(part) for part in zip(*some)] for some in parts)
    return float((fit_readout(train, labels, 1e-2).predict(test) == truth).float().mean())


#: Kind -> by how much shipped weights must do better than fresh ones. Measured: objects 0.87 against 0.49 to 0.57;
#: voxels, two thirds through the training, 0.714 against 0.678 to 0.690. Images: docs/weights.md, no probe of seconds
#: shows it.
_MARGINS = {"points": 0.15, "voxels": 0.01}


@pytest.mark.parametrize("name", [name for name in _NAMES if family_of(name).kind in _MARGINS])
def test_they_are_better_than_fresh_weights(name: str, request: pytest.FixtureRequest) -> None:
    encoder = geo3d.create_model(name, checkpoint="shipped")
    if encoder.kind == "points":
        pytest.importorskip("sklearn", reason="the extra svm is not installed")
        score = _objects_told_apart
    else:
        score = partial(_classes_read_off, rooms=request.getfixturevalue("rooms"))
    fresh = score(encoder.fresh(torch.Generator().manual_seed(0)))
    assert score(encoder) > fresh + _MARGINS[encoder.kind]


# Half precision


@torch.no_grad()
def test_half_a_file_is_the_same_network_to_three_digits(tmp_path: Path) -> None:
    model = geo3d.create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(0))
    geo3d.save_model(model, tmp_path / "whole.safetensors")
    for ending in ("safetensors", "pt"):
        path = tmp_path / f"half.{ending}"
        geo3d.save_model(model, path, half=True, about={"data": "none", "licence": "Apache-2.0"})
        assert path.stat().st_size < 0.55 * (tmp_path / "whole.safetensors").stat().st_size
        again = geo3d.create_model(checkpoint=path)
        for (name, value), other in zip(model.state_dict().items(), again.state_dict().values()):
            assert other.dtype == value.dtype
            # Half precision has 11 bits: an error of 2^-12 of each value, and 2^-25 where they are smallest.
            assert torch.allclose(other, value, rtol=2.0**-11, atol=2.0**-24), name
        assert not again.licence


def test_what_half_precision_cannot_hold_is_told(tmp_path: Path) -> None:
    model = geo3d.create_model("resnet_tiny")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = 1e5
    with pytest.raises(geo3d.InputError, match=r"save_model: .* holds 1e[+]05, .* half precision"):
        geo3d.save_model(model, tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["i2p_mae_tiny", "swin3d_tiny", "sparse_resnet_tiny"])
def test_an_encoder_alone_has_the_weights_of_the_whole(name: str) -> None:
    whole = geo3d.create_model(name, generator=torch.Generator().manual_seed(0))
    alone = encoder_of(whole)
    state = whole.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in alone.state_dict().items())
    assert all(a is not b for a, b in zip(alone.parameters(), whole.parameters()))
    left_out = state.keys() - alone.state_dict().keys()
    assert bool(left_out) is bool(family_of(name).bare)
    assert not any(whole.is_of_encoder(key) for key in left_out)
    assert alone.name == name
