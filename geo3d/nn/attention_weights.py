"""What attention layers look at: the weights of one query, which the layers themselves never keep."""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.nn.transformer import CrossAttention, SelfAttention
from geo3d.nn.window_attention import SignalWindows, WindowAttention
from geo3d.ops import rope_2d
from geo3d.ops.voxel_attention import table_rows


@torch.no_grad()
def self_attention_weights(
    layer: SelfAttention, x: Tensor, query: int, positions: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Weights of one token over all of its sequence.

    Args:
        layer: of which.
        x: (N, C) tokens as the layer is handed them.
        query: number of the token.
        positions: (N, 2) int64, with rotary embedding.
        mask: (N, N) bool, true where tokens may look.

    Returns:
        (heads, N) that sum to 1 over N.

    Raises:
        InputError: there is no such token.
    """
    _check(query, len(x))
    q, k, _ = layer.qkv(x).unflatten(-1, (3, layer.heads, -1)).permute(1, 2, 0, 3).unbind(0)  # (heads, N, D)
    if layer.rope_base is not None:
        q, k = (rope_2d(part[None].contiguous(), positions[None], layer.rope_base)[0] for part in (q, k))
    logits = torch.einsum("hd,hnd->hn", q[:, query], k) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask[query], -torch.inf)
    return logits.softmax(-1)


@torch.no_grad()
def cross_attention_weights(
    layer: CrossAttention,
    x: Tensor,
    memory: Tensor,
    query: int,
    positions: Tensor | None = None,
    memory_positions: Tensor | None = None,
) -> Tensor:
    """Weights of one token over a memory.

    Args:
        layer: of which.
        x: (N, C) tokens that ask.
        memory: (M, C) tokens that answer.
        query: number of the token that asks.
        positions, memory_positions: (N, 2) and (M, 2) int64, with rotary embedding.

    Returns:
        (heads, M) that sum to 1 over M.

    Raises:
        InputError: there is no such token.
    """
    _check(query, len(x))
    q, k = (
        part.unflatten(-1, (layer.heads, -1)).transpose(0, 1) for part in (layer.projq(x), layer.projk(memory))
    )  # (heads, N, D)
    if layer.rope_base is not None:
        q = rope_2d(q[None].contiguous(), positions[None], layer.rope_base)[0]
        k = rope_2d(k[None].contiguous(), memory_positions[None], layer.rope_base)[0]
    return (torch.einsum("hd,hnd->hn", q[:, query], k) * q.shape[-1] ** -0.5).softmax(-1)


@torch.no_grad()
def window_attention_weights(
    layer: WindowAttention, x: Tensor, windows: SignalWindows, query: int
) -> tuple[Tensor, Tensor]:
    """Weights of one voxel over those of its window, with what their signals add (Swin3D, section 3.3).

    Args:
        layer: of which.
        x: (N, C) features as the layer is handed them.
        windows: of the level.
        query: row of the voxel.

    Returns:
        rows (n,) int64 of the window's voxels, and weights (heads, n) that sum to 1 over n.

    Raises:
        InputError: there is no such voxel.
    """
    _check(query, len(x))
    place = int((windows.order == query).nonzero()[0, 0])
    window = int(torch.searchsorted(windows.offsets, place, right=True)) - 1
    rows = windows.order[windows.offsets[window] : windows.offsets[window + 1]]
    q, k, _ = layer.qkv(x[rows]).unflatten(1, (3, layer.heads, -1)).unbind(1)  # (n, heads, D)
    own = int((rows == query).nonzero()[0, 0])
    scale = q.shape[-1] ** -0.5
    bins = [size for size in layer.bins.values() for _ in range(3)]
    row = table_rows(windows.signals[rows], bins)[:, own].T  # (n, axes)
    query_table, key_table = layer._table("query", q), layer._table("key", q)
    asked = scale * q[own]
    logits = torch.einsum("hd,nhd->hn", asked, k + query_table[row].sum(1))
    logits = logits + torch.einsum("nhd,nhd->hn", k, key_table[row].sum(1))
    return rows, logits.softmax(-1)


def _check(query: int, count: int) -> None:
    if not 0 <= query < count:
        raise InputError(f"there is no token {query} among {count}")


__all__ = ["cross_attention_weights", "self_attention_weights", "window_attention_weights"]
