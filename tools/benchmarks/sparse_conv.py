"""Submanifold sparse convolution of 3 x 3 x 3, forward and with its backward, beside other implementations.

Scene: a furnished room at 2 cm, some 100,000 voxels with 15 neighbours each, themselves included. The floor is
arithmetic: two operations a pair and pair of channels, so 14 G at 64 channels, and three times that with gradients.

Peers are spconv (2.3.8 has a CPU wheel, forward only) and open3d-cpu (0.20, SparseConv). They are no dependencies:
install them to a folder of their own (`pip install --target FOLDER spconv==2.3.8 open3d-cpu==0.20`, for this Python
and torch; Open3D also needs the system's libusb-1.0) and pass `--peers FOLDER`. They get their maps of neighbours made
before, as geo3d does; the time to make these is a case of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from benchmarks.room import room_voxels
from torch import Tensor

from geo3d.ops import build_kernel_map, sparse_conv

_PYTORCH, _GEO3D, _SPCONV, _OPEN3D = "gather, multiply, index_add, PyTorch", "geo3d", "spconv 2.3.8", "Open3D 0.20"


@dataclass
class SparseConvBenchmark:
    """Sparse convolution of a room's voxels."""

    channels: tuple[int, ...] = (32, 64, 96)
    """Channels in and out of each case."""
    scale: float = 1.0
    """Size of the room; at 1 it has some 100,000 voxels."""
    threads: int = 1
    """CPU threads."""
    turns: int = 5
    """Timed turns of each variant; the median counts."""
    peers: str = ""
    """Folder that spconv and open3d-cpu were installed to; without it geo3d runs beside plain PyTorch."""
    dtypes: tuple[str, ...] = ("float32",)
    """Of the features, for geo3d and plain PyTorch; the others run in float32."""


def _plain(feats: Tensor, weight: Tensor, pairs: list[tuple[Tensor, Tensor]], outputs: int) -> Tensor:
    """The usual PyTorch form, with the pairs of each offset listed before."""
    result = feats.new_zeros(outputs, weight.shape[2])
    for (inputs, rows), matrix in zip(pairs, weight):
        result = result.index_add(0, rows, feats[inputs] @ matrix)
    return result


def _geo3d(coords: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    voxel_map = build_kernel_map(coords, coords, 1, 3)
    return lambda feats, weight: sparse_conv(feats, weight, voxel_map.neighbours, voxel_map.transposed)


def _pytorch(coords: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    pairs = []
    for row in build_kernel_map(coords, coords, 1, 3).neighbours.long():
        (outputs,) = (row >= 0).nonzero(as_tuple=True)
        pairs.append((row[outputs], outputs))
    return lambda feats, weight: _plain(feats, weight, pairs, len(coords))


def _spconv(coords: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    import spconv.pytorch as spconv

    channels = weight.shape[1]
    layer = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key="room", algo=spconv.ConvAlgo.Native)
    from_zero = coords.clone()
    from_zero[:, 1:] -= coords[:, 1:].amin(0)
    shape = (from_zero[:, 1:].amax(0) + 1).tolist()
    made: dict[str, Any] = {}  # spconv keeps its map of neighbours here

    def call(feats: Tensor, weight: Tensor) -> Tensor:
        return layer(spconv.SparseConvTensor(feats, from_zero, shape, 1, indice_dict=made)).features

    return call


def _open3d(coords: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    import open3d.ml.torch as open3d

    channels = weight.shape[1]
    layer = open3d.layers.SparseConv(channels, channels, [3, 3, 3], use_bias=False)
    centres = coords[:, 1:].float() + 0.5
    with torch.no_grad():
        layer(torch.zeros(len(coords), channels), centres, centres, 1.0)
    made = layer._conv_values  # what the layer passed on, with its map of neighbours

    def call(feats: Tensor, weight: Tensor) -> Tensor:
        filters = weight.view(3, 3, 3, channels, channels)
        return open3d.ops.continuous_conv(**(made | {"inp_features": feats, "filters": filters}))

    return call


_FORMS = {_PYTORCH: _pytorch, _GEO3D: _geo3d, _SPCONV: _spconv, _OPEN3D: _open3d}


def convolution(
    variant: str, scale: float, channels: int, dtype: str, backward: bool, peers: str
) -> Callable[[], None]:
    """The function to time: one convolution."""
    sys.path.append(peers)
    coords = room_voxels(scale)
    kind = getattr(torch, dtype)
    weight = (0.1 * torch.randn(27, channels, channels)).to(kind).requires_grad_(backward)
    feats = torch.randn(len(coords), channels).to(kind).requires_grad_(backward)
    gradient = torch.randn(len(coords), channels).to(kind)
    function = _FORMS[variant](coords, weight.detach())

    def step() -> None:
        with torch.set_grad_enabled(backward):
            result = function(feats, weight)
            if backward:
                torch.autograd.grad(result, (feats, weight), gradient)

    return step


def maps(variant: str, scale: float, peers: str) -> Callable[[], None]:
    """The function to time: making the map of neighbours, and a convolution of one channel, which takes no time."""
    sys.path.append(peers)
    coords, weight = room_voxels(scale), torch.randn(27, 1, 1)
    feats = torch.randn(len(coords), 1)

    def step() -> None:
        with torch.no_grad():
            _FORMS[variant](coords, weight)(feats, weight)

    return step


def _peers(folder: str) -> list[str]:
    """The peers that can be imported; says which cannot, and why."""
    if not folder:
        print("spconv and Open3D are left out: no --peers FOLDER")
        return []
    sys.path.append(folder)
    found = []
    for name, module in ((_SPCONV, "spconv.pytorch"), (_OPEN3D, "open3d.ml.torch")):
        try:
            __import__(module)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name} is left out: {error}")
        else:
            found.append(name)
    return found


def run(config: SparseConvBenchmark) -> list[dict[str, Any]]:
    """Rows of every variant; plain PyTorch is the base of the ratios."""
    peers = _peers(config.peers)
    voxels = len(room_voxels(config.scale))
    rows = []
    for backward in (False, True):
        for channels in config.channels:
            for dtype in config.dtypes:
                names = [_PYTORCH, _GEO3D]
                if dtype == "float32":
                    names += [name for name in peers if not (backward and name == _SPCONV)]
                common = {"scale": config.scale, "channels": channels, "dtype": dtype, "backward": backward}
                common |= {"peers": config.peers}
                variants = [
                    Variant(name, "benchmarks.sparse_conv:convolution", {"variant": name, **common}, dtype)
                    for name in names
                ]
                for variant in variants:
                    variant.threads = config.threads
                passes = "forward and backward" if backward else "forward"
                rows += race(f"{voxels} voxels, {channels} channels, {dtype}, {passes}", variants, config.turns)
    common = {"scale": config.scale, "peers": config.peers}
    variants = [
        Variant(name, "benchmarks.sparse_conv:maps", {"variant": name, **common}, threads=config.threads)
        for name in (_GEO3D, *peers)
    ]
    return rows + race(f"{voxels} voxels, making the map of neighbours", variants, config.turns)
