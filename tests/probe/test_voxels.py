"""Representations of voxels compared: scenes whose answer is known, and every encoder over voxels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from geo3d import InputError, create_model
from geo3d.geometry import PointCloud
from geo3d.models.voxel_points import VoxelPoints, points_in_voxels
from geo3d.probe.voxels import CloudVoxels, VoxelProbe, input_features, network_features

CLASSES = ("red", "green", "blue")


class PaintedScenes:
    """Points whose colour is their class's; labels may be shuffled, ignored, or broken off."""

    classes = CLASSES

    def __init__(self, count: int, labels: str = "true") -> None:
        self.count, self.labels = count, labels

    def __len__(self) -> int:
        return self.count

    def describe(self, index: int) -> str:
        return f"{self.labels} {self.count}: scene {index}"

    def cloud(self, index: int) -> PointCloud:
        if self.labels == "broken" or (self.labels == "one broken" and index == 1):
            raise InputError(f"scene {index} is damaged")
        generator = torch.Generator().manual_seed(index)
        semantic = torch.randint(3, (500,), generator=generator)
        colors = torch.eye(3)[semantic]
        xyz, normals = torch.rand(500, 3, generator=generator), torch.randn(500, 3, generator=generator)
        if self.labels == "shuffled":
            semantic = semantic[torch.randperm(500, generator=generator)]
        if self.labels == "ignored" or (self.labels == "one labelled" and index > 0):
            semantic = torch.full_like(semantic, -1)
        semantic[:20] = -1
        return PointCloud(xyz, colors, torch.nn.functional.normalize(normals, dim=1), semantic)


def _probe(labels: str = "true", held: str | None = None, **options) -> VoxelProbe:
    said: list[str] = []
    whole = {"voxels_per_scene": 200, "seed": 0, "log": said.append} | options
    train, measured = PaintedScenes(5, labels), PaintedScenes(2, held or labels)
    return VoxelProbe(CloudVoxels(train, 0.05), CloudVoxels(measured, 0.05), **whole)


def test_a_class_that_is_the_colour_is_read_off_whole_and_one_that_is_not_shown_is_not() -> None:
    probe = _probe()
    inputs = {"colours": input_features(("colors",), 0.05), "normals": input_features(("normals",), 0.05)}
    scores = probe.measure(inputs)
    assert scores["colours"].miou == scores["colours"].accuracy == 1
    assert scores["colours"].columns == 7
    assert abs(scores["normals"].accuracy - 1 / 3) < 0.08  # 5 standard deviations of 900 voxels
    labelled = 0
    for index in range(2):
        cloud = PaintedScenes(2).cloud(index)
        labelled += int((cloud.semantic[points_in_voxels(cloud, 0.05).index] >= 0).sum())
    assert scores["colours"].voxels == scores["normals"].voxels == labelled


def test_shuffled_labels_are_at_chance() -> None:
    accuracy = _probe("shuffled").measure({"colours": input_features(("colors",), 0.05)})["colours"].accuracy
    assert abs(accuracy - 1 / 3) < 0.08


@pytest.mark.parametrize("name", ["sparse_resnet_tiny", "swin3d_tiny"])
def test_every_encoder_over_voxels_can_be_probed(name: str) -> None:
    network = create_model(name, signals="XYZ_RGB_NORM", generator=torch.Generator().manual_seed(0))
    probes = [_probe(voxels_per_scene=100).measure({"network": network_features(network)}) for _ in range(2)]
    assert probes[0] == probes[1]
    scores = probes[0]["network"]
    assert scores.columns == sum(network.channels)
    assert scores.accuracy > 0.5  # colours are among what it is handed
    assert not network.training


def test_another_seed_draws_other_voxels() -> None:
    labels = torch.arange(300) % 3
    places = ((0, 0), (0, 1), (1, 0))
    drawn = [_probe(voxels_per_scene=50, seed=seed)._drawn(labels, index)[0] for seed, index in places]
    assert all(len(rows.unique()) == 50 and (rows.diff() > 0).all() for rows in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    rows, order, labelled = _probe(voxels_per_scene=1000)._drawn(labels, 0)
    assert len(rows) == labelled == 300
    assert order.sort().values.tolist() == list(range(300))


def test_input_features_are_place_height_and_what_is_read() -> None:
    xyz = torch.tensor([[1.25, 0.5, 3.75]])
    points = VoxelPoints(xyz, torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.0, 0, 1]]), torch.tensor([0, 1]))
    expected = torch.tensor([[0.25, 0.5, 0.75, 0.375, 0.1, 0.2, 0.3, 0, 0, 1]])
    torch.testing.assert_close(input_features(("colors", "normals"), 0.1)(points), expected)
    assert input_features((), 0.1)(points).shape == (1, 4)


def test_scenes_that_cannot_be_read_are_left_out_and_named() -> None:
    said: list[str] = []
    scores = _probe("one broken", "true", log=said.append).measure({"colours": input_features(("colors",), 0.05)})
    assert scores["colours"].miou == 1
    assert (scores["colours"].scenes, scores["colours"].left_out) == (2, 1)
    assert said == ["left out: one broken 5: scene 1: scene 1 is damaged"]
    held = _probe("true", "one broken", log=said.append).measure({"colours": input_features(("colors",), 0.05)})
    assert (held["colours"].scenes, held["colours"].left_out) == (1, 1)
    for labels in (("one broken", "true"), ("true", "one broken")):
        with pytest.raises(InputError, match="scene 1 is damaged"):
            _probe(*labels, strict=True).measure({"colours": input_features(("colors",), 0.05)})


@pytest.mark.parametrize(
    ("labels", "held", "message"),
    [
        ("ignored", "true", "fewer than 2 training scenes hold a labelled voxel"),
        ("one labelled", "true", "fewer than 2 training scenes hold a labelled voxel"),
        ("true", "ignored", "held-out scenes hold no labelled voxel"),
        ("broken", "true", "none of the scenes can be read"),
        ("true", "broken", "none of the scenes can be read"),
    ],
)
def test_scenes_that_say_nothing_are_an_error(labels: str, held: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _probe(labels, held).measure({"colours": input_features(("colors",), 0.05)})


def test_features_that_are_not_finite_are_named() -> None:
    with pytest.raises(InputError, match="broken: linear read-out: features hold NaN"):
        _probe().measure({"broken": lambda points: torch.full((len(points.xyz), 2), torch.nan)})


def test_too_few_scenes_and_other_classes_are_an_error() -> None:
    with pytest.raises(InputError, match="at least 2 training scenes"):
        replace(_probe(), train=PaintedScenes(1))
    other = PaintedScenes(2)
    other.classes = ("wall", "floor", "door")
    with pytest.raises(InputError, match="different classes"):
        replace(_probe(), held=other)
