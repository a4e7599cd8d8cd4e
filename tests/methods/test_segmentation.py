"""Segmentation: samples, loss and scores against what they should be by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geo3d import InputError
from geo3d.geometry import PointCloud
from geo3d.methods.segmentation import Segmentation, SegmentationConfig, augment, crop_nearest

CLASSES = ("wall", "floor", "chair")
CONFIG = SegmentationConfig(voxel_size=0.1, max_voxels=60)


def make_cloud(count: int = 300, seed: int = 0) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    xyz, colors = torch.rand(2, count, 3, generator=generator)
    normals = torch.tensor([[0.6, 0.0, 0.8]]).expand(count, -1)
    return PointCloud(xyz, colors, normals, torch.arange(count) % 4 - 1)


class MemoryScenes:
    """Clouds as :class:`LabelledScenes` hands them out."""

    classes = CLASSES

    def __init__(self, *clouds: PointCloud) -> None:
        self.clouds = clouds

    def __len__(self) -> int:
        return len(self.clouds)

    def cloud(self, index: int) -> PointCloud:
        return self.clouds[index]

    def describe(self, index: int) -> str:
        return f"memory: {index}"


def make_method(config: SegmentationConfig = CONFIG) -> Segmentation:
    return Segmentation(config, CLASSES, torch.Generator().manual_seed(0))


def test_augmentation_turns_about_the_vertical_and_scales() -> None:
    cloud = make_cloud()
    config = SegmentationConfig(scale=(0.5, 0.5), color_drop=0)
    out = augment(cloud, config, np.random.default_rng(0))
    # All distances, and heights above the middle, halve.
    torch.testing.assert_close(torch.pdist(out.xyz), torch.pdist(cloud.xyz) / 2, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out.xyz[:, 2], (cloud.xyz[:, 2] - cloud.xyz[:, 2].mean()) / 2, atol=1e-6, rtol=0)
    # Normals turn with the points and are not scaled.
    before, after = (c.xyz - c.xyz[:1] for c in (cloud, out))
    torch.testing.assert_close((after * out.normals).sum(1), (before * cloud.normals).sum(1) / 2, atol=1e-6, rtol=0)
    assert not torch.allclose(out.normals, cloud.normals)
    assert torch.equal(out.colors, cloud.colors)
    assert torch.equal(out.semantic, cloud.semantic)


def test_jitter_moves_every_point_by_little() -> None:
    cloud = make_cloud(20_000)
    still = augment(cloud, SegmentationConfig(color_drop=0), np.random.default_rng(0))
    moved = augment(cloud, SegmentationConfig(color_drop=0, jitter=0.005), np.random.default_rng(0))
    moves = moved.xyz - still.xyz
    assert moves.std().item() == pytest.approx(0.005, rel=0.02)  # 60,000 draws: 0.3 % is one sigma
    assert 0.015 < moves.abs().max() < 0.02 + 1e-6


def test_colors_are_dropped_for_whole_scenes() -> None:
    cloud, rng = make_cloud(4), np.random.default_rng(0)
    dropped = [bool((augment(cloud, SegmentationConfig(color_drop=0.2), rng).colors == 0.5).all()) for _ in range(1000)]
    assert np.mean(dropped) == pytest.approx(0.2, abs=0.05)  # one sigma is 0.013


def test_the_crop_is_a_ball_around_one_of_the_points() -> None:
    xyz = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    rows = crop_nearest(xyz, 100, np.random.default_rng(3))
    assert len(rows.unique()) == 100
    assert (rows.diff() > 0).all()
    distance = torch.cdist(xyz, xyz[rows])
    outside = np.setdiff1d(np.arange(500), rows.numpy())
    # For one of the kept points, all kept ones are nearer than all others.
    assert (distance[rows].amax(0) <= distance[outside].amin(0)).any()
    assert crop_nearest(xyz, 500, np.random.default_rng(0)).tolist() == list(range(500))


def test_samples_hold_one_real_point_a_voxel() -> None:
    samples = make_method().samples(MemoryScenes(make_cloud()))
    sample = samples.draw(0, np.random.default_rng(5))
    assert len(sample["xyz"]) == CONFIG.max_voxels
    assert len(sample["xyz"].floor().unique(dim=0)) == len(sample["xyz"])
    assert (sample["xyz"] >= 0).all()
    colors = {tuple(c) for c in make_cloud().colors.tolist()} | {(0.5, 0.5, 0.5)}
    assert all(tuple(c) in colors for c in sample["colors"].tolist())
    again = samples.draw(0, np.random.default_rng(5))
    assert all(torch.equal(sample[name], again[name]) for name in sample)
    other = samples.draw(0, np.random.default_rng(6))
    assert not torch.equal(sample["xyz"], other["xyz"])


def test_a_scene_without_what_the_network_reads_is_named() -> None:
    bare = PointCloud(make_cloud().xyz, make_cloud().colors, None, make_cloud().semantic)
    with pytest.raises(InputError, match="memory: 0: the scene has no normals"):
        make_method().samples(MemoryScenes(bare)).draw(0, np.random.default_rng(0))
    colored = make_method(SegmentationConfig(signals="XYZ_RGB", voxel_size=0.1))
    assert "normals" not in colored.samples(MemoryScenes(bare)).draw(0, np.random.default_rng(0))


def _batch(method: Segmentation, *clouds: PointCloud) -> dict:
    samples = method.samples(MemoryScenes(*clouds))
    return method.collate([samples.draw(i, np.random.default_rng(i)) for i in range(len(clouds))])


def test_loss_is_the_mean_over_labelled_voxels_of_the_batch() -> None:
    method = make_method().eval()
    batch = _batch(method, make_cloud(300), make_cloud(20, seed=1))
    assert batch["offsets"].tolist() == [0, 60, len(batch["xyz"])]
    output = method(batch)
    logits, labels = method.logits(batch), batch["semantic"]
    kept = labels >= 0
    assert 0 < kept.sum() < len(kept)
    expected = torch.nn.functional.cross_entropy(logits[kept], labels[kept])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.metrics["accuracy"].item() == pytest.approx(
        (logits.argmax(1)[kept] == labels[kept]).float().mean().item()
    )
    batch["semantic"] = torch.full_like(labels, -1)
    assert method(batch).loss.item() == 0


def test_weights_learn_and_dropped_paths_follow_the_global_seed() -> None:
    method = make_method().train()
    batch = _batch(method, make_cloud(300), make_cloud(300, seed=1))
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(method(batch).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # of library calls
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2)
    for _ in range(12):
        optimizer.zero_grad()
        loss = method(batch).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * losses[0]


def test_blocks_learn_at_a_tenth_of_the_rate() -> None:
    factors = make_method(SegmentationConfig(decoder="linear_attn")).rate_factors()
    assert set(factors.values()) == {0.1}
    assert "network.layers.0.blocks.0.attn.query_xyz_table" in factors
    assert "network.upsamples.0.block.blocks.0.mlp.fc1.weight" in factors
    assert not any("classifier" in name or "downsample" in name or "stem" in name for name in factors)


def test_picture_shows_labels_beside_predictions() -> None:
    method = make_method().eval()
    batch = _batch(method, make_cloud())
    with torch.no_grad():
        picture = method.picture(batch, method(batch))
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 2 * 520
    assert (picture != 255).any(-1).sum() > 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"voxel_size": 0.0}, "voxel_size"),
        ({"voxel_size": math.nan}, "voxel_size"),
        ({"max_voxels": 0}, "max_voxels"),
        ({"scale": (1.2, 0.8)}, "scale"),
        ({"color_drop": 1.5}, "color_drop"),
        ({"jitter": -0.1}, "jitter"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegmentationConfig(**changes)


def test_a_model_that_names_no_classes_is_refused() -> None:
    with pytest.raises(InputError, match="model must be a Swin3D, such as swin3d_tiny; resnet_tiny is none"):
        make_method(SegmentationConfig(model="resnet_tiny"))
