"""NeRF-MAE's network: grids of any sides, masks, losses by hand, the last decoder, and blocks that are skipped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d import InputError, create_model
from geo3d.geometry import VolumeGrid
from geo3d.models.grid_encoder import GridInput
from geo3d.models.nerf_mae import NeRFMAE, reconstruction_losses
from geo3d.nn.subpixel_decoder import composed_kernels, last_decoder
from geo3d.nn.swin_volume import dense_places, relative_position_index, volume_positions, window_table
from geo3d.nn.volume_decoder import VolumeUp

SIZES = {"embed_dim": 12, "depths": (1, 2, 2, 1), "heads": (1, 2, 3, 4), "mlp_ratio": 2, "drop_path_rate": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**options) -> NeRFMAE:
    return create_model("nerf_mae_tiny", generator=generator(), **(SIZES | options)).double()


def double(inputs: GridInput) -> GridInput:
    return GridInput(inputs.values.double(), inputs.sizes)


# Grids


def test_grids_of_unequal_sides_are_filled_up() -> None:
    model = small()
    grids = [torch.rand(4, *sides, generator=generator()) for sides in ((30, 20, 40), (33, 7, 9))]
    inputs = model.prepare(grids)
    assert inputs.sides == (64, 32, 64)
    assert inputs.sizes.tolist() == [[30, 20, 40], [33, 7, 9]]
    for values, valid, grid in zip(inputs.values, inputs.valid, grids, strict=True):
        x, y, z = grid.shape[1:]
        assert torch.equal(values[:, :x, :y, :z], grid)
        assert values.count_nonzero() == grid.count_nonzero()
        assert valid[:x, :y, :z].all()
        assert valid.sum() == x * y * z
    assert model.prepare(grids, resolution=160).sides == (160, 160, 160)
    assert model.prepare(grids, resolution=36).sides == (64, 64, 64)  # which none would fit into
    assert model.prepare(grids[1], resolution=36).sides == (36, 36, 36)
    assert small(resolution=64).prepare(grids).sides == (64, 64, 64)
    assert small(resolution=64).prepare(grids, resolution=0).sides == (64, 32, 64)


def test_every_form_of_grids_is_prepared_alike() -> None:
    model, values = small(), torch.rand(2, 4, 6, 5, 7, generator=generator())
    expected = model.prepare(values).values
    for form in (list(values), values.numpy(), [v.numpy() for v in values], [VolumeGrid.of_values(v) for v in values]):
        assert torch.equal(model.prepare(form).values, expected)
    byte = (values * 255).round().byte()
    assert torch.equal(model.prepare(byte).values, model.prepare(byte.float() / 255).values)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (torch.zeros(4, 5, 5), r"grids are \(4, X, Y, Z\), got \(4, 5, 5\)"),
        (torch.zeros(5, 6, 7, 4), r"move the channels to the front"),
        (torch.zeros(4, 5, 0, 5), "grids are"),
        (torch.zeros(4, 5, 5, 5).long(), "of type torch.int64 are not read"),
        (torch.full((4, 5, 5, 5), 2.0), r"must lie in \[0, 1\]"),
        (torch.full((4, 5, 5, 5), torch.nan), "hold NaN"),
        ("grid.npz", "a grid is a VolumeGrid"),
        ([], "the list is empty"),
    ],
)
def test_what_are_no_grids_is_refused(grid: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small().prepare(grid)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [72, 36, 4])
def test_features_of_sides_that_the_decoder_does_not_take(side: int) -> None:
    """The encoder alone runs at any multiple of 4: odd sides are rounded up as they are merged."""
    model = small()
    inputs = double(model.prepare(torch.rand(4, 4, side, min(side, 20), generator=generator()), resolution=side))
    with torch.no_grad():
        maps = model.features(inputs)
    wanted = [side // 4]
    for _ in range(3):
        wanted.append(math.ceil(wanted[-1] / 2))
    assert [tuple(stage.shape[2:]) for stage in maps] == [(n, n, n) for n in wanted]
    if side % 32:
        with pytest.raises(InputError, match="the decoder takes sides that are multiples of 32"):
            model(inputs)


def test_wrong_masks_and_inputs_are_one_line() -> None:
    model, inputs = small(), small().prepare(torch.rand(4, 32, 32, 64))
    for mask in (torch.zeros(2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 4), torch.zeros(3, 2, 2, 4).bool()):
        with pytest.raises(InputError, match=r"a mask of these grids is \(2, 2, 4\) or \(1, 2, 2, 4\) bool"):
            model(double(inputs), mask)
    with pytest.raises(InputError, match="sides multiples of 4"):
        model.features(GridInput(torch.zeros(1, 4, 6, 8, 8), torch.tensor([[6, 8, 8]])))
    with pytest.raises(InputError, match="sizes must be"):
        model.features(GridInput(torch.zeros(1, 4, 8, 8, 8), torch.tensor([6, 8, 8])))
    with pytest.raises(InputError, match="an encoder alone fills in nothing"):
        small(decoder=False)(double(inputs))
    with pytest.raises(InputError, match="at least one block of each sample"):
        model(double(inputs), decoded=torch.zeros(1, 2, 2, 4).bool())
    for wrong in ({"embed_dim": 16}, {"heads": (5, 1, 1, 1)}, {"depths": (1, 1)}, {"resolution": 30}):
        with pytest.raises(InputError, match="NeRF-MAE: "):
            small(**wrong)
    with pytest.raises(InputError, match="skip_empty goes with skip"):
        small(skip_empty=True)


# Losses


def test_losses_by_hand() -> None:
    """One block of a grid of 17 x 1 x 1 voxels, of which two are seen."""
    values = torch.zeros(1, 4, 32, 16, 16, dtype=torch.float64)
    values[0, :, 0, 0, 0] = torch.tensor([0.5, 0.25, 1, 0.5], dtype=torch.float64)
    values[0, :, 16, 0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.011], dtype=torch.float64)
    values[0, :, 1, 0, 0] = torch.tensor([9, 9, 9, 0.01], dtype=torch.float64)  # not beyond the threshold
    inputs = GridInput(values, torch.tensor([[17, 1, 1]]))
    prediction = torch.zeros_like(values)
    prediction[0, 3] = math.log(3)  # a sigmoid of 3/4
    rgb = (0.25 + 0.0625 + 1 + 0.01 + 0.04 + 0.09) / 2
    losses = reconstruction_losses(prediction, inputs, torch.tensor([True, False]).view(2, 1, 1))
    opacity = (0.25**2 + 0.74**2 + 14 * 0.75**2) / 16  # of the 16 voxels of the grid in the masked block
    assert losses["rgb"].item() == pytest.approx(rgb, rel=1e-12)
    assert losses["opacity"].item() == pytest.approx(opacity, rel=1e-12)
    losses = reconstruction_losses(prediction, inputs, torch.tensor([False, True]).view(2, 1, 1))
    assert losses["opacity"].item() == pytest.approx((0.75 - 0.011) ** 2, rel=1e-12)
    empty = GridInput(torch.zeros_like(values), torch.tensor([[16, 1, 1]]))
    for mask in (None, torch.zeros(2, 1, 1).bool()):  # where nothing counts
        assert [loss.item() for loss in reconstruction_losses(prediction, empty, mask).values()] == [0, 0]


def test_masked_blocks_are_not_seen() -> None:
    """What a masked block holds changes neither prediction; which mask a sample has does."""
    for masking in ("fill", "skip"):
        model = small(masking=masking)
        values = torch.rand(2, 4, 32, 32, 64, generator=generator())
        mask = torch.zeros(2, 2, 2, 4, dtype=torch.bool)
        mask[0, 1, 0, 2] = mask[1, 0] = mask[1, 1, 1, 1] = True
        changed = values.clone()
        changed[0, :, 16:, :16, 32:48] = 0.5
        changed[1, :, :16] = 0.25
        with torch.no_grad():
            one, other = (model(double(model.prepare(v)), mask).prediction for v in (values, changed))
            assert torch.equal(one, other)
            shared = model(double(model.prepare(values)), mask[0]).prediction
        assert torch.equal(shared[0], one[0])
        assert not torch.allclose(shared[1], one[1])


def test_masked_tokens_carry_their_positions_where_asked() -> None:
    tokens = torch.zeros(1, 8, 8, 8, 12, dtype=torch.float64)
    mask = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    plain, placed = (small(place_masked=placed).masked_tokens(tokens, mask) for placed in (False, True))
    assert plain.flatten(0, 3).std(0).max() < 1e-12
    positions = volume_positions(12, (8, 8, 8)).double()
    torch.testing.assert_close(placed[0] - plain[0], positions, rtol=0, atol=1e-12)


# The last decoder


def _last(channels: int, middle: int) -> tuple[VolumeUp, nn.Conv3d]:
    torch.manual_seed(0)
    return VolumeUp(channels, middle, 4, skip=False).double(), nn.Conv3d(middle, 4, 1).double()


@pytest.mark.parametrize(("batch", "sides"), [(2, (3, 2, 4)), (1, (1, 1, 2))])
def test_the_composed_decoder_is_the_plain_one(batch: int, sides: tuple[int, int, int]) -> None:
    """Values and every gradient, in float64."""
    decoder, out = _last(6, 3)
    cells = torch.randn(batch, 6, *sides, dtype=torch.float64, generator=generator(), requires_grad=True)
    expected, found = out(decoder(cells)), last_decoder(cells, decoder, out)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = [cells, *decoder.parameters(), *out.parameters()]
    along = torch.randn(expected.shape, dtype=torch.float64, generator=generator(1))
    pairs = (torch.autograd.grad(made, weights, along) for made in (expected, found))
    for one, other in zip(*pairs, strict=True):
        scale = max(1.0, float(one.abs().max()))
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12 * scale)


def test_gradients_of_some_blocks_are_those_of_differences() -> None:
    decoder, out = _last(2, 2)
    cells = torch.randn(1, 2, 4, 4, 8, dtype=torch.float64, generator=generator(), requires_grad=True)
    blocks = torch.tensor([[[[False, True]]]])
    made = last_decoder(cells, decoder, out, blocks)
    assert made.shape == (1, 4, 16, 16, 16)
    along = torch.randn(made.shape, dtype=torch.float64, generator=generator(1))
    weights = [cells, decoder.transp_conv.weight, decoder.transp_conv.bias, decoder.conv_block.conv1.weight]
    gradients = torch.autograd.grad((made * along).sum(), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        step = torch.randn(weight.shape, dtype=torch.float64, generator=generator(2))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-7 * step
                values.append((last_decoder(cells, decoder, out, blocks) * along).sum())
                weight -= sign * 1e-7 * step
        slope = float(values[0] - values[1]) / 2e-7  # small, so that few voxels cross the bend of an activation
        assert float((gradient * step).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-4)


def test_blocks_alone_see_what_lies_around_them() -> None:
    """Before the norms, which see other voxels, the values of a block are those of the whole grid."""
    decoder, out = _last(3, 3)
    cells = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64, generator=generator())
    with torch.no_grad():
        every = torch.ones(2, 2, 2, 2, dtype=torch.bool)
        made = last_decoder(cells, decoder, out, every).view(2, 8, 4, 16, 16, 16)
        whole = last_decoder(cells, decoder, out)
    # Norms weigh the voxels around blocks twice: close, not equal.
    blocks = whole.view(2, 4, 2, 16, 2, 16, 2, 16).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(made.shape)
    assert F.cosine_similarity(made.flatten(), blocks.flatten(), dim=0) > 0.999
    assert (made - blocks).abs().max() < 0.15 * blocks.std()


def test_composed_kernels_sum_to_both() -> None:
    """A constant map becomes, inside, what the sums of both kernels make of it."""
    up, conv = torch.rand(2, 3, 4, 4, 4, dtype=torch.float64), torch.rand(5, 3, 3, 3, 3, dtype=torch.float64)
    cells = torch.ones(1, 2, 5, 5, 5, dtype=torch.float64)
    expected = F.conv3d(F.conv_transpose3d(cells, up, stride=4), conv)[0, :, 3:13, 3:13, 3:13]
    found = [kernel.sum((1, 2, 3, 4)).view(8, 5) for kernel in composed_kernels(up, conv)]
    assert {round(float(v), 9) for v in expected[0].flatten()} == {
        round(float(v), 9) for part in found for v in part[:, 0]
    }


# Windows, and blocks that are skipped


def test_windows_by_hand() -> None:
    """Along one axis of 8 tokens, windows shifted by 2: the ends share one, and do not see each other."""
    table = window_table(dense_places(1, (8, 4, 4), torch.device("cpu")), 1, (8, 4, 4), True)
    assert table.order.sort().values.equal(torch.arange(128))
    assert table.offsets.tolist() == [0, 64, 96, 128]
    along = [window.unique().tolist() for window in (table.order // 16).split([64, 32, 32])]
    assert along == [[2, 3, 4, 5], [6, 7], [0, 1]]
    assert table.places[table.order[0], 0] == 0
    assert table.filled == 0
    filled = window_table(dense_places(1, (6, 4, 4), torch.device("cpu")), 1, (6, 4, 4), False)
    assert filled.filled == 32
    assert filled.offsets.tolist() == [0, 64, 128]
    place = table.places[:, 0].long()
    index = relative_position_index()
    assert index[0, 63] == 0
    assert index[63, 0] == 342
    assert index[16, 0] - index[0, 0] == 49  # one further along x
    window = table.order[:64]
    assert torch.equal(place[window].unsqueeze(1) - place[window] + 171, index)


def _same_but_skipping(model: NeRFMAE) -> NeRFMAE:
    other = small(masking="skip")
    other.load_state_dict({k: v for k, v in model.state_dict().items() if k != "mask_token"}, strict=False)
    return other


def test_skipping_nothing_is_the_faithful_encoder() -> None:
    model = small()
    other = _same_but_skipping(model)
    inputs = double(model.prepare(torch.rand(2, 4, 64, 32, 96, generator=generator())))
    with torch.no_grad():
        pairs = zip(model.encode(inputs), other.encode(inputs, torch.zeros(4, 2, 6).bool()), strict=True)
        for expected, found in pairs:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_skipped_tokens_are_left_out_of_windows() -> None:
    """Against attention over whole windows whose masked tokens are hidden by -inf, block after block."""
    model = small(masking="skip")
    inputs = double(model.prepare(torch.rand(2, 4, 64, 64, 32, generator=generator())))
    mask = torch.rand(2, 4, 4, 2, generator=generator(1)) < 0.6
    with torch.no_grad():
        found = model.encode(inputs, mask)
        tokens = model.place(model.embed(inputs.values))
        present = ~mask
        for number in range(3):
            side = 4 >> number
            stage = model.stages[number]
            flags = present.repeat_interleave(side, 1).repeat_interleave(side, 2).repeat_interleave(side, 3)
            if number:
                tokens = stage[0](tokens)
            for block in stage[1:] if number else stage:
                tokens = _hidden_block(block, tokens, flags)
            expected = tokens[flags]
            torch.testing.assert_close(found[number].permute(0, 2, 3, 4, 1)[flags], expected, rtol=0, atol=1e-12)
            rest = found[number].permute(0, 2, 3, 4, 1) - volume_positions(tokens.shape[-1], tuple(flags.shape[1:]))
            token = model.stage_tokens[number].expand_as(rest)
            torch.testing.assert_close(rest[~flags], token[~flags], rtol=0, atol=1e-6)  # of a float32 table


def _hidden_block(block: nn.Module, tokens: Tensor, present: Tensor) -> Tensor:
    """A block over all tokens, written out, of which absent ones are seen by none."""
    results = []
    for x, there in zip(tokens, present, strict=True):
        sides = x.shape[:3]
        whole = [math.ceil(side / 4) * 4 for side in sides]
        move = [2 if block.shift and side > 4 else 0 for side in whole]
        places = torch.ones(sides).nonzero()
        rolled = torch.stack([(places[:, a] - move[a]) % whole[a] for a in range(3)], 1)
        window = (rolled // 4 * torch.tensor([10000, 100, 1])).sum(1)
        region = torch.zeros(len(places), dtype=torch.long)
        for a in range(3):
            if move[a]:
                region = 3 * region + (rolled[:, a] >= whole[a] - 4).long() + (rolled[:, a] >= whole[a] - 2).long()
        rows = x.reshape(len(places), -1)
        attention, heads = block.attn, block.attn.heads
        q, k, v = attention.qkv(block.norm1(rows)).view(len(rows), 3, heads, -1).permute(1, 2, 0, 3)
        relative = places.unsqueeze(1) * 0 + (rolled % 4).unsqueeze(1) - (rolled % 4).unsqueeze(0) + 3
        bias = attention.relative_position_bias_table[(relative * torch.tensor([49, 7, 1])).sum(-1)].permute(2, 0, 1)
        logits = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + bias
        fill = math.prod(whole) - len(places)
        assert not fill or not move or max(whole) == 4
        hidden = (window.unsqueeze(0) != window.unsqueeze(1)) | ~there.flatten().unsqueeze(0)
        logits = logits - 100.0 * (region.unsqueeze(0) != region.unsqueeze(1))
        logits = logits.masked_fill(hidden, -1e9)
        if fill:  # tokens of zeros, which take part
            pads = torch.ones(whole)
            pads[: sides[0], : sides[1], : sides[2]] = 0
            at = pads.nonzero()
            rel = (rolled % 4).unsqueeze(1) - (at % 4).unsqueeze(0) + 3
            bias = attention.relative_position_bias_table[(rel * torch.tensor([49, 7, 1])).sum(-1)].permute(2, 0, 1)
            _, key, value = attention.qkv.bias.view(3, heads, 1, -1)
            extra = (q @ key.transpose(1, 2)) * q.shape[-1] ** -0.5 + bias
            apart = (at // 4 * torch.tensor([10000, 100, 1])).sum(1).unsqueeze(0) != window.unsqueeze(1)
            logits = torch.cat([logits, extra.masked_fill(apart, -1e9)], -1)
            v = torch.cat([v, value.expand(-1, len(at), -1)], 1)
        out = attention.proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(len(rows), -1))
        rows = rows + out
        results.append((rows + block.mlp(block.norm2(rows))).view(x.shape))
    return torch.stack(results)


def test_empty_blocks_may_be_skipped_too() -> None:
    model = small(masking="skip", skip_empty=True)
    values = torch.rand(1, 4, 32, 32, 32, generator=generator())
    values[:, 3, 16:] = 0
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    with torch.no_grad():
        inputs = double(model.prepare(values))
        first = model.encode(inputs, mask)[0].permute(0, 2, 3, 4, 1)[0] - volume_positions(12, (8, 8, 8))
    torch.testing.assert_close(first[4:], model.empty_tokens[0].expand_as(first[4:]), rtol=0, atol=1e-6)
    token = model.stage_tokens[0].expand(4, 4, 4, -1)
    torch.testing.assert_close(first[:4, :4, :4], token, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="nothing to encode"):
        model.encode(inputs, torch.ones(2, 2, 2).bool())


@pytest.mark.parametrize("options", [{}, {"masking": "skip"}, {"masking": "skip", "skip_empty": True}])
def test_every_weight_gets_a_gradient_from_some_blocks(options: dict) -> None:
    model = small(**options).train()
    values = torch.rand(2, 4, 32, 32, 64, generator=generator())
    values[:, 3, :, :, 48:] = 0
    mask = torch.rand(2, 2, 2, 4, generator=generator(1)) < 0.5
    decoded = torch.rand(2, 2, 2, 4, generator=generator(2)) < 0.4
    output = model(double(model.prepare(values)), mask, decoded)
    assert output.reconstruction.shape == (2, 4, 32, 32, 64)
    blocks = output.prediction.view(2, 4, 2, 16, 2, 16, 4, 16).abs().amax((1, 3, 5, 7))
    assert torch.equal(blocks > 0, decoded)
    sum(output.losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropped_paths_are_of_samples() -> None:
    model = small(drop_path_rate=0.9).train()
    values = torch.rand(1, 4, 32, 32, 32, generator=generator()).expand(6, -1, -1, -1, -1)
    torch.manual_seed(3)
    with torch.no_grad():
        last = model.features(double(model.prepare(values)))[0].flatten(1)
    assert 1 <= len(last.unique(dim=0)) <= 2**2


# Files


def test_files_whose_tables_are_others_are_refused(tmp_path: Path) -> None:
    state = small().float().state_dict()
    table = volume_positions(12, (8, 8, 8)).unsqueeze(0)
    index = relative_position_index().flatten()
    name = "stages.0.0.attn.relative_position_index"
    torch.save({"epoch": 3, "state_dict": state | {"pos_embed": table, name: index}}, tmp_path / "a.pt")
    assert create_model("nerf_mae", checkpoint=tmp_path / "a.pt").config.resolution == 32
    assert create_model("nerf_mae", checkpoint=tmp_path / "a.pt", resolution=0).config.resolution == 0
    for changed, message in (
        ({"pos_embed": table.transpose(1, 2)}, "not the published table of sines"),
        ({"pos_embed": table[0]}, r"must be \(1, n, n, n, C\)"),
        ({name: index.flip(0)}, "not of windows of 4 x 4 x 4 tokens"),
    ):
        torch.save({"state_dict": state | changed}, tmp_path / "b.pt")
        with pytest.raises(InputError, match=message):
            create_model("nerf_mae", checkpoint=tmp_path / "b.pt")
    del state["stages.2.1.attn.relative_position_bias_table"]
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"c\.pt: not a whole NeRF-MAE encoder: it has no stages\.2\.1"):
        create_model("nerf_mae", checkpoint=tmp_path / "c.pt")


def test_an_encoder_of_files_skips_with_a_fresh_decoder(tmp_path: Path) -> None:
    model = small().float()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    other = create_model("nerf_mae", checkpoint=tmp_path / "a.pt", fresh_decoder=True, masking="skip")
    assert other.config.masking == "skip"
    assert torch.equal(other.stages[0][0].mlp[0].weight, model.stages[0][0].mlp[0].weight)
