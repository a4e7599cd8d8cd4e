"""Calls the emulated kernels with values that no check has seen. Run under AddressSanitizer, which ends it if bad.

Usage: wild_values.py SCHEMAS LIBRARY, the first a file with a schema in each line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HUGE = 2**62


def _attention(operators: Any, order: Tensor | None, offsets: Tensor | None, signals: Tensor | None) -> None:
    """Forward and backward, on windows of 30, 70, 0 and 1 voxels where the arguments do not say otherwise."""
    count, bins = 101, [56, 12, 7]
    query, key, value = torch.randn(3, count, 2, 8)
    tables = [*torch.randn(3, sum(bins), 2, 8), None]
    order = torch.arange(count) if order is None else order
    offsets = torch.tensor([0, 30, 100, 100, 101]) if offsets is None else offsets
    signals = torch.rand(count, 3) * 6 if signals is None else signals
    arguments = (query, key, value, order, offsets, signals, *tables, bins, 0.35)
    out, lse = operators.voxel_attention(*arguments)
    assert out.shape == query.shape
    operators.voxel_attention_backward(torch.randn_like(out), torch.randn_like(lse), torch.randn_like(lse), *arguments)


def _rays(operators: Any) -> None:
    """Rays from nowhere, of no length and of wild values, through a grid of wild values."""
    grid, origins, directions = torch.randn(3, 4, 5, 4), torch.randn(40, 3), torch.randn(40, 3)
    for tensor in (grid, origins, directions):
        flat = tensor.view(-1)
        flat[::7], flat[1::11], flat[2::13], flat[3::17] = torch.nan, torch.inf, -1e38, 0.0
    directions[-2:] = 0.0  # a sample at every step that is allowed
    target, cells = torch.rand(40, 3), torch.randint(0, 255, (1, 2, 2)).to(torch.uint8)
    for border in (0.0, 0.5):
        numbers = (0.3, border, 0.0, 1.0, 1e-3, 0.2)
        shared = (grid, origins, directions)
        operators.render_rays(*shared, target, target[:, 0], origins[:, 0], cells, *numbers)
        gradients = (torch.randn(40, 3), *torch.randn(4, 40))
        operators.render_rays_backward(*gradients, *shared, target, None, None, cells, *numbers)
        parts = torch.zeros(3, *grid.shape)
        operators.radiance_gradient(
            parts, *shared, target, target[:, 0], target[:, 1], None, None, *numbers, [0.0, 1.0, 0.0], 0.1, 0.1
        )
        operators.radiance_step(
            grid.clone(), parts, grid.clone(), grid.clone(), cells, 1, 0.1, 0.1, border, 0.1, 0.9, 0.9, 0.0
        )


def main(schemas: Path, library: Path) -> None:
    definitions = torch.library.Library("geo3d_emulated", "FRAGMENT")
    for schema in schemas.read_text().splitlines():
        definitions.define(schema)
    torch.ops.load_library(library)
    operators = torch.ops.geo3d_emulated
    torch.manual_seed(0)
    orders = [None, torch.randint(-_HUGE, _HUGE, (101,)), torch.full((101,), 7)]
    offsets = [None, torch.randint(-300, 300, (9,)), torch.tensor([_HUGE, -_HUGE, 5, 2**63 - 1, 0])]
    offsets += [torch.tensor([101, 101, 0, 0, 101, 3, 101]), torch.randint(-300, 300, (5,)).int()]
    wild = torch.rand(101, 3) * 6
    wild[::3], wild[1::5], wild[2::7], wild[4::11] = torch.nan, torch.inf, -torch.inf, 1e38
    signals = [None, wild, torch.full((101, 3), torch.nan), torch.full((101, 3), -torch.inf)]
    for order in orders:
        for offset in offsets:
            for signal in signals:
                _attention(operators, order, offset, signal)
    for _ in range(5):
        neighbours = torch.randint(-(2**31), 2**31 - 1, (27, 40)).int()
        operators.sparse_conv(torch.randn(50, 5), torch.randn(27, 5, 3), neighbours, None)
        operators.sparse_conv_weight_gradient(torch.randn(50, 5), torch.randn(40, 3), neighbours, None)
        operators.transpose_kernel_map(neighbours, 50)
        index, weight = torch.randint(-_HUGE, _HUGE, (30, 3)), torch.randn(30, 3)
        operators.interpolate(torch.randn(20, 4), index, weight)
        operators.interpolate_feats_gradient(torch.randn(30, 4), index, weight, 20)
        operators.interpolate_weight_gradient(torch.randn(20, 4), torch.randn(30, 4), index)
        starts = torch.randint(-100, 100, (3, 4))
        operators.knn(torch.randn(60, 3), torch.randn(70, 3), starts[0], starts[1], 5)
        for points in (torch.randn(70, 3), torch.full((70, 3), torch.nan)):
            operators.farthest_point_sample(points, starts[0], None, 9, True, True)
            operators.farthest_point_sample(points, torch.tensor([0, 30, 70]), index[:2, 0], 9, False, False)
        operators.voxelize(torch.rand(60, 3), starts[2], torch.zeros(3, 3).double(), None, 0.1)
        coords = torch.randint(-(2**31), 2**31 - 1, (60, 4)).int()
        operators.window_partition(coords, 3, 5, True)
        operators.kernel_map(coords[torch.arange(70) % 60], coords, 1, 3)  # with duplicates
        _rays(operators)
        positions = torch.randint(-_HUGE, _HUGE, (1, 5, 2))
        operators.rope_2d(torch.randn(1, 2, 5, 8), positions, 100.0, False)
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
