"""Layers in pieces of rows, where no gradient is recorded, against the same layers at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geo3d.models import create_model
from geo3d.models.voxel_points import features_at_voxels
from geo3d.nn.row_pieces import ROWS, RowProduct, in_pieces, takes_pieces
from geo3d.ops import explain

_COUNTS = (1, 127, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 300)


@pytest.mark.parametrize("count", _COUNTS)
def test_products_of_pieces_are_those_of_all_rows(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, count, 24, generator=generator)
    for bias in (True, False):
        layer = nn.Linear(24, 40, bias=bias)
        with torch.no_grad():
            product = RowProduct(layer)
            found = in_pieces(lambda a, b, product=product: product(a + b), x, y)
            # float32 sums of 24 products in another order; 2e-6 measured
            torch.testing.assert_close(found, layer(x + y), atol=1e-5, rtol=1e-5)


def test_what_is_recorded_compiled_or_of_another_type_is_left_as_it_is() -> None:
    x = torch.randn(500, 8)
    assert not takes_pieces(x)
    with torch.no_grad():
        assert takes_pieces(x) == (explain("sparse_conv", x)["cpu"] == "chosen")
        assert not takes_pieces(x.double())
        assert not takes_pieces(x[:5])
        with torch.autocast("cpu", torch.bfloat16):
            assert not takes_pieces(x)


@pytest.mark.parametrize("pooling", ["neighbors", "cell"])
def test_a_network_without_gradient_gives_the_features_of_one_with(pooling: str) -> None:
    options = {"depths": (1, 2), "channels": (16, 24), "heads": (2, 2), "windows": (3, 3), "decoder": "none"}
    model = create_model("swin3d", voxel_size=0.1, pooling=pooling, signals="XYZ", **options)
    xyz = 2.4 * torch.rand(9000, 3, generator=torch.Generator().manual_seed(0))
    inputs = model.prepare(xyz)
    assert len(inputs.voxels) > ROWS
    recorded = model.features(inputs)
    with torch.no_grad():
        found = model.features(inputs)
    for one, other in zip(found, recorded, strict=True):
        assert not one.feats.requires_grad
        torch.testing.assert_close(one.feats, other.feats.detach(), atol=1e-4, rtol=1e-4)  # of normalised rows
    rows = torch.randint(len(inputs.voxels), (500,), generator=torch.Generator().manual_seed(1))
    expected = features_at_voxels(recorded).detach()
    with torch.no_grad():
        torch.testing.assert_close(features_at_voxels(found), expected, atol=1e-4, rtol=1e-4)
        finest = inputs.voxels.topology
        of_rows = features_at_voxels(found, finest, rows)
        assert torch.equal(of_rows, features_at_voxels(found)[rows])
        assert torch.equal(features_at_voxels(found[1:], finest, rows), of_rows[:, 16:])
