"""voxel_attention against the formula pair by pair, and what must not depend on threads, order or memory."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geo3d.ops import explain, voxel_attention

BINS = (20, 20, 20, 8, 8, 8)


def _inputs(sizes: list[int], heads: int = 3, channels: int = 8, bins: tuple[int, ...] = BINS, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    count, rows = sum(sizes), sum(bins)
    q, k, v = (torch.randn(count, heads, channels, generator=generator) for _ in range(3))
    tables = [0.3 * torch.randn(rows, heads, channels, generator=generator) for _ in range(3)]
    signals = torch.rand(count, len(bins), generator=generator) * torch.tensor(bins) / 2
    order = torch.randperm(count, generator=generator)
    return (q, k, v, order, torch.tensor([0, *sizes]).cumsum(0), signals, *tables, bins)


def _pair_by_pair(q, k, v, order, offsets, signals, query_table, key_table, value_table, bins) -> Tensor:
    """The formula, one pair after the other, in float64; bins in float32."""
    starts = torch.tensor([0, *bins[:-1]]).cumsum(0)
    half, top = torch.tensor(bins, dtype=torch.float32) / 2, torch.tensor(bins, dtype=torch.float32) - 1
    scale = q.shape[-1] ** -0.5
    q, k, v, query_table, key_table, value_table = (t.double() for t in (q, k, v, query_table, key_table, value_table))
    out = torch.zeros_like(q)
    for start, stop in pairwise(offsets.tolist()):
        rows = order[start:stop].tolist()
        for i in rows:
            logits, values = [], []
            for j in rows:
                bin_ = torch.minimum((signals[i] - signals[j] + half).clamp(min=0), top).long() + starts
                t_q, t_k, t_v = (table[bin_].sum(0) for table in (query_table, key_table, value_table))
                logits.append((scale * q[i] * (k[j] + t_q)).sum(-1) + (k[j] * t_k).sum(-1))
                values.append(v[j] + t_v)
            weights = torch.stack(logits).softmax(0)
            out[i] = (weights.unsqueeze(-1) * torch.stack(values)).sum(0)
    return out


def test_every_kernel_is_the_formula() -> None:
    arguments = _inputs([1, 7, 2, 13])
    expected = _pair_by_pair(*arguments)
    assert (voxel_attention(*arguments) - expected).abs().max() < 1e-5  # float32; values of order one
    in_float64 = [t.double() if isinstance(t, Tensor) and t.ndim == 3 else t for t in arguments]
    assert (voxel_attention(*in_float64) - expected).abs().max() < 1e-12


def test_uniform_attention_averages_the_window() -> None:
    q, k, v, order, offsets, *_ = _inputs([4, 9])
    out = voxel_attention(torch.zeros_like(q), k, v, order, offsets)
    for start, stop in ((0, 4), (4, 13)):
        rows = order[start:stop]
        assert torch.allclose(out[rows], v[rows].mean(0).expand(stop - start, -1, -1), atol=1e-6)


def test_order_of_windows_and_rows_does_not_matter() -> None:
    arguments = _inputs([5, 30, 1, 12])
    order, offsets = arguments[3], arguments[4]
    parts = [order[a:b].flip(0) for a, b in pairwise(offsets.tolist())][::-1]
    sizes = torch.tensor([len(part) for part in parts])
    other = (*arguments[:3], torch.cat(parts), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), *arguments[5:])
    assert torch.allclose(voxel_attention(*arguments), voxel_attention(*other), atol=1e-5)


@pytest.mark.skipif(
    "chosen" not in explain("voxel_attention", torch.zeros(1, 1, 4))["cpu"], reason="no CPU kernel built"
)
def test_bits_do_not_depend_on_threads() -> None:
    sizes = torch.randint(1, 90, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    *tensors, bins = _inputs([*sizes, 343], heads=6, channels=16)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() if i not in (3, 4, 5) else t for i, t in enumerate(tensors)]
            out = voxel_attention(*leaves, bins)
            out.square().sum().backward()
            results.append([out.detach(), *(t.grad for i, t in enumerate(leaves) if i not in (3, 4, 5))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


_MEMORY = """
import sys, torch
from geo3d.ops import voxel_attention
size, count = int(sys.argv[1]), 40_000
torch.set_num_threads(2)
def peak():
    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) / 1024
generator = torch.Generator().manual_seed(0)
def make(n, size):
    q, k, v = (torch.randn(n, 6, 16, generator=generator, requires_grad=True) for _ in range(3))
    tables = [torch.randn(360, 6, 16, generator=generator, requires_grad=True) for _ in range(3)]
    bins = (56,) * 3 + (32,) * 6
    signals = torch.rand(n, 9, generator=generator) * torch.tensor(bins) / 2
    return (q, k, v, torch.arange(n), torch.arange(0, n + 1, size), signals, *tables, bins)
voxel_attention(*make(4 * size, size)).sum().backward()  # loads the library, starts the threads
arguments = make(count, size)
before = peak()
out = voxel_attention(*arguments)
out.backward(torch.ones_like(out))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_memory_does_not_grow_with_pairs() -> None:
    extra = {}
    for size in (20, 200):  # ten times the pairs
        done = subprocess.run([sys.executable, "-c", _MEMORY, str(size)], capture_output=True, text=True, check=True)
        extra[size] = float(done.stdout)
    # Result, LSE and the gradients of 40,000 voxels are 62 MB; 8 M pairs of 6 heads would be 190 MB for one float each.
    assert extra[200] < 162
    assert abs(extra[200] - extra[20]) < 60
