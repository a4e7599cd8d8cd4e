"""DUSt3R's and MASt3R's networks: batches of mixed orientation, symmetric batches, precision, post-processing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from geo3d import InputError
from geo3d.models.dust3r import DUSt3R, DUSt3RConfig, MASt3R, PairPointmaps
from geo3d.nn.pointmaps import ConfidenceMode, points_from_raw, unit_descriptors

LINEAR = DUSt3RConfig((32, 48), 8, 32, 2, 2, 16, 2, 2)
DENSE = replace(
    LINEAR, head="catmlp+dpt", descriptors=3, two_confidences=True, head_levels=(4, 6, 8, 10), head_width=8, head_last=4
)
#: Rows go through in other batches: sums of another order. 3e-7 of values near 1 was measured in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def network(config: DUSt3RConfig) -> DUSt3R:
    kind = DUSt3R if config.descriptors is None else MASt3R
    return kind(config, torch.Generator().manual_seed(0)).eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def row(pair: PairPointmaps, number: int) -> list[torch.Tensor]:
    return [field[number] for maps in pair for field in maps.fields() if field is not None]


@pytest.mark.parametrize("config", [LINEAR, DENSE], ids=["linear", "catmlp+dpt"])
@torch.no_grad()
def test_portraits_that_lie_in_landscape_arrays_give_what_upright_ones_do(config: DUSt3RConfig) -> None:
    model = network(config)
    first, second = images(4, 3, 24, 40), images(4, 3, 24, 40, seed=1)
    upright = (
        torch.tensor([[24, 40], [40, 24], [24, 40], [40, 24]]),
        torch.tensor([[24, 40], [24, 40], [40, 24], [40, 24]]),
    )
    batch = model(first, second, *upright)
    for number in range(4):
        turned = [shapes[number, 0] > shapes[number, 1] for shapes in upright]
        views = [
            view[number : number + 1].transpose(2, 3) if turn else view[number : number + 1]
            for view, turn in zip((first, second), turned, strict=True)
        ]
        alone = model(*views)
        expected = []
        for maps, turn in zip(alone, turned, strict=True):
            fields = [field[0] for field in maps.fields() if field is not None]
            expected += [field.transpose(0, 1) if turn else field for field in fields]
        for found, truth in zip(row(batch, number), expected, strict=True):
            torch.testing.assert_close(found, truth, **CLOSE)
    square = images(1, 3, 24, 24)  # counts as landscape
    torch.testing.assert_close(
        model(square, square, torch.tensor([[24, 24]]), torch.tensor([[24, 24]])).first.points,
        model(square, square).first.points,
        **CLOSE,
    )


@torch.no_grad()
def test_a_symmetric_batch_is_encoded_once_to_the_same_numbers() -> None:
    model = network(LINEAR)
    one, other = images(2, 3, 24, 40), images(2, 3, 24, 40, seed=1)
    first, second = (torch.stack(pair, 1).flatten(0, 1) for pair in ((one, other), (other, one)))
    seen = []
    model.enc_norm.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    once, plain = model(first, second, symmetric=True), model(first, second)
    assert seen == [4, 8]
    for number in range(4):
        for found, truth in zip(row(once, number), row(plain, number), strict=True):
            torch.testing.assert_close(found, truth, **CLOSE)
    with pytest.raises(InputError, match="an even number of pairs"):
        model(first[:3], second[:3], symmetric=True)


@torch.no_grad()
def test_both_decoders_look_at_what_the_other_was_before() -> None:
    """With the weights of one decoder in both, swapping the views swaps the outputs of the decoders."""
    model = network(LINEAR)
    model.dec_blocks2.load_state_dict(model.dec_blocks.state_dict())
    first, second = images(1, 3, 24, 40), images(1, 3, 40, 24, seed=1)
    there, back = model.levels(first, second), model.levels(second, first)
    for one, other in zip(there[0] + there[1], back[1] + back[0], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert len(there[0]) == LINEAR.decoder_depth + 1


def test_heads_stay_in_float32_under_autocast_and_follow_the_networks_type() -> None:
    model, views = network(DENSE), (images(1, 3, 32, 48), images(1, 3, 32, 48, seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        pair = model(*views)
        assert model.levels(*views)[0][1].dtype == torch.bfloat16
    assert all(field.dtype == torch.float32 for maps in pair for field in maps.fields())
    exact = model.double()(*(view.double() for view in views))
    assert exact.second.descriptors.dtype == torch.float64
    error = (pair.first.descriptors - exact.first.descriptors).abs().max()
    assert error < 0.1  # of bfloat16 tokens; 0.02 was measured


def test_what_is_frozen() -> None:
    parts = {"none": {"mask_token"}, "mask": {"mask_token"}}
    for freeze, expected in parts.items():
        model = network(replace(LINEAR, freeze=freeze))
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == expected
    model = network(replace(LINEAR, freeze="encoder"))
    encoder = {name for name, _ in model.named_parameters() if model.is_of_encoder(name)}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == encoder | {"mask_token"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: m(images(1, 3, 30, 48), images(1, 3, 32, 48)), "multiples of 8"),
        (lambda m: m(images(1, 3, 32, 48), images(2, 3, 32, 48)), "1 first views and 2 second ones"),
        (lambda m: m(images(1, 3, 48, 32), images(1, 3, 48, 32), torch.tensor([[48, 32]])), "arrays are landscape"),
        (lambda m: m(images(1, 3, 32, 48), images(1, 3, 32, 48), torch.tensor([[32, 40]])), "arrays are landscape"),
        (lambda m: m(images(1, 3, 32, 48), images(1, 3, 32, 48), torch.tensor([32, 48])), "arrays are landscape"),
        (lambda m: m((images(1, 3, 32, 48) * 9).byte(), images(1, 3, 32, 48)), "as prepare makes them"),
        (lambda m: replace(LINEAR, head="dpt", descriptors=3), "the head dpt has no descriptors"),
        (lambda m: replace(LINEAR, head="catmlp+dpt"), "has descriptors, and descriptors is None"),
        (lambda m: replace(LINEAR, two_confidences=True), "two_confidences goes with descriptors"),
        (lambda m: replace(DENSE, descriptors=0), "descriptors must be positive"),
        (lambda m: replace(DENSE, head_levels=(1, 2, 0, 4)), "head_levels must be positive"),
        (lambda m: replace(LINEAR, rope_base=None), "rotary position embeddings alone"),
    ],
)
def test_what_does_not_fit_is_one_line(make, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(network(LINEAR))
    assert "\n" not in str(caught.value)


def test_points_and_confidences_of_every_mode() -> None:
    raw = torch.tensor([[3.0, 0, 4], [0, 0, 0], [0, 1e-9, 0]], dtype=torch.float64, requires_grad=True)
    lengths = {"exp": math.expm1(5), "square": 25.0, "linear": 5.0}
    for mode, length in lengths.items():
        points = points_from_raw(raw, mode)
        torch.testing.assert_close(points[0], torch.tensor([0.6, 0, 0.8], dtype=torch.float64) * length)
        assert (points[1] == 0).all()
        (gradient,) = torch.autograd.grad(points.sum(), raw)
        assert gradient.isfinite().all()
    c = torch.tensor([-50.0, 0, 2, 50], dtype=torch.float64)
    assert ConfidenceMode()(c).tolist() == pytest.approx([1, 2, 1 + math.e**2, 1 + math.e**50])
    assert ConfidenceMode("exp", 1.0, 4.0)(c).tolist() == pytest.approx([1, 2, 4, 4])
    assert ConfidenceMode("sigmoid", 2.0, 4.0)(c).tolist() == pytest.approx([2, 3, 2 + 2 / (1 + math.e**-2), 4])
    assert unit_descriptors(torch.tensor([[3.0, 4.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
