"""Arguments on which every operator is tested, one entry each, and what the tests of operators share."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from geo3d.errors import InputError
from geo3d.ops import _library, build_kernel_map, kernel_map
from geo3d.ops.registry import get_operator

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Examples:
    """Arguments on which an operator is tested. Floating tensors are random with unit variance, float64, on the CPU.

    Args:
        cases: name of a case -> its arguments.
        small: a case of few elements, for numeric gradients.
        resized: the first case with other sizes in its dynamic dimensions.
        tolerances: dtype -> (relative, absolute) error of a kernel against the float64 reference.
        dynamic_shapes: for torch.export, of the tensors among the arguments, which come first.
        bad: name -> (arguments, error, what its message says).
        kernel_refusals: kernel -> (arguments that it does not take, what explain says of it); on the kernel's device.
        fixed: positions of floating tensors that keep their dtype and have no derivative.
        derivatives: whether its own are tested; not for a backward, whose derivatives are its forward's second ones.
        written: positions of tensors that the operator writes to.
    """

    cases: dict[str, Arguments]
    small: Arguments
    resized: Arguments
    tolerances: dict[torch.dtype, tuple[float, float]]
    dynamic_shapes: tuple[Any, ...]
    bad: dict[str, tuple[Arguments, type[Exception], str]]
    kernel_refusals: dict[str, tuple[Arguments, str]] = field(default_factory=dict)
    fixed: frozenset[int] = frozenset()
    derivatives: bool = True
    written: frozenset[int] = frozenset()


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def _grid(batch: int, height: int, width: int) -> Tensor:
    rows_columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(rows_columns, -1).reshape(1, height * width, 2).repeat(batch, 1, 1)


def _scattered(batch: int, length: int, reach: int) -> Tensor:
    return torch.randint(-reach, reach, (batch, length, 2), generator=torch.Generator().manual_seed(reach))


def _rope_2d_examples() -> Examples:
    projection = random_tensor(2, 12, 3, 4, 32)  # (B, N, q/k/v, H, D), as a linear layer leaves it
    tokens, positions = random_tensor(2, 3, 12, 16), _grid(2, 3, 4)
    batch, length = Dim("batch", min=2, max=64), Dim("length", min=2, max=4096)
    return Examples(
        cases={
            "grid": (random_tensor(2, 4, 12, 64), _grid(2, 3, 4), 100.0, False),
            "inverse": (tokens, positions, 100.0, True),
            "viewed projection": (projection.permute(2, 0, 3, 1, 4)[1], positions, 100.0, False),
            "strided channels": (random_tensor(2, 3, 16, 12).transpose(2, 3), positions, 100.0, False),
            "every other channel": (random_tensor(2, 3, 12, 32)[..., ::2], positions, 100.0, False),
            "broadcast tokens": (random_tensor(1, 1, 12, 16).expand(2, 3, 12, 16), positions, 100.0, False),
            "strided positions": (tokens, _grid(2, 12, 4)[:, ::4].flip(-1), 100.0, False),
            "swapped axes of positions": (tokens, _grid(2, 3, 4).mT.contiguous().mT, 100.0, False),
            "negative, differs in batch": (tokens, _scattered(2, 12, 20), 100.0, False),
            "far apart": (tokens, _scattered(2, 12, 10**6), 10000.0, False),
            "extreme positions": (
                random_tensor(1, 2, 2, 4),
                torch.tensor([[[2**63 - 1, -(2**63)], [0, 1]]]),
                100.0,
                False,
            ),
            "odd number of frequencies": (random_tensor(1, 2, 12, 44), _grid(1, 3, 4), 100.0, False),
            "many tokens": (random_tensor(2, 3, 900, 32), _grid(2, 30, 30), 100.0, False),
            "no batch": (random_tensor(0, 3, 12, 16), _grid(0, 3, 4), 100.0, False),
            "no heads": (random_tensor(2, 0, 12, 16), positions, 100.0, False),
            "no tokens": (random_tensor(2, 3, 0, 16), _grid(2, 0, 4), 100.0, False),
            "no channels": (random_tensor(2, 3, 12, 0), positions, 100.0, False),
        },
        small=(random_tensor(2, 2, 3, 8), _scattered(2, 3, 5), 100.0, False),
        resized=(random_tensor(5, 4, 30, 64), _grid(5, 6, 5), 100.0, False),
        # Products and cosines are rounded in float32: at most 1.5 * 2**-23 * (|u| + |v|), 6e-7 measured on these;
        # the result is rounded once to its dtype, which errs by 2**-8 of it in bfloat16 and by 2**-11 in float16.
        tolerances={
            torch.float32: (0.0, 1.5e-6),
            torch.bfloat16: (2.0**-8, 1.5e-6),
            torch.float16: (2.0**-11, 1.5e-6),
        },
        dynamic_shapes=({0: batch, 2: length}, {0: batch, 1: length}),
        bad={
            "integer tokens": ((tokens.long(), positions, 100.0, False), TypeError, "tokens must be float32"),
            "32-bit positions": ((tokens, positions.int(), 100.0, False), TypeError, "positions must be int64"),
            "head dimension": ((tokens[..., :6], positions, 100.0, False), ValueError, "multiple of 4"),
            "three dimensions": ((tokens[0], positions, 100.0, False), ValueError, "B, H, N, D"),
            "fewer positions": ((tokens, positions[:, :5], 100.0, False), ValueError, "must be .B, N, 2. = .2, 12, 2."),
            "positions of one batch": ((tokens, positions[:1], 100.0, False), ValueError, "got .1, 12, 2."),
            "base": ((tokens, positions, 0.0, False), ValueError, "base must be positive"),
            "other device": ((tokens, positions.to("meta"), 100.0, False), ValueError, "tokens are on cpu"),
        },
        kernel_refusals={"cuda": ((random_tensor(1, 1, 12, 516), _grid(1, 3, 4), 100.0, False), "516 is over 512")},
    )


def _voxels(*scenes: int, stride: int = 1) -> Tensor:
    """(N, 4) int32 distinct voxels of a few scenes in random order, as dense as a surface, around the origin."""
    generator = torch.Generator().manual_seed(sum(scenes))
    coords = []
    for batch, count in enumerate(scenes):
        edge = max(2, round((3 * count) ** (1 / 3)))
        cells = torch.randperm(edge**3, generator=generator)[:count]
        xyz = torch.stack([cells % edge, cells // edge % edge, cells // edge**2], 1) - edge // 2
        coords.append(torch.cat([torch.full((count, 1), batch), stride * xyz], 1))
    rows = torch.cat(coords)
    return rows[torch.randperm(len(rows), generator=generator)].int()


def _coarse(coords: Tensor, stride: int) -> Tensor:
    return torch.cat([coords[:, :1], coords[:, 1:].div(stride, rounding_mode="floor") * stride], 1).unique(dim=0)


_NO_VOXELS = torch.zeros(0, 4, dtype=torch.int32)


def _kernel_map_examples() -> Examples:
    voxels, apart = _voxels(300, 0, 200), _voxels(60, 50, stride=4)
    far = torch.tensor([[65535, 2**20, -(2**20), 0], [65535, 2**20 - 2, 2 - 2**20, 2], [0, -(2**20), 0, 2**20]]).int()
    extreme = torch.tensor([[0, 2**31 - 1, -(2**31), 0], [0, -(2**31), -(2**31), 0]]).int()
    count = Dim("count", min=2, max=2**20)
    return Examples(
        cases={
            "submanifold": (voxels, voxels, 1, 3),
            "of coarse voxels": (apart, apart, 4, 3),
            "strided, size 3": (voxels, _coarse(voxels, 2), 1, 3),
            "strided, size 2": (voxels, _coarse(voxels, 2), 1, 2),
            "stride 3 of 4": (apart, _coarse(apart, 12), 4, 3),
            "size 1": (voxels, voxels.flip(0), 1, 1),
            "size 5": (voxels, voxels, 1, 5),
            "inputs between the cells": (voxels, voxels, 2, 3),
            "repeated outputs": (voxels, torch.cat([voxels, voxels[:9]]), 1, 3),
            "views": (voxels[::2], _voxels(90)[:, [0, 3, 2, 1]].T.contiguous().T, 1, 3),
            "ends of the range": (far, far, 2, 3),
            "ends of int32": (extreme, extreme, 1, 3),
            "one voxel": (voxels[:1], voxels[:1], 1, 3),
            "no inputs": (_NO_VOXELS, voxels, 1, 3),
            "no outputs": (voxels, _NO_VOXELS, 1, 3),
            "no voxels": (_NO_VOXELS, _NO_VOXELS, 1, 3),
        },
        small=(voxels[:5], voxels[:5], 1, 3),
        resized=(_voxels(40), _voxels(40), 1, 3),
        tolerances={torch.int32: (0.0, 0.0)},
        dynamic_shapes=({0: count}, {0: count}),
        bad={
            "int64 inputs": ((voxels.long(), voxels, 1, 3), TypeError, "in_coords must be int32"),
            "int64 outputs": ((voxels, voxels.long(), 1, 3), TypeError, "out_coords must be int32"),
            "three columns": ((voxels[:, 1:], voxels, 1, 3), ValueError, "in_coords must be .N, 4."),
            "other device": ((voxels, voxels.to("meta"), 1, 3), ValueError, "in_coords are on cpu"),
            "step": ((voxels, voxels, 0, 3), ValueError, "step must be at least 1"),
            "size": ((voxels, voxels, 1, 0), ValueError, "kernel_size must be from 1 to 15, got 0"),
            "duplicates": ((voxels[[0, 1, 2, 1]], voxels, 1, 3), ValueError, "more than once; voxelize"),
        },
    )


def _kernel_support_examples() -> Examples:
    coarse, apart = _coarse(_voxels(300, 0, 200), 2), _voxels(60, 50, stride=4)
    far = torch.tensor([[65535, 2**20, -(2**20), 0], [0, -(2**20), 0, 2**20]]).int()
    extreme = torch.tensor([[2**31 - 1, 2**31 - 2, -(2**31), 0], [-(2**31), -(2**31), 2**31 - 2, 2**31 - 2]]).int()
    return Examples(
        cases={
            "children": (coarse, 1, 2),
            "neighbourhood": (_voxels(300, 0, 200), 1, 3),
            "children of coarse voxels": (apart, 2, 2),
            "thirds": (_voxels(50, 40, stride=3), 1, 3),
            "far between": (apart, 1, 5),
            "the voxels themselves": (apart, 4, 1),
            "repeated rows": (apart[[0, 1, 0, 2, 1, 0]], 2, 2),
            "views": (apart.T.contiguous().T[::2], 4, 3),
            "ends of the range": (far, 2, 3),
            "ends of int32": (extreme, 1, 2),
            "many voxels": (_voxels(9000, 4000, stride=2), 1, 3),
            "one voxel": (coarse[:1], 1, 2),
            "no voxels": (_NO_VOXELS, 1, 2),
        },
        small=(coarse[:5], 1, 2),
        resized=(_coarse(_voxels(40), 2), 1, 2),
        tolerances={torch.int32: (0.0, 0.0)},
        dynamic_shapes=({0: Dim("count", min=2, max=2**20)},),
        bad={
            "int64": ((coarse.long(), 1, 2), TypeError, "coords must be int32, got torch.int64"),
            "three columns": ((coarse[:, 1:], 1, 2), ValueError, "coords must be .M, 4."),
            "step": ((coarse, 0, 2), ValueError, "step must be at least 1"),
            "endless step": ((coarse, 2**30, 2), ValueError, "below 2..31"),
            "size": ((coarse, 1, 16), ValueError, "kernel_size must be from 1 to 15, got 16"),
            "beyond int32": ((extreme, 1, 3), InputError, "voxels from -2147483649 to .* do not fit in int32"),
        },
    )


def _transpose_kernel_map_examples() -> Examples:
    voxels = _voxels(200, 100)
    strided = kernel_map(voxels, _coarse(voxels, 2), 1, 3)
    empty = torch.zeros(27, 0, dtype=torch.int32)
    return Examples(
        cases={
            "submanifold": (kernel_map(voxels, voxels, 1, 3), 300),
            "strided": (strided, 300),
            "view": (strided.T.contiguous().T[::2], 300),
            "inputs that are not used": (strided[:, :5], 400),
            "no outputs": (empty, 3),
            "no inputs": (torch.full((8, 3), -1, dtype=torch.int32), 0),
            "nothing": (empty, 0),
        },
        small=(strided[:, :5], 300),
        resized=(kernel_map(voxels[:40], voxels[:40], 1, 3), 300),
        tolerances={torch.int32: (0.0, 0.0)},
        dynamic_shapes=({1: Dim("outputs", min=2, max=2**20)},),
        bad={
            "int64": ((strided.long(), 300), TypeError, "neighbours must be int32"),
            "one dimension": ((strided[0], 300), ValueError, "neighbours must be .K, M."),
            "negative count": ((strided[:, :0], -1), ValueError, "count must not be negative"),
            "rows beyond": ((strided, 200), ValueError, "rows from -1 .none. to 199, got -1 to 299"),
            "rows below": ((strided - 1, 300), ValueError, "got -2 to"),
            "an input twice": ((strided[:, [4, 4]], 300), ValueError, "an input occurs twice"),
        },
    )


def _sparse_conv_cases(second: Callable[[int, int, int, int], Tensor]) -> dict[str, Arguments]:
    """Cases of the convolution and of its gradient; ``second`` makes a tensor of offsets, outputs and channels."""
    voxels = _voxels(300, 0, 200)
    maps = {
        "submanifold": build_kernel_map(voxels, voxels, 1, 3),
        "strided": build_kernel_map(voxels, _coarse(voxels, 2), 1, 3),
        "size 2": build_kernel_map(voxels, _coarse(voxels, 2), 1, 2),
        "size 1": build_kernel_map(voxels, voxels, 1, 1),
        "size 5": build_kernel_map(voxels, voxels, 1, 5),
        "one voxel": build_kernel_map(voxels[:1], voxels[:1], 1, 3),
        "no voxels": build_kernel_map(_NO_VOXELS, _NO_VOXELS, 1, 3),
        "no outputs": build_kernel_map(voxels, _NO_VOXELS, 1, 3),
        "no inputs": build_kernel_map(_NO_VOXELS, voxels, 1, 3),
    }
    channels = {"strided": (16, 48), "size 2": (9, 7), "size 1": (3, 20), "size 5": (4, 40), "one voxel": (32, 33)}
    cases = {}
    for case, voxel_map in maps.items():
        offsets, outputs = voxel_map.neighbours.shape
        c_in, c_out = channels.get(case, (32, 32))
        feats = random_tensor(voxel_map.transposed.shape[1], c_in)
        cases[case] = (feats, second(offsets, outputs, c_in, c_out), voxel_map.neighbours, voxel_map.transposed)
    _, outputs = maps["strided"].neighbours.shape
    mapped = maps["strided"].neighbours
    for case, (c_in, c_out) in {
        "no channels in": (0, 5),
        "no channels out": (5, 0),
        "many channels": (100, 70),
    }.items():
        cases[case] = (random_tensor(500, c_in), second(27, outputs, c_in, c_out), mapped, None)
    swapped = second(27, outputs, 7, 6)
    swapped = swapped.mT.contiguous().mT
    cases["views"] = (random_tensor(7, 1000).T[::2], swapped, mapped.T.contiguous().T, None)
    cases["map that is not transposed yet"] = (*cases["strided"][:3], None)
    return cases


def _sparse_conv_bad(name: str, shape: str) -> dict[str, tuple[Arguments, type[Exception], str]]:
    voxels = _voxels(20)
    rows = kernel_map(voxels, voxels, 1, 3)
    feats, second = random_tensor(20, 3), random_tensor(27, 3, 4) if name == "weight" else random_tensor(20, 4)
    return {
        "integers": ((feats.int(), second, rows, None), TypeError, "feats must be float32"),
        "two dtypes": ((feats, second.float(), rows, None), TypeError, f"{name} is torch.float32 but feats are"),
        "one dimension": ((feats[0], second, rows, None), ValueError, "feats must be .N, Cin."),
        "int64 map": ((feats, second, rows.long(), None), TypeError, "neighbours must be int32"),
        "other map": ((feats, second, rows, rows[:8]), ValueError, "transposed must be .K, N. = .27, 20."),
        "shape": ((feats, second[:8], rows, None), ValueError, shape),
        "other device": ((feats, second, rows.to("meta"), None), ValueError, "neighbours on meta"),
        "rows beyond": ((feats[:9], second, rows, None), ValueError, "rows from -1 .none. to 8"),
    }


def _sparse_conv_tolerances() -> dict[torch.dtype, tuple[float, float]]:
    # Sums of up to 1000 products in float32, in a row: 1e-6 of a sum of 500 squares measured, and 9e-5 where terms of
    # both signs leave sums of 30 times an input; bfloat16 and float16 round the result once more.
    return {
        torch.float32: (3e-6, 2e-4),
        torch.bfloat16: (2.0**-8, 2e-4),
        torch.float16: (2.0**-11, 2e-4),
    }


def _sparse_conv_examples() -> Examples:
    cases = _sparse_conv_cases(lambda offsets, outputs, c_in, c_out: random_tensor(offsets, c_in, c_out))
    voxels = _voxels(6, 3)
    rows = kernel_map(voxels, _coarse(voxels, 2), 1, 2)
    inputs, outputs = Dim("inputs", min=2, max=2**20), Dim("outputs", min=2, max=2**20)
    resized = build_kernel_map(voxels, voxels[:7], 1, 3)
    return Examples(
        cases=cases,
        small=(random_tensor(9, 2), random_tensor(8, 2, 3), rows, None),
        resized=(random_tensor(9, 32), random_tensor(27, 32, 32), resized.neighbours, resized.transposed),
        tolerances=_sparse_conv_tolerances(),
        dynamic_shapes=({0: inputs}, {}, {1: outputs}, {1: inputs}),
        bad=_sparse_conv_bad("weight", "weight must be .K, Cin, Cout."),
    )


def _sparse_conv_weight_gradient_examples() -> Examples:
    cases = _sparse_conv_cases(lambda offsets, outputs, c_in, c_out: random_tensor(outputs, c_out))
    voxels = _voxels(6, 3)
    rows = kernel_map(voxels, _coarse(voxels, 2), 1, 2)
    inputs, outputs = Dim("inputs", min=2, max=2**20), Dim("outputs", min=2, max=2**20)
    resized = build_kernel_map(voxels, voxels[:7], 1, 3)
    return Examples(
        cases=cases,
        small=(random_tensor(9, 2), random_tensor(rows.shape[1], 3), rows, None),
        resized=(random_tensor(9, 32), random_tensor(7, 32), resized.neighbours, resized.transposed),
        tolerances=_sparse_conv_tolerances(),
        dynamic_shapes=({0: inputs}, {0: outputs}, {1: outputs}, {1: inputs}),
        bad=_sparse_conv_bad("gradient", "gradient must be .M, Cout."),
    )


def _knn_examples() -> Examples:
    def offsets(*counts: int) -> Tensor:
        return torch.tensor([0, *counts]).cumsum(0)

    query, points, by_scene = random_tensor(50, 3), random_tensor(400, 3), (offsets(20, 0, 30), offsets(250, 100, 50))
    grid = torch.cartesian_prod(*[torch.arange(7.0, dtype=torch.float64)] * 3)  # ties everywhere
    line = torch.stack([torch.arange(300.0).double(), torch.zeros(300), torch.zeros(300)], 1)
    clusters = torch.cat([points[:200] * 1e-3, points[200:] * 1e-3 + 1000])
    queries, count = Dim("queries", min=2, max=2**20), Dim("points", min=2, max=2**20)
    return Examples(
        cases={
            "scenes": (query, points, *by_scene, 16),
            "most neighbours": (query, points, *by_scene, 64),
            "fewer points than k": (query, points[:7], offsets(20, 10, 20), offsets(3, 0, 4), 5),
            "points with themselves": (points, points, offsets(400), offsets(400), 3),
            "ties on a grid": (grid, grid, offsets(343), offsets(343), 20),
            "ties between": (grid + 0.5, grid, offsets(343), offsets(343), 9),
            "equal points": (query, points[:1].expand(30, 3), offsets(50), offsets(30), 8),
            "a line": (line + 0.25, line, offsets(300), offsets(300), 4),
            "two clusters": (query * 500, clusters, offsets(50), offsets(400), 10),
            "far queries": (query * 1e6, points, offsets(50), offsets(400), 4),
            "large coordinates": (query * 1e15, points * 1e15, offsets(50), offsets(400), 4),
            "views": (query.flip(1).T.contiguous().T, points[::2], offsets(50), offsets(200), 3),
            "no queries": (query[:0], points, offsets(0), offsets(400), 3),
            "no points": (query, points[:0], offsets(50), offsets(0), 3),
            "no scenes": (query[:0], points[:0], offsets(), offsets(), 3),
            "one point": (query, points[:1], offsets(50), offsets(1), 1),
            "in float32": (query, points, *by_scene, 16, True),
            "in float32, ties on a grid": (0.1 * grid, 0.1 * grid, offsets(343), offsets(343), 20, True),
            "in float32, beyond its range": (query * 1e19, points * 1e19, *by_scene, 50, True),
            "in float32, fewer points than k": (query, points[:7], offsets(20, 10, 20), offsets(3, 0, 4), 5, True),
        },
        small=(query[:5], points[:9], offsets(5), offsets(9), 2),
        resized=(query[:30], points[:90], offsets(10, 10, 10), offsets(30, 30, 30), 16),
        tolerances={torch.float32: (2.0**-24, 0.0)},  # rounded once; the reference of these tests is not
        dynamic_shapes=({0: queries}, {0: count}, {}, {}),
        bad={
            "half": ((query.half(), points.half(), *by_scene, 3), TypeError, "must both be float32"),
            "two dtypes": ((query.float(), points, *by_scene, 3), TypeError, "got torch.float32 and torch.float64"),
            "two columns": ((query[:, :2], points, *by_scene, 3), ValueError, "query coordinates must be .N, 3."),
            "int32 offsets": ((query, points, by_scene[0].int(), by_scene[1], 3), TypeError, "must be int64"),
            "scenes": ((query, points, by_scene[0], offsets(400), 3), ValueError, "3 scenes but point_offsets 1"),
            "k": ((query, points, *by_scene, 65), ValueError, "k must be from 1 to 64, got 65"),
            "other device": ((query, points.to("meta"), *by_scene, 3), ValueError, "another tensor on meta"),
            "short offsets": ((query, points, offsets(50), offsets(30), 3), ValueError, "must rise from 0 to 400"),
            "falling offsets": ((query, points, offsets(60, -10, 0), by_scene[1], 3), ValueError, "rise from 0 to 50"),
            "not finite": ((query, points / 0.0, *by_scene, 3), ValueError, "point 0 is .* not finite"),
        },
    )


def _farthest_point_sample_examples() -> Examples:
    def offsets(*counts: int) -> Tensor:
        return torch.tensor([0, *counts]).cumsum(0)

    points, clouds = random_tensor(700, 3), offsets(250, 1, 449)
    plain, published, skipping = (False, False), (True, False), (False, True)  # published_ties, skip_near_origin
    grid = torch.cartesian_prod(*[torch.arange(7.0, dtype=torch.float64)] * 3)  # ties everywhere, exact in any dtype
    grids, start = torch.cat([grid, grid[torch.randperm(343, generator=torch.Generator().manual_seed(0))]]), [7, 0, 100]
    large = random_tensor(5000, 3) * torch.tensor([1.0, 1.0, 0.1])
    crowd = torch.cat([random_tensor(995, 3) * 1e-4, random_tensor(5, 3)])
    count, batch = Dim("count", min=2, max=2**20), Dim("batch", min=2, max=2**10)
    return Examples(
        cases={
            "clouds": (points, clouds, torch.tensor(start), 32, *plain),
            "from the first points": (points, clouds, None, 32, *plain),
            "published ties": (points, clouds, None, 32, *published),
            "near the origin": (points * 0.03, clouds, None, 20, *skipping),
            "all near the origin": (points * 1e-3, clouds, torch.tensor(start), 5, True, True),
            "grids": (grids, offsets(343, 343), None, 50, *plain),
            "grids, published ties": (grids, offsets(343, 343), torch.tensor([300, 4]), 50, *published),
            "grids, both": (grids / 64, offsets(343, 343), None, 50, True, True),
            "equal points": (points[:1].expand(300, 3), offsets(300), torch.tensor([5]), 9, *plain),
            "equal points, published ties": (points[:1].expand(300, 3), offsets(300), None, 9, *published),
            "more samples than points": (points[:20], offsets(15, 5), None, 30, *published),
            "a crowd and a few": (crowd, offsets(1000), None, 40, *plain),
            "far points": (points * 1e5, clouds, None, 20, *plain),
            "distances beyond float32": (points * 1e20, clouds, None, 5, *plain),
            "many points": (large, offsets(5000), None, 64, *plain),
            "many points, published ties": (large, offsets(5000), None, 64, *published),
            "views": (points.T.contiguous().T[::2], offsets(350).repeat_interleave(2)[::2], None, 9, *plain),
            "one sample": (points, clouds, None, 1, *plain),
            "no clouds": (points[:0], offsets(), None, 4, *plain),
        },
        small=(points[:9], offsets(5, 4), None, 3, *plain),
        resized=(points[:400], offsets(100, 100, 150, 50), torch.tensor([0, 1, 2, 3]), 32, *plain),
        tolerances={torch.float32: (0.0, 0.0)},
        dynamic_shapes=({0: count}, {0: batch + 1}, {0: batch}),
        bad={
            "half": ((points.half(), clouds, None, 4, *plain), TypeError, "points must be float32 or float64"),
            "two columns": ((points[:, :2], clouds, None, 4, *plain), ValueError, "points must be .P, 3."),
            "32-bit offsets": ((points, clouds.int(), None, 4, *plain), TypeError, "offsets must be int64"),
            "flat offsets": ((points, clouds[0], None, 4, *plain), ValueError, "offsets must be .B . 1,."),
            "32-bit start": ((points, clouds, torch.zeros(3).int(), 4, *plain), TypeError, "start must be int64"),
            "starts": ((points, clouds, torch.zeros(2).long(), 4, *plain), ValueError, "start must be .B,. = .3,."),
            "no samples": ((points, clouds, None, 0, *plain), ValueError, "count must be at least 1, got 0"),
            "other device": ((points, clouds.to("meta"), None, 4, *plain), ValueError, "points are on cpu but offsets"),
            "short offsets": ((points, offsets(100), None, 4, *plain), InputError, "must rise from 0 to 700"),
            "falling offsets": ((points, offsets(800, -100), None, 4, *plain), InputError, "must rise from 0 to 700"),
            "empty cloud": ((points, offsets(700, 0), None, 4, *plain), InputError, "cloud 1 has no points"),
            "start outside": (
                (points, clouds, torch.tensor([0, 1, 2]), 4, *plain),
                InputError,
                "start 1 of cloud 1 must be a row within it, 0 to 0",
            ),
            "not finite": ((points / 0.0, clouds, None, 4, *plain), InputError, "point 0 is .* not finite"),
        },
    )


def _neighbour_rows(queries: int, neighbours: int, points: int) -> Tensor:
    generator = torch.Generator().manual_seed(queries + points)
    return torch.randint(-1, points, (queries, neighbours), generator=generator)


def _interpolate_tolerances() -> dict[torch.dtype, tuple[float, float]]:
    # Sums of up to 180 products of unit variance in float32: 2.4e-5 measured, where all queries name one point.
    return {
        torch.float32: (0.0, 5e-5),
        torch.bfloat16: (2.0**-8, 5e-5),
        torch.float16: (2.0**-11, 5e-5),
    }


def _interpolate_examples() -> Examples:
    feats, index, weight = random_tensor(40, 48), _neighbour_rows(60, 3, 40), random_tensor(60, 3)
    points, queries = Dim("points", min=2, max=2**20), Dim("queries", min=2, max=2**20)
    return Examples(
        cases={
            "three neighbours": (feats, index, weight),
            "one neighbour": (feats, index[:, :1], weight[:, :1]),
            "odd channels": (feats[:, :5].contiguous(), _neighbour_rows(60, 7, 40), random_tensor(60, 7)),
            "all of one point": (feats, torch.zeros_like(index), weight),
            "views": (
                feats.T.contiguous().T,
                index.flip(1).T.contiguous().T,
                weight.expand(60, 3)[:, :1].expand(60, 3),
            ),
            "no neighbours": (feats, index[:, :0], weight[:, :0]),
            "no queries": (feats, index[:0], weight[:0]),
            "no points": (feats[:0], index.clamp(max=-1), weight),
            "no channels": (feats[:, :0], index, weight),
        },
        small=(random_tensor(4, 3), _neighbour_rows(5, 3, 4), random_tensor(5, 3)),
        resized=(random_tensor(20, 48), _neighbour_rows(30, 3, 20), random_tensor(30, 3)),
        tolerances=_interpolate_tolerances(),
        dynamic_shapes=({0: points}, {0: queries}, {0: queries}),
        bad={
            "integers": ((feats.int(), index, weight), TypeError, "feats must be float32"),
            "one dimension": ((feats[0], index, weight), ValueError, "feats must be .N, C."),
            "int32 index": ((feats, index.int(), weight), TypeError, "index must be int64"),
            "flat index": ((feats, index[:, 0], weight), ValueError, "index must be .Q, J."),
            "half weights": ((feats, index, weight.half()), TypeError, "weight must be float32 or torch.float64"),
            "fewer weights": ((feats, index, weight[:, :2]), ValueError, "weight must be .Q, J. = .60, 3."),
            "other device": ((feats, index.to("meta"), weight), ValueError, "feats are on cpu but index on meta"),
            "rows beyond": ((feats[:5], index, weight), ValueError, "index must be from -1 .none. to 4"),
        },
    )


def _interpolate_feats_gradient_examples() -> Examples:
    gradient, index, weight = random_tensor(60, 48), _neighbour_rows(60, 3, 40), random_tensor(60, 3)
    queries = Dim("queries", min=2, max=2**20)
    return Examples(
        cases={
            "three neighbours": (gradient, index, weight, 40),
            "odd channels": (gradient[:, :5].contiguous(), _neighbour_rows(60, 7, 40), random_tensor(60, 7), 40),
            "all to one point": (gradient, torch.zeros_like(index), weight, 1),
            "broadcast gradient": (gradient[:1].expand(60, 48), index, weight, 50),
            "views": (gradient.T.contiguous().T, index.flip(1), weight.flip(1).T.contiguous().T, 40),
            "no neighbours": (gradient, index[:, :0], weight[:, :0], 40),
            "no queries": (gradient[:0], index[:0], weight[:0], 40),
            "no points": (gradient, index.clamp(max=-1), weight, 0),
            "no channels": (gradient[:, :0], index, weight, 40),
        },
        small=(random_tensor(5, 3), _neighbour_rows(5, 3, 4), random_tensor(5, 3), 4),
        resized=(random_tensor(30, 48), _neighbour_rows(30, 3, 40), random_tensor(30, 3), 40),
        tolerances=_interpolate_tolerances(),
        dynamic_shapes=({0: queries}, {0: queries}, {0: queries}),
        bad={
            "integers": ((gradient.int(), index, weight, 40), TypeError, "gradient must be float32"),
            "fewer weights": ((gradient, index, weight[:, :2], 40), ValueError, "weight must be .Q, J."),
            "fewer queries": ((gradient[:9], index, weight, 40), ValueError, "gradient must be .Q, C. with Q = 60"),
            "negative count": ((gradient, index, weight, -1), ValueError, "count must not be negative"),
            "rows beyond": ((gradient, index, weight, 30), ValueError, "index must be from -1 .none. to 29"),
        },
    )


def _interpolate_weight_gradient_examples() -> Examples:
    feats, gradient, index = random_tensor(40, 48), random_tensor(60, 48), _neighbour_rows(60, 3, 40)
    points, queries = Dim("points", min=2, max=2**20), Dim("queries", min=2, max=2**20)
    return Examples(
        cases={
            "three neighbours": (feats, gradient, index),
            "odd channels": (feats[:, :5].contiguous(), gradient[:, :5].contiguous(), _neighbour_rows(60, 7, 40)),
            "views": (feats.T.contiguous().T, gradient[:1].expand(60, 48), index.flip(1)),
            "no neighbours": (feats, gradient, index[:, :0]),
            "no queries": (feats, gradient[:0], index[:0]),
            "no points": (feats[:0], gradient, index.clamp(max=-1)),
            "no channels": (feats[:, :0], gradient[:, :0], index),
        },
        small=(random_tensor(4, 3), random_tensor(5, 3), _neighbour_rows(5, 3, 4)),
        resized=(random_tensor(20, 48), random_tensor(30, 48), _neighbour_rows(30, 3, 20)),
        tolerances=_interpolate_tolerances(),
        dynamic_shapes=({0: points}, {0: queries}, {0: queries}),
        bad={
            "two dtypes": ((feats, gradient.float(), index), TypeError, "gradient is torch.float32 but feats are"),
            "fewer queries": ((feats, gradient[:9], index), ValueError, "gradient must be .Q, C. with Q = 60"),
            "channels": ((feats, gradient[:, :9], index), ValueError, "gradient has 9 channels but feats 48"),
            "rows beyond": ((feats[:5], gradient, index), ValueError, "index must be from -1 .none. to 4"),
        },
    )


def _window_partition_examples() -> Examples:
    voxels, spread = _voxels(300, 0, 200), _voxels(3000, 2000, stride=3)
    corners = torch.tensor([[-(2**31)] * 4, [2**31 - 1] * 4, [0, -1, 2**31 - 1, -(2**31)]]).int()
    return Examples(
        cases={
            "regular": (voxels, 1, 5, False),
            "shifted": (voxels, 1, 5, True),
            "coarse voxels": (spread, 3, 7, False),
            "coarse voxels, shifted": (spread, 3, 7, True),
            "not multiples of the stride": (voxels, 3, 2, True),
            "cells alone": (voxels, 1, 1, False),
            "equal rows": (voxels[[0, 1, 0, 2, 1, 0]], 1, 1, False),
            "sorted rows": (spread.unique(dim=0), 3, 1, False),
            "one window": (voxels[voxels[:, 0] == 0], 1, 2**20, True),
            "strided rows and columns": (voxels.repeat_interleave(2, 0)[::2].T.contiguous().T, 1, 5, True),
            "keys of 64 bits are too narrow": (corners, 1, 1, False),
            "far corners in large windows": (corners, 5, 7, True),
            "many voxels": (_voxels(40000, 30000), 1, 7, True),
            "one voxel": (voxels[:1], 1, 5, True),
            "no voxels": (_NO_VOXELS, 1, 5, True),
        },
        small=(voxels[:5], 1, 5, False),
        resized=(spread, 1, 5, False),
        tolerances={torch.int32: (0.0, 0.0)},
        dynamic_shapes=({0: Dim("count", min=2, max=2**20)},),
        bad={
            "64-bit coords": ((voxels.long(), 1, 5, False), TypeError, "coords must be int32, got torch.int64"),
            "three columns": ((voxels[:, :3], 1, 5, False), ValueError, "coords must be .N, 4."),
            "no stride": ((voxels, 0, 5, False), ValueError, "must be 1 or more.* got 0 and 5"),
            "no window": ((voxels, 1, 0, False), ValueError, "must be 1 or more.* got 1 and 0"),
            "endless window": ((voxels, 2**16, 2**15, False), ValueError, "product below 2..31"),
        },
    )


def _voxelize_examples() -> Examples:
    points, offsets, origin = random_tensor(500, 3), torch.tensor([0, 200, 200, 500]), 0.01 * random_tensor(3, 3)
    priority = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(0))
    count, scenes = Dim("count", min=2, max=2**20), Dim("scenes", min=2, max=2**10)
    many = torch.tensor([0, 1, 30000, 30000, 69999, 70000, 70000])
    bad = {
        "NaN": (0, torch.nan, "1 of 500 points are not finite, the first in row 0; remove"),
        "infinity": (499, -torch.inf, "1 of 500 points are not finite, the first in row 499; remove"),
        "far point": (7, 1e6, "1 of 500 points lie over 1048576 voxels from the origin, the first in row 7; choose"),
    }
    return Examples(
        cases={
            "first": (points, offsets, origin, None, 0.3),
            "by priority": (points, offsets, origin, priority, 0.3),
            "strided points": (points.T.contiguous().T, offsets, origin, priority, 0.3),
            "one origin": (points, offsets, torch.tensor([[0.5, -0.25, 100.0]]).double().expand(3, 3), None, 0.3),
            "one cell each": (points, offsets, origin, None, 1e-4),
            "one cell a scene": (points, offsets, origin - 8, priority, 100.0),
            "corners": (
                torch.tensor([[0.0] * 3, [2.0**20] * 3, [-(2.0**20)] * 3]),
                torch.tensor([0, 3]),
                torch.zeros(1, 3),
                None,
                1.0,
            ),
            "many points": (
                random_tensor(70000, 3),
                many,
                0.01 * random_tensor(6, 3),
                torch.arange(70000).flip(0) // 9,
                0.07,
            ),
            "one point": (points[:1], torch.tensor([0, 1]), origin[:1], None, 0.3),
            "no points": (points[:0], torch.tensor([0, 0, 0]), origin[:2], priority[:0], 0.3),
            "no scenes": (points[:0], torch.tensor([0]), origin[:0], None, 0.3),
        },
        small=(points[:5], torch.tensor([0, 5]), origin[:1], None, 0.3),
        resized=(random_tensor(700, 3), torch.tensor([0, 300, 700]), torch.zeros(2, 3).double(), None, 0.3),
        tolerances={torch.float32: (0.0, 0.0), torch.float64: (0.0, 0.0)},
        dynamic_shapes=({0: count}, {0: scenes + 1}, {0: scenes}),
        bad={
            "integer points": ((points.long(), offsets, origin, None, 0.3), TypeError, "xyz must be float32"),
            "32-bit offsets": ((points, offsets.int(), origin, None, 0.3), TypeError, "must be int64"),
            "half origin": ((points, offsets, origin.half(), None, 0.3), TypeError, "origin must be float64"),
            "two columns": ((points[:, :2], offsets, origin, None, 0.3), ValueError, "xyz must be .N, 3."),
            "fewer origins": ((points, offsets, origin[:2], None, 0.3), ValueError, "or .3, 3., got .2, 3."),
            "fewer priorities": (
                (points, offsets, origin, priority[1:], 0.3),
                ValueError,
                "must be .500,., got .499,.",
            ),
            "voxel size": ((points, offsets, origin, None, 0.0), ValueError, "voxel_size must be positive"),
            "endless voxels": ((points, offsets, origin, None, math.inf), ValueError, "voxel_size must be positive"),
            "other device": ((points, offsets.to("meta"), origin, None, 0.3), ValueError, "xyz is on cpu but offsets"),
            "fewer points": ((points[:-1], offsets, origin, None, 0.3), InputError, "must rise from 0 to 499, got .0"),
            "falling": ((points, offsets[[0, 3, 2, 3]], origin, None, 0.3), InputError, "must rise from 0 to 500"),
            "origin NaN": ((points, offsets, origin * math.nan, None, 0.3), InputError, "origin must be finite"),
        }
        | {
            name: ((points.index_fill(0, torch.tensor([row]), value), offsets, origin, None, 0.3), InputError, message)
            for name, (row, value, message) in bad.items()
        },
    )


def _windows(*sizes: int) -> tuple[Tensor, Tensor]:
    """Rows in random order and their windows' offsets."""
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(len(sizes)))
    return order, torch.tensor([0, *sizes]).cumsum(0)


def _signals(count: int, bins: tuple[int, ...], reach: float = 1.0) -> Tensor:
    """Signals whose differences fill the bins of their axes, where ``reach`` is 1."""
    uniform = torch.rand(count, len(bins), generator=torch.Generator().manual_seed(count))
    return uniform * torch.tensor(bins) / 2 * reach


def voxel_attention_arguments(
    sizes: tuple[int, ...], heads: int, channels: int, bins: tuple[int, ...] = (), mode: str = "contextual"
) -> Arguments:
    count, rows = sum(sizes), sum(bins)
    query, key, value = (random_tensor(count, heads, channels) for _ in range(3))
    tables: list[Tensor | None] = [None] * 4
    if mode == "contextual":
        tables[:3] = (0.3 * random_tensor(rows, heads, channels).roll(shift, 0) for shift in range(3))
    elif mode == "bias":
        tables[3] = random_tensor(rows, heads)
    signals = _signals(count, bins) if bins else None
    return (query, key.flip(0), value.roll(1, 0), *_windows(*sizes), signals, *tables, list(bins), channels**-0.5)


SWIN3D_BINS = (56, 56, 56, 32, 32, 32, 32, 32, 32)


def _voxel_attention_cases() -> dict[str, Arguments]:
    swin3d = voxel_attention_arguments((5, 30, 1, 11, 1, 1), 6, 16, SWIN3D_BINS)
    projection = random_tensor(49, 3, 6, 16)
    clamped = list(swin3d)
    clamped[5] = _signals(49, SWIN3D_BINS, 3.0)
    equal = list(swin3d)
    equal[5] = torch.ones(49, 9)
    narrow = list(swin3d)
    narrow[3], narrow[4] = torch.arange(98)[::2] // 2, swin3d[4].int()
    return {
        "swin3d": swin3d,
        "viewed projection": (*projection.unbind(1), *swin3d[3:]),
        "signals at the clamp": tuple(clamped),
        "equal signals": tuple(equal),
        "32-bit offsets, strided order": tuple(narrow),
        "six axes, heads of 8": voxel_attention_arguments((40, 3), 6, 8, SWIN3D_BINS[:6]),
        "three axes, many heads": voxel_attention_arguments((20, 7), 24, 16, (40, 40, 40)),
        "one axis, odd sizes": voxel_attention_arguments((9, 4), 3, 5, (7,)),
        "one bin": voxel_attention_arguments((9, 4), 3, 4, (1, 3)),
        "wide heads": voxel_attention_arguments((9, 4), 2, 64, (12, 8)),
        "empty windows": voxel_attention_arguments((0, 9, 0, 4, 0), 8, 16, (12, 8, 6)),
        "large window": voxel_attention_arguments((150,), 2, 8, SWIN3D_BINS),
        "plain": voxel_attention_arguments((11, 1, 20), 6, 16, (), "plain"),
        "bias": voxel_attention_arguments((11, 1, 20), 10, 8, (12, 12, 12), "bias"),
        "bias, two axes": voxel_attention_arguments((11, 5), 1, 4, (9, 4), "bias"),
    }


#: Sums in float32 of up to 150 terms and over 9 axes; of tables' gradients over some 1,000 pairs, where terms of order
#: one cancel: 1e-4 measured.
VOXEL_ATTENTION_TOLERANCES = {
    torch.float32: (2e-5, 3e-4),
    torch.bfloat16: (2.0**-8, 3e-4),
    torch.float16: (2.0**-11, 3e-4),
}


def _voxel_attention_examples() -> Examples:
    cases = _voxel_attention_cases()
    swin3d = cases["swin3d"]
    voxels, windows = Dim("voxels", min=2, max=10**6), Dim("windows", min=2, max=10**6)
    rows = {0: voxels}

    def changed(**changes: Any) -> Arguments:
        names = ["query", "key", "value", "order", "offsets", "signals"]
        names += ["query_table", "key_table", "value_table", "bias_table", "bins", "scale"]
        return tuple(changes.get(label, argument) for label, argument in zip(names, swin3d))

    twice, outside, bad = swin3d[3].clone(), swin3d[3] + 1, swin3d[5].clone()
    twice[0] = twice[1]
    bad[7, 2] = math.nan
    return Examples(
        cases=cases,
        small=voxel_attention_arguments((3, 1), 2, 2, (4, 3)),
        resized=voxel_attention_arguments((7, 2, 13), 6, 16, SWIN3D_BINS),
        tolerances=VOXEL_ATTENTION_TOLERANCES,
        dynamic_shapes=(rows, rows, rows, rows, {0: windows}, rows, None, None, None),
        bad={
            "integer query": (changed(query=swin3d[0].long()), TypeError, "query must be float32"),
            "two dimensions": (changed(query=swin3d[0][0]), InputError, "query must be .N, H, D."),
            "other dtype": (changed(value=swin3d[2].float()), TypeError, "value must be torch.float64 as query"),
            "fewer keys": (changed(key=swin3d[1][1:]), InputError, "key must be .49, 6, 16. to fit"),
            "table rows": (changed(bins=[56] * 9), InputError, "query_table must be .504, 6, 16."),
            "32-bit order": (changed(order=swin3d[3].int()), TypeError, "order must be int64"),
            "float offsets": (changed(offsets=swin3d[4].float()), TypeError, "offsets must be int64 or int32"),
            "float64 signals": (changed(signals=swin3d[5].double()), TypeError, "signals must be float32"),
            "axes": (changed(signals=swin3d[5][:, :6]), InputError, "signals must be .49, 9."),
            "no signals": (changed(signals=None), InputError, "tables, signals and bins come together"),
            "no key table": (changed(key_table=None), InputError, "or none of them"),
            "a bias too": (changed(bias_table=random_tensor(360, 6)), InputError, "or bias_table alone"),
            "no bins in an axis": (changed(bins=[0, *SWIN3D_BINS[1:]]), InputError, "at least one bin"),
            "other device": (changed(value=swin3d[2].to("meta")), InputError, "query is on cpu but value on meta"),
            "a row twice": (changed(order=twice), InputError, "order must hold each row from 0 to 48 once"),
            "a row outside": (changed(order=outside), InputError, "order must hold each row from 0 to 48 once"),
            "offsets that end early": (changed(offsets=swin3d[4] - 1), InputError, "ascend from 0 to .* 49"),
            "offsets that fall": (changed(offsets=swin3d[4][[0, 2, 1, 6]]), InputError, "ascend from 0"),
            "signals that are not finite": (changed(signals=bad), InputError, "must be finite; the first .* is 7"),
        },
        kernel_refusals={"cuda": (voxel_attention_arguments((9,), 2, 65, (12, 8)), "65 channels a head are over 64")},
        fixed=frozenset({5}),
    )


def _voxel_attention_backward_examples() -> Examples:
    """Log-sum-exp is what the forward gives, so that probabilities add up to one."""

    def arguments(forward: Arguments) -> Arguments:
        _, lse = get_operator("voxel_attention").reference(*forward)
        return random_tensor(*forward[0].shape), random_tensor(*lse.shape).float(), lse.float(), *forward

    cases = {label: arguments(forward) for label, forward in _voxel_attention_cases().items()}
    swin3d = cases["swin3d"]
    rows, windows = {0: Dim("voxels", min=2, max=10**6)}, {0: Dim("windows", min=2, max=10**6)}
    bad_order = (*swin3d[:6], swin3d[6] + 1, *swin3d[7:])
    return Examples(
        cases=cases,
        small=arguments(voxel_attention_arguments((3, 1), 2, 2, (4, 3))),
        resized=arguments(voxel_attention_arguments((7, 2, 13), 6, 16, SWIN3D_BINS)),
        tolerances=VOXEL_ATTENTION_TOLERANCES,
        dynamic_shapes=(*(rows,) * 7, windows, rows, None, None, None),
        bad={
            "gradient's shape": ((swin3d[0][1:], *swin3d[1:]), InputError, "grad_out must be .49, 6, 16."),
            "gradient's dtype": ((swin3d[0].float(), *swin3d[1:]), TypeError, "grad_out must be torch.float64"),
            "16-bit sums": ((swin3d[0], *(t.half() for t in swin3d[1:3]), *swin3d[3:]), TypeError, "lse and grad_lse"),
            "order": (bad_order, InputError, "order must hold each row from 0 to 48 once"),
        },
        kernel_refusals={"cuda": (arguments(voxel_attention_arguments((3,), 1, 2, (2,) * 65)), "65 axes are over 64")},
        fixed=frozenset({1, 2, 8}),
        derivatives=False,
    )


def ray_arguments(
    rays: int = 40,
    sides: tuple[int, int, int] = (5, 4, 6),
    border: float = 0.5,
    step: float = 0.15,
    stop: float = 0.0,
    comparing: bool = True,
    jittered: bool = True,
    occupied: float | None = 0.7,
) -> Arguments:
    """Arguments of render_rays: rays from inside and outside, some of which miss a plain box, through random values."""
    generator = torch.Generator().manual_seed(rays)
    grid = 1.5 * random_tensor(*sides, 4)
    origins = torch.randn(rays, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=1)
    directions = directions / torch.tensor([1.0, 1.5, 0.7])
    directions[: rays // 8, 1] = 0.0  # along the sides of the box
    target, target_depth = torch.rand(rays, 3, generator=generator), torch.rand(rays, generator=generator) * 2 - 0.3
    jitter = torch.rand(rays, generator=generator)
    cells = torch.rand(*(side // 2 for side in sides), generator=generator)
    occupancy = None if occupied is None else (cells < occupied).to(torch.uint8)
    compared = (target, target_depth) if comparing else (None, None)
    return (
        *(grid, origins, directions, *compared, jitter if jittered else None, occupancy),
        *(step, border, 0.3, 2.0, stop, 0.5),
    )


def _ray_cases() -> dict[str, Arguments]:
    plain = ray_arguments(border=0.0)
    padded = random_tensor(5, 6, 9, 4)[:, :4, 1:7]
    wide = random_tensor(5, 4, 6, 8)[..., ::2]
    return {
        "contracted": ray_arguments(),
        "plain box": plain,
        "narrow border": ray_arguments(border=0.125, step=0.3),
        "all occupied, centred, nothing to compare": ray_arguments(comparing=False, jittered=False, occupied=None),
        "nothing occupied": ray_arguments(occupied=0.0),
        "stopped": ray_arguments(stop=0.1, occupied=None),
        "two nodes a side": ray_arguments(sides=(2, 2, 2)),
        "padded grid": (padded, *plain[1:]),
        "strided channels": (wide, *plain[1:]),
        "many rays": ray_arguments(600, (3, 3, 4), step=0.4),
        "no rays": ray_arguments(0),
    }


#: Positions along a ray and exponentials in float32. Depths reach 60 behind a border: 1e-5 measured. Gradients sum
#: hundreds of samples; on CUDA what lies behind a sample is a difference of sums, which there reach 100: 2e-4 measured.
#: On the CPU it is a sum: see test_render_rays.py.
RAY_TOLERANCES = {torch.float32: (2e-5, 4e-4)}


def _ray_bad(prefix: Callable[[Arguments], Arguments]) -> dict[str, tuple[Arguments, type[Exception], str]]:
    """``prefix`` makes the operator's arguments of those of render_rays."""
    names = ["grid", "origins", "directions", "target", "target_depth", "jitter", "occupancy"]
    names += ["step", "border", "density_shift", "density_scale", "stop", "depth_reach"]
    good = ray_arguments()

    def changed(**changes: Any) -> Arguments:
        return prefix(tuple(changes.get(label, argument) for label, argument in zip(names, good)))

    nowhere, still = good[1].clone(), good[2].clone()
    nowhere[7, 1] = torch.nan
    still[3] = 0
    return {
        "half grid": (changed(grid=good[0].half()), TypeError, "grid must be float32 or float64"),
        "three channels": (changed(grid=good[0][..., :3]), InputError, "grid must be .X, Y, Z, 4."),
        "one node": (changed(grid=good[0][:1]), InputError, "sides of at least 2"),
        "flat origins": (changed(origins=good[1][0]), InputError, "origins must be .R, 3."),
        "fewer directions": (changed(directions=good[2][1:]), InputError, "directions must be .40, 3. to fit"),
        "half target": (changed(target=good[3].half()), TypeError, "target must be float32 or torch.float64"),
        "grey target": (changed(target=good[3][:, 0]), InputError, "target must be .40, 3."),
        "one jitter": (changed(jitter=good[5][:1]), InputError, "jitter must be .40,."),
        "bool occupancy": (changed(occupancy=good[6].bool()), TypeError, "occupancy must be uint8"),
        "fine occupancy": (changed(occupancy=good[6].repeat(2, 2, 2)), InputError, "occupancy must be .2, 2, 3."),
        "other device": (changed(target=good[3].to("meta")), InputError, "grid is on cpu but target on meta"),
        "no step": (changed(step=0.0), InputError, "step must be positive"),
        "endless reach": (changed(depth_reach=math.inf), InputError, "depth_reach must be positive"),
        "no density": (changed(density_scale=-1.0), InputError, "density_scale must be positive"),
        "shift": (changed(density_shift=math.nan), InputError, "density_shift must be finite"),
        "negative border": (changed(border=-0.5), InputError, "border must be from 0 to 10"),
        "stop": (changed(stop=1.0), InputError, "stop must be from 0 to below 1"),
        "rays from nowhere": (changed(origins=nowhere), InputError, "rays must be finite; the first .* is 7"),
        "still rays": (changed(directions=still), InputError, "a step of 0.15 .* along ray 3"),
        "short steps": (changed(step=1e-5), InputError, "is under 0.0001 of half the box"),
    }


def _render_rays_examples() -> Examples:
    rays = {0: Dim("rays", min=2, max=2**20)}
    return Examples(
        cases=_ray_cases(),
        small=ray_arguments(3, (2, 3, 2), step=0.5),
        resized=ray_arguments(17),
        tolerances=RAY_TOLERANCES,
        dynamic_shapes=({}, rays, rays, rays, rays, rays, {}),
        bad=_ray_bad(lambda arguments: arguments),
        fixed=frozenset({1, 2, 3, 4, 5}),
    )


def _render_rays_backward_examples() -> Examples:
    def arguments(forward: Arguments) -> Arguments:
        rays = len(forward[1])
        return random_tensor(rays, 3), *(random_tensor(rays).roll(shift) for shift in range(4)), *forward

    def bad(forward: Arguments) -> Arguments:
        return random_tensor(40, 3), *(random_tensor(40),) * 4, *forward

    good = arguments(ray_arguments())
    rays = {0: Dim("rays", min=2, max=2**20)}
    return Examples(
        cases={label: arguments(forward) for label, forward in _ray_cases().items()},
        small=arguments(ray_arguments(3, (2, 3, 2), step=0.5)),
        resized=arguments(ray_arguments(17)),
        tolerances=RAY_TOLERANCES,
        dynamic_shapes=(*(rays,) * 5, {}, *(rays,) * 5, {}),
        bad={
            **_ray_bad(bad),
            "gradient's shape": ((good[0][:, :2], *good[1:]), InputError, "grad_colour must be .40, 3."),
            "gradient's dtype": ((good[0], good[1].float(), *good[2:]), TypeError, "grad_transmittance must be"),
        },
        fixed=frozenset({6, 7, 8, 9, 10}),
        derivatives=False,
    )


def _radiance_gradient_examples() -> Examples:
    def arguments(forward: Arguments, parts: int = 2, weighted: bool = True) -> Arguments:
        grid, origins, directions, target, target_depth, jitter, occupancy, *numbers = forward
        weight = torch.linspace(0.5, 1.5, len(origins)) if weighted else None
        start = random_tensor(parts, *grid.shape)
        return (
            *(start, grid, origins, directions, target, target_depth, weight, jitter, occupancy),
            *(*numbers, [0.1, 0.9, 0.4], 0.3, 0.2),
        )

    def bad(forward: Arguments) -> Arguments:
        return arguments((*forward[:3], forward[3], *forward[4:]))

    good = arguments(ray_arguments())
    cases = {label: arguments(case) for label, case in _ray_cases().items() if case[3] is not None}
    unknown = list(arguments(ray_arguments(jittered=False), 3, weighted=False))
    unknown[5] = None
    padded = (random_tensor(2, 5, 6, 9, 4)[:, :, 1:5, 1:7], *cases["padded grid"][1:])
    packed = random_tensor(2, 5, 4, 6, 8)[..., :4]
    rays = {0: Dim("rays", min=2, max=2**20)}
    return Examples(
        cases={
            **cases,
            "no depth, no weights": tuple(unknown),
            "padded gradient": padded,
            "more parts than rays": arguments(ray_arguments(3), 7),
        },
        small=arguments(ray_arguments(3, (2, 3, 2), step=0.5)),
        resized=arguments(ray_arguments(17)),
        # The gradient of a mean over rays, and without depths as they are: 1e-6 measured, on values of order one.
        tolerances={torch.float32: (2e-5, 5e-6)},
        dynamic_shapes=({}, {}, *(rays,) * 6, {}),
        bad={
            **_ray_bad(bad),
            "gradient's shape": ((good[0][0], *good[1:]), InputError, "gradient must be .S, 5, 4, 6, 4."),
            "gradient's dtype": ((good[0].float(), *good[1:]), TypeError, "gradient must be torch.float64 as grid"),
            "gradient's strides": ((packed, *good[1:]), InputError, "must lie packed"),
            "two backgrounds": ((*good[:-3], [0.1, 0.2], *good[-2:]), InputError, "background must be three numbers"),
            "negative weight": ((*good[:-1], -1.0), InputError, "must be finite and not negative"),
        },
        fixed=frozenset({2, 3, 4, 5, 6, 7}),
        derivatives=False,
        written=frozenset({0}),
    )


def _radiance_step_examples() -> Examples:
    def arguments(
        sides: tuple[int, int, int] = (5, 4, 11), parts: int = 2, occupied: bool = True, **changes: float
    ) -> Arguments:
        grid, mean, square = random_tensor(3, *sides, 4)
        cells = torch.rand(*(side // 2 for side in sides), generator=torch.Generator().manual_seed(sum(sides)))
        occupancy = (cells > 0.8).to(torch.uint8) if occupied else None
        numbers = {"number": 3, "density_rate": 0.5, "colour_rate": 0.1}
        numbers |= {"density_smoothness": 0.2, "colour_smoothness": 0.05}
        numbers |= {"mean_decay": 0.9, "square_decay": 0.99, "epsilon": 1e-3}
        values = (numbers | changes).values()
        return grid, random_tensor(parts, *sides, 4), mean.contiguous(), square.abs(), occupancy, *values

    good = arguments()
    padded = tuple(t[..., 1:5, 1:12, :] for t in (random_tensor(5, 6, 14, 4), random_tensor(2, 5, 6, 14, 4)))
    plain = {"density_smoothness": 0.0, "colour_smoothness": 0.0}

    def changed(position: int, value: Any) -> Arguments:
        return *good[:position], value, *good[position + 1 :]

    return Examples(
        cases={
            "smooth, where occupied": good,
            "where occupied": arguments((20, 6, 40), 3, **plain),
            "all": arguments((3, 4, 5), 1, occupied=False, **plain),
            "all, smooth, over several chunks": arguments((35, 2, 9), 2, occupied=False),
            "smooth colours": arguments((2, 3, 8), occupied=False, density_smoothness=0.0, number=100),
            "padded": (*padded, *good[2:]),
        },
        small=arguments((2, 3, 2)),
        resized=good,
        # An inverse root in float32, of sums of a few products: 1e-6 measured.
        tolerances={torch.float32: (4e-6, 4e-6)},
        dynamic_shapes=({}, {}, {}, {}, {}),
        bad={
            "half": (changed(0, good[0].half()), TypeError, "grid must be float32 or float64"),
            "three channels": (changed(0, good[0][..., :3]), InputError, "grid must be .X, Y, Z, 4."),
            "flat gradient": (changed(1, good[1][0]), InputError, "gradient must be .S, 5, 4, 11, 4."),
            "other dtype": (changed(2, good[2].float()), TypeError, "mean must be torch.float64 as grid"),
            "other shape": (changed(3, good[3][1:]), InputError, "square must be .5, 4, 11, 4. as grid"),
            "strides": (changed(3, good[3].mT.contiguous().mT), InputError, "of square must lie packed"),
            "other device": (changed(2, good[2].to("meta")), InputError, "grid is on cpu but mean on meta"),
            "bool occupancy": (changed(4, good[4].bool()), TypeError, "occupancy must be uint8"),
            "fine occupancy": (changed(4, good[4].repeat(2, 1, 1)), InputError, "occupancy must be .2, 2, 5."),
            "occupancy elsewhere": (changed(4, good[4].to("meta")), InputError, "but occupancy on meta"),
            "step 0": (changed(5, 0), InputError, "number counts from 1"),
            "negative rate": (changed(6, -0.1), InputError, "density_rate must be finite and not negative"),
            "decay": (changed(10, 1.0), InputError, "mean_decay must be from 0 to below 1"),
        },
        derivatives=False,
        written=frozenset({0, 1, 2, 3}),
    )


EXAMPLES: dict[str, Examples] = {
    "farthest_point_sample": _farthest_point_sample_examples(),
    "interpolate": _interpolate_examples(),
    "interpolate_feats_gradient": _interpolate_feats_gradient_examples(),
    "interpolate_weight_gradient": _interpolate_weight_gradient_examples(),
    "kernel_map": _kernel_map_examples(),
    "kernel_support": _kernel_support_examples(),
    "knn": _knn_examples(),
    "radiance_gradient": _radiance_gradient_examples(),
    "radiance_step": _radiance_step_examples(),
    "render_rays": _render_rays_examples(),
    "render_rays_backward": _render_rays_backward_examples(),
    "rope_2d": _rope_2d_examples(),
    "sparse_conv": _sparse_conv_examples(),
    "sparse_conv_weight_gradient": _sparse_conv_weight_gradient_examples(),
    "transpose_kernel_map": _transpose_kernel_map_examples(),
    "voxel_attention": _voxel_attention_examples(),
    "voxel_attention_backward": _voxel_attention_backward_examples(),
    "voxelize": _voxelize_examples(),
    "window_partition": _window_partition_examples(),
}


def cast_arguments(name: str, arguments: Arguments, dtype: torch.dtype, device: str = "cpu") -> Arguments:
    """The arguments with floating tensors in ``dtype``, tensors moved to ``device`` with their strides kept."""
    fixed = EXAMPLES[name].fixed
    return tuple(
        _cast_tensor(a, a.dtype if i in fixed else dtype, device) if isinstance(a, Tensor) else a
        for i, a in enumerate(arguments)
    )


def _cast_tensor(tensor: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    target = dtype if tensor.is_floating_point() else tensor.dtype
    return _storage(tensor).to(device, target).as_strided(tensor.shape, tensor.stride())


def _copy(tensor: Tensor) -> Tensor:
    return _storage(tensor).clone().as_strided(tensor.shape, tensor.stride())


def _storage(tensor: Tensor) -> Tensor:
    """From its first element to its last, flat."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.as_strided((last + 1 if tensor.numel() else 0,), (1,))


def outputs_of(result: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result or ()


def run(name: str, function: Callable[..., Any], arguments: Arguments) -> tuple[Tensor, ...]:
    """Outputs of an operator, and what it wrote to; the arguments themselves are left as they are."""
    written = sorted(EXAMPLES[name].written)
    own = tuple(_copy(a) if i in written else a for i, a in enumerate(arguments))
    return *outputs_of(function(*own)), *(own[i] for i in written)


def overload(name: str) -> Any:
    return getattr(torch.ops.geo3d, name).default


def require_library(device_type: str) -> None:
    if device_type == "cpu" and shutil.which("c++"):
        assert _library.why_not_loaded(device_type) is None, "there is a compiler: run `make install`"
    if (reason := _library.why_not_loaded(device_type)) is not None:
        pytest.skip(f"no {device_type} kernels: {reason}")
