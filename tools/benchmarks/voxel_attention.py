"""The operator voxel_attention, forward and with its backward, beside other ways to compute it.

Scene: a furnished room at 2 cm, some 107,000 voxels with normals (noise of 0.08) and colours, in windows of 7 as the
second level of Swin3D makes them; 6 heads of 16 channels; signals XYZ_RGB_NORM, 9 axes. The work is counted in
pair-heads, one (query, key, head); nanoseconds are of one processor, the number of threads times the time.

Others: the same sums in PyTorch on padded windows (`padded_windows.py`), eager and with torch.compile; with the
backward, where autograd keeps some 90 bytes a pair-head, on a quarter of the windows, and the time scaled by the number
of pairs. Pair by pair with plain indexing, as the formula reads, on an even smaller part.

Extra memory is the peak of one call in a fresh process beyond its arguments and results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from benchmarks.padded_windows import PaddedAttention
from benchmarks.race import Variant, extra_memory_mb, race
from benchmarks.scan import VOXEL_SIZE, scan
from torch import Tensor

from geo3d.models.swin3d import Swin3DConfig, inputs_from_points
from geo3d.nn.voxel_pyramid import Level
from geo3d.nn.window_attention import SignalWindows, signal_bins
from geo3d.ops import voxel_attention

_WINDOW, _QUANT = 7, 4
_WIDER = 10  # about twice the pairs
_NAMES = ("xyz", "rgb", "norm")
_PARTS = {"padded": 4, "compiled": 4, "geo3d on a part": 4, "pairs": 40}  # these work on every so many-th window
_SMALL = 200  # windows of the call that warms up
_FACTORY = "benchmarks.voxel_attention:attention"
_EXTRA, _NANOSECONDS = "extra memory", "ns a pair-head and core"


@dataclass
class VoxelAttentionBenchmark:
    """Attention inside the windows of one layer of Swin3D, beside padded windows and plain indexing."""

    voxels: int = 107_000
    """Voxels of the scene, about."""
    heads: int = 6
    """Attention heads."""
    head_dim: int = 16
    """Channels of a head."""
    turns: int = 3
    """Timed turns of each variant; the median counts."""
    threads: int = 2
    """CPU threads; geo3d is measured with one as well."""
    peers: bool = True
    """Time the others too; they take minutes."""
    device: str = "cpu"
    """cpu or cuda."""


def scene(voxels: int, window: int = _WINDOW, part: int = 1) -> tuple[SignalWindows, list[int]]:
    """A scan's windows as the network gets them, or every ``part``-th of them alone; and the rows of each table."""
    cloud = scan(voxels)
    config = Swin3DConfig(signals="XYZ_RGB_NORM", quant_size=_QUANT)
    inputs = inputs_from_points(cloud.xyz, cloud.colors, cloud.normals, None, VOXEL_SIZE, config)
    level = Level(inputs.voxels.topology, inputs.signals)
    windows = level.windows(window, False, _NAMES, _QUANT)
    bins = [rows for name in _NAMES for rows in 3 * [signal_bins(name, window, _QUANT)]]
    return _part_of(windows, range(0, len(windows.offsets) - 1, part)), bins


def _part_of(windows: SignalWindows, chosen: range) -> SignalWindows:
    """Some of the windows alone."""
    rows = [windows.order[windows.offsets[w] : windows.offsets[w + 1]] for w in chosen]
    offsets = torch.tensor([0, *accumulate(map(len, rows))])
    rows = torch.cat(rows)
    return SignalWindows(torch.arange(len(rows)), offsets, windows.signals[rows])


def pair_count(windows: SignalWindows) -> int:
    """Pairs of voxels that share a window."""
    return int(windows.offsets.diff().square().sum())


def rows_in_reach(windows: SignalWindows, bins: list[int]) -> float:
    """Rows of a table that a voxel can look up, given what signals there are in its window, on average."""
    count = len(windows.offsets) - 1
    signals = windows.signals[windows.order]
    window = torch.repeat_interleave(torch.arange(count), windows.offsets.diff())
    index = window.unsqueeze(1).expand_as(signals)
    low, high = (
        signals.new_zeros(count, len(bins)).scatter_reduce(0, index, signals, r, include_self=False)[window]
        for r in ("amin", "amax")
    )
    length = torch.tensor(bins)
    first, last = ((signals - s + length / 2).clamp(min=0).minimum(length - 1).long() for s in (high, low))
    return float((last - first + 1).sum(1).double().mean())


def _values(count: int, heads: int, channels: int, bins: list[int]) -> list[Tensor]:
    """Queries, keys, values and the three tables."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(count, heads, channels, generator=generator) for _ in range(3)]
    return rows + [0.3 * torch.randn(sum(bins), heads, channels, generator=generator) for _ in range(3)]


def _product(windows: SignalWindows, bins: list[int]) -> Callable[..., Tensor]:
    def call(query: Tensor, key: Tensor, value: Tensor, *tables: Tensor) -> Tensor:
        return voxel_attention(query, key, value, windows.order, windows.offsets, windows.signals, *tables, bins)

    return call


def pairs_attention(windows: SignalWindows, bins: list[int]) -> Callable[..., Tensor]:
    """The published way: signals, logits and weights of all pairs of a window are written out."""
    device = windows.signals.device
    length, first = (torch.tensor(row, device=device) for row in (bins, [0, *accumulate(bins)][:-1]))

    def call(query: Tensor, key: Tensor, value: Tensor, *tables: Tensor) -> Tensor:
        query, out = query * query.shape[-1] ** -0.5, torch.empty_like(query)
        for a, b in pairwise(windows.offsets.tolist()):
            rows = windows.order[a:b]
            signals = windows.signals[rows]
            difference = signals.unsqueeze(1) - signals.unsqueeze(0) + length / 2
            index = difference.clamp(min=0).minimum(length - 1).long() + first  # (n, n, axes)
            of_query, of_key, of_value = (table[index].sum(2) for table in tables)
            queries, keys = query[rows].unsqueeze(1), key[rows].unsqueeze(0)
            logits = (queries * (keys + of_query) + keys * of_key).sum(-1)
            out[rows] = (logits.softmax(1).unsqueeze(-1) * (value[rows].unsqueeze(0) + of_value)).sum(1)
        return out

    return call


def _passes(function: Callable[..., Tensor], values: list[Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    """The function to time: the result, and where ``backward`` the gradients of all values."""
    leaves = [value.detach().requires_grad_(backward) for value in values]
    ones = torch.ones_like(values[0])

    def step() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            out = function(*leaves)
            return [out, *torch.autograd.grad(out, leaves, ones)] if backward else [out]

    return step


def attention(
    variant: str, voxels: int, heads: int, head_dim: int, backward: bool, device: str
) -> Callable[[], list[Tensor]]:
    """A variant's function to time."""
    windows, bins = scene(voxels, part=_part(variant, backward))
    windows = SignalWindows(*(t.to(device) for t in (windows.order, windows.offsets, windows.signals)))
    if variant == "pairs":
        function = pairs_attention(windows, bins)
    elif variant in ("padded", "compiled"):
        function = PaddedAttention(windows.order, windows.offsets, windows.signals, bins, variant == "compiled")
    else:
        function = _product(windows, bins)
    values = [value.to(device) for value in _values(len(windows.order), heads, head_dim, bins)]
    return _passes(function, values, backward)


def _part(variant: str, backward: bool) -> int:
    return _PARTS.get(variant, 1) if backward or variant == "pairs" else 1


def memory_calls(
    voxels: int, window: int, heads: int, head_dim: int, backward: bool
) -> tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
    """A call on a few windows, and one on the whole scene."""
    windows, bins = scene(voxels, window)
    few = _part_of(windows, range(min(_SMALL, len(windows.offsets) - 1)))
    small, whole = (
        _passes(_product(some, bins), _values(len(some.order), heads, head_dim, bins), backward)
        for some in (few, windows)
    )
    return small, whole


_TITLES = {
    "padded": "padded windows, eager",
    "compiled": "padded windows, torch.compile",
    "pairs": "pair by pair, plain indexing",
    "geo3d on a part": "geo3d",
    "geo3d": "geo3d",
}


def _variants(config: VoxelAttentionBenchmark, backward: bool, pairs: int) -> list[Variant]:
    kinds = ["geo3d"]
    if config.peers:
        kinds = ["padded", "compiled", *(["geo3d on a part"] if backward else ["pairs"]), "geo3d"]
    common = {"voxels": config.voxels, "heads": config.heads, "head_dim": config.head_dim, "backward": backward}
    common |= {"device": config.device}
    found, on_cpu = [], config.device == "cpu"
    for kind in kinds:
        part, title = _part(kind, backward), _TITLES[kind]
        share = pair_count(scene(config.voxels, part=part)[0]) / pairs
        if part > 1:
            title += f", on 1/{1 / share:.0f} of the pairs and scaled"
        for threads in dict.fromkeys([config.threads, 1] if kind == "geo3d" and on_cpu else [config.threads]):
            name = f"{title}, {threads} thread{'s' if threads > 1 else ''}" if on_cpu else title
            arguments = {"variant": kind, **common}
            found.append(Variant(name, _FACTORY, arguments, device=config.device, threads=threads, share=share))
    return found


def run(config: VoxelAttentionBenchmark) -> list[dict[str, Any]]:
    """Rows of forward, of forward and backward, and of their difference; the padded eager form is the base."""
    windows, bins = scene(config.voxels)
    sizes, pairs = windows.offsets.diff(), pair_count(windows)
    print(
        f"{len(windows.order):,} voxels in {len(sizes):,} windows: {pairs:,} pairs, so a voxel's window holds "
        f"{pairs / len(windows.order):.0f}; a voxel can look up {rows_in_reach(windows, bins):.0f} of {sum(bins)} rows"
    )
    what = f"{pairs / 1e6:.1f} M pairs, {config.heads} heads of {config.head_dim}"
    rows: list[dict[str, Any]] = []
    measured: dict[tuple[bool, str], dict[str, Any]] = {}
    for backward in (False, True):
        case = f"voxel attention {'forward and backward' if backward else 'forward'}, {what}"
        variants = _variants(config, backward, pairs)
        for row, variant in zip(race(case, variants, config.turns), variants, strict=True):
            row["threads"], row["columns"] = variant.threads, {}
            if variant.share < 1:
                row["peak_mb"] = None
            if variant.arguments["variant"] == "geo3d":
                if config.device == "cpu":
                    row["columns"][_EXTRA] = _extra_memory(config, variant.threads, _WINDOW, backward)
                measured[backward, variant.name] = row
            rows.append(row)
    for (backward, name), row in list(measured.items()):
        if backward:
            seconds = row["seconds"] - measured[False, name]["seconds"]
            case = f"voxel attention backward (the difference), {what}"
            rows.append(row | {"case": case, "seconds": seconds, "peak_mb": None, "columns": {}})
    for row in rows:
        cores, unit = (row["threads"], _NANOSECONDS) if config.device == "cpu" else (1, "ns a pair-head")
        nanoseconds = 1e9 * row["seconds"] * cores / (pairs * config.heads)
        row["columns"][unit] = f"{nanoseconds:.0f}" if nanoseconds >= 100 else f"{nanoseconds:.3g}"
    for size in (_WINDOW, _WIDER) if config.device == "cpu" else ():
        some = pair_count(scene(config.voxels, size)[0])
        found = [_extra_memory(config, config.threads, size, backward) for backward in (False, True)]
        print(f"extra memory of {some / 1e6:.1f} M pairs: forward {found[0]}, forward and backward {found[1]}")
    return rows


def _extra_memory(config: VoxelAttentionBenchmark, threads: int, window: int, backward: bool) -> str:
    arguments = {"voxels": config.voxels, "window": window, "heads": config.heads, "head_dim": config.head_dim}
    extra = extra_memory_mb("benchmarks.voxel_attention:memory_calls", arguments | {"backward": backward}, threads)
    return "" if extra is None else f"{extra:.0f} MB"
