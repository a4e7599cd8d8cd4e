"""Swin3D's file layouts, what is read off names and shapes, and what must be refused."""

from __future__ import annotations

import re
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from geo3d import InputError, create_model, save_model
from geo3d.geometry import PointCloud
from geo3d.models.swin3d import DECODERS, SIGNALS, Swin3DConfig, Swin3DUNet

SIZES = {"depths": (2, 1, 1), "channels": (16, 24, 32), "heads": (2, 3, 4), "windows": (5, 5, 7)}
CONFIG = Swin3DConfig(**SIZES, signals="XYZ_RGB", num_classes=7)


@pytest.fixture
def network() -> Swin3DUNet:
    return Swin3DUNet(CONFIG, torch.Generator().manual_seed(0))


def _prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "backbone.module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_container_and_prefix(network: Swin3DUNet, prefix: str, wrapped: bool, tmp_path: Path) -> None:
    state = _prefixed(network.state_dict(), prefix)
    container = {
        "epoch": 100,
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(6e-4)}]},
        "scheduler": {"last_epoch": np.int64(3)},
        "best_iou": np.float64(0.755),
        "is_best": np.bool_(True),
    }
    path = tmp_path / "model.pth"
    torch.save(container if wrapped else state, path)
    loaded = create_model("swin3d", checkpoint=path)
    assert loaded.config == CONFIG
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize(("signals", "decoder", "features"), list(product(SIGNALS, DECODERS, (None, 3))))
def test_the_network_is_read_off_names_and_shapes(signals, decoder, features, tmp_path: Path) -> None:
    config = Swin3DConfig(**SIZES, signals=signals, in_channels=features, decoder=decoder, num_classes=5)
    path = tmp_path / "model.pth"
    torch.save({"state_dict": Swin3DUNet(config).state_dict()}, path)
    assert create_model("swin3d", checkpoint=path).config == config


@pytest.mark.parametrize(("decoder", "heads", "window"), [("linear_attn", 4, 7), ("linear", 1, 5)])
def test_networks_without_attention_among_the_finest_voxels(decoder, heads, window, tmp_path: Path) -> None:
    changes = {"depths": (0, 2, 1), "heads": (heads, 3, 4), "windows": (window, 5, 7), "decoder": decoder}
    config = Swin3DConfig(**(SIZES | changes), num_classes=5)
    state = Swin3DUNet(config).state_dict()
    published = {"stem_layer.0.conv_layers.0.kernel", "stem_layer.1.conv2.kernel", "stem_layer.1.norm1.bn.weight"}
    published |= {"downsample.norm.weight", "downsample.linear.weight", "layers.1.blocks.0.norm1.weight"}
    assert published < state.keys()
    path = tmp_path / "model.pth"
    torch.save({"state_dict": state}, path)
    assert create_model("swin3d", checkpoint=path).config == config


def test_other_bins_are_read_off_where_the_tables_tell(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    told, untold = (Swin3DConfig(**SIZES, signals=signals, quant_size=2) for signals in ("XYZ_RGB", "XYZ"))
    torch.save(Swin3DUNet(told).state_dict(), path)
    assert create_model("swin3d", checkpoint=path).config == told
    torch.save(Swin3DUNet(untold).state_dict(), path)
    assert create_model("swin3d", checkpoint=path, quant_size=2).config == untold


@pytest.mark.parametrize(
    ("classes", "signals", "expected", "said"),
    [
        (13, "XYZ_RGB", (2, 0.04), "13 classes are taken for those of S3DIS, so first_stride=2, voxel_size=0.04"),
        (13, "XYZ_RGB_NORM", (3, 0.02), "13 classes are not taken for S3DIS's, so first_stride=3, voxel_size=0.02"),
        (20, "XYZ_RGB", (3, 0.02), None),
        (25, "XYZ_RGB", (3, 0.02), None),
    ],
)
def test_what_weights_do_not_tell_is_that_of_the_released_networks(
    classes: int, signals: str, expected, said: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save(Swin3DUNet(Swin3DConfig(**SIZES, num_classes=classes, signals=signals)).state_dict(), path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = create_model("swin3d", checkpoint=path).config
    assert (config.first_stride, config.voxel_size) == expected
    assert len(caught) == (said is not None)
    assert all(f"{path}: " in str(warning.message) and said in str(warning.message) for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = create_model("swin3d", checkpoint=path, first_stride=5, voxel_size=0.1).config
    assert (config.first_stride, config.voxel_size) == (5, 0.1)


def _published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of a network whose ways down take maxima over cells, as the published code gives them."""
    return {re.sub(r"downsample\.(norm|linear)\.", r"downsample.\1.\1.", name): v for name, v in state.items()}


@pytest.mark.parametrize("finest", [0, 2])
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_names_of_maxima_over_cells_are_read(finest: int, prefix: str, tmp_path: Path) -> None:
    """``knn_down=False``: other names of the ways down, from which the pooling is known."""
    heads = (1, 3, 4) if finest == 0 else SIZES["heads"]
    config = Swin3DConfig(**(SIZES | {"depths": (finest, 1, 1), "heads": heads}), num_classes=7, pooling="cell")
    network = Swin3DUNet(config, torch.Generator().manual_seed(0)).eval()
    state = _published_names(network.state_dict())
    names = {name for name in state if "downsample." in name}
    first = "downsample" if finest == 0 else "layers.0.downsample"
    ways = (first, f"layers.{0 if finest == 0 else 1}.downsample")
    ends = ("norm.norm.weight", "norm.norm.bias", "linear.linear.weight")
    assert names == {f"{way}.{end}" for way in ways for end in ends}
    path = tmp_path / "model.pth"
    torch.save({"state_dict": _prefixed(state, prefix)}, path)
    loaded = create_model("swin3d", checkpoint=path)
    assert loaded.config == config
    xyz, colors = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(1))
    cloud = PointCloud(xyz, colors)
    assert torch.equal(loaded.predict(cloud, 0.05), network.predict(cloud, 0.05))
    assert create_model("swin3d", checkpoint=path, pooling="cell").config == config
    with pytest.raises(InputError, match=r"model.pth: its names are of pooling='cell', not of 'neighbors'"):
        create_model("swin3d", checkpoint=path, pooling="neighbors")
    save_model(loaded, tmp_path / "own.safetensors")
    assert create_model(checkpoint=tmp_path / "own.safetensors").config == config


def test_names_of_two_kinds_of_ways_down_are_no_network(network: Swin3DUNet, tmp_path: Path) -> None:
    state = network.state_dict()
    mixed = {(name.replace("0.downsample.norm.", "0.downsample.norm.norm.")): v for name, v in state.items()}
    torch.save(mixed, tmp_path / "model.pth")
    with pytest.raises(InputError, match="are of two kinds of networks"):
        create_model("swin3d", checkpoint=tmp_path / "model.pth")


def test_own_files_keep_the_whole_config(tmp_path: Path) -> None:
    config = Swin3DConfig(**SIZES, signals="XYZ", quant_size=3, first_stride=2, drop_path_rate=0.1)
    path = tmp_path / "model.safetensors"
    save_model(Swin3DUNet(config), path)
    assert create_model("swin3d", checkpoint=path).config == config
    assert create_model("swin3d", checkpoint=path, drop_path_rate=0.0).config.drop_path_rate == 0
    with pytest.raises(InputError, match="only drop_path_rate, voxel_size can"):
        create_model("swin3d", checkpoint=path, first_stride=3)


def test_a_name_that_is_not_the_files_network_says_how_they_differ(network: Swin3DUNet, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(InputError, match=r"channels is \(16, 24, 32\) in the file, \(48, 96"):
        create_model("swin3d_s", checkpoint=path)


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"signals": "XYZ"}, {"decoder": "linear_attn"}])
def test_stored_weights_fix_the_network(network: Swin3DUNet, options: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(InputError, match="only drop_path_rate, voxel_size, first_stride, quant_size, pooling can"):
        create_model("swin3d", checkpoint=path, **options)


def test_every_misfit_is_listed_at_once(network: Swin3DUNet, tmp_path: Path) -> None:
    state = network.state_dict()
    state["extra.weight"] = state.pop("upsamples.0.linear2.1.weight")
    state["classifier.1.running_var"] = torch.zeros(3)
    path = tmp_path / "misfit.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(InputError) as caught:
        create_model("swin3d", checkpoint=path)
    message = str(caught.value)
    assert "1 missing: upsamples.0.linear2.1.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: classifier.1.running_var (3,) for (16,)" in message
    assert "\n" not in message


@pytest.mark.parametrize("cut", ["classifier.", "layers.0.blocks.0.attn.", "stem_layer."])
def test_a_part_of_a_network_is_named_as_such(network: Swin3DUNet, cut: str, tmp_path: Path) -> None:
    path = tmp_path / "part.pth"
    torch.save({k: v for k, v in network.state_dict().items() if not k.startswith(cut)}, path)
    with pytest.raises(InputError, match=f"not a whole Swin3D network: it has no {cut}"):
        create_model("swin3d", checkpoint=path)


def test_another_familys_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "croco.safetensors"
    save_model(create_model("croco_tiny", encoder_depth=1, decoder_depth=1), path)
    with pytest.raises(InputError, match=r"holds a croco_tiny \(CroCo\), not a swin3d"):
        create_model("swin3d", checkpoint=path)
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not a whole Swin3D network"):
        create_model("swin3d", checkpoint=tmp_path / "other.pth")
