"""SparK's file layouts, what is read off names and shapes, and what must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from geo3d import InputError, create_model, save_model
from geo3d.checkpoints.spark import ENCODER_PREFIX

NAMES = ["resnet_tiny", "convnext_atto"]
PUBLISHED_CONFIG = {"mask_ratio": 0.6, "densify_norm_str": "bn", "sbn": True, "hierarchy": 4}
PUBLISHED_CONFIG |= {"sparse_encoder.input_size": 224, "dense_decoder.width": 768}


def whole(name: str):
    return create_model("spark", encoder=name, decoder_width=64, generator=torch.Generator().manual_seed(0))


def published(name: str) -> dict:
    """The weights of a whole network as the authors' ``module`` holds them."""
    dead = {"imn_m": torch.full((1, 3, 1, 1), torch.nan), "imn_s": torch.zeros(1, 3, 1, 1)}
    return {**dead, "norm_black": torch.zeros(1, 3, 64, 64), **whole(name).state_dict(), "config": PUBLISHED_CONFIG}


CONTAINERS = {
    "bare": lambda state: state,
    "module": lambda state: {"module": state},
    "training": lambda state: {
        "args": "Namespace(bs=4096)", "input_size": 224, "arch": "resnet50", "epoch": 1599, "performance_desc": "0.3",
        "module": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "is_pretrain": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_networks(name: str, container: str, tmp_path: Path) -> None:
    path, expected = tmp_path / "spark_style.pth", whole(name)
    torch.save(CONTAINERS[container](published(name)), path)
    model = create_model("spark", checkpoint=path)
    assert model.config.encoder.channels == expected.config.encoder.channels
    assert (model.config.densify_norm, model.config.decoder_width) == (expected.config.densify_norm, 64)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
    assert create_model("spark", checkpoint=path, encoder=name, drop_path_rate=0.2).config.encoder.drop_path_rate == 0.2
    encoder = create_model(name, checkpoint=path)
    assert all(torch.equal(v, model.state_dict()[ENCODER_PREFIX + k]) for k, v in encoder.state_dict().items())
    assert not model.training
    assert not encoder.training


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", NAMES)
def test_bare_encoders(name: str, container: str, prefix: str, tmp_path: Path) -> None:
    expected = create_model(name, generator=torch.Generator().manual_seed(0))
    state = {prefix + key: value for key, value in expected.state_dict().items()}
    path = tmp_path / "timm_style.pth"
    torch.save(CONTAINERS[container](state), path)
    model = create_model(name, checkpoint=path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_own_files_of_the_whole_network_yield_both(name: str, tmp_path: Path) -> None:
    path, expected = tmp_path / "model.safetensors", whole(name)
    save_model(expected, path)
    assert create_model("spark", checkpoint=path).config == expected.config
    encoder = create_model(name, checkpoint=path)
    assert encoder.config == expected.config.encoder
    save_model(encoder, tmp_path / "encoder.safetensors")
    again = create_model(name, checkpoint=tmp_path / "encoder.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), encoder.parameters(), strict=True))


@pytest.mark.parametrize("norm", ["ln", "none"])
def test_other_norms_are_read_off_the_names(norm: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    model = create_model("spark", encoder="resnet_tiny", decoder_width=32, densify_norm=norm)
    torch.save(model.state_dict(), path)
    assert create_model("spark", checkpoint=path).config.densify_norm == norm


def test_another_encoder_than_named_says_how_they_differ(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(create_model("resnet_tiny").state_dict(), path)
    with pytest.raises(
        InputError,
        match=r"holds resnet_tiny, not the resnet50 .*depths is \(1, 1, 1, 1\) in the file, \(3, .*; width",
    ):
        create_model("resnet50", checkpoint=path)
    with pytest.raises(InputError, match=r"holds a resnet_tiny \(ResNet\), not a convnext_atto"):
        create_model("convnext_atto", checkpoint=path)
    with pytest.raises(InputError, match=r"holds a bare resnet_tiny \(ResNet\), not a spark; load it as resnet_tiny"):
        create_model("spark", checkpoint=path)
    with pytest.raises(InputError, match="only drop_path_rate can be changed"):
        create_model("resnet_tiny", checkpoint=path, width=32)
    torch.save(published("resnet_tiny"), path)
    with pytest.raises(InputError, match=r"not encoder .*width=16.* in the file, .resnet50. asked for"):
        create_model("spark", checkpoint=path, encoder="resnet50")
    with pytest.raises(InputError, match=r"only drop_path_rate can be changed, not .*decoder_width"):
        create_model("spark", checkpoint=path, decoder_width=32)


def test_every_misfit_is_listed_at_once(tmp_path: Path) -> None:
    path, state = tmp_path / "model.pth", create_model("resnet_tiny").state_dict()
    state["fc.weight"] = state.pop("layer2.0.bn3.bias")
    state["bn1.running_var"] = torch.zeros(3)
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        create_model("resnet_tiny", checkpoint=path)
    message = str(caught.value)
    assert "1 missing: layer2.0.bn3.bias" in message
    assert "1 unexpected: fc.weight" in message
    assert "1 of another shape: bn1.running_var (3,) for (16,)" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "layer3" not in k}, "not a whole resnet: stage 3 of 4"),
        (lambda s: {"weight": torch.zeros(1)}, "neither a ResNet nor a ConvNeXt"),
        (lambda s: {"module": [1, 2]}, "expected names with tensors"),
        (lambda s: {}, "expected names with tensors"),
    ],
)
def test_what_is_no_encoder_is_refused(change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(change(create_model("resnet_tiny").state_dict()), path)
    with pytest.raises(InputError, match=message):
        create_model("resnet_tiny", checkpoint=path)


def test_a_decoder_without_its_first_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({k: v for k, v in published("resnet_tiny").items() if "dec.0" not in k}, path)
    with pytest.raises(InputError, match=r"not a whole SparK network: it has no dense_decoder\.dec\.0"):
        create_model("spark", checkpoint=path)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    path = tmp_path / "model.pth"
    torch.save({"module": published("resnet_tiny") | {"config": Evil()}}, path)
    with pytest.raises(InputError, match="refused"):
        create_model("spark", checkpoint=path)
    assert not (tmp_path / "ran").exists()


def test_another_familys_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "croco.safetensors"
    save_model(create_model("croco_tiny", encoder_depth=1, decoder_depth=1), path)
    with pytest.raises(InputError, match=r"holds a croco_tiny \(CroCo\), not a resnet50"):
        create_model("resnet50", checkpoint=path)
