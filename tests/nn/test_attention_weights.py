"""Weights of attention give back what the layers themselves compute."""

from __future__ import annotations

import pytest
import torch

from geo3d.errors import InputError
from geo3d.nn.attention_weights import (
    cross_attention_weights,
    self_attention_weights,
    window_attention_weights,
)
from geo3d.nn.position import token_positions
from geo3d.nn.transformer import CrossAttention, SelfAttention
from geo3d.nn.window_attention import SignalWindows, WindowAttention, signal_bins
from geo3d.ops.voxel_attention import table_rows

# Sums in float32 and another order: measured below 2e-7 of values of about 1.
CLOSE = {"atol": 5e-6, "rtol": 1e-5}


@pytest.mark.parametrize("rope", [None, 100.0])
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention(rope: float | None, masked: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(32, 4, rope)
    x, positions = torch.randn(12, 32), token_positions(3, 4)
    mask = torch.rand(12, 12) < 0.5
    mask.fill_diagonal_(True)
    weights = self_attention_weights(layer, x, 7, positions, mask if masked else None)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    value = layer.qkv(x).unflatten(-1, (3, 4, -1))[:, 2]  # (N, heads, D)
    mixed = torch.einsum("hn,nhd->hd", weights, value).flatten()
    with torch.no_grad():
        expected = layer(x[None], positions[None], masks=[mask] if masked else None)[0, 7]
    torch.testing.assert_close(layer.proj(mixed).detach(), expected, **CLOSE)
    if masked:
        assert (weights[:, ~mask[7]] == 0).all()
    with pytest.raises(InputError, match="no token 12 among 12"):
        self_attention_weights(layer, x, 12, positions)


@pytest.mark.parametrize("rope", [None, 100.0])
def test_cross_attention(rope: float | None) -> None:
    torch.manual_seed(0)
    layer = CrossAttention(32, 4, rope)
    x, memory = torch.randn(12, 32), torch.randn(6, 32)
    places = token_positions(3, 4), token_positions(2, 3)
    weights = cross_attention_weights(layer, x, memory, 5, *places)
    value = layer.projv(memory).unflatten(-1, (4, -1))
    mixed = torch.einsum("hn,nhd->hd", weights, value).flatten()
    with torch.no_grad():
        expected = layer(x[None], memory[None], *(p[None] for p in places))[0, 5]
    torch.testing.assert_close(layer.proj(mixed).detach(), expected, **CLOSE)


def test_window_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    bins = {name: signal_bins(name, 3, 4) for name in ("xyz", "rgb")}
    layer = WindowAttention(16, 2, bins)
    layer.reset_tables(generator)
    with torch.no_grad():
        for table in layer.parameters():
            table.mul_(5)  # so that the tables matter
    x, order = torch.randn(20, 16, generator=generator), torch.randperm(20, generator=generator)
    signals = torch.rand(20, 6, generator=generator) * 8
    windows = SignalWindows(order, torch.tensor([0, 7, 8, 20]), signals)
    for query in range(20):
        rows, weights = window_attention_weights(layer, x, windows, query)
        assert query in rows
        own = int((rows == query).nonzero())
        counts = [size for size in bins.values() for _ in range(3)]
        looked_up = layer._table("value", x)[table_rows(signals[rows], counts)[:, own].T].sum(1)  # (n, heads, D)
        value = layer.qkv(x[rows]).unflatten(1, (3, 2, -1))[:, 2] + looked_up
        mixed = torch.einsum("hn,nhd->hd", weights, value).flatten()
        with torch.no_grad():
            expected = layer(x, windows)[query]
        torch.testing.assert_close(layer.proj(mixed).detach(), expected, atol=2e-5, rtol=1e-4)
