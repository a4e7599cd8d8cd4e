"""CLIP's image tower against torch's own attention in float64, and the layouts that its weights come in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d import InputError
from geo3d.models.teachers import clip, create_teacher
from geo3d.nn.colors import IMAGE_MEAN, IMAGE_STD

CLIP = "clip_vit_b16"


def _images(side: int, count: int = 1) -> Tensor:
    noise = torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, (side, side), mode="bilinear")


def _reference(state: dict[str, Tensor], images: Tensor, mean: tuple, std: tuple) -> tuple[Tensor, Tensor]:
    """The tower (specification, 2.4) of torch's own parts: features (B, 512, 14, 14) and attention (B, 14, 14)."""
    state = {name: value.to(images.dtype) for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    # As float32 has them: the teacher's are constants of that.
    mean, std = (torch.tensor(value).to(images.dtype).view(3, 1, 1) for value in (mean, std))
    colors = (images - mean) / std
    x = F.conv2d(colors, state["conv1.weight"], stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], 1) + state["positional_embedding"]
    x = norm(x, "ln_pre")
    depth = sum(name.endswith(".attn.in_proj_weight") for name in state)
    for number in range(depth):
        block = f"transformer.resblocks.{number}"
        attention = nn.MultiheadAttention(768, 12, batch_first=True, dtype=images.dtype).eval()
        own = {name.removeprefix(f"{block}.attn."): v for name, v in state.items() if name.startswith(f"{block}.attn.")}
        attention.load_state_dict(own)
        y = norm(x, f"{block}.ln_1")
        y, weights = attention(y, y, y, need_weights=True, average_attn_weights=True)
        x = x + y
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{block}.mlp.c_proj")
    features = (norm(x[:, 1:], "ln_post") @ state["proj"]).transpose(1, 2).unflatten(2, (14, 14))
    return features.detach(), weights[:, 0, 1:].unflatten(1, (14, 14)).detach()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_the_tower_of_an_i2p_mae_file(half: bool, golden_folder: Path, tmp_path: Path) -> None:
    """The whole layout of the 302 teacher tensors, wrapped as a data-parallel training writes it."""
    spec = importlib.util.spec_from_file_location("recipe_of_clip", golden_folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    layout = recipe.read_layout(golden_folder / "layouts" / "i2p_mae_clip_model.txt")
    assert len(layout) == 302
    # Of the text tower only names and types matter, and tensors that share one value take no room.
    state = {
        name: recipe.draw(name, shape, dtype) if ".visual." in name else torch.zeros(()).expand(shape)
        for name, dtype, shape in layout
    }
    if half:
        state = {name: value.half() if value.ndim >= 2 else value for name, value in state.items()}
    model = {f"module.{name}": value for name, value in state.items()} | {"module.mask_token": torch.zeros(1, 384)}
    torch.save(
        {"base_model": model, "optimizer": {}, "epoch": 3, "metrics": {}, "best_metrics": {}}, tmp_path / "c.pth"
    )
    teacher = create_teacher(CLIP, tmp_path / "c.pth")
    tower = {n.removeprefix("clip_model.visual."): v for n, v in state.items() if ".visual." in n}
    images = _images(224)
    if half:  # the same numbers, as float32
        assert torch.equal(teacher.visual.proj, tower["proj"].float())
        return
    features, saliency = teacher.double()(images.double())
    expected_features, expected_saliency = _reference(tower, images.double(), IMAGE_MEAN, IMAGE_STD)
    torch.testing.assert_close(features, expected_features, rtol=0, atol=1e-9)
    torch.testing.assert_close(saliency, expected_saliency, rtol=0, atol=1e-12)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of a tower of two blocks, for which the teacher is made."""
    monkeypatch.setattr(clip, "_DEPTH", 2)
    tower = clip.VisionTower("quick_gelu")
    generator = torch.Generator().manual_seed(5)
    tower.draw(generator)
    state = {name: value.detach().clone() for name, value in tower.state_dict().items()}
    for name, value in state.items():
        if value.ndim == 1:
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
        assert value.is_contiguous(), name
    return state


def _as_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under timm's names."""
    names = {
        "conv1.": "patch_embed.proj.", "ln_pre.": "norm_pre.", "ln_post.": "norm.",
        "transformer.resblocks.": "blocks.", ".ln_1.": ".norm1.", ".ln_2.": ".norm2.", ".in_proj_": ".qkv.",
        ".out_proj.": ".proj.", ".c_fc.": ".fc1.", ".c_proj.": ".fc2.",
    }  # fmt: skip
    timm = {
        "cls_token": state["class_embedding"].view(1, 1, -1),
        "pos_embed": state["positional_embedding"].unsqueeze(0),
        "head.weight": state["proj"].t().contiguous(),
        "head.bias": torch.zeros(512),
    }
    for name, value in state.items():
        if name not in ("class_embedding", "positional_embedding", "proj"):
            for theirs, other in names.items():
                name = name.replace(theirs, other)
            timm[name] = value
    return timm


LAYOUTS = {
    "tower alone": lambda state: state,
    "openai and open_clip": lambda state: {
        "logit_scale": torch.ones(()), **{f"visual.{name}": value for name, value in state.items()}
    },
    "open_clip training": lambda state: {
        "epoch": 3, "state_dict": {f"module.visual.{name}": value for name, value in state.items()}
    },
    "timm": _as_timm,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_weights(layout: str, shallow: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](shallow), tmp_path / "clip.pt")
    teacher = create_teacher(CLIP, tmp_path / "clip.pt", colors="clip")
    images = _images(224)
    features, saliency = _reference(shallow, images.double(), clip._CLIP_MEAN, clip._CLIP_STD)
    found = teacher(images)
    # float32 of two blocks against float64: measured 4e-6 of features of up to 5, and 4e-9.
    torch.testing.assert_close(found.features.double(), features, rtol=0, atol=3e-5)
    torch.testing.assert_close(found.saliency.double(), saliency, rtol=0, atol=3e-8)


def test_other_sizes_resize_the_position_embedding(shallow: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(shallow, tmp_path / "clip.pt")
    teacher = create_teacher(CLIP, tmp_path / "clip.pt")
    small = teacher(_images(112, 2))
    assert small.features.shape == (2, 512, 7, 7)
    assert small.saliency.shape == (2, 7, 7)
    assert (small.saliency.sum((1, 2)) <= 1).all()
    exact = create_teacher(CLIP, tmp_path / "clip.pt", activation="gelu")
    assert not torch.allclose(exact(_images(112, 2)).features, small.features, atol=1e-4)


@pytest.mark.usefixtures("shallow")
def test_fresh_weights_are_the_seeds() -> None:
    made = [create_teacher(CLIP, weights="random", seed=seed) for seed in (0, 0, 1)]
    assert made[0].identity == made[1].identity != made[2].identity
    features, saliency = made[0](_images(64))
    assert 0.3 < float(features.std()) < 3
    assert (saliency > 0).all()


def test_files_without_the_tower_are_refused(shallow: dict[str, Tensor], tmp_path: Path) -> None:
    timm = _as_timm(shallow)
    cut = {name: value for name, value in shallow.items() if name != "ln_post.bias"}
    wrong = {
        "holds no image tower": {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)},
        "1 missing: ln_post.bias": cut,
        "1 missing: proj": {name: value for name, value in timm.items() if not name.startswith("head")},
        "its head is a classifier": timm | {"head.bias": torch.ones(512)},
        "of another shape: positional_embedding": shallow | {"positional_embedding": torch.zeros(50, 768)},
    }
    for message, state in wrong.items():
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(InputError, match=message) as error:
            create_teacher(CLIP, tmp_path / "wrong.pt")
        assert "\n" not in str(error.value)


def test_like_open_clip(tmp_path: Path) -> None:
    """Its own network with the same weights, where it is installed; it agreed to 6e-12 in float64."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"open_clip is not installed, or cannot be imported beside this torch ({type(error).__name__})")
    tower = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).visual.eval()
    torch.save({f"visual.{name}": value for name, value in tower.state_dict().items()}, tmp_path / "clip.pt")
    teacher = create_teacher(CLIP, tmp_path / "clip.pt", colors="clip").double()
    images = _images(224).double()
    tower.double().output_tokens = True
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (clip._CLIP_MEAN, clip._CLIP_STD))
    with torch.no_grad():
        tokens = tower((images - mean) / std)[1] @ tower.proj
    expected = tokens.transpose(1, 2).unflatten(2, (14, 14))
    torch.testing.assert_close(teacher(images).features, expected, rtol=0, atol=1e-9)
