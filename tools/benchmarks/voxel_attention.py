"""The operator voxel_attention, forward and with its backward, beside other ways to compute it.

Scene: a furnished room at 2 cm, some 100,000 voxels with normals (noise of 0.08) and colours, in windows of 7; 6 heads
of 16 channels; signals XYZ_RGB_NORM, 9 axes. The work is counted in pair-heads, one (query, key, head); a variant's row
says how many nanoseconds one takes, times the number of threads.

Others: the same sums in PyTorch on windows padded to a common size (gathered look-ups, the package's own reference),
eager and under torch.compile (its forward); pair by pair with plain indexing, as the formula reads, on a part of the
windows, its time scaled by the number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from benchmarks.room import VOXEL_SIZE, room_points
from torch import Tensor

from geo3d.ops import voxel_attention, window_partition
from geo3d.ops.voxel_attention import table_rows, voxel_attention_backward_reference, voxel_attention_reference

_WINDOW, _QUANT = 7, 4
_BINS = (2 * _WINDOW * _QUANT,) * 3 + (8 * _QUANT,) * 6
_NORMAL_NOISE = 0.08
_PART = 40  # the pair-by-pair form works on every so many-th window


@dataclass
class VoxelAttentionBenchmark:
    """Attention inside the windows of one layer of Swin3D, beside padded windows and plain indexing."""

    heads: int = 6
    """Attention heads."""
    head_dim: int = 16
    """Channels of a head."""
    scale: float = 1.0
    """Size of the room, in each direction, over that of the one with 100,000 voxels."""
    turns: int = 3
    """Timed turns of each variant; the median counts."""
    threads: int = 2
    """CPU threads."""
    peers: bool = True
    """Time the others too; they take minutes."""
    device: str = "cpu"
    """cpu or cuda."""


def scene(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Order, offsets and signals (N, 9) of a room's voxels."""
    generator = torch.Generator().manual_seed(1)
    points = room_points(scale)
    points = points - points.amin(0)
    cells = (points / VOXEL_SIZE).floor().int()
    coords, inverse = cells.unique(dim=0, return_inverse=True)
    first = torch.full((len(coords),), len(points)).scatter_reduce(0, inverse, torch.arange(len(points)), "amin")
    points = points[first] / VOXEL_SIZE
    fraction = points - coords
    axis = torch.arange(len(coords)) // 997 % 3
    normals = torch.nn.functional.one_hot(axis, 3) + _NORMAL_NOISE * torch.randn(len(coords), 3, generator=generator)
    normals = torch.nn.functional.normalize(normals, dim=1)
    colors = (0.5 * torch.sin(points / 9.0) + 0.3 * torch.randn(len(coords), 3, generator=generator)).clamp(-1, 1)
    signals = torch.cat([_QUANT * (coords % _WINDOW + fraction), 2 * _QUANT * colors, 2 * _QUANT * normals], 1)
    order, offsets = window_partition(torch.cat([torch.zeros_like(coords[:, :1]), coords], 1), 1, _WINDOW, False)
    return order, offsets, signals.float()


def _arguments(scale: float, heads: int, channels: int, part: int = 1) -> list[Any]:
    order, offsets, signals = scene(scale)
    if part > 1:
        kept = [order[a:b] for a, b in list(zip(offsets[:-1].tolist(), offsets[1:].tolist()))[::part]]
        rows = torch.cat(kept)
        signals, order = signals[rows], torch.arange(len(rows))
        offsets = torch.tensor([0, *(len(window) for window in kept)]).cumsum(0)
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(len(order), heads, channels, generator=generator) for _ in range(3))
    tables = (0.3 * torch.randn(sum(_BINS), heads, channels, generator=generator) for _ in range(3))
    return [q, k, v, order, offsets, signals, *tables, list(_BINS)]


def pair_count(scale: float, part: int = 1) -> int:
    """Pairs of voxels that share a window."""
    sizes = _arguments(scale, 1, 4, part)[4].diff()
    return int(sizes.square().sum())


def _mean_magnitude() -> Callable[[Tensor], float]:
    """The value of a step. On a GPU it is that of the first, untimed one: a good part of the time would go into it."""
    values: list[float] = []

    def of(out: Tensor) -> float:
        if not values or not out.is_cuda:
            values[:] = [float(out.detach().double().abs().mean())]
        return values[0]

    return of


def _padded(arguments: list[Any], backward: bool, compiled: bool) -> Callable[[], float]:
    *tensors, bins = arguments
    scale = tensors[0].shape[-1] ** -0.5
    forward = torch.compile(voxel_attention_reference, dynamic=True) if compiled else voxel_attention_reference
    value = _mean_magnitude()

    def step() -> float:
        with torch.no_grad():
            out, lse = forward(*tensors, None, bins, scale)
            if backward:
                ones, zeros = torch.ones_like(out), torch.zeros_like(lse)
                voxel_attention_backward_reference(ones, zeros, lse, *tensors, None, bins, scale)
        return value(out)

    return step


def _product(arguments: list[Any], backward: bool) -> Callable[[], float]:
    *tensors, bins = arguments
    leaves = [t.requires_grad_(backward) if t.ndim == 3 else t for t in tensors]
    value = _mean_magnitude()

    def step() -> float:
        out = voxel_attention(*leaves, bins)
        if backward:
            out.backward(torch.ones_like(out))
            for leaf in leaves:
                leaf.grad = None
        return value(out)

    return step


def _pairs(arguments: list[Any]) -> Callable[[], None]:
    q, k, v, order, offsets, signals, query_table, key_table, value_table, bins = arguments
    q = q * q.shape[-1] ** -0.5

    def step() -> None:
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
            rows = order[a:b]
            index = table_rows(signals[rows].unsqueeze(0), bins)[0]  # (axes, n, n)
            of_query, of_key, of_value = (t[index].sum(0) for t in (query_table, key_table, value_table))
            queries, keys = q[rows].unsqueeze(1), k[rows].unsqueeze(0)
            logits = (queries * (keys + of_query) + keys * of_key).sum(-1)
            (logits.softmax(1).unsqueeze(-1) * (v[rows].unsqueeze(0) + of_value)).sum(1)

    return step


def attention(
    variant: str, scale: float, heads: int, head_dim: int, backward: bool, device: str
) -> Callable[[], float | None]:
    """The function to time; its value is the mean magnitude of the result."""
    arguments = _arguments(scale, heads, head_dim, _PART if variant == "pairs" else 1)
    arguments = [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
    if variant == "pairs":
        return _pairs(arguments)
    return _product(arguments, backward) if variant == "geo3d" else _padded(arguments, backward, variant == "compiled")


_NAMES = {"padded": "padded windows, eager", "compiled": "padded windows, torch.compile", "geo3d": "geo3d"}


def run(config: VoxelAttentionBenchmark) -> list[dict[str, Any]]:
    """Rows of forward, and of forward and backward; the padded eager form is the base of the ratios."""
    pairs, rows = pair_count(config.scale), []
    work = pairs * config.heads
    for backward in (False, True):
        kinds = ["padded", *([] if backward else ["compiled"]), "geo3d"] if config.peers else ["geo3d"]
        variants = [
            Variant(
                _NAMES[kind],
                "benchmarks.voxel_attention:attention",
                {"variant": kind, "scale": config.scale, "heads": config.heads, "head_dim": config.head_dim}
                | {"backward": backward, "device": config.device},
                device=config.device,
                threads=config.threads,
            )
            for kind in kinds
        ]
        what = "forward and backward" if backward else "forward"
        case = f"voxel attention {what}, {pairs / 1e6:.1f} M pairs, {config.heads} heads of {config.head_dim}"
        found = race(case, variants, config.turns)
        if config.peers and not backward:
            found += _scaled_pairs(config, case, pairs)
        for row in found:
            cores = config.threads if config.device == "cpu" else 1
            unit = "pair-head and core" if config.device == "cpu" else "pair-head"
            row["variant"] += f" ({1e9 * row['seconds'] * cores / work:.3g} ns a {unit})"
        rows += found
    return rows


def _scaled_pairs(config: VoxelAttentionBenchmark, case: str, pairs: int) -> list[dict[str, Any]]:
    factor = pairs / pair_count(config.scale, _PART)
    arguments = {"variant": "pairs", "scale": config.scale, "heads": config.heads, "head_dim": config.head_dim}
    arguments |= {"backward": False, "device": config.device}
    name = f"pair by pair, plain indexing, on 1/{factor:.0f} of the pairs and scaled"
    factory = "benchmarks.voxel_attention:attention"
    variant = Variant(name, factory, arguments, device=config.device, threads=config.threads)
    return [row | {"seconds": factor * row["seconds"], "peak_mb": None} for row in race(case, [variant], config.turns)]
