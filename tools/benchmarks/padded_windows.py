"""Attention inside windows of voxels in plain PyTorch, as fast as it goes there: the peer of the compiled kernel.

Windows are padded to multiples of 16 voxels and taken by size, a few at once, so that a chunk fits the cache. A query's
products with all rows of a table are made first and the sums of their pairs gathered from them; a pair's value rows are
added up as a histogram of its probabilities. Compiled: the rows of the tables and the logits, each as one full graph
with dynamic shapes; the histogram stays eager, as a compiled one is three times slower (torch 2.13, CPU).
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

_PADDING = 16
_PAIRS_AT_ONCE = {"cpu": 10_000, "cuda": 1_000_000}  # a chunk fits the cache of a processor; a GPU wants work


def _chunks(order: Tensor, offsets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows (B, n) of windows that are padded to one size, and which of them are real (B, n)."""
    sizes, found = offsets.diff(), []
    padded = (sizes + _PADDING - 1) // _PADDING * _PADDING
    for size in padded.unique().tolist():
        for windows in (padded == size).nonzero()[:, 0].split(max(1, _PAIRS_AT_ONCE[order.device.type] // size**2)):
            place = torch.arange(size, device=order.device)
            inside = place < sizes[windows, None]
            found.append((order[offsets[windows, None] + place * inside], inside))
    return found


def _table_rows(signals: Tensor, lengths: Tensor, firsts: Tensor) -> Tensor:
    """(B, n, A) float32 -> (B, A, n, n) int64 rows of the tables."""
    axes = signals.mT
    difference = axes.unsqueeze(-1) - axes.unsqueeze(-2)
    return torch.minimum((difference + lengths / 2).clamp(min=0), lengths - 1).long() + firsts


def _flat(rows: Tensor, heads: int) -> Tensor:
    """(B, A, n, m) rows of the tables -> (B, H, n, A * m), the same for all heads."""
    return rows.transpose(1, 2).flatten(2).unsqueeze(1).expand(-1, heads, -1, -1)


def _logits(query: Tensor, key: Tensor, rows: Tensor, inside: Tensor, of_query: Tensor, of_key: Tensor) -> Tensor:
    """(B, H, n, n) from (B, H, n, D); the tables are (H, D, R). One gather a side, which is what eager does fastest."""
    heads, axes, count = query.shape[1], rows.shape[1], rows.shape[2]
    by_query = (query @ of_query).gather(-1, _flat(rows, heads)).unflatten(-1, (axes, count)).sum(-2)
    by_key = (key @ of_key).gather(-1, _flat(rows.mT, heads)).unflatten(-1, (axes, count)).sum(-2)
    return (query @ key.mT + by_query + by_key.mT).masked_fill(~inside[:, None, None], -torch.inf)


def _logits_by_axis(
    query: Tensor, key: Tensor, rows: Tensor, inside: Tensor, of_query: Tensor, of_key: Tensor
) -> Tensor:
    """The same with a gather an axis, all of which a compiler fuses."""
    logits, queries, keys = query @ key.mT, query @ of_query, key @ of_key
    by_axis = rows.unsqueeze(1).expand(-1, query.shape[1], -1, -1, -1).unbind(2)
    for axis in by_axis:
        logits = logits + queries.gather(-1, axis)
    for axis in by_axis:
        logits = logits + keys.gather(-1, axis.mT).mT
    return logits.masked_fill(~inside[:, None, None], -torch.inf)


def _weighted(logits: Tensor, value: Tensor, rows: Tensor, of_value: Tensor) -> Tensor:
    """(B, H, n, D) sums of values and of their table's rows, (H, R, D)."""
    probabilities = logits.softmax(-1)
    spread = probabilities.unsqueeze(-2).expand(-1, -1, -1, rows.shape[1], -1).flatten(-2)
    empty = spread.new_zeros(*spread.shape[:3], of_value.shape[1])
    histogram = empty.scatter_add(-1, _flat(rows, value.shape[1]), spread)
    return probabilities @ value + histogram @ of_value


class PaddedAttention:
    """The windows, padded, and the function.

    Args:
        order, offsets, signals, bins: as :func:`geo3d.ops.voxel_attention` takes them.
        compiled: with torch.compile.
    """

    def __init__(self, order: Tensor, offsets: Tensor, signals: Tensor, bins: list[int], compiled: bool) -> None:
        self._parts = [(rows, inside, signals[rows]) for rows, inside in _chunks(order, offsets)]
        self._back = torch.cat([rows[inside] for rows, inside, _ in self._parts]).argsort()
        device, starts = order.device, [0, *accumulate(bins)][:-1]
        self._lengths = torch.tensor(bins, dtype=torch.float32, device=device).reshape(-1, 1, 1)
        self._firsts = torch.tensor(starts, device=device).reshape(-1, 1, 1)
        self._table_rows, self._logits = _table_rows, _logits
        if compiled:
            self._table_rows, self._logits = (
                torch.compile(part, dynamic=True, fullgraph=True) for part in (_table_rows, _logits_by_axis)
            )

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, query_table: Tensor, key_table: Tensor, value_table: Tensor
    ) -> Tensor:
        """(N, H, D) each, tables (R, H, D) -> (N, H, D)."""
        scaled, outs = query * query.shape[-1] ** -0.5, []
        of_query, of_key = (table.permute(1, 2, 0).contiguous() for table in (query_table, key_table))
        of_value = value_table.transpose(0, 1).contiguous()
        for rows, inside, signals in self._parts:
            # index_select, as the backward of plain indexing is many times slower.
            q, k, v = (
                t.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2).contiguous()
                for t in (scaled, key, value)
            )
            looked_up = self._table_rows(signals, self._lengths, self._firsts)
            logits = self._logits(q, k, looked_up, inside, of_query, of_key)
            outs.append(_weighted(logits, v, looked_up, of_value).transpose(1, 2)[inside])
        return torch.cat(outs).index_select(0, self._back)
