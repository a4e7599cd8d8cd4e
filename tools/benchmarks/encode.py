"""`load_encoder` as a robot calls it: from positions and colours to features of every point, for growing clouds.

Cloud: points drawn evenly from the surfaces of one furnished synthetic room, with noise, in random order; so larger
clouds are denser. All of a call is timed: estimating normals, cutting into voxels, kernel maps and windows, the
network, and spreading the features of all stages to the points. Beside it the same network run the published way, with
normals given: operators in plain PyTorch (a gather, a product and a scatter for each tap of a convolution; pairs of
voxels written out, window by window; farthest points by a loop, neighbours by all distances).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.race import Variant, race
from benchmarks.scan import room_cloud
from benchmarks.voxel_attention import pairs_attention
from torch import Tensor

from geo3d.errors import InputError
from geo3d.inference import load_encoder
from geo3d.models import model_info, model_options
from geo3d.nn import sparse_layers, window_attention
from geo3d.nn.window_attention import SignalWindows
from geo3d.ops.registry import get_operator, list_operators

_GEO3D, _GIVEN, _PLAIN = "geo3d", "geo3d, normals given", "plain PyTorch"
_EVERY = 101  # points that variants are compared at


@dataclass
class EncodeBenchmark:
    """Latency and peak memory of whole calls, from points to features of every point."""

    model: tuple[str, ...] = ("sparse_resnet_tiny", "sparse_resnet18", "swin3d_s", "i2p_mae_tiny")
    """Networks over points."""
    voxel_size: tuple[float, ...] = (0.05, 0.05, 0.02, 0.0)
    """Edge of the voxels of each, metres; not of networks over points."""
    points: tuple[int, ...] = (10_000, 50_000, 100_000, 300_000)
    """Sizes of the clouds."""
    plain_up_to: int = 50_000
    """Largest cloud that the published way runs on, too."""
    turns: int = 20
    """Timed calls of each; the published way has a tenth of them."""
    threads: int = 2
    """CPU threads."""

    def __post_init__(self) -> None:
        if len(self.model) != len(self.voxel_size):
            raise InputError(f"voxel_size: one for each of {len(self.model)} models, got {len(self.voxel_size)}")
        for model in self.model:
            if model_info(model).kind not in ("voxels", "points"):
                raise InputError(f"model: this benchmark encodes points, and {model} reads {model_info(model).kind}")


def call(model: str, voxel_size: float, cloud: dict[str, np.ndarray], variant: str) -> Callable[[], list[Tensor]]:
    """The function to time; returns what tells whether variants compute the same."""
    options = {"voxel_size": voxel_size} if "voxel_size" in model_options(model) else {}
    encoder = load_encoder(model, device="cpu", fresh=0, **options)
    normals = None if variant == _GEO3D else cloud["normals"]
    if variant == _PLAIN:
        _use_plain_operators()
    else:
        encoder.warm_up(len(cloud["xyz"]))

    def step() -> list[Tensor]:
        out = encoder(cloud["xyz"], colors=cloud["colors"], normals=normals)
        return [out.points[::_EVERY], out.pooled]

    return step


def _use_plain_operators() -> None:
    """Let this process run every operator in plain PyTorch."""
    for name in list_operators():
        object.__setattr__(get_operator(name), "kernels", ())

    def attention(query, key, value, order, offsets, signals, *tables_and_more):
        *tables, bins, _ = tables_and_more
        return pairs_attention(SignalWindows(order, offsets, signals), list(bins))(query, key, value, *tables)

    window_attention.voxel_attention = attention
    window_attention.takes_pieces = sparse_layers.takes_pieces = lambda x: False


def run(config: EncodeBenchmark) -> list[dict[str, Any]]:
    """Rows of the table: median and 95th percentile of the latency, and the peak memory of a process."""
    rows: list[dict[str, Any]] = []
    for model, size in zip(config.model, config.voxel_size):
        reads_normals = "normals" in getattr(load_encoder(model, device="cpu", fresh=0).model, "reads", ())
        for count in config.points:
            arguments = {"model": model, "voxel_size": size, "cloud": room_cloud(count)}
            case = f"{model}{f' at {100 * size:g} cm' if size else ''}, {count:,} points"
            kinds = [_GEO3D, *[_GIVEN] * reads_normals, *[_PLAIN] * (count <= config.plain_up_to)]
            for kind in kinds:
                turns = max(1, config.turns // 10) if kind == _PLAIN else config.turns
                variant = Variant(kind, f"{__name__}:call", arguments | {"variant": kind}, threads=config.threads)
                (row,) = race(case, [variant], turns)
                p95 = np.quantile(row["each"], 0.95)
                rows.append(row | {"columns": {"95th percentile": f"{1e3 * p95:.0f} ms"}})
            _check_same(rows[-len(kinds) :], reads_normals)
    return rows


def _check_same(rows: list[dict[str, Any]], reads_normals: bool) -> None:
    """Variants that compute something else are no contest; with estimated normals a network sees other ones."""
    first, *others = rows[1:] if reads_normals else rows
    for row in others:
        for (found, norm), (wanted, _) in zip(row["value"], first["value"], strict=True):
            if not np.allclose(found, wanted, rtol=0, atol=1e-4 * norm):
                raise RuntimeError(f"{row['case']}: {row['variant']} computes something else than {first['variant']}")
