"""The CroCo network beyond the goldens: analytic facts, image sizes, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from geo3d import InputError, create_model
from geo3d.models.croco import CroCoConfig, CroCoNet, visible_from_mask
from geo3d.nn import resize_position_embedding, sincos_2d
from geo3d.nn.patches import patchify, unpatchify

SMALL = CroCoConfig((32, 48), 8, 32, 2, 2, 32, 2, 2)


def _views(config: CroCoConfig, size: tuple[int, int] | None = None):
    return torch.randn(2, 2, 3, *(size or config.image_size), generator=torch.Generator().manual_seed(1))


def test_patchify_is_row_major_with_channels_fastest() -> None:
    image = torch.arange(3 * 4 * 6).reshape(1, 3, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 12)
    # Second patch of the first row: columns 2 and 3; values (row, column, channel), a channel is 24 apart.
    assert patches[0, 1].tolist() == [2, 26, 50, 3, 27, 51, 8, 32, 56, 9, 33, 57]
    assert torch.equal(unpatchify(patches, 2, (2, 3)), image)


def test_sincos_encodes_x_first() -> None:
    table = sincos_2d(8, 2, 3)
    y, x = 1, 2
    row = table[y * 3 + x].tolist()
    expected = [math.sin(x), math.sin(x / 100), math.cos(x), math.cos(x / 100)]
    expected += [math.sin(y), math.sin(y / 100), math.cos(y), math.cos(y / 100)]
    assert row == pytest.approx(expected, abs=1e-7)  # float32 rounding of values below one


def test_packed_encoder_equals_each_view_alone() -> None:
    model = CroCoNet(SMALL).double()
    first, second = _views(SMALL).double()
    visible = torch.tensor([[0, 5, 7], [1, 2, 23]])
    output = model(first, second, visible)
    assert torch.allclose(output.first, model.encode(first, visible), atol=1e-12)  # float64, another order of sums
    assert torch.allclose(output.second, model.encode(second), atol=1e-12)


@pytest.mark.parametrize("rope_base", [None, 100.0])
def test_masked_patches_cannot_leak(rope_base: float | None) -> None:
    model = CroCoNet(CroCoConfig((32, 48), 8, 32, 2, 2, 32, 2, 2, rope_base=rope_base))
    first, second = _views(model.config)
    visible = torch.tensor([[0, 5, 7], [1, 2, 23]])
    mask = torch.ones(2, 24, dtype=torch.bool).scatter(1, visible, False)
    patches = patchify(first, 8)
    noise = torch.where(mask.unsqueeze(-1), torch.randn_like(patches), patches)
    changed = unpatchify(noise, 8, (4, 6))
    predictions = [model(image, second, visible).prediction for image in (first, changed)]
    torch.testing.assert_close(*predictions)  # of library calls


@pytest.mark.parametrize("rope_base", [None, 100.0])
@pytest.mark.parametrize("size", [(16, 16), (64, 40), (8, 96)])
def test_any_size_that_the_patch_divides(rope_base: float | None, size: tuple[int, int]) -> None:
    config = CroCoConfig((32, 48), 8, 32, 2, 2, 32, 2, 2, rope_base=rope_base)
    model = CroCoNet(config, torch.Generator().manual_seed(0))
    first, second = _views(config, size)
    tokens = size[0] * size[1] // 64
    visible = torch.arange(2).expand(2, -1)
    prediction = model(first, second, visible).prediction
    assert prediction.shape == (2, tokens, 192)
    # Making the size the network's own gives the same numbers.
    model.resize(size)
    assert torch.allclose(model(first, second, visible).prediction, prediction, atol=1e-6)


def test_sincos_resampled_to_its_own_grid_is_unchanged() -> None:
    table = sincos_2d(16, 4, 6)
    assert resize_position_embedding(table, (4, 6), (4, 6)) is table
    assert resize_position_embedding(table, (4, 6), (8, 3)).shape == (24, 16)


def test_initial_weights_follow_the_recipe() -> None:
    model = CroCoNet(CroCoConfig((64, 64), 8, 256, 1, 4, 256, 1, 4), torch.Generator().manual_seed(0))
    weight = model.enc_blocks[0].mlp.fc1.weight
    bound = math.sqrt(6 / sum(weight.shape))
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # 262,144 draws: 0.2 % is one sigma
    patch = model.patch_embed.proj.weight
    assert patch.abs().max() <= math.sqrt(6 / (256 + 192))
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.2)  # 256 draws: 4 % is one sigma
    assert not model.prediction_head.bias.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m(torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 40), torch.zeros(1, 1, dtype=torch.long)),
            "one shape",
        ),
        (lambda m: m.encode(torch.zeros(1, 3, 30, 48)), "multiples of 8"),
        (lambda m: m.encode(torch.zeros(3, 32, 48)), "as prepare makes them"),
        (lambda m: m.features(torch.zeros(1, 3, 32, 48), layers=[2]), "no 2 among the 2 stages"),
        (lambda m: visible_from_mask(torch.tensor([[True, False], [True, True]])), "same number"),
        (lambda m: create_model("croco_tiny", image_size=(60, 64)), "not a multiple"),
        (lambda m: create_model("croco_tiny", encoder_heads=5), "whole heads"),
        (lambda m: create_model("croco_tiny", encoder_heads=0), "encoder_heads=0"),
        (lambda m: create_model("croco_tiny", patch_size=0), "patch_size=0"),
        (lambda m: create_model("croco_tiny", encoder_depth="x"), "encoder_depth: expected a whole number, found 'x'"),
        (lambda m: create_model("croco_tiny", image_size=0), r"image_size=\(0, 0\)"),
        (lambda m: create_model("croco_tiny", image_size=(64, 64, 3)), "image_size: expected a list of 2"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(CroCoNet(SMALL))
