"""File layouts of DUSt3R and MASt3R, and what must be refused."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from geo3d import InputError, create_model
from geo3d.errors import NonCommercialWeights
from geo3d.models.dust3r import DUSt3R, DUSt3RConfig, MASt3R
from geo3d.nn.pointmaps import ConfidenceMode
from geo3d.predict.networks import load_network

SIZES = {"img_size": (32, 48), "patch_size": 8, "enc_embed_dim": 32, "enc_depth": 2, "enc_num_heads": 2}
SIZES |= {"dec_embed_dim": 16, "dec_depth": 4, "dec_num_heads": 2, "pos_embed": "RoPE100"}
_TRUNK: dict[str, Any] = {"image_size": (32, 48), "patch_size": 8, "encoder_dim": 32, "encoder_depth": 2}
_TRUNK |= {"encoder_heads": 2, "decoder_dim": 16, "decoder_depth": 4, "decoder_heads": 2}
OPEN = ("exp", -math.inf, math.inf)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonCommercialWeights)
        yield


def call(name: str, arguments: dict[str, Any]) -> str:
    """The text of a constructor call, infinities as the bare names that published files hold."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names that published files list twice."""
    doubled = {}
    for name, value in state.items():
        head, found, rest = name.partition(".dpt.scratch.layer")
        if found and rest[1:].startswith("_rn."):
            doubled[f"{head}.dpt.scratch.layer_rn.{int(rest[0]) - 1}.weight"] = value
    return state | doubled


def write(path: Path, state: dict[str, Tensor], name: str, arguments: dict[str, Any], **more: Any) -> Path:
    args = argparse.Namespace(model=call(name, arguments), lr=1e-4, epochs=100)
    torch.save({"model": published(state), "args": args} | more, path)
    return path


@pytest.fixture(scope="module")
def linear() -> DUSt3R:
    return DUSt3R(DUSt3RConfig(**_TRUNK), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense() -> MASt3R:
    config = DUSt3RConfig(
        **_TRUNK, head="catmlp+dpt", descriptors=5, two_confidences=True,
        descriptor_confidence=ConfidenceMode("exp", 0.0),
    )  # fmt: skip
    return MASt3R(config, torch.Generator().manual_seed(0))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_file_of_the_authors_and_one_of_a_training_run(linear: DUSt3R, tmp_path: Path) -> None:
    name, state = "AsymmetricCroCo3DStereo", linear.state_dict()
    modes = {"head_type": "linear", "output_mode": "pts3d", "depth_mode": OPEN, "conf_mode": ("exp", 1, math.inf)}
    more = modes | {"landscape_only": False, "patch_embed_cls": "ManyAR_PatchEmbed"}
    files = [
        write(tmp_path / "release.pth", state, name, SIZES | modes),
        write(tmp_path / "order.pth", state, name, dict(reversed((SIZES | more).items()))),
        write(tmp_path / "defaults.pth", state, name, SIZES),
        write(tmp_path / "run.pth", state, name, SIZES, epoch=3, optimizer={"state": {}}, scaler={}, best_so_far=0.25),
        write(tmp_path / "parallel.pth", {f"module.{k}": v for k, v in state.items()}, name, SIZES),
    ]
    for path in files:
        loaded = create_model("dust3r", checkpoint=path)
        assert loaded.config == linear.config
        assert same(loaded, linear)
        assert loaded.licence == "CC-BY-NC-SA-4.0"
    assert same(load_network(files[0], "pointmaps", ("dust3r", "mast3r"), "", "cpu"), linear)  # `predict` needs no name
    assert create_model("dust3r", checkpoint=files[0], image_size=(64, 64)).config.image_size == (64, 64)
    with pytest.raises(InputError, match="encoder_depth is 2 in the file, 4 in the model"):
        create_model("dust3r_tiny", checkpoint=files[0])
    frozen = create_model("dust3r", checkpoint=write(files[0], state, name, SIZES | {"freeze": "encoder"}))
    assert {n for n, p in frozen.named_parameters() if not p.requires_grad} == {
        n for n in state if frozen.is_of_encoder(n) or n == "mask_token"
    }


def test_mast3r_and_its_folder_of_the_hub(dense: MASt3R, tmp_path: Path) -> None:
    arguments = SIZES | {"head_type": "catmlp+dpt", "output_mode": "pts3d+desc5", "depth_mode": OPEN}
    arguments |= {"conf_mode": ("exp", 1, math.inf), "two_confs": True, "desc_conf_mode": ("exp", 0, math.inf)}
    path = write(tmp_path / "mast3r.pth", dense.state_dict(), "AsymmetricMASt3R", arguments)
    loaded = create_model("mast3r", checkpoint=path)
    assert loaded.config == dense.config
    assert same(loaded, dense)
    assert same(load_network(path, "pointmaps", ("dust3r", "mast3r"), "", "cpu"), dense)
    with pytest.raises(InputError, match=r"holds a mast3r.*, not a dust3r"):
        create_model("dust3r", checkpoint=path)

    hub = tmp_path / "hub"
    hub.mkdir()
    save_file({name: value.clone() for name, value in dense.state_dict().items()}, hub / "model.safetensors")
    (hub / "config.json").write_text(json.dumps(arguments))
    assert "Infinity" in (hub / "config.json").read_text()
    assert same(create_model("mast3r", checkpoint=hub), dense)
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[1]", "should hold named arguments, found list"),
        ("{" + " " * 1_000_000 + "}", "1,000,002 bytes are no arguments"),
    ):
        (hub / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            create_model("mast3r", checkpoint=hub)


def test_a_state_dict_alone_is_described_by_name_or_options(linear: DUSt3R, tmp_path: Path) -> None:
    torch.save({"model": linear.state_dict()}, tmp_path / "bare.pth")
    sizes = _TRUNK | {"head": "linear"}
    assert same(create_model("dust3r", checkpoint=tmp_path / "bare.pth", **sizes), linear)
    with pytest.raises(InputError, match="does not fit DUSt3R"):
        create_model("dust3r", checkpoint=tmp_path / "bare.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_mode": ("linear", 0, math.inf)}, "bounds other than -inf and inf are not read"),
        ({"depth_mode": ("exp", -math.inf, 5)}, "bounds other than -inf and inf are not read"),
        ({"depth_mode": ("cube", -math.inf, math.inf)}, "depth_mode .* is not known"),
        ({"depth_mode": "exp"}, "depth_mode 'exp' is not known"),
        ({"conf_mode": ("softplus", 1, math.inf)}, "conf_mode .* is not known; it should be exp or sigmoid"),
        ({"conf_mode": ("sigmoid", 0, math.inf)}, "sigmoid needs an upper bound"),
        ({"conf_mode": ("exp", 3, 1)}, "bounds must be finite and ascending"),
        ({"output_mode": "pts3d+rgb"}, "output_mode 'pts3d\\+rgb' is not known"),
        ({"output_mode": "pts3d+desc"}, "output_mode .* is not known"),
        ({"output_mode": "pts3d+desc24"}, "the head linear has no descriptors"),
        ({"head_type": "mlp"}, "head: expected one of linear, dpt"),
        ({"pos_embed": "cosine"}, "has rotary position embeddings alone"),
        ({"patch_embed_cls": "PatchEmbed2"}, "patch_embed_cls 'PatchEmbed2' is not known"),
        ({"freeze": "all"}, "freeze 'all' is not known"),
        ({"wings": 2}, "constructor argument wings=2 is not known"),
    ],
)
def test_arguments_that_are_not_read_are_one_line(linear, change, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "file.pth", linear.state_dict(), "AsymmetricCroCo3DStereo", SIZES | change)
    with pytest.raises(InputError, match=message) as caught:
        create_model("dust3r", checkpoint=path)
    assert "\n" not in str(caught.value)
    assert "file.pth" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "AsymmetricCroCo3DStereo(enc_depth=__import__('os').getpid())",
        "AsymmetricCroCo3DStereo(enc_depth=nan)",
        "AsymmetricCroCo3DStereo(enc_depth=1, enc_depth=2)",
        f"AsymmetricCroCo3DStereo(enc_depth={'(' * 5000}1{')' * 5001})",
        b"AsymmetricCroCo3DStereo()",
        "AsymmetricCroCo3DStereo(depth_mode=('exp', -np.inf, inf))",
        "AsymmetricCroCo3DStereo(depth_mode=('exp', float('-inf'), inf))",
        "AsymmetricCroCo3DStereo(12)",
        "AsymmetricCroCo3DStereo(**{})",
        "models.AsymmetricCroCo3DStereo()",
        "AsymmetricCroCo3DStereo",
        "AsymmetricCroCo3DStereo(" * 5000,
        "",
        None,
        3,
    ],
)
def test_a_text_that_is_no_plain_call_is_never_run(linear: DUSt3R, text: Any, tmp_path: Path) -> None:
    torch.save({"model": linear.state_dict(), "args": argparse.Namespace(model=text)}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="not a plain constructor call") as caught:
        create_model("dust3r", checkpoint=tmp_path / "file.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_other_networks_are_told(linear: DUSt3R, tmp_path: Path) -> None:
    path, state = tmp_path / "file.pth", linear.state_dict()
    torch.save({"dune_backbone_name": "dune_vitbase_14", "mast3r_model_str": "x", "model": state}, path)
    with pytest.raises(InputError, match=r"holds DUNE-MASt3R, which is not read: its encoder is 'dune_vitbase_14'"):
        create_model("mast3r", checkpoint=path)
    args = argparse.Namespace(model=call("AsymmetricMASt3R", SIZES))
    torch.save({"model": {"prewhiten.m": torch.zeros(4), "prewhiten.p": torch.zeros(4, 4)}, "args": args}, path)
    with pytest.raises(InputError, match=r"prewhiten.m, prewhiten.p; a retrieval head of MASt3R is not read"):
        create_model("mast3r", checkpoint=path)
    write(path, state, "CroCoDownstreamBinocular", SIZES)
    with pytest.raises(InputError, match=r"holds a network CroCoDownstreamBinocular, known are"):
        create_model("dust3r", checkpoint=path)
    write(path, state, "SomeoneElses", SIZES)
    with pytest.raises(InputError, match=r"holds a network SomeoneElses, known are AsymmetricCroCo3DStereo"):
        create_model("dust3r", checkpoint=path)


def test_a_wrong_or_incomplete_file_never_loads(linear: DUSt3R, dense: MASt3R, tmp_path: Path) -> None:
    path, name = tmp_path / "file.pth", "AsymmetricCroCo3DStereo"
    state = linear.state_dict()
    lacking = {k: v for k, v in state.items() if not k.startswith("dec_blocks2.3.")}
    with pytest.raises(InputError, match=r"missing: dec_blocks2\.3\."):
        create_model("dust3r", checkpoint=write(path, lacking, name, SIZES))
    with pytest.raises(InputError, match="1 unexpected: extra"):
        create_model("dust3r", checkpoint=write(path, state | {"extra": torch.zeros(1)}, name, SIZES))
    with pytest.raises(InputError, match="does not fit DUSt3R"):
        create_model("dust3r", checkpoint=write(path, state, name, SIZES | {"dec_depth": 5}))
    with pytest.raises(InputError, match="does not fit"):  # another head than the call tells
        create_model("dust3r", checkpoint=write(path, state, name, SIZES | {"head_type": "dpt"}))
    twice = published(dense.state_dict())
    twice["downstream_head1.dpt.scratch.layer_rn.2.weight"] = torch.zeros(1)
    torch.save({"model": twice, "args": argparse.Namespace(model=call("AsymmetricMASt3R", SIZES))}, path)
    with pytest.raises(InputError, match=r"file\.pth: .*layer_rn\.2\.weight differs from"):
        create_model("mast3r", checkpoint=path)


def test_pre_training_files_become_networks_of_two_decoders(tmp_path: Path) -> None:
    croco = create_model("croco_tiny", generator=torch.Generator().manual_seed(3))
    sizes = {
        "img_size": 64, "patch_size": 8, "enc_embed_dim": 96, "enc_depth": 4, "enc_num_heads": 4,
        "dec_embed_dim": 64, "dec_depth": 4, "dec_num_heads": 4, "pos_embed": "RoPE100",
    }  # fmt: skip
    torch.save({"model": croco.state_dict(), "croco_kwargs": sizes}, tmp_path / "croco.pth")
    with pytest.raises(InputError, match=r"holds a bare croco.*fresh_head=True"):
        create_model("dust3r_tiny", checkpoint=tmp_path / "croco.pth")
    draw = torch.Generator().manual_seed(5)
    made = create_model("dust3r_tiny", checkpoint=tmp_path / "croco.pth", fresh_head=True, generator=draw)
    fresh = create_model("dust3r_tiny", generator=torch.Generator().manual_seed(5)).state_dict()
    given = croco.state_dict()
    for name, value in made.state_dict().items():
        source = name.replace("dec_blocks2.", "dec_blocks.")
        assert torch.equal(value, fresh[name] if name.startswith("downstream_head") else given[source]), name
    assert made.licence == "CC-BY-NC-SA-4.0"
