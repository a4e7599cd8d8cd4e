"""A training step of a sparse residual encoder beside the same network dense, and a step of SparK on top of it.

Scene: a corner of a furnished room at 5 cm on a grid small enough for dense convolution, whole and with 60 % of its
cells masked. The dense twin (Conv3d over the grid, times the mask of occupied cells, norms over these) computes the
same, as the tests show; what it costs does not depend on how much is masked. spconv has no backward on the CPU (2.3.8),
so it runs beside in the forward pass alone; it is no dependency: install it to a folder of its own
(`pip install --target FOLDER spconv==2.3.8`) and pass `--peers FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.race import Variant, race
from benchmarks.room import room_points
from benchmarks.sparse_resnet_twin import DenseTwin, to_grid
from torch import Tensor

from geo3d import create_model
from geo3d.geometry.sparse_voxels import SparseVoxels
from geo3d.methods.spark3d import SparK3D, SparK3DConfig, draw_kept
from geo3d.models.sparse_resnet import SparseResNet, SparseResNetInput
from geo3d.models.voxel_points import VoxelPoints
from geo3d.nn.sparse_layers import ResidualConv, StridedConv, SubmanifoldConv, VoxelBatchNorm
from geo3d.nn.topology import Topology

_SPARSE, _DENSE, _SPCONV = "geo3d", "dense Conv3d times mask", "spconv 2.3.8"
_VOXEL, _CELL = 0.05, 8
_MASK_RATIO = 0.6


@dataclass
class SparK3DBenchmark:
    """Encoder steps, sparse beside dense, and a whole step of SparK."""

    model: str = "sparse_resnet_tiny"
    """Encoder, one of `geo3d.list_models("sparse_resnet*")` of basic blocks and three stages."""
    side: int = 48
    """Edge of the grid, voxels; a multiple of 8."""
    turns: int = 3
    """Timed turns of each variant; the median counts."""
    threads: int = 1
    """CPU threads."""
    peers: str = ""
    """Folder that spconv was installed to; without it the forward pass runs beside the dense twin alone."""


def scene(side: int) -> VoxelPoints:
    """A corner of the benchmarks' room, in the grid from 0 to ``side``, a point a voxel."""
    xyz = room_points(1.5) / _VOXEL
    xyz = xyz - xyz.amin(0)
    xyz = xyz[(xyz < side).all(1)]
    cells, inverse = xyz.floor().int().unique(dim=0, return_inverse=True)
    first = torch.full((len(cells),), len(xyz)).scatter_reduce_(0, inverse, torch.arange(len(xyz)), "amin")
    generator = torch.Generator().manual_seed(0)
    colors = torch.rand(len(cells), 3, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(len(cells), 3, generator=generator), dim=1)
    return VoxelPoints(xyz[first], colors, normals, torch.tensor([0, len(cells)]))


def kept_cells(points: VoxelPoints) -> Tensor:
    """(M,) bool: which occupied cells are not masked."""
    cells, _ = Topology(points.coords).coarsen(_CELL)
    return torch.from_numpy(draw_kept(cells.size, _MASK_RATIO, np.random.default_rng(0)))


def visible(points: VoxelPoints) -> VoxelPoints:
    """What masking leaves of a scene."""
    _, cell = Topology(points.coords).coarsen(_CELL)
    return points.subset(kept_cells(points)[cell].nonzero()[:, 0])


def _sparse(network: SparseResNet, voxels: SparseVoxels, side: int) -> Callable[[], list[Tensor]]:
    # Anew at each call, as in training: kernel maps are a part of the work.
    return lambda: [
        stage.feats
        for stage in network.features(SparseResNetInput(SparseVoxels(voxels.coords, voxels.feats, batch_size=1)))
    ]


def _dense(network: SparseResNet, voxels: SparseVoxels, side: int) -> Callable[[], list[Tensor]]:
    twin = DenseTwin(network)
    grid = to_grid(voxels.coords, voxels.feats, (side,) * 3, 1)
    occupied = to_grid(voxels.coords, torch.ones(len(voxels.coords), 1), (side,) * 3, 1)
    return lambda: twin(grid, occupied)


def _spconv(network: SparseResNet, voxels: SparseVoxels, side: int) -> Callable[[], list[Tensor]]:
    """The network's layers, one by one, by spconv."""
    import spconv.pytorch as spconv

    native = {"bias": False, "algo": spconv.ConvAlgo.Native}

    def layer(ours: SubmanifoldConv | StridedConv, level: int) -> Any:
        _, c_in, c_out = ours.kernel.shape
        if isinstance(ours, StridedConv):
            made = spconv.SparseConv3d(c_in, c_out, 2, 2, indice_key=f"down{level}", **native)
        else:
            made = spconv.SubMConv3d(c_in, c_out, 3, indice_key=f"same{level}", **native)
        size = 2 if isinstance(ours, StridedConv) else 3
        kernel = ours.kernel.detach().unflatten(0, (size,) * 3)  # (z, y, x, Cin, Cout)
        made.weight.data = kernel.permute(4, 2, 1, 0, 3).contiguous()  # (Cout, x, y, z, Cin)
        return made

    def norm(x: Any, ours: VoxelBatchNorm) -> Any:
        return x.replace_feature(ours(x.features))

    def relu(x: Any) -> Any:
        return x.replace_feature(x.features.relu())

    stem, stem_norm = network.stem.conv_layers
    blocks: list[tuple[Any, VoxelBatchNorm, list[tuple[ResidualConv, Any, Any]]]] = []
    head, first = layer(stem, 0), network.stem_block
    blocks.append((head, stem_norm, [(first, layer(first.conv1, 0), layer(first.conv2, 0))]))
    for level, stage in enumerate(network.stages, 1):
        inner = [(block, layer(block.conv1, level), layer(block.conv2, level)) for block in stage.blocks]
        blocks.append((layer(stage.down, level), stage.norm, inner))

    def call() -> list[Tensor]:
        x, found = spconv.SparseConvTensor(voxels.feats, voxels.coords, [side] * 3, 1), []
        for entry, entry_norm, inner in blocks:
            x = relu(norm(entry(x), entry_norm))
            for ours, conv1, conv2 in inner:
                out = norm(conv2(relu(norm(conv1(x), ours.norm1))), ours.norm2)
                x = out.replace_feature((out.features + x.features).relu())
            found.append(x.features)
        return found

    return call


_FORMS = {_SPARSE: _sparse, _DENSE: _dense, _SPCONV: _spconv}


def encoder_pass(variant: str, model: str, side: int, masked: bool, backward: bool, peers: str) -> Callable[[], float]:
    """A pass of the encoder, or on to gradients; returns the sum of squares of the coarsest features."""
    if variant == _SPCONV:
        sys.path.append(peers)
    network = create_model(model, generator=torch.Generator().manual_seed(0)).train(backward)
    points = scene(side)
    voxels = network.voxel_inputs(visible(points) if masked else points).voxels
    function = _FORMS[variant](network, voxels, side)

    def step() -> float:
        with torch.set_grad_enabled(backward):
            coarsest = function()[-1].square().sum()
            if backward:
                coarsest.backward()
        return coarsest.item()

    return step


def spark_step(model: str, side: int) -> Callable[[], float]:
    """Forward and backward of the whole method on a masked scene: encoder, decoder and loss."""
    method = SparK3D(SparK3DConfig(model, voxel_size=_VOXEL), torch.Generator().manual_seed(0)).train()
    points = scene(side)
    batch = {"xyz": points.xyz, "colors": points.colors, "normals": points.normals, "offsets": points.offsets}
    batch["kept"] = kept_cells(points)

    def step() -> float:
        method.zero_grad(set_to_none=True)
        loss = method(batch).loss
        loss.backward()
        return loss.item()

    return step


def _has_spconv(folder: str) -> bool:
    """Whether spconv can be imported; says why not."""
    if not folder:
        print("spconv is left out: no --peers FOLDER")
        return False
    sys.path.append(folder)
    try:
        import spconv.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        print(f"spconv is left out: {error}")
        return False
    return True


def run(config: SparK3DBenchmark) -> list[dict[str, Any]]:
    """Rows of the table; the dense twin is the base of the ratios."""
    points = scene(config.side)
    counts = {False: len(points.xyz), True: len(visible(points).xyz)}
    with_spconv = _has_spconv(config.peers)
    rows: list[dict[str, Any]] = []
    for backward in (False, True):
        for masked, count in counts.items():
            names = [_DENSE, _SPARSE] + ([_SPCONV] if with_spconv and not backward else [])
            common = {"model": config.model, "side": config.side, "masked": masked, "backward": backward}
            common |= {"peers": config.peers}
            variants = [
                Variant(name, "benchmarks.spark3d:encoder_pass", {"variant": name, **common}, threads=config.threads)
                for name in names
            ]
            passes = "training step" if backward else "forward"
            what = f"{config.model}, {passes}, {count} voxels in {config.side}^3{', 60 % masked' if masked else ''}"
            found = race(what, variants, config.turns)
            _check_same(found)
            rows += found
    arguments = {"model": config.model, "side": config.side}
    whole = Variant("encoder, decoder, loss", "benchmarks.spark3d:spark_step", arguments, threads=config.threads)
    return rows + race(f"SparK's whole step, {counts[True]} voxels visible", [whole], config.turns)


def _check_same(rows: list[dict[str, Any]]) -> None:
    """Variants that compute something else are no contest."""
    values = [row["value"] for row in rows]
    if max(values) > 1.001 * min(values):
        raise RuntimeError(f"variants disagree: {dict(zip((row['variant'] for row in rows), values))}")
