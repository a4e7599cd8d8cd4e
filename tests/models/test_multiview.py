"""The multi-view network: what its views see of each other, against blocks worked out view by view."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from geo3d import InputError, create_model
from geo3d.models.croco import CroCoConfig, CroCoNet
from geo3d.models.image_encoder import SeesTwoViews
from geo3d.models.multiview import MultiViewNet
from geo3d.nn import MultiViewBlock, token_positions
from geo3d.nn.patches import patchify, unpatchify

SMALL = CroCoConfig((32, 48), 8, 32, 2, 2, 32, 2, 2, rope_base=100.0)
#: float64, sums in another order.
EXACT = {"rtol": 0, "atol": 1e-12}


def _network(config: CroCoConfig = SMALL) -> MultiViewNet:
    return MultiViewNet(config, torch.Generator().manual_seed(0)).double()


def _views(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images, and masks that hide 18 of 24 patches."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 32, 48, generator=generator, dtype=torch.float64)
    return images, torch.rand(count, 24, generator=generator).argsort(1) < 18


def test_a_block_equals_one_worked_out_view_by_view() -> None:
    torch.manual_seed(0)
    block = MultiViewBlock(32, 2, 2.0, 100.0).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, positions = torch.randn(7, 6, 32).double(), token_positions(2, 3)
    expected = []
    for group in x.split((2, 2, 3)):
        own = [view[None] + block.attn(block.norm1(view[None]), positions[None]) for view in group]
        memory, places = torch.cat(own, 1), positions.repeat(len(group), 1)[None]
        for view in own:
            looked = view + block.cross_attn(block.norm2(view), block.norm_y(memory), positions[None], places)
            expected.append(looked + block.mlp(block.norm3(looked)))
    found = block(x, positions.expand(7, -1, -1), [(2, 2), (1, 3)])
    torch.testing.assert_close(found, torch.cat(expected), **EXACT)


@pytest.mark.parametrize("rope_base", [None, 100.0])
def test_exchanging_views_exchanges_what_comes_out(rope_base: float | None) -> None:
    network, (images, mask) = _network(replace(SMALL, rope_base=rope_base)), _views(4)
    order = torch.tensor([2, 0, 3, 1])
    found = network(images, mask).prediction
    torch.testing.assert_close(network(images[order], mask[order]).prediction, found[order], **EXACT)


def test_groups_do_not_see_each_other_whatever_their_order() -> None:
    network, (images, mask) = _network(), _views(9)
    sizes = (2, 3, 1, 1, 2)
    parts = [network(*part).prediction for part in zip(images.split(sizes), mask.split(sizes))]
    torch.testing.assert_close(network(images, mask, sizes).prediction, torch.cat(parts), **EXACT)


def test_hidden_patches_cannot_leak_and_visible_ones_of_other_views_are_seen() -> None:
    network, (images, mask) = _network(), _views(3)
    patches = patchify(images, 8)
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = network(images, mask).prediction
    changed = unpatchify(torch.where(mask.unsqueeze(-1), noise, patches), 8, (4, 6))
    torch.testing.assert_close(network(changed, mask).prediction, expected, **EXACT)
    patches[2, (~mask[2]).nonzero()[0]] += 1
    seen = network(unpatchify(patches, 8, (4, 6)), mask).prediction
    assert ((seen - expected).abs().amax((1, 2)) > 1e-6).all()


def test_without_attention_across_views_each_is_alone() -> None:
    network, (images, mask) = _network(), _views(3)
    for block in network.dec_blocks:
        torch.nn.init.zeros_(block.cross_attn.proj.weight)
    alone = network(images, mask, (1, 1, 1)).prediction
    torch.testing.assert_close(network(images, mask).prediction, alone, **EXACT)


def test_views_of_which_more_is_visible_are_encoded_as_alone() -> None:
    network, (images, mask) = _network(), _views(4)
    mask[1], mask[3, :7] = False, True  # one is whole, and one shows less than the others
    found = network._embedded(images, mask, (4, 6))
    for n in range(4):
        visible = (~mask[n]).nonzero().T
        tokens = network.decoder_embed(network.encode(images[n : n + 1], visible))
        torch.testing.assert_close(found[n, visible[0]], tokens[0], **EXACT)
        assert (found[n, mask[n]] == network.mask_token[0, 0]).all()
    assert network(images, mask).prediction.shape == (4, 24, 192)


def test_its_layers_are_those_of_croco() -> None:
    ours, croco = (
        create_model(name, generator=torch.Generator().manual_seed(3)) for name in ("multiview_tiny", "croco_tiny")
    )
    state = croco.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    for name, croco_name in (("base", "croco_v2_base_base"), ("large", "croco_v2_large_base")):
        with torch.device("meta"):
            shapes = [
                {key: tensor.shape for key, tensor in create_model(n).state_dict().items()}
                for n in (f"multiview_{name}", croco_name)
            ]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", [MultiViewNet, CroCoNet])
def test_what_two_views_give_is_the_decoders(kind: type) -> None:
    network, (images, _) = kind(SMALL, torch.Generator().manual_seed(0)).double(), _views(4)
    assert isinstance(network, SeesTwoViews)
    assert not isinstance(create_model("resnet_tiny"), SeesTwoViews)
    found = network.decoded(images[:2], images[2:])
    assert found.shape == (2, network.decoded_channels, 4, 6)
    if kind is MultiViewNet:
        expected = network(images[[0, 2, 1, 3]], sizes=(2, 2)).decoded[::2]
    else:
        expected = network(images[:2], images[2:], torch.arange(24).expand(2, -1)).decoded
    torch.testing.assert_close(found.flatten(2).mT, expected, **EXACT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, i, k: m(i, k, (1, 1)), r"sizes must be 1 or more and sum to the 3 views, got \[1, 1\]"),
        (lambda m, i, k: m(i, k, (3, 0)), "sizes must be 1 or more"),
        (lambda m, i, k: m(i, k[:, 1:]), r"mask must be \(3, 24\) bool, got \(3, 23\)"),
        (lambda m, i, k: m(i, k.long()), r"mask must be \(3, 24\) bool"),
        (lambda m, i, k: m(i, k | True), "hides all patches of a view"),
        (lambda m, i, k: m(i[..., 1:], k), "multiples of 8"),
        (lambda m, i, k: m(i[0], k), "as prepare makes them"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(_network(), *_views(3))
