"""Every registered model: what it says of itself, its face, forward and backward, and its way through files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import geo3d
from geo3d import InputError, create_model, list_models, model_info, save_model
from geo3d.geometry import PointCloud, SparseVoxels, View
from geo3d.models import Encoder, Family, family_of, model_options, register_family
from geo3d.models.croco import visible_from_mask
from geo3d.models.croco_downstream import CroCoDownstream, TileConfidence
from geo3d.models.dust3r import DUSt3R
from geo3d.models.i2p_mae import I2PMAE
from geo3d.models.nerf_mae import NeRFMAE
from geo3d.models.resnet import ResNet, ResNetConfig
from geo3d.models.spark import SparK
from geo3d.nn.anchor_free import HeadOutput
from geo3d.nn.laplace import CriterionConfig
from geo3d.nn.pointmaps import ConfidenceMode

#: Families, whose own names are models too; models beyond this many parameters are run under the slow marker alone.
FAMILIES = ("croco", "spark", "resnet", "convnext", "swin3d", "sparse_resnet", "i2p_mae", "i2p_mae_classifier")
FAMILIES += ("multiview", "nerf_mae", "nerf_mae_fpn", "nerf_mae_detector", "nerf_mae_semantic", "dust3r", "mast3r")
HEADED = ("voxel_segmenter", "point_segmenter", "voxel_classifier", "cloud_classifier", "image_classifier")
FAMILIES += ("croco_downstream", *HEADED)
LARGE = 40_000_000
#: Classifiers that see 48 or 32 neighbours of each of 512 points: ten seconds each.
COSTLY = ("i2p_mae_classifier", "i2p_mae_modelnet40", "i2p_mae_scanobjectnn", "i2p_mae_scanobjectnn_hardest")
SMALL = {"croco": "croco_tiny", "resnet": "resnet_tiny", "convnext": "convnext_atto", "spark": "spark"}
SMALL |= {"croco_downstream": "croco_stereo_tiny"}
SMALL |= {"swin3d": "swin3d_tiny", "sparse_resnet": "sparse_resnet_tiny", "i2p_mae": "i2p_mae_tiny"}
SMALL |= {"multiview": "multiview_tiny", "i2p_mae_classifier": "i2p_mae_modelnet40", "nerf_mae": "nerf_mae_tiny"}
SMALL |= {"dust3r": "dust3r_tiny", "mast3r": "mast3r_tiny"}
SMALL |= {name: f"{name}_tiny" for name in ("nerf_mae_fpn", "nerf_mae_detector", "nerf_mae_semantic")}
SMALL |= {name: name for name in HEADED}

#: Sizes of a small encoder of points.
POINTS: dict[str, Any] = {"points": 64, "groups": (24, 12, 6), "neighbors": (4, 4, 3), "dims": (8, 8, 16)}
POINTS |= {"depths": (1, 1, 2), "heads": 2, "embed_dim": 8, "mlp_ratio": 2, "radii": (0.5, 0, 2)}
#: Sizes of a small encoder of grids.
GRIDS: dict[str, Any] = {"embed_dim": 12, "depths": (1, 1, 2, 1), "heads": (2, 2, 3, 4), "mlp_ratio": 2}
GRIDS |= {"drop_path_rate": 0.1, "resolution": 32}
#: Small options of every family that together choose every field of its config.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "croco": [
        {"image_size": (32, 48), "patch_size": 16, "encoder_dim": 32, "encoder_depth": 2, "encoder_heads": 2}
        | {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "mlp_ratio": 2, "norm_memory": False},
        {"encoder_depth": 1, "decoder_depth": 1, "rope_base": None, "decoder_sincos": False},
        {"image_size": 32, "encoder_depth": 1, "rope_base": 50},
    ],
    "resnet": [{"depths": [1, 2, 1, 1], "width": 8, "drop_path_rate": 0.1}],
    "convnext": [{"depths": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "drop_path_rate": 0}],
    "spark": [
        {"encoder": "resnet_tiny", "decoder_width": 32, "drop_path_rate": 0.2},
        {"encoder": "convnext_atto", "decoder_width": 64, "densify_norm": "none"},
        {"encoder": ResNetConfig((1, 1, 1, 2), 8), "decoder_width": 32, "densify_norm": "ln"},
    ],
    "swin3d": [
        {"depths": (1, 1), "channels": (16, 24), "heads": (2, 2), "windows": (3, 3), "num_classes": 7, "quant_size": 2}
        | {"drop_path_rate": 0.2, "voxel_size": 0.1, "first_stride": 2, "pooling": "cell", "decoder": "linear_attn"},
        {"signals": "XYZ_NORM", "decoder": "none"},
        {"signals": "XYZ_RGB_NORM", "in_channels": 6, "depths": [0, 1, 1]},
    ],
    "sparse_resnet": [
        {"stem": 8, "depths": (1,), "channels": (16,), "block": "bottleneck", "signals": "XYZ", "voxel_size": 1},
        {"signals": "XYZ_NORM", "stem": 16},
    ],
    "i2p_mae": [
        POINTS
        | {"drop_path_rate": 0.2, "published_groups": True, "published_mask": True, "embed_masked": True}
        | {"decoder_dims": (16, 16), "decoder_depths": (1, 2), "decoder_residuals": 2, "teacher_dim": 5}
        | {"shape_dim": 3},
        POINTS | {"decoder_dims": (16, 8), "teacher_dim": 0, "published_mask": False},
        POINTS | {"decoder_dims": ()},
        {"groups": [8], "neighbors": [4], "dims": [16], "depths": [1], "radii": [0.5], "heads": 4, "decoder_dims": []},
    ],
    "i2p_mae_classifier": [
        POINTS | {"num_classes": 3, "pooling": "both", "drop_path_rate": 0, "published_groups": False},
        POINTS | {"num_classes": 5, "pooling": "sum"},
    ],
    "nerf_mae": [
        {"embed_dim": 12, "depths": (1, 2, 1, 1), "heads": (1, 2, 3, 4), "mlp_ratio": 2, "drop_path_rate": 0.2}
        | {"resolution": 64, "place_masked": True},
        {"embed_dim": 12, "heads": (1, 1, 1, 1), "masking": "skip", "skip_empty": True},
        {"embed_dim": 6, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "decoder": False},
    ],
}

OPTIONS |= {
    "multiview": OPTIONS["croco"],
    "nerf_mae_fpn": [GRIDS | {"pyramid_channels": 8}],
    "nerf_mae_detector": [
        GRIDS | {"pyramid_channels": 8, "tower_depth": 1, "corners": "bounds"},
        GRIDS | {"pyramid_channels": 48},
    ],
    "nerf_mae_semantic": [GRIDS | {"num_classes": 3}],
}
_VOXELS: dict[str, Any] = {"stem": 8, "depths": (1,), "channels": (16,), "signals": "XYZ_NORM", "voxel_size": 0.1}
_SWIN: dict[str, Any] = {"depths": (1, 1), "channels": (16, 24), "heads": (2, 2), "windows": (3, 3)}
_IMAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "width": 8}
OPTIONS |= {
    "voxel_segmenter": [
        {"encoder": "sparse_resnet_tiny", "encoder_options": _VOXELS, "num_classes": 3, "width": 16},
        {"encoder": "swin3d_tiny", "encoder_options": _SWIN, "num_classes": 3},
        {"encoder_options": {"signals": "XYZ"}},
    ],
    "point_segmenter": [
        {"encoder": "i2p_mae_tiny", "encoder_options": POINTS, "num_classes": 3, "width": 8} | {"voxel_size": 0.2}
    ],
    "voxel_classifier": [
        {"encoder": "sparse_resnet_tiny", "encoder_options": _VOXELS, "num_classes": 3, "pooling": "max"}
        | {"dropout": 0.1},
    ],
    "cloud_classifier": [
        {"encoder": "i2p_mae_tiny", "encoder_options": POINTS, "num_classes": 3, "pooling": "mean", "dropout": 0.1},
        {"encoder": "i2p_mae_base", "encoder_options": POINTS | {"decoder_dims": (16, 8)}},
    ],
    "image_classifier": [
        {"encoder": "resnet_tiny", "encoder_options": _IMAGES, "num_classes": 3, "pooling": "max", "dropout": 0.1},
        {"encoder": "convnext_atto", "pooling": "max+mean"},
        {"encoder": "resnet", "encoder_options": _IMAGES, "image_size": 64},
    ],
}

#: Sizes of a small trunk of CroCo's, and of a small DPT head on it.
TRUNK: dict[str, Any] = {"image_size": (32, 48), "encoder_dim": 16, "encoder_depth": 4, "encoder_heads": 2}
TRUNK |= {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "mlp_ratio": 2, "patch_size": 8}
HEAD: dict[str, Any] = {"head_levels": (4, 6, 8, 10), "head_width": 8, "head_last": 4}
OPTIONS["croco_downstream"] = [
    TRUNK | HEAD | {"norm_memory": False, "crop": (16, 24), "task": "flow"},
    TRUNK
    | HEAD
    | {"task": "depth", "views": 1, "hooks": (0, 1, 1, 3), "tile_confidence": TileConfidence(2, None)}
    | {"resized": 40},
    TRUNK
    | {"head": "linear", "confidence": False, "criterion": CriterionConfig("l1")}
    | {"rope_base": None, "decoder_sincos": False},
    TRUNK | {"head": "linear", "linear_order": "channels_first", "criterion": CriterionConfig("bounded", a=1, b=2)},
]

#: Trunk and decoders of a small network of pointmaps.
PAIRS: dict[str, Any] = {"image_size": (32, 48), "patch_size": 16, "encoder_dim": 32, "encoder_depth": 2}
PAIRS |= {"encoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "mlp_ratio": 2}
#: A small DPT head of theirs.
PAIR_HEAD: dict[str, Any] = {"head_levels": (4, 6, 8, 10), "head_width": 8, "head_last": 4}
OPTIONS |= {
    "dust3r": [
        PAIRS
        | {"norm_memory": False, "depth_mode": "square", "rope_base": 50, "freeze": "mask", "head": "linear"}
        | {"decoder_sincos": False},
        PAIRS | PAIR_HEAD | {"head": "dpt", "confidence": ConfidenceMode("sigmoid", 0.0, 1.0), "depth_mode": "linear"},
        {"encoder_depth": 1, "decoder_depth": 1, "freeze": "encoder", "image_size": 32},
        PAIRS
        | PAIR_HEAD
        | {"head": "catmlp+dpt", "descriptors": 3, "two_confidences": False}
        | {"descriptor_confidence": None},
    ],
    "mast3r": [
        PAIRS
        | PAIR_HEAD
        | {"descriptors": 3, "norm_memory": False, "rope_base": 50, "freeze": "none", "decoder_sincos": False}
        | {"confidence": ConfidenceMode("exp", 1.0, 4.0), "descriptor_confidence": ConfidenceMode("exp", 0.0)}
        | {"depth_mode": "exp", "head": "catmlp+dpt", "two_confidences": True},
        {"encoder_depth": 1, "decoder_depth": 1, "two_confidences": False, "descriptor_confidence": None},
    ],
}

#: Of whose sizes files of others do not tell these.
UNTOLD = {name: OPTIONS[name][0].keys() for name in ("sparse_resnet", "multiview")}
UNTOLD |= {name: OPTIONS[name][0].keys() for name in ("dust3r", "mast3r", "croco_downstream", *HEADED)}
UNTOLD |= dict.fromkeys(("i2p_mae", "i2p_mae_classifier"), ("groups", "neighbors", "heads", "radii"))

#: Parameters of the published networks.
PUBLISHED_PARAMETERS = {
    "croco_v1_base": 120_076_288,
    "croco_v2_base_small": 120_076_288,
    "croco_v2_base_base": 200_269_824,
    "croco_v2_large_base": 417_918_720,
    "dust3r_vitl_224_linear": 532_342_784,
    "dust3r_vitl_512_linear": 532_342_784,
    "dust3r_vitl_512_dpt": 571_171_208,
    "mast3r_vitl_512_catmlpdpt": 688_638_856,
    "spark": 52_921_835,  # around a ResNet-50
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "resnet200": 62_624_832,
    "convnext_small": 49_453_152,
    "convnext_base": 87_564_416,
    "convnext_large": 196_227_264,
    "swin3d_s": 23_573_348,
    "swin3d_l": 60_757_060,
    "i2p_mae_base": 17_622_808,
    "i2p_mae_modelnet40": 12_830_056,
    "nerf_mae_swin_s": 70_040_938,
    "croco_stereo_base_small": 139_403_682,
    "croco_stereo_base_base": 219_744_418,
    "croco_stereo_large_base": 437_417_890,
}
#: Families whose authors released files under no licence that is known.
UNLICENSED = ("i2p_mae", "nerf_mae", "nerf_mae_detector")


def cloud() -> PointCloud:
    """Two scenes of which one is a single point."""
    generator = torch.Generator().manual_seed(0)
    xyz, colors = torch.rand(2, 60, 3, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(60, 3, generator=generator), dim=1)
    return PointCloud(xyz, colors, normals, offsets=torch.tensor([0, 59, 60]))


def photos() -> list[Image.Image]:
    """Two photos whose sides no patch divides."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((60, 90), (50, 70))]


def grids() -> list[np.ndarray]:
    """Two grids whose sides no patch divides."""
    rng = np.random.default_rng(0)
    return [rng.random((4, *sides), np.float32) for sides in ((30, 27, 20), (18, 32, 9))]


#: kind -> something that an encoder of that kind prepares: two images, two scenes.
HANDED_IN: dict[str, Callable[[], Any]] = {"image": photos, "voxels": cloud, "points": cloud, "grid": grids}


def prepared(model: Encoder) -> Any:
    options = {"voxel_size": 0.1} if model.kind == "voxels" else {}
    return model.prepare(HANDED_IN[model.kind](), **options)


def forward(model: Encoder) -> torch.Tensor:
    """A forward pass, as the family means it, of prepared inputs; of an encoder alone, all of its features."""
    inputs = prepared(model)
    if model.family == "croco":
        tokens = (inputs.shape[2] // model.config.patch_size) * (inputs.shape[3] // model.config.patch_size)
        mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(0)).argsort(1) < int(0.7 * tokens)
        return model(inputs, inputs.flip(3), visible_from_mask(mask)).prediction
    if model.family == "multiview":
        tokens = (inputs.shape[2] // model.config.patch_size) * (inputs.shape[3] // model.config.patch_size)
        mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(0)).argsort(1) < int(0.7 * tokens)
        return model(inputs, mask).prediction
    if isinstance(model, CroCoDownstream):
        out = model(inputs, *[inputs.flip(3)] * (model.config.views - 1))
        return torch.cat([part.flatten() for part in out if part is not None])
    if isinstance(model, DUSt3R):
        return torch.cat(
            [field.flatten() for maps in model(inputs, inputs.flip(3)) for field in maps.fields() if field is not None]
        )
    if isinstance(model, SparK):
        active = torch.tensor([[[[1, 0, 1], [0, 0, 1]]], [[[0, 1, 0], [1, 1, 0]]]], dtype=torch.bool)
        return model(inputs, active).reconstruction
    if isinstance(model, I2PMAE) and model.config.decoder_dims:
        batch = model.batch(inputs)
        groups = batch.groups[-1].xyz.shape[1]
        visible = model.visible(batch, (torch.arange(groups) % 3 == 0).expand(2, -1))
        output = model(batch, visible)
        return torch.cat(
            [part.flatten() for part in (output.points, output.features, *output.levels) if part is not None]
        )
    if isinstance(model, NeRFMAE) and model.config.decoder:
        blocks = torch.arange(math.prod(side // 16 for side in inputs.sides)) % 3 > 0
        return model(inputs, blocks.view([side // 16 for side in inputs.sides])).reconstruction
    alone = getattr(model.config, "decoder", "") in ("none", False) or isinstance(model, I2PMAE)
    out = model.features(inputs) if alone else model(inputs)
    if isinstance(out, HeadOutput):
        return torch.cat([part.flatten() for part in (out.logits, out.codes, out.centrality)])
    if model.kind == "grid":
        return torch.cat([stage.flatten() for stage in out])
    return out if isinstance(out, torch.Tensor) else torch.cat([stage.feats.flatten() for stage in out])


def _named_models() -> list[Any]:
    """Every model; large ones under the slow marker."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, marks=[slow] if model_info(name).parameters > LARGE or name in COSTLY else [], id=name)
        for name in list_models()
    ]


@pytest.mark.parametrize("name", list_models())
def test_what_a_model_says_of_itself(name: str) -> None:
    info = model_info(name)
    with torch.device("meta"):
        model = create_model(name)
    assert (info.kind, info.network) == (model.kind, model.family)
    assert info.kind in HANDED_IN
    assert list(info.stages) == model.feature_info
    assert info.strides == tuple(s.stride for s in model.feature_info)
    assert len({stage.name for stage in info.stages}) == len(info.stages)
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert model.name == name
    text = str(info)
    assert name in text
    assert all(file.file in text for file in info.files)
    assert bool(info.licence) == (bool(info.files) and info.network not in UNLICENSED)
    assert ("licence" in text) == bool(info.files)
    if name in PUBLISHED_PARAMETERS:
        assert info.parameters == PUBLISHED_PARAMETERS[name]
    encoder = [n for n, _ in model.named_parameters() if model.is_of_encoder(n)]
    assert encoder
    assert bool(model.decoder_prefixes) == (len(encoder) < len(list(model.parameters())))


@pytest.mark.parametrize("name", _named_models())
def test_face_forward_and_backward(name: str) -> None:
    model = create_model(name, generator=torch.Generator().manual_seed(0))
    assert not model.training
    inputs = prepared(model)
    with torch.no_grad():
        every = model.features(inputs)
        last, first = model.features(inputs, layers=[np.int64(-1), model.feature_info[0].name])
    assert len(every) == len(model.feature_info)
    for info, found in zip(model.feature_info, every, strict=True):
        if model.kind == "image":
            height, width = inputs.shape[2:]
            assert found.shape == (2, info.channels, height // info.stride, width // info.stride)
        elif model.kind == "grid":
            assert found.shape == (2, info.channels, *(side // info.stride for side in inputs.sides))
        elif model.kind == "points":
            start, middle, end = found.offsets.tolist()
            assert (start, end) == (0, len(found.feats))
            assert 0 < middle < end
            assert (found.xyz.shape, found.feats.shape[1]) == ((len(found.feats), 3), info.channels)
        else:
            cells = inputs.voxels.coords.clone()
            cells[:, 1:] = cells[:, 1:].div(info.stride, rounding_mode="floor") * info.stride
            assert (found.stride, found.feats.shape) == (info.stride, (len(cells.unique(dim=0)), info.channels))
    values = [f if isinstance(f, torch.Tensor) else f.feats for f in (every[-1], every[0], last, first)]
    # Not to the bit: libraries may choose another algorithm for memory that lies or is strided otherwise.
    torch.testing.assert_close(values[2], values[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values[3], values[1], rtol=1e-4, atol=1e-5)
    for alone in (0, "stage0"):
        with pytest.raises(InputError, match="layers is a list"):
            model.features(inputs, layers=alone)
    for unknown in ("stage77", len(every), -len(every) - 1, True):
        with pytest.raises(InputError, match=f"there is no {unknown!r}"):
            model.features(inputs, layers=[unknown])

    out = forward(model)
    assert torch.isfinite(out).all()
    out.square().mean().backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    without = [n for n, grad in trained.items() if grad is None or not torch.isfinite(grad).all()]
    assert not without, f"no finite gradient: {without}"


@pytest.mark.parametrize("name", [n for n in SMALL.values() if family_of(n).kind == "voxels"])
def test_features_of_all_stages_at_voxels(name: str) -> None:
    """The stages' features of the voxels that a finest one lies in, found by coordinates."""
    model = create_model(name, generator=torch.Generator().manual_seed(0))
    inputs = prepared(model)
    with torch.no_grad():
        found = model.voxel_features(inputs).split(model.channels, 1)
        for columns, stage in zip(found, model.features(inputs), strict=True):
            rows = {tuple(c): row for row, c in enumerate(stage.coords.tolist())}
            cells = [(b, *(c // stage.stride * stage.stride for c in xyz)) for b, *xyz in inputs.voxels.coords.tolist()]
            assert torch.equal(columns, stage.feats[[rows[cell] for cell in cells]])


# Options


def test_the_options_below_choose_every_field() -> None:
    assert set(OPTIONS) == set(FAMILIES) == {family_of(name).name for name in list_models()}
    for family, cases in OPTIONS.items():
        chosen = {name for case in cases for name in case}
        assert chosen == set(model_options(SMALL[family])), family


_CASES = [(SMALL[family], options) for family, cases in OPTIONS.items() for options in cases]


@pytest.mark.parametrize("ending", [".safetensors", ".pth", "", ".v2"])
@pytest.mark.parametrize(("name", "options"), _CASES)
def test_a_model_with_any_options_comes_back_from_its_file(
    name: str, options: dict, ending: str, tmp_path: Path
) -> None:
    model, again = (create_model(name, generator=torch.Generator().manual_seed(3), **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    path = tmp_path / "deeper" / f"model{ending}"
    save_model(model, path)
    state = model.state_dict()
    for asked in (None, name, model.family):
        loaded = create_model(asked, checkpoint=path)
        assert (type(loaded), loaded.config, loaded.name) == (type(model), model.config, name)
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert create_model(name, checkpoint=path, **options).config == model.config  # repeated, they contradict nothing
    torch.testing.assert_close(forward(loaded), forward(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_are_checked_by_name_and_type(family: str) -> None:
    name = SMALL[family]
    for option, kind in model_options(name).items():
        with pytest.raises(InputError, match=rf"unknown option {option}s.*did you mean '{option}'"):
            create_model(name, **{option + "s": 1})
        if kind is not bool:
            with pytest.raises(InputError, match=rf"option {option}: expected .*found <object"):
                create_model(name, **{option: object()})
    with pytest.raises(InputError, match="unknown option wheels"):
        create_model(name, wheels=4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("croco_tiny", {"encoder_depth": "6"}, "option encoder_depth: expected a whole number, found '6'"),
        ("croco_tiny", {"encoder_depth": 6.5}, "expected a whole number, found 6.5"),
        ("croco_tiny", {"encoder_depth": True}, "expected a whole number, found True"),
        ("croco_tiny", {"image_size": (64, 64, 3)}, "expected a list of 2"),
        ("croco_tiny", {"encoder_depth": 0}, "encoder_depth=0"),
        ("resnet_tiny", {"depths": 3}, "option depths: expected a list of a whole number, found 3"),
        ("swin3d_tiny", {"signals": 3}, "option signals: expected text, found 3"),
        ("swin3d_tiny", {"voxel_size": "2 cm"}, "option voxel_size: expected a number, found '2 cm'"),
        ("croco_tiny", {"rope_base": -1.0}, "rope_base=-1.0"),
        ("croco_tiny", {"mlp_ratio": float("inf")}, "mlp_ratio=inf"),
        ("spark", {"encoder_kind": "resnet"}, "unknown option encoder_kind"),
        ("spark", {"encoder": "resnet5"}, "unknown encoder 'resnet5'.*did you mean 'resnet50'"),
        ("spark", {"densify_norm": "layer"}, "option densify_norm: expected one of bn, ln, none, found 'layer'"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"croco_tiny.*did you mean 'croco_tiny'"):
        create_model("croco_tini")
    with pytest.raises(InputError, match="needs a name"):
        create_model()


# Files


def test_a_name_that_contradicts_the_file_is_told_with_the_files_own(tmp_path: Path) -> None:
    save_model(create_model("croco_tiny", encoder_depth=2), tmp_path / "croco")
    save_model(create_model("resnet_tiny"), tmp_path / "resnet")
    with pytest.raises(InputError, match=r"holds croco_tiny, not the croco_v2_base_small .*dim is 96 in the file"):
        create_model("croco_v2_base_small", checkpoint=tmp_path / "croco")
    with pytest.raises(InputError, match=r"holds a croco_tiny \(CroCo\), not a resnet50 \(ResNet\)"):
        create_model("resnet50", checkpoint=tmp_path / "croco")
    with pytest.raises(InputError, match=r"holds a resnet_tiny \(ResNet\), not a swin3d"):
        create_model("swin3d", checkpoint=tmp_path / "resnet")
    torch.save(create_model("resnet_tiny").state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="does not say which model it holds; name it"):
        create_model(checkpoint=tmp_path / "bare.pth")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_tools_put_into_names_is_taken_off(family: str, tmp_path: Path) -> None:
    options = OPTIONS[family][0] | ({"decoder": "linear"} if family == "swin3d" else {})
    model = create_model(SMALL[family], generator=torch.Generator().manual_seed(0), **options)
    state = model.state_dict()
    wrapped = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.module._orig_mod."]
    layouts = {prefix: {prefix + k: v for k, v in state.items()} for prefix in wrapped}
    layouts["some"] = {k if n % 2 else f"module.{k}": v for n, (k, v) in enumerate(state.items())}
    layouts["a part compiled"] = {k.replace(".", "._orig_mod.", 1): v for k, v in state.items()}
    layouts["lightning"] = {
        "state_dict": layouts["model."], "epoch": 3, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1}
    }  # fmt: skip
    numbers = {"history": np.arange(5.0), "n": np.uint8(3), "best": np.float64(1)}
    layouts["numpy beside"] = {"state_dict": state, **numbers}
    layouts["numbers among"] = state | {"epoch": 3, "rng": np.arange(4), "note": "from Tuesday"}
    # CroCo's files state their sizes beside the weights where they are not the defaults.
    own = {"croco_kwargs": _published_arguments(model.config)} if family == "croco" else {}
    for layout, content in layouts.items():
        path = tmp_path / "file.pth"
        torch.save({"model": content, **own} if own else content, path)
        told = {name: value for name, value in options.items() if name in UNTOLD.get(family, ())}
        loaded = create_model(family, checkpoint=path, **told).state_dict()
        assert loaded.keys() == state.keys(), layout
        assert all(torch.equal(value, loaded[key]) for key, value in state.items()), layout
    torch.save({"model": layouts["module."] | state, **own}, path)
    with pytest.raises(InputError, match="it holds two networks"):
        create_model(family, checkpoint=path)


def test_options_describe_a_state_dict_that_states_nothing(tmp_path: Path) -> None:
    for name, options in (
        ("croco_tiny", {"encoder_depth": 2, "decoder_depth": 1}),
        ("sparse_resnet_tiny", {"stem": 8}),
    ):
        state = create_model(name, **options).state_dict()
        for content in (state, {"model": state}, {"module": {f"module.{k}": v for k, v in state.items()}}):
            torch.save(content, tmp_path / "bare.pth")
            loaded = create_model(name, checkpoint=tmp_path / "bare.pth", **options).state_dict()
            assert all(torch.equal(value, loaded[key]) for key, value in state.items())
        with pytest.raises(InputError, match="does not fit"):
            create_model(name, checkpoint=tmp_path / "bare.pth")


def _published_arguments(config: Any) -> dict[str, Any]:
    names = {"img_size": "image_size", "enc_embed_dim": "encoder_dim", "enc_depth": "encoder_depth"}
    names |= {"enc_num_heads": "encoder_heads", "dec_embed_dim": "decoder_dim", "dec_depth": "decoder_depth"}
    names |= {"dec_num_heads": "decoder_heads", "mlp_ratio": "mlp_ratio", "norm_im2_in_dec": "norm_memory"}
    names |= {"patch_size": "patch_size"}
    return {name: getattr(config, field) for name, field in names.items()} | {"pos_embed": f"RoPE{config.rope_base:g}"}


def test_weights_for_non_commercial_use_say_so(tmp_path: Path) -> None:
    model = create_model("croco_tiny", **OPTIONS["croco"][0])
    content = {"model": model.state_dict(), "croco_kwargs": _published_arguments(model.config)}
    torch.save(content, tmp_path / "croco.pth")
    with pytest.warns(geo3d.NonCommercialWeights, match=r"croco\.pth.*CC-BY-NC-SA-4\.0") as told:
        create_model("croco", checkpoint=tmp_path / "croco.pth")
    assert len(told) == 1
    assert told[0].filename == __file__
    with pytest.warns(geo3d.NonCommercialWeights):
        save_model(create_model("croco", checkpoint=tmp_path / "croco.pth"), tmp_path / "again")
    with pytest.warns(geo3d.NonCommercialWeights, match="again.*CC-BY-NC-SA"):  # whoever wrote the file
        create_model(checkpoint=tmp_path / "again")
    assert model_info("croco_v1_base").non_commercial
    assert not model_info("resnet50").non_commercial
    assert not model_info("croco_tiny").non_commercial  # of which no file was released


def test_own_weights_are_loaded_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    save_model(create_model("croco_tiny", **OPTIONS["croco"][0]), tmp_path / "own")
    create_model(checkpoint=tmp_path / "own")
    torch.save(create_model("resnet_tiny").state_dict(), tmp_path / "mit.pth")
    create_model("resnet_tiny", checkpoint=tmp_path / "mit.pth")
    assert not [w for w in recwarn if issubclass(w.category, geo3d.NonCommercialWeights)]


def test_a_fresh_decoder_on_a_files_encoder(tmp_path: Path) -> None:
    for family, choice in (
        ("croco", {"decoder_depth": 2}),
        ("swin3d", {"num_classes": 3}),
        ("spark", {"decoder_width": 64}),
        ("dust3r", {"head": "dpt", "decoder_depth": 2}),
        ("mast3r", {"descriptors": 5}),
        ("i2p_mae", {"teacher_dim": 3, "decoder_residuals": 1, "shape_dim": 0}),
        ("i2p_mae_classifier", {"num_classes": 7, "pooling": "sum"}),
        ("nerf_mae_detector", {"pyramid_channels": 16, "tower_depth": 2}),
        ("nerf_mae_semantic", {"num_classes": 5}),
        ("croco_downstream", {"decoder_depth": 2, "task": "stereo"}),
    ):
        options = OPTIONS[family][0] | ({"densify_norm": "bn"} if family == "spark" else {})
        model = create_model(SMALL[family], generator=torch.Generator().manual_seed(0), **options)
        save_model(model, tmp_path / family)
        draw = lambda: torch.Generator().manual_seed(5)  # noqa: E731
        made = create_model(checkpoint=tmp_path / family, fresh_decoder=True, generator=draw(), **choice)
        expected = create_model(SMALL[family], generator=draw(), **(options | choice)).state_dict()
        state, old = made.state_dict(), model.state_dict()
        assert state.keys() == expected.keys()
        for name, value in state.items():
            assert torch.equal(value, old[name] if made.is_of_encoder(name) else expected[name]), name
        with pytest.raises(InputError, match="can be changed, not"):
            create_model(checkpoint=tmp_path / family, **choice)
    with pytest.raises(InputError, match="goes with a checkpoint"):
        create_model("croco_tiny", fresh_decoder=True)


def test_a_bare_encoder_becomes_part_of_a_whole_network(tmp_path: Path) -> None:
    encoder = create_model("convnext_atto", generator=torch.Generator().manual_seed(0))
    torch.save(encoder.state_dict(), tmp_path / "official_style.pth")
    whole = create_model("spark", checkpoint=tmp_path / "official_style.pth", fresh_decoder=True, decoder_width=64)
    assert (whole.config.encoder, whole.config.densify_norm) == (encoder.config, "ln")
    inside = whole.sparse_encoder.sp_cnn.state_dict()
    assert all(torch.equal(value, inside[name]) for name, value in encoder.state_dict().items())


def test_what_cannot_be_saved_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Linear is no model of geo3d's"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "model")
    with torch.device("meta"):
        model = create_model("resnet_tiny")
    with pytest.raises(InputError, match="meta device"):
        save_model(model, tmp_path / "model")
    changed = create_model("swin3d_tiny")
    changed.classifier[3] = torch.nn.Linear(32, 7)
    with pytest.raises(InputError, match=r"not what its config describes, by classifier\.3\.bias, "):
        save_model(changed, tmp_path / "model")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"is a file, where a folder should be"):
        save_model(create_model("resnet_tiny"), tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "in the way"


def test_wrapped_models_are_saved_as_themselves(tmp_path: Path) -> None:
    model = create_model("resnet_tiny")
    partly = create_model("resnet_tiny")
    partly.load_state_dict(model.state_dict())
    partly.layer1 = torch.compile(partly.layer1)
    for number, wrapped in enumerate((torch.compile(model), torch.nn.DataParallel(model), partly)):
        save_model(wrapped, tmp_path / str(number))
        loaded = create_model(checkpoint=tmp_path / str(number))
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("card", ["{", "[]", '{"family": "croco"}'])
def test_a_damaged_description_is_told(card: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "model", metadata={"geo3d.model": card})
    with pytest.raises(InputError, match="description of the model"):
        create_model(checkpoint=tmp_path / "model")
    save_file(
        {"w": torch.zeros(1)}, tmp_path / "model", metadata={"geo3d.model": json.dumps({"family": "x", "config": {}})}
    )
    with pytest.raises(InputError, match="family 'x', which is not known"):
        create_model(checkpoint=tmp_path / "model")


# What people hand in


@pytest.fixture(scope="module")
def image_encoder() -> Encoder:
    return create_model("resnet_tiny", generator=torch.Generator().manual_seed(0))


def test_every_form_of_an_image_is_prepared_alike(image_encoder: Encoder) -> None:
    photo = photos()[0]
    pixels = np.array(photo)
    forms = [photo, photo.convert("RGBA"), pixels, torch.from_numpy(pixels), pixels[None]]
    expected = image_encoder.prepare(photo)
    assert expected.shape == (1, 3, 64, 96)
    assert all(torch.equal(image_encoder.prepare(form), expected) for form in forms)
    mean, std = (np.array(v) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    truth = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(expected[0, :, :60, :90], truth, atol=1e-5)
    assert (expected[0, :, 60:] == 0).all()
    assert (expected[0, :, :, 90:] == 0).all()
    for floats in (pixels / 255, (pixels / 255).astype(np.float32), View("a", image=torch.from_numpy(pixels) / 255)):
        torch.testing.assert_close(image_encoder.prepare(floats), expected, rtol=0, atol=1e-6)  # rounding of float32
    assert image_encoder.prepare(photos()).shape == (2, 3, 64, 96)
    double = image_encoder.fresh(torch.Generator().manual_seed(0)).double()
    assert double.features(double.prepare(photos()))[-1].dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: a.astype(np.float32), r"must lie in \[0, 1\], found 0 to 255; hand in uint8"),
        (lambda a: a.astype(np.int64), r"type torch\.int64 are not read; hand in uint8"),
        (lambda a: a.astype(np.uint16) * 257, "type uint16 are not read"),
        (lambda a: torch.from_numpy(a).int(), r"type torch\.int32 are not read"),
        (lambda a: a.transpose(2, 0, 1), r"got \(3, 60, 90\); move the channels last"),
        (lambda a: a[..., 0], r"images are \(H, W, 3\)"),
        (lambda a: np.where(a == 0, np.nan, a / 255), "NaN"),
        (lambda a: a[:0], r"images are \(H, W, 3\)"),
        (lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 257), "images of mode I;16 have no range"),
        (lambda a: Image.fromarray(a[..., 0] / np.float32(255)), "images of mode F have no range"),
        (lambda a: [], "the list is empty"),
        (lambda a: "photo.jpg", "not a str"),
        (lambda a: cloud(), "not a PointCloud"),
        (lambda a: View("dark"), "view dark has no image"),
    ],
)
def test_what_is_no_image_is_refused(image_encoder: Encoder, make: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_encoder.prepare(make(np.array(photos()[0])))


@pytest.fixture(scope="module", params=["sparse_resnet_tiny", "swin3d_tiny"])
def voxel_encoder(request: pytest.FixtureRequest) -> Encoder:
    return create_model(request.param, signals="XYZ_RGB_NORM", generator=torch.Generator().manual_seed(0))


def test_every_form_of_scenes_is_prepared_alike(voxel_encoder: Encoder) -> None:
    whole = cloud()
    apart = [whole.scene(0), whole.scene(1)]
    expected = voxel_encoder.prepare(whole, voxel_size=0.1)
    for form in (apart, tuple(apart)):
        made = voxel_encoder.prepare(form, voxel_size=0.1)
        assert torch.equal(made.voxels.coords, expected.voxels.coords)
        assert torch.equal(made.voxels.feats, expected.voxels.feats)
        assert torch.equal(made.inverse, expected.inverse)
    assert len(expected.inverse) == len(whole)
    assert torch.equal(expected.inverse[expected.index], torch.arange(len(expected.voxels)))


def test_voxels_are_prepared_in_their_own_order(voxel_encoder: Encoder) -> None:
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(-4, 5, (40, 3), generator=generator).unique(dim=0).int()
    batch = (torch.arange(len(cells)) % 2).int().unsqueeze(1)  # rows of two scenes, mixed
    colors = torch.rand(len(cells), 3, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(len(cells), 3, generator=generator), dim=1)
    voxels = SparseVoxels(torch.cat([batch, cells], 1), torch.cat([colors, normals], 1))
    made = voxel_encoder.prepare([voxels, voxels])
    assert made.voxels.batch_size == 4
    twice = torch.cat([voxels.coords, voxels.coords + torch.tensor([2, 0, 0, 0], dtype=torch.int32)])
    assert torch.equal(made.voxels.coords, twice[made.index])
    assert torch.equal(made.voxels.coords[made.inverse], twice)
    features = voxel_encoder.voxel_features(made)
    both = features[made.inverse].chunk(2)
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5)  # scenes do not see each other


def test_points_of_a_view_and_bare_positions() -> None:
    encoder = create_model("sparse_resnet_tiny", signals="XYZ_RGB", generator=torch.Generator().manual_seed(0))
    camera = geo3d.Camera(4, 3, 4.0, 4.0, 1.5, 1.0)
    pose = torch.eye(4, dtype=torch.float64)
    image = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0))
    view = View("a", camera, pose, image, depth=torch.ones(3, 4))
    xyz, _ = view.world_points()
    made, expected = encoder.prepare(view), encoder.prepare(PointCloud(xyz, image.reshape(-1, 3)))
    assert torch.equal(made.voxels.feats, expected.voxels.feats)
    assert len(made.inverse) == 12
    bare = create_model("sparse_resnet_tiny", signals="XYZ")
    for positions in (xyz, xyz.numpy()):
        assert torch.equal(bare.prepare(positions).voxels.coords, bare.prepare(PointCloud(xyz)).voxels.coords)
    with pytest.raises(InputError, match="world_points needs depth"):
        encoder.prepare(View("b", camera, pose, image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: PointCloud(c.xyz, (c.colors * 255).byte(), c.normals), r"colors must be floats in \[0, 1\].*by 255"),
        (lambda c: PointCloud(c.xyz, c.colors * 255, c.normals), r"colors must lie in \[0, 1\].*by 255"),
        (lambda c: PointCloud(c.xyz, c.colors, c.normals * 3), r"normals must lie in.*unit length"),
        (lambda c: PointCloud(c.xyz, None, c.normals), "reads colors, and the points have none"),
        (lambda c: PointCloud(c.xyz.where(c.xyz > 0.5, torch.nan), c.colors, c.normals), "positions hold NaN"),
        (lambda c: PointCloud((100 * c.xyz).long(), c.colors, c.normals), "positions must be floats, metres"),
        (lambda c: PointCloud(c.xyz[:0]), "holds no point"),
        (lambda c: torch.cat([c.xyz, c.colors], 1), r"an array of points is \(N, 3\), got \(59, 6\)"),
        (lambda c: photos()[0], "not a Image"),
        (lambda c: [c, SparseVoxels(torch.zeros(1, 4).int(), torch.zeros(1, 6))], "not both in one list"),
        (lambda c: SparseVoxels(torch.zeros(1, 4).int(), torch.zeros(1, 5)), r"6 features \(colors, normals\), got"),
        (lambda c: SparseVoxels(torch.zeros(1, 4).int(), torch.full((1, 6), 2.0)), r"colors must lie in \[0, 1\]"),
        (lambda c: SparseVoxels(torch.zeros(0, 4).int(), torch.zeros(0, 6)), "no voxel"),
    ],
)
def test_what_are_no_scenes_is_refused(voxel_encoder: Encoder, make: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        voxel_encoder.prepare(make(cloud().scene(0)))


@pytest.fixture(scope="module")
def point_encoder() -> Encoder:
    return create_model("i2p_mae_tiny", generator=torch.Generator().manual_seed(0), decoder_dims=(), **POINTS)


def test_every_form_of_clouds_is_prepared_alike(point_encoder: Encoder) -> None:
    whole = cloud()
    apart = [whole.scene(0), whole.scene(1)]
    expected = point_encoder.prepare(whole)
    assert expected.offsets.tolist() == [0, 59, 60]
    for form in (
        apart,
        tuple(apart),
        [part.xyz for part in apart],
        [part.xyz.numpy().astype(np.float64) for part in apart],
    ):
        made = point_encoder.prepare(form)
        assert torch.equal(made.xyz, expected.xyz)
        assert torch.equal(made.offsets, expected.offsets)
    for row, part in enumerate(apart):
        xyz = expected.xyz[expected.offsets[row] : expected.offsets[row + 1]].double()
        assert xyz.mean(0).abs().max() < 1e-6
        assert xyz.norm(dim=1).max() == pytest.approx(1 if row == 0 else 0, abs=1e-6)
        torch.testing.assert_close(
            xyz * expected.scale[row] + expected.centre[row], part.xyz.double(), rtol=0, atol=1e-6
        )
    for scale, shift in ((1000.0, 0.0), (0.001, 5.0)):  # of any unit, at any place
        moved = point_encoder.prepare(PointCloud(whole.xyz.double() * scale + shift, offsets=whole.offsets))
        torch.testing.assert_close(moved.xyz, expected.xyz, rtol=0, atol=1e-6)
    assert torch.equal(point_encoder.prepare(whole, normalise=False).xyz, whole.xyz)


def test_large_clouds_are_thinned_out_alike_at_every_call(point_encoder: Encoder) -> None:
    xyz = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    made = point_encoder.prepare([xyz, xyz[:30]], normalise=False)
    assert made.offsets.tolist() == [0, 64, 94]
    rows = {tuple(row) for row in xyz.tolist()}
    assert len({tuple(row) for row in made.xyz[:64].tolist()} & rows) == 64
    assert torch.equal(made.xyz, point_encoder.prepare([xyz, xyz[:30]], normalise=False).xyz)
    assert len(point_encoder.prepare(xyz, points=100).xyz) == 100
    assert torch.equal(point_encoder.prepare(xyz, normalise=False, points=0).xyz, xyz)
    with pytest.raises(InputError, match="points must be 0 or more, got -1"):
        point_encoder.prepare(xyz, points=-1)


def test_points_of_a_view_and_poolings(point_encoder: Encoder) -> None:
    camera = geo3d.Camera(4, 3, 4.0, 4.0, 1.5, 1.0)
    view = View("a", camera, torch.eye(4, dtype=torch.float64), depth=torch.ones(3, 4))
    inputs = point_encoder.prepare(view)
    assert torch.equal(inputs.xyz, point_encoder.prepare(view.world_points()[0]).xyz)
    inputs = point_encoder.prepare(cloud())
    with torch.no_grad():
        tokens = point_encoder.features(inputs, [-1])[0]
        parts = tokens.feats.split(tokens.offsets.diff().tolist())
        maximum, mean = (
            torch.stack([how(part) for part in parts]) for how in (lambda t: t.amax(0), lambda t: t.mean(0))
        )
        expected = {"max": maximum, "mean": mean, "max+mean": torch.cat([maximum, mean], 1)}
        for pooling, values in expected.items():
            torch.testing.assert_close(point_encoder.pooled(inputs, pooling), values, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"pooling must be one of max, mean, max\+mean, got 'maks'"):
        point_encoder.pooled(inputs, "maks")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c.xyz[:0], "holds no point"),
        (lambda c: PointCloud(c.xyz, offsets=torch.tensor([0, 0, 59])), "holds no point"),
        (lambda c: c.xyz.where(c.xyz > 0.5, torch.nan), "positions hold NaN"),
        (lambda c: c.xyz / 0, "positions hold NaN or infinite"),
        (lambda c: (100 * c.xyz).long(), "positions must be floats"),
        (lambda c: c.xyz[0], r"an array of points is \(N, 3\), got \(3,\)"),
        (lambda c: torch.cat([c.xyz, c.colors], 1), r"an array of points is \(N, 3\), got \(59, 6\)"),
        (lambda c: [], "the list is empty"),
        (lambda c: "scan.ply", "reads a PointCloud, an array \\(N, 3\\), or a View with depth, not a str"),
        (lambda c: View("dark"), "world_points needs depth"),
    ],
)
def test_what_are_no_clouds_is_refused(point_encoder: Encoder, make: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        point_encoder.prepare(make(cloud().scene(0)))
    assert "\n" not in str(caught.value)


# A family of one's own


def test_a_family_is_one_declaration_and_one_line(tmp_path: Path) -> None:
    class Shallow(ResNet):
        family = "shallow"

    family = Family("shallow", "Shallow ResNet", Shallow, ResNetConfig, {"shallow_4": ResNetConfig((1, 1, 1, 1), 4)})
    register_family(family)
    try:
        model = create_model("shallow_4", width=8)
        save_model(model, tmp_path / "own")
        assert type(create_model(checkpoint=tmp_path / "own")) is Shallow
        assert "shallow_4" in list_models("sh*")
        assert "shallow" in str(model_info("shallow_4"))
        torch.save(model.state_dict(), tmp_path / "bare.pth")
        assert create_model("shallow", checkpoint=tmp_path / "bare.pth", width=8).config == model.config
        with pytest.raises(InputError, match="does not fit Shallow"):
            create_model("shallow", checkpoint=tmp_path / "bare.pth")
        with pytest.raises(ValueError, match="'shallow_4', 'shallow' is registered twice"):
            register_family(family)
    finally:
        from geo3d.models import registry

        for names in (registry._FAMILIES, registry._MODELS):
            for name in [n for n in names if n.startswith("shallow")]:
                del names[name]


@pytest.mark.parametrize("name", SMALL.values())
def test_features_without_prepare_say_so(name: str) -> None:
    options = {"encoder": "resnet_tiny", "decoder_width": 32} if name == "spark" else {}
    model = create_model(name, **options)
    photo = np.zeros((64, 64, 3), np.uint8)
    wrong = [
        photo,
        Image.fromarray(photo),
        [photo],
        "a.jpg",
        None,
        PointCloud(torch.zeros(3, 3)),
        torch.zeros(3, 64, 64),
    ]
    wrong += [torch.zeros(1, 64, 64, 3), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
    for inputs in wrong:
        with pytest.raises(InputError, match=r"prepare makes .*call features\(prepare\(\.\.\.\)\)"):
            model.features(inputs)
