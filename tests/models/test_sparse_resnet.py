"""Sparse residual networks: what they read, odd scenes, files and bad input. The dense oracle is in tests/tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from geo3d import InputError, create_model, save_model
from geo3d.geometry import PointCloud
from geo3d.models.voxel_points import VoxelPoints, points_in_voxels


def make_cloud(*sizes: int, seed: int = 0) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    xyz, colors = torch.rand(2, sum(sizes), 3, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(sum(sizes), 3, generator=generator), dim=1)
    return PointCloud(xyz, colors, normals, offsets=torch.tensor([0, *sizes]).cumsum(0))


def make_model(name: str = "sparse_resnet_tiny", **options):
    return create_model(name, generator=torch.Generator().manual_seed(0), **options)


def test_what_is_read_of_points() -> None:
    xyz = torch.tensor([[1.05, -2.0, 0.0], [1.00, -2.0, 0.325], [1.06, -1.98, 0.01]])
    colors, normals = torch.tensor([[0, 0.5, 1], [1, 1, 1], [1, 0, 0]]), torch.tensor([[0, 0, 1.0]]).expand(3, -1)
    inputs = make_model().inputs(PointCloud(xyz, colors, normals), 0.1)
    assert inputs.voxels.coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3]]
    assert inputs.inverse.tolist() == [0, 1, 0]
    expected = torch.tensor([[1, 0, -1, -1, -1, 0, 1, 0, 0, 1], [1, -1, -1, -0.5, 1, 1, 1, 0, 0, 1]])
    torch.testing.assert_close(inputs.voxels.feats, expected, rtol=0, atol=1e-5)  # decimal fractions over 0.1
    assert make_model(signals="XYZ").inputs(PointCloud(xyz), 0.1).voxels.feats.shape == (2, 4)
    assert torch.equal(
        make_model(signals="XYZ_NORM").inputs(PointCloud(xyz, None, normals), 0.1).voxels.feats[:, 4:], normals[:2]
    )


def test_points_that_lack_what_is_read_are_named() -> None:
    cloud = make_cloud(9)
    with pytest.raises(InputError, match="signals XYZ_RGB_NORM reads normals, but the points have none"):
        make_model().inputs(PointCloud(cloud.xyz, cloud.colors))
    with pytest.raises(InputError, match="voxel_size must be positive"):
        make_model().inputs(cloud, 0.0)
    inputs = make_model(signals="XYZ").inputs(cloud)
    with pytest.raises(InputError, match="stride 1 and 10 features, got 1 and 4"):
        make_model().features(inputs)


@pytest.mark.parametrize("name", ["sparse_resnet_tiny", "swin3d_tiny"])
@pytest.mark.parametrize("training", [False, True])
def test_scenes_of_one_point_and_of_none(name: str, training: bool) -> None:
    """An empty scene, alone or beside others, is no accident that a training run may fall over."""
    model = make_model(name, signals="XYZ_RGB_NORM").train(training)
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)[:40] + 0.25  # a voxel each
    cloud = make_cloud(40)
    for offsets in ([0, 40, 40], [0, 0, 0, 1], [0, 0], [0, 0, 0]):
        parts = (t[: offsets[-1]] for t in (grid, cloud.colors, cloud.normals))
        points = VoxelPoints(*parts, torch.tensor(offsets))
        inputs = model.voxel_inputs(points)
        features = model.voxel_features(inputs)
        assert features.shape == (len(points.xyz), sum(model.channels))
        assert features.isfinite().all()
        features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["sparse_resnet_tiny", "swin3d_tiny"])
def test_a_scene_is_computed_by_itself(name: str) -> None:
    """In evaluation mode: scenes of a batch do not see each other."""
    model = make_model(name, signals="XYZ_RGB_NORM")
    both = model.voxel_features(model.inputs(make_cloud(50, 70), 0.1))
    first = model.voxel_features(model.inputs(make_cloud(50, 70).scene(0), 0.1))
    # Equal to the bit here; matrix products of other shapes may add up in another order.
    torch.testing.assert_close(both[: len(first)], first, rtol=0, atol=1e-5)


def test_subsets_of_points_keep_their_scenes() -> None:
    points = points_in_voxels(make_cloud(30, 1, 40), 0.2)
    rows = torch.tensor([0, 2, len(points.xyz) - 1])
    subset = points.subset(rows)
    assert subset.offsets.tolist() == [0, 2, 2, 3]
    assert torch.equal(subset.coords, points.coords[rows])
    assert torch.equal(subset.index, points.index[rows])


def test_files(tmp_path: Path) -> None:
    model = make_model(signals="XYZ_RGB", channels=(16, 24, 32))
    save_model(model, tmp_path / "model.safetensors")
    for options in ({}, {"voxel_size": 0.5}, {"signals": "XYZ_RGB"}):
        loaded = create_model("sparse_resnet", checkpoint=tmp_path / "model.safetensors", **options)
        assert loaded.config.voxel_size == options.get("voxel_size", 0.05)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(InputError, match=r"channels is \(16, 24, 32\) in the file, \(64, 128, 256, 512\) in the model"):
        create_model("sparse_resnet18", checkpoint=tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"only voxel_size can be changed, not signals .*XYZ_RGB"):
        create_model("sparse_resnet", checkpoint=tmp_path / "model.safetensors", signals="XYZ")
    with pytest.raises(InputError, match=r"holds a sparse_resnet_tiny .*, not a swin3d"):
        create_model("swin3d", checkpoint=tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="does not fit SparseResNet"):
        create_model("sparse_resnet", checkpoint=tmp_path / "bare.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1)}, "must be of one length"),
        ({"signals": "RGB"}, "signals must be one of XYZ, "),
        ({"block": "wide"}, "block must be one of basic, bottleneck"),
        ({"stem": 0}, "sizes must be at least 1"),
        ({"voxel_size": -1.0}, "voxel_size positive"),
        ({"block": "bottleneck", "channels": (30, 32, 32)}, "bottlenecks need channels that 4 divides"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(**options)


def test_an_encoder_of_swin3d_gets_a_decoder_only_when_asked(tmp_path: Path) -> None:
    encoder = make_model("swin3d_tiny", decoder="none")
    assert not any(name.startswith(("upsamples", "classifier")) for name in encoder.state_dict())
    inputs = encoder.inputs(PointCloud(make_cloud(50).xyz, make_cloud(50).colors), 0.1)
    for call in (encoder, lambda i: encoder.features(i, decoded=True)):
        with pytest.raises(InputError, match=r"an encoder alone.*fresh_decoder=True"):
            call(inputs)
    save_model(encoder, tmp_path / "encoder.safetensors")
    path = tmp_path / "encoder.safetensors"
    loaded = create_model("swin3d_tiny", checkpoint=path)
    assert loaded.config.decoder == "none"
    expected = encoder.voxel_features(inputs)
    torch.testing.assert_close(loaded.voxel_features(inputs), expected)  # loaded weights may lie otherwise in memory
    with pytest.raises(InputError, match="fresh_decoder=True adds a decoder"):
        create_model("swin3d_tiny", checkpoint=path, decoder="linear")
    whole = [
        create_model(
            "swin3d_tiny",
            checkpoint=path,
            fresh_decoder=True,
            generator=torch.Generator().manual_seed(seed),
            decoder="linear_attn",
            num_classes=7,
        )
        for seed in (0, 0, 1)
    ]
    assert whole[0](inputs).shape == (len(inputs.voxels), 7)
    torch.testing.assert_close(whole[0].voxel_features(inputs), expected)
    torch.testing.assert_close(whole[0](inputs), whole[1](inputs))
    assert not torch.allclose(whole[0](inputs), whole[2](inputs))
    # A network that has a decoder may get a new one, for other classes.
    save_model(whole[0], tmp_path / "whole.safetensors")
    other = create_model("swin3d", checkpoint=tmp_path / "whole.safetensors", fresh_decoder=True, num_classes=3)
    assert other(inputs).shape[1] == 3
    assert other.config.decoder == "linear_attn"
    # Or keep it, under a head for other classes.
    headed = create_model("swin3d", checkpoint=tmp_path / "whole.safetensors", fresh_head=True, num_classes=3)
    assert headed(inputs).shape[1] == 3
    kept = {name: value for name, value in whole[0].state_dict().items() if not name.startswith("classifier.")}
    assert any(name.startswith("upsamples.") for name in kept)
    assert all(torch.equal(headed.state_dict()[name], value) for name, value in kept.items())
    with pytest.raises(InputError, match="fresh_decoder goes with a checkpoint"):
        create_model("swin3d_tiny", fresh_decoder=True)
