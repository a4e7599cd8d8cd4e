"""The Swin3D network beyond the goldens: analytic facts, tiny and odd scenes, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from geo3d import InputError, create_model
from geo3d.geometry import PointCloud, SparseVoxels
from geo3d.models.swin3d import Swin3DConfig, Swin3DInput, Swin3DUNet, inputs_from_points, inputs_from_voxels
from geo3d.nn.sparse_layers import MaxDownsample
from geo3d.nn.topology import Topology
from geo3d.nn.voxel_pyramid import Coarsening, Level, representatives
from geo3d.nn.window_attention import DropPath

SMALL = Swin3DConfig((2, 1, 1), (16, 24, 32), (2, 3, 4), (5, 5, 7), signals="XYZ_RGB_NORM", num_classes=4)


def make_cloud(*sizes: int, seed: int = 0, extent: float = 1.0) -> PointCloud:
    """Scenes of random points in a cube."""
    generator = torch.Generator().manual_seed(seed)
    xyz, colors = torch.rand(2, sum(sizes), 3, generator=generator)
    normals = F.normalize(torch.randn(sum(sizes), 3, generator=generator), dim=1)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return PointCloud(extent * xyz, colors, normals, offsets=offsets)


def make_model(**changes) -> Swin3DUNet:
    options = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | changes
    if "signals" in changes:
        options["in_channels"] = None
    return create_model("swin3d", generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(
    ("options", "small", "large"),
    [
        ({}, 23_573_348, 60_757_060),
        ({"decoder": "linear_attn"}, 26_496_116, 68_239_540),
        ({"signals": "XYZ_RGB_NORM"}, 25_097_876, 63_297_940),
        ({"signals": "XYZ_RGB_NORM", "decoder": "linear_attn"}, 28_228_004, 71_126_020),
        ({"num_classes": 25}, 23_573_593, 60_757_465),
        ({"num_classes": 25, "in_channels": 3}, None, 60_750_985),
    ],
)
def test_parameter_counts_are_the_published_ones(options: dict, small: int | None, large: int) -> None:
    for name, count in (("swin3d_s", small), ("swin3d_l", large)):
        with torch.device("meta"):
            model = create_model(name, **options)
        assert count in (None, sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize("first_stride", [2, 3])
def test_strides(first_stride: int) -> None:
    model = make_model(first_stride=first_stride)
    assert model.strides == (1, first_stride, 2 * first_stride)
    found = model.features(model.inputs(make_cloud(80), 0.1))
    assert [v.stride for v in found] == list(model.strides)
    assert [v.feats.shape[1] for v in found] == [16, 24, 32]
    decoded = model.features(model.inputs(make_cloud(80), 0.1), decoded=True)
    assert [tuple(v.feats.shape) for v in decoded] == [(len(v), c) for v, c in zip(found, (16, 24))]


def test_inputs_follow_the_published_contract() -> None:
    xyz = torch.tensor([[1.05, -2.0, 0.0], [1.00, -2.0, 0.32], [1.13, -1.96, 0.0], [1.06, -1.98, 0.01]])
    colors = torch.tensor([[0, 0.5, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
    normals = torch.tensor([[0, 0, 1.0]]).expand(4, -1)
    inputs = inputs_from_points(xyz, colors, normals, None, 0.1, SMALL)
    assert inputs.voxels.coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3], [0, 1, 0, 0]]
    assert inputs.index.tolist() == [0, 1, 2]  # the first point stands for the voxel that the last one shares
    assert inputs.inverse.tolist() == [0, 1, 2, 0]
    place = torch.tensor([[0.5, 0, 0], [0, 0, 0.2], [0.3, 0.4, 0]])
    rgb = torch.tensor([[-1, 0, 1], [1, 1, 1], [-1.0, -1, -1]])
    # Decimal fractions are not exact in float32, and are divided by 0.1: errors of a few 1e-6.
    torch.testing.assert_close(inputs.voxels.feats[:, :6], torch.cat([rgb, normals[:3]], 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(inputs.voxels.feats[:, 6:], place, atol=1e-5, rtol=0)
    expected = torch.cat(
        [place + torch.tensor([[0, 0, 0], [0, 0, 3], [1, 0, 0.0]]), rgb / 1.001, normals[:3] / 1.001], 1
    )
    torch.testing.assert_close(inputs.signals, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("signals", "in_channels", "features", "width"),
    [
        ("XYZ", None, 3, 3),
        ("XYZ_RGB", None, 6, 6),
        ("XYZ_RGB", 3, 3, 6),
        ("XYZ_NORM", None, 6, 9),
        ("XYZ_RGB_NORM", None, 9, 9),
    ],
)
def test_every_kind_of_signal(signals: str, in_channels: int | None, features: int, width: int) -> None:
    config = Swin3DConfig(SMALL.depths, SMALL.channels, SMALL.heads, SMALL.windows, signals, in_channels)
    cloud = make_cloud(40)
    colors = None if signals in ("XYZ", "XYZ_NORM") else cloud.colors
    inputs = inputs_from_points(cloud.xyz, colors, cloud.normals, None, 0.1, config)
    assert inputs.voxels.feats.shape[1] == features
    assert inputs.signals.shape[1] == width
    model = Swin3DUNet(config).eval()
    assert torch.isfinite(model(inputs)).all()


def test_constant_columns_change_no_choice() -> None:
    """Networks of positions and normals keep the published colour columns; what they hold must not matter."""
    model, cloud = make_model(signals="XYZ_NORM"), make_cloud(200)
    without = inputs_from_points(cloud.xyz, None, cloud.normals, None, 0.1, model.config)
    grey = inputs_from_points(cloud.xyz, torch.full_like(cloud.xyz, 0.7), cloud.normals, None, 0.1, model.config)
    torch.testing.assert_close(model(without), model(grey))  # of library calls


@pytest.mark.parametrize("decoder", ["linear", "linear_attn"])
def test_scenes_do_not_see_each_other(decoder: str) -> None:
    model = make_model(decoder=decoder).double()
    clouds = [make_cloud(60, seed=1), make_cloud(1, seed=2), make_cloud(2, seed=3), make_cloud(200, seed=4)]
    together = _double(model.inputs(PointCloud.pack(clouds), 0.1))
    logits = model(together)
    alone = torch.cat([model(_double(model.inputs(cloud, 0.1))) for cloud in clouds])
    torch.testing.assert_close(logits, alone, atol=1e-12, rtol=0)  # float64, other sizes of matrix products


def _double(inputs: Swin3DInput) -> Swin3DInput:
    return Swin3DInput(inputs.voxels.with_feats(inputs.voxels.feats.double()), inputs.signals, inputs.index)


def test_the_order_of_voxels_does_not_matter() -> None:
    model = make_model().double()
    inputs = _double(model.inputs(make_cloud(150, 90), 0.1))
    scene = inputs.voxels.coords[:, 0]
    order = torch.randperm(len(scene), generator=torch.Generator().manual_seed(0))
    order = order[scene[order].argsort(stable=True)]
    shuffled = Swin3DInput(SparseVoxels(inputs.voxels.coords[order], inputs.voxels.feats[order]), inputs.signals[order])
    torch.testing.assert_close(model(shuffled), model(inputs)[order], atol=1e-12, rtol=0)  # float64, order of sums


def test_the_nearest_to_the_mean_represents_and_ties_go_to_the_smallest_coordinate() -> None:
    coords = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 2, 0, 0], [0, 3, 0, 1], [0, 4, 4, 4]]).int()
    signals = coords[:, 1:].float() + 0.5
    signals[2] = signals[:2].mean(0) + 0.1  # nearest to the mean of its cell of three
    topology = Topology(coords)
    coarse, parent = topology.coarsen(2)
    # The cell of rows 3 and 4 is tied: row 3 has the smaller coordinate.
    assert representatives(signals, topology, parent, coarse.size).tolist() == [2, 3, 5]
    order = torch.tensor([4, 3, 5, 0, 2, 1])
    shuffled = Topology(coords[order])
    coarse, parent = shuffled.coarsen(2)
    assert order[representatives(signals[order], shuffled, parent, coarse.size)].tolist() == [2, 3, 5]


def test_signals_of_a_window_are_in_bins() -> None:
    coords = torch.tensor([[0, 6, 0, 12], [0, 9, 3, 0]]).int()
    signals = torch.tensor([[7.5, 0, 12, 1, 0, -1], [9, 5.25, 0, 0.5, 0.5, 0.5]])
    windows = Level(Topology(coords, stride=3), signals).windows(3, True, ("xyz", "rgb"), 4)
    # Cells 2, 0, 4 and 3, 1, 0 of the level, moved by 1, in windows of 3; fractions of a voxel of edge 3.
    expected = [[0.5, 1, 2, 2, 0, -2], [1 + 0, 2 + 0.75, 1, 1, 1, 1]]
    expected = torch.tensor(expected) * torch.tensor([4, 4, 4, 4, 4, 4.0])
    assert torch.equal(windows.signals, expected)


@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 1, 1), (15,), (0, 3), (3, 0)])
@pytest.mark.parametrize(("decoder", "depth"), [("linear", 2), ("linear_attn", 2), ("linear", 0)])
def test_tiny_and_empty_scenes(sizes: tuple[int, ...], decoder: str, depth: int) -> None:
    model = make_model(decoder=decoder, depths=(depth, 1, 1))
    logits = model.predict(make_cloud(*sizes), 0.1)
    assert logits.shape == (sum(sizes), 4)
    assert torch.isfinite(logits).all()
    inputs = model.inputs(make_cloud(*sizes), 0.1)
    inputs.voxels.feats.requires_grad_()
    model(inputs).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_mixed_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = make_model(decoder="linear_attn")
    inputs = model.inputs(make_cloud(200), 0.1)
    expected = model(inputs).detach()
    with torch.autocast("cpu", dtype):
        logits = model(inputs)
    # Some ten roundings of 8 and 11 bits in a row; measured 0.009 and 0.001 of the scale.
    assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()
    logits.float().square().mean().backward()
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


def test_no_voxel_at_all() -> None:
    assert make_model().predict(make_cloud(0), 0.1).shape == (0, 4)


def test_points_of_a_voxel_share_its_logits() -> None:
    model, cloud = make_model(), make_cloud(50)
    twice = PointCloud.pack([cloud, cloud])
    doubled = PointCloud(twice.xyz, twice.colors, twice.normals)
    both, alone = model.predict(doubled, 0.1), model.predict(cloud, 0.1)
    assert torch.equal(both[50:], both[:50])
    torch.testing.assert_close(both[50:], alone)  # of library calls


def test_downsampling_takes_the_largest_of_the_neighbours_and_its_gradient() -> None:
    layer, x = MaxDownsample(8, 5).double(), torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    neighbors = torch.randint(30, (12, 16))
    step = Coarsening(neighbors[0], neighbors[:, 0], neighbors, neighbors, neighbors)
    out, expected = layer(x, step), layer.linear(layer.norm(x))[neighbors].max(1).values
    assert torch.equal(out, expected)
    weight = torch.randn_like(out)
    gradients = (torch.autograd.grad((o * weight).sum(), x)[0] for o in (out, expected))
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)  # float64, order of sums


def test_pooling_over_cells_takes_the_largest_of_their_members() -> None:
    layer, x = MaxDownsample(8, 5, "cell"), torch.randn(40, 8)
    parent = torch.cat([torch.arange(12), torch.randint(12, (28,))])
    step = Coarsening(parent, torch.arange(12), parent, parent, parent)
    projected = layer.linear(layer.norm(x))
    assert torch.equal(layer(x, step), torch.stack([projected[parent == cell].amax(0) for cell in range(12)]))
    assert torch.isfinite(make_model(pooling="cell").predict(make_cloud(50), 0.1)).all()


def test_paths_are_dropped_voxel_by_voxel() -> None:
    layer, x = DropPath(0.25), torch.ones(40_000, 3)
    torch.manual_seed(0)
    out = layer.train()(x)
    assert torch.equal(out, out[:, :1].expand(-1, 3))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (out[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)  # one sigma is 0.002
    assert torch.equal(layer.eval()(x), x)


def test_rates_of_dropped_paths_rise_over_the_blocks() -> None:
    model = make_model(drop_path_rate=0.3, decoder="linear_attn")
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [stage.block.blocks[0].drop_path.rate for stage in model.upsamples] == [0.1, 0.1]


def test_initial_weights_follow_the_recipe() -> None:
    model = make_model(channels=(64, 96, 128), heads=(4, 6, 8))
    weight = model.layers[2].blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)  # 65,536 draws: 0.3 % is one sigma
    assert model.layers[0].blocks[0].attn.query_rgb_table.std().item() == pytest.approx(0.02, rel=0.05)
    kernel = model.stem_layer.conv_layers[0].kernel
    assert kernel.abs().max() <= (27 * 9) ** -0.5
    assert kernel.std().item() == pytest.approx((27 * 9) ** -0.5 / 3**0.5, rel=0.03)  # 15,552 draws: 0.4 % is one sigma
    assert not model.classifier[3].bias.any()


def _break(inputs: Swin3DInput, **changes) -> Swin3DInput:
    return Swin3DInput(**({"voxels": inputs.voxels, "signals": inputs.signals} | changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, i: m(_break(i, voxels=i.voxels.with_feats(i.voxels.feats[:, :6]))), "6 features, the network 9"),
        (lambda m, i: m(_break(i, signals=i.signals[:, :6])), r"\(\d+, 9\) or wider"),
        (lambda m, i: m(_break(i, signals=i.signals[:5])), "or wider"),
        (lambda m, i: m(_break(i, signals=i.signals * float("nan"))), "NaN"),
        (lambda m, i: m(_break(i, voxels=SparseVoxels(i.voxels.coords.flip(0), i.voxels.feats))), "lie together"),
        (lambda m, i: m.predict(make_cloud(9), -1.0), "positive"),
        (lambda m, i: m.predict(PointCloud(torch.rand(9, 3), torch.rand(9, 3)), 0.1), "have none"),
        (lambda m, i: m.predict(PointCloud(torch.rand(9, 3) / 0, *torch.rand(2, 9, 3)), 0.1), "finite|NaN"),
        (lambda m, i: inputs_from_voxels(torch.rand(9, 3), None, None, torch.tensor([0, 9])), "reads colours"),
        (lambda m, i: create_model("swin3d_tiny", signals="RGB"), "signals must be one of"),
        (lambda m, i: create_model("swin3d_tiny", decoder="unet"), "decoder must be one of"),
        (lambda m, i: create_model("swin3d_tiny", pooling="mean"), "pooling must be one of"),
        (lambda m, i: create_model("swin3d_tiny", heads=(5, 4, 8)), "whole heads"),
        (lambda m, i: create_model("swin3d_tiny", depths=(1, 2)), "of one length"),
        (lambda m, i: create_model("swin3d_tiny", first_stride=1), "first_stride"),
        (lambda m, i: create_model("swin3d_tiny", in_channels=5).inputs(make_cloud(9), 0.1), "no rule makes 5"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message: str) -> None:
    model = make_model()
    with pytest.raises(InputError, match=message) as caught:
        call(model, model.inputs(make_cloud(30, 30), 0.1))
    assert "\n" not in str(caught.value)
