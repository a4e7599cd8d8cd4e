"""CroCo's downstream networks: what they read of the trunk, heads, starts from pre-training, authors' files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from geo3d import InputError, create_model, save_model
from geo3d.models.croco_downstream import PRESETS, CroCoDownstream, CroCoDownstreamConfig, TileConfidence
from geo3d.nn.dpt import PixelHead
from geo3d.nn.laplace import CriterionConfig
from geo3d.nn.patches import patchify

SIZES: dict[str, Any] = {"encoder_dim": 16, "encoder_depth": 4, "encoder_heads": 2, "decoder_dim": 8, "mlp_ratio": 2.0}
SIZES |= {"decoder_depth": 3, "decoder_heads": 2, "patch_size": 8, "rope_base": 100.0, "image_size": (32, 48)}
HEAD: dict[str, Any] = {"head_levels": (4, 6, 8, 10), "head_width": 8, "head_last": 4, "crop": (32, 48)}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(batch: int = 2, size: tuple[int, int] = (32, 48)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, *size, generator=draw(1)), torch.randn(batch, 3, *size, generator=draw(2))


def test_blocks_that_published_heads_read() -> None:
    """croco.md, 2.4: for decoders of 8 and 12 blocks, and of encoders alone."""
    expected = {"base_small": (10, 13, 16, 19), "base_base": (11, 15, 19, 23), "large_base": (23, 27, 31, 35)}
    for name, layers in expected.items():
        assert PRESETS[f"croco_stereo_{name}"].layers == PRESETS[f"croco_flow_{name}"].layers == layers
    assert PRESETS["croco_depth_base"].layers == (2, 5, 8, 11)
    assert PRESETS["croco_depth_large"].layers == (5, 11, 17, 23)
    for depth in range(1, 13):
        for config in (
            CroCoDownstreamConfig(encoder_depth=4, decoder_depth=depth),
            CroCoDownstreamConfig(encoder_depth=depth, task="depth", views=1),
        ):
            assert config.layers == tuple(sorted(config.layers))
            assert config.layers[0] >= 0
            assert config.layers[-1] == config.blocks - 1


def test_tokens_are_those_of_the_pre_training_network() -> None:
    """Of a CroCo network's weights, nothing masked, encoder and decoder yield what its own forward pass does."""
    croco = create_model("croco_tiny", generator=draw(), **SIZES)
    model = create_model("croco_stereo_tiny", generator=draw(3), **SIZES, **HEAD)
    model.load_state_dict(croco.state_dict(), strict=False)
    first, second = views()
    with torch.no_grad():
        every = torch.arange(24).expand(2, -1)
        expected = croco(first, second, every)
        tokens = model.tokens(first, second, range(model.config.blocks))
        torch.testing.assert_close(tokens[3], expected.first)
        torch.testing.assert_close(tokens[-1], expected.decoded)
        for number, map_ in enumerate(croco.features(first)):
            torch.testing.assert_close(tokens[number], map_.flatten(2).transpose(1, 2))


def test_each_sample_of_a_batch_is_its_own_pair() -> None:
    model = create_model("croco_flow_tiny", generator=draw(), **SIZES, **HEAD)
    first, second = views()
    with torch.no_grad():
        both = model(first, second)
        one = model(first[1:], second[1:])
    torch.testing.assert_close(both.values[1:], one.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.confidence[1:], one.confidence, rtol=1e-4, atol=1e-5)
    assert (both.values.shape, both.confidence.shape) == ((2, 2, 32, 48), (2, 32, 48))


def test_orders_of_a_linear_head() -> None:
    """Channels fastest is CroCo's order of patches; pixels fastest is its transpose."""
    last, first = PixelHead(5, 3, 4, channels_last=True), PixelHead(5, 3, 4)
    with torch.no_grad():
        for own, other in zip(first.parameters(), last.parameters(), strict=True):
            own.copy_(other.unflatten(0, (16, 3)).transpose(0, 1).flatten(0, 1))
    tokens = torch.randn(2, 6, 5, generator=draw())
    out = last(tokens, (2, 3))
    torch.testing.assert_close(first(tokens, (2, 3)), out)
    torch.testing.assert_close(patchify(out, 4), last.proj(tokens))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 3}, "views must be 1 or 2, got 3"),
        ({"crop": (30, 48)}, "crop .* multiples of the patch size"),
        ({"hooks": (0, 1, 2, 99)}, "hooks must be four numbers from 0 to"),
        ({"head_width": 7}, "head_width even"),
        ({"tile_confidence": {"beta": -1}}, "beta must not be negative"),
        ({"criterion": {"name": "l1", "a": 1}}, "criterion l1 takes max_gtnorm, not a"),
        ({"criterion": {"name": "bounded", "a": 5}}, "a must be less than b, got 5 and 4"),
        ({"criterion": {"name": "bounded2", "max_gtnorm": -1}}, "max_gtnorm must be positive"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("croco_stereo_tiny", **options)


def test_wrong_images_are_told() -> None:
    model, (first, second) = create_model("croco_stereo_tiny", **SIZES, **HEAD), views()
    depth = create_model("croco_depth_tiny", **SIZES, **HEAD)
    for call, message in (
        (lambda: model(first), r"stereo takes 2 images"),
        (lambda: depth(first, second), r"depth takes 1 image"),
        (lambda: model(first, second[..., :32]), "views must be of one shape"),
        (lambda: model(first[..., :30], second[..., :30]), "multiples of 8"),
    ):
        with pytest.raises(InputError, match=message):
            call()


# Starts from pre-training


@pytest.mark.parametrize("name", ["croco_stereo_tiny", "croco_flow_tiny", "croco_depth_tiny"])
def test_a_pre_training_file_becomes_part_of_a_downstream_network(name: str, tmp_path: Path) -> None:
    croco = create_model("croco_tiny", generator=draw())
    save_model(croco, tmp_path / "croco")
    old = croco.state_dict()
    for choice in ({"fresh_head": True}, {"fresh_decoder": True}):
        made = create_model(name, checkpoint=tmp_path / "croco", generator=draw(5), **choice)
        expected = create_model(name, generator=draw(5)).state_dict()
        is_kept = made.is_no_head if "fresh_head" in choice else made.is_of_encoder
        assert made.config.task == PRESETS[name].task
        assert made.config.head_levels == PRESETS[name].head_levels
        for key, value in made.state_dict().items():
            assert torch.equal(value, old[key] if is_kept(key) else expected[key]), key
    with pytest.raises(InputError, match=r"holds a bare croco_tiny .*or with fresh_head=True"):
        create_model(name, checkpoint=tmp_path / "croco")
    with pytest.raises(InputError, match=r"holds croco_tiny|holds another|holds a"):
        create_model("croco_stereo_base_small", checkpoint=tmp_path / "croco", fresh_head=True)


def test_a_head_of_another_task_on_the_same_trunk(tmp_path: Path) -> None:
    stereo = create_model("croco_stereo_tiny", generator=draw(), **SIZES, **HEAD)
    save_model(stereo, tmp_path / "stereo")
    flow = create_model(checkpoint=tmp_path / "stereo", fresh_head=True, task="flow", criterion={"name": "bounded"})
    assert (flow.config.task, flow.config.criterion.name) == ("flow", "bounded")
    assert all(torch.equal(v, stereo.state_dict()[k]) for k, v in flow.state_dict().items() if flow.is_no_head(k))
    assert flow.head.dpt.head[4].weight.shape[0] == 3
    with pytest.raises(InputError, match="can be changed, not task"):
        create_model(checkpoint=tmp_path / "stereo", task="flow")
    save_model(create_model("croco_tiny"), tmp_path / "croco")
    with pytest.raises(InputError, match="has no head of its own"):
        create_model("croco_tiny", checkpoint=tmp_path / "croco", fresh_head=True)
    with pytest.raises(InputError, match="fresh_head goes with a checkpoint"):
        create_model("croco_tiny", fresh_head=True)


# Authors' files


def _arguments() -> dict[str, Any]:
    return {
        "pos_embed": "RoPE100", "img_size": (32, 48), "enc_embed_dim": 16, "enc_depth": 4, "enc_num_heads": 2,
        "dec_embed_dim": 8, "dec_depth": 3, "dec_num_heads": 2, "patch_size": 8, "mlp_ratio": 2,
    }  # fmt: skip


def _published(path: Path, model: CroCoDownstream, **args: Any) -> Path:
    """A file as the authors write it, a DPT head's tensors doubled."""
    state = dict(model.state_dict())
    for name, value in list(state.items()):
        head, _, rest = name.partition("head.dpt.")
        if not head and rest.startswith("act_postprocess."):
            number, inner = rest.removeprefix("act_postprocess.").split(".", 1)
            state[f"head.dpt.act_{int(number) + 1}_postprocess.{inner}"] = value
        elif not head and "_rn." in rest:
            state[name.replace(f"layer{rest[13]}_rn", f"layer_rn.{int(rest[13]) - 1}")] = value
    usual = {"task": "stereo", "criterion": "LaplacianLossBounded2()", "tile_conf_mode": "conf_expsigmoid_15_3"}
    usual |= {"crop": (32, 48), "croco_args": _arguments(), "batch_size": 6, "resume": Path("x")}
    torch.save({"model": state, "args": Namespace(**usual | args)}, path)
    return path


@pytest.mark.filterwarnings("ignore::geo3d.NonCommercialWeights")
def test_authors_files_say_what_they_hold(tmp_path: Path) -> None:
    wanted = {
        "stereo": ("LaplacianLossBounded2(max_gtnorm=None, a=2.0, b=4.0)", CriterionConfig("bounded2", a=2.0, b=4.0)),
        "flow": ("LaplacianLossBounded()", CriterionConfig("bounded")),
    }
    for task, (text, criterion) in wanted.items():
        model = create_model(f"croco_{task}_tiny", generator=draw(), **SIZES, **HEAD)
        path = _published(tmp_path / "a.pth", model, task=task, criterion=text, tile_conf_mode="conf_expbeta3")
        loaded = create_model("croco_downstream", checkpoint=path)
        assert loaded.config.criterion == criterion
        assert loaded.config.tile_confidence == TileConfidence(3, None)
        assert (loaded.config.task, loaded.config.crop, loaded.config.confidence) == (task, (32, 48), True)
        state = model.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
        assert create_model("croco_downstream", checkpoint=path, crop=(64, 64)).config.crop == (64, 64)
    plain = create_model("croco_stereo_tiny", confidence=False, criterion={"name": "l1"}, **SIZES, **HEAD)
    loaded = create_model("croco_downstream", checkpoint=_published(tmp_path / "a.pth", plain, criterion="L1Loss()"))
    assert (loaded.config.confidence, loaded.config.criterion.name) == (False, "l1")
    loaded = create_model(
        "croco_downstream",
        checkpoint=_published(
            tmp_path / "a.pth",
            plain,
            croco_args=Namespace(**_arguments()),
            criterion=None,
            tile_conf_mode=None,
            crop=None,
        ),
    )
    assert (loaded.config.crop, loaded.config.criterion) == ((32, 48), CriterionConfig("bounded2"))
    flow = create_model("croco_flow_tiny", **SIZES, **HEAD)
    silent = _published(tmp_path / "a.pth", flow, task="flow", criterion=None, tile_conf_mode=None)
    loaded = create_model("croco_downstream", checkpoint=silent)
    assert loaded.config.criterion == CriterionConfig("bounded")
    assert loaded.config.tile_confidence == TileConfidence(10, 5)


@pytest.mark.filterwarnings("ignore::geo3d.NonCommercialWeights")
def test_wrong_files_are_told(tmp_path: Path) -> None:
    model = create_model("croco_stereo_tiny", generator=draw(), **SIZES, **HEAD)
    for args, message in (
        ({"criterion": "__import__('os').system('true')"}, "is not a plain constructor call"),
        ({"criterion": "LaplacianLossBounded2(a=open('x'))"}, "is not a plain constructor call"),
        ({"criterion": "HuberLoss()"}, "criterion 'HuberLoss.*is not known; known: L1Loss"),
        ({"criterion": "LaplacianLoss(c=1)"}, "is not known"),
        ({"criterion": "LaplacianLossBounded2(a=True)"}, "expected a number"),
        ({"criterion": 3}, "is not a plain constructor call"),
        ({"criterion": "LaplacianLossBounded2(a=1e5)"}, "criterion bounded2: a must be at most 10000"),
        ({"tile_conf_mode": "conf_exp"}, "tile_conf_mode 'conf_exp' should be"),
        ({"task": "normals"}, "task 'normals' is not known"),
        ({"task": "flow"}, None),  # two channels are flow without a confidence
        ({"crop": "large"}, "crop: expected a list of 2"),
        ({"croco_args": {**_arguments(), "enc_depth": 5}}, "does not fit CroCoDownstream: 12 missing"),
        ({"croco_args": {**_arguments(), "wheels": 4}}, "argument wheels=4 is not known"),
        ({"croco_args": 5}, "should be named arguments"),
    ):
        path = _published(tmp_path / "a.pth", model, **args)
        if message is None:
            assert not create_model("croco_downstream", checkpoint=path).config.confidence
            continue
        with pytest.raises(InputError, match=message) as caught:
            create_model("croco_downstream", checkpoint=path)
        assert "a.pth" in str(caught.value)
    content = torch.load(_published(tmp_path / "a.pth", model), weights_only=False)
    content["model"]["head.dpt.scratch.layer_rn.0.weight"] = torch.zeros(8, 4, 3, 3)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"differs from head.dpt.scratch.layer1_rn.weight"):
        create_model("croco_downstream", checkpoint=tmp_path / "a.pth")
    del content["model"]["head.dpt.head.4.weight"]
    del content["model"]["head.dpt.scratch.layer_rn.0.weight"]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"its head lacks 'head.dpt.head.4.weight'"):
        create_model("croco_downstream", checkpoint=tmp_path / "a.pth")


def test_weights_of_tiles() -> None:
    """As published: exp(-beta * 2 * (sigmoid(c / s) - 1/2)), exp(-beta * c)."""
    confidence = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    expected = torch.exp(-15 * 2 * (1 / (1 + torch.exp(-confidence / 3)) - 0.5))
    torch.testing.assert_close(TileConfidence().weight(confidence), expected)
    torch.testing.assert_close(TileConfidence(3, None).weight(confidence), torch.exp(-3 * confidence))
    assert (TileConfidence(0).weight(confidence) == 1).all()
    surest = TileConfidence(15, None).weight(torch.tensor([-1e4, -7.0, 1e4]))
    assert (surest > 0).all()
    assert (surest * 1e4).isfinite().all()


@pytest.mark.parametrize("head", ["dpt", "linear"])
@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_a_head_starts_at_a_value_of_each_channel(head: str, order: str) -> None:
    """What its weights add is taken away, so that biases alone are seen; the confidence stays as it was."""
    network = create_model("croco_flow_tiny", head=head, linear_order=order)
    layer = (network.head.dpt if head == "dpt" else network.head).last_layer
    torch.nn.init.zeros_(layer.weight)
    network.start_at(torch.tensor([3.0, -2.0]))
    with torch.no_grad():
        out = network(torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 48))
    assert torch.equal(out.values, torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 32, 48))
    assert not out.confidence.any()
