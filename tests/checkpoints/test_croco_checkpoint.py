"""CroCo's file layouts, and what must be refused."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from geo3d import InputError, create_model
from geo3d.models.croco import CroCoConfig, CroCoNet

ARGUMENTS = {
    "img_size": 32,
    "patch_size": 8,
    "enc_embed_dim": 32,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 16,
    "dec_depth": 1,
    "dec_num_heads": 2,
    "mask_ratio": 0.9,
    "pos_embed": "RoPE100",
}
CONFIG = CroCoConfig((32, 32), 8, 32, 2, 2, 16, 1, 2, rope_base=100.0)
CALL = "CroCoNet(" + ", ".join(f"{k}={v!r}" for k, v in ARGUMENTS.items()) + ")"


@pytest.fixture
def network() -> CroCoNet:
    return CroCoNet(CONFIG, torch.Generator().manual_seed(0))


def _containers(state: dict) -> dict[str, dict]:
    prefixed = {f"module.{k}": v for k, v in state.items()}
    return {
        "release": {"model": state, "croco_kwargs": ARGUMENTS},
        "data parallel": {"model": prefixed, "croco_kwargs": ARGUMENTS | {"img_size": [32, 32]}},
        "training run": {
            "model": state,
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
            "scaler": {},
            "args": argparse.Namespace(model=CALL, output_dir=Path("out")),
            "epoch": 3,
            "best_so_far": np.float64(0.25),
        },
    }


@pytest.mark.parametrize("layout", ["release", "data parallel", "training run"])
def test_published_layouts_load(network: CroCoNet, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(_containers(network.state_dict())[layout], path)
    loaded = create_model("croco", checkpoint=path)
    assert loaded.config == CONFIG
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    assert all(p.requires_grad for p in loaded.parameters())


def test_version_1_without_arguments_takes_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save({"model": {"mask_token": torch.zeros(1, 1, 512)}}, path)
    with pytest.raises(InputError, match=r"missing: dec_blocks\.0.*and \d+ more"):
        create_model("croco_v1_base", checkpoint=path)


def test_half_precision_file_becomes_float32(network: CroCoNet, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({"model": network.half().state_dict(), "croco_kwargs": ARGUMENTS}, path)
    assert all(p.dtype == torch.float32 for p in create_model("croco", checkpoint=path).parameters())


def test_every_misfit_is_listed_at_once(network: CroCoNet, tmp_path: Path) -> None:
    state = network.state_dict()
    state["extra.weight"] = state.pop("enc_norm.weight")
    state["prediction_head.bias"] = torch.zeros(3)
    path = tmp_path / "misfit.pth"
    torch.save({"model": state, "croco_kwargs": ARGUMENTS}, path)
    with pytest.raises(InputError) as caught:
        create_model("croco", checkpoint=path)
    message = str(caught.value)
    assert "1 missing: enc_norm.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: prediction_head.bias (3,) for (192,)" in message
    assert "\n" not in message


def test_a_name_that_is_not_the_files_network_says_how_they_differ(network: CroCoNet, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": network.state_dict(), "croco_kwargs": ARGUMENTS}, path)
    with pytest.raises(InputError, match=r"encoder_dim is 32 in the file, 768 in the model"):
        create_model("croco_v2_base_small", checkpoint=path)


def test_image_size_can_change_and_nothing_else(network: CroCoNet, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": network.state_dict(), "croco_kwargs": ARGUMENTS}, path)
    assert create_model("croco", checkpoint=path, image_size=(64, 32)).config.image_size == (64, 32)
    with pytest.raises(InputError, match="only image_size"):
        create_model("croco", checkpoint=path, decoder_depth=2)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_planted_payload_is_refused_and_never_run(network: CroCoNet, tmp_path: Path) -> None:
    path, marker = tmp_path / "planted.pth", tmp_path / "ran"
    torch.save({"model": network.state_dict(), "args": _Payload(marker)}, path)
    with pytest.raises(InputError, match=r"refused.*mkdir"):
        create_model("croco", checkpoint=path)
    assert not marker.exists()


def test_a_call_in_args_is_parsed_and_never_run(network: CroCoNet, tmp_path: Path) -> None:
    path, marker = tmp_path / "call.pth", tmp_path / "ran"
    call = f"CroCoNet(enc_depth=__import__('os').mkdir({str(marker)!r}))"
    torch.save({"model": network.state_dict(), "args": argparse.Namespace(model=call)}, path)
    with pytest.raises(InputError, match="not a plain constructor call"):
        create_model("croco", checkpoint=path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"wings": 2}, "wings=2"), ({"pos_embed": "learned"}, "pos_embed='learned'"), ({"pos_embed": "RoPEx"}, "RoPE100")],
)
def test_unknown_constructor_arguments_are_named(network, arguments, message, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": network.state_dict(), "croco_kwargs": arguments}, path)
    with pytest.raises(InputError, match=message):
        create_model("croco", checkpoint=path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_damaged(network: CroCoNet, keep: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"model": network.state_dict(), "croco_kwargs": ARGUMENTS}, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputError, match=r"cut\.pth"):
        create_model("croco", checkpoint=path)


def test_not_a_checkpoint_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="expected names with tensors, found list"):
        create_model("croco", checkpoint=path)
    with pytest.raises(InputError, match="no such checkpoint"):
        create_model("croco", checkpoint=tmp_path / "absent.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="damaged"):
        create_model("croco", checkpoint=tmp_path / "broken.safetensors")
