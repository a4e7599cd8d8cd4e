"""NeRF-MAE's files: pre-training runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo3d.checkpoints.loading import Stored, as_state_dict
from geo3d.errors import InputError

_PATCH, _STAGES = 4, 4
#: The published tables are computed in float64 and stored in float32.
_TABLE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ComputedTables:
    """What the authors' files hold though it is computed, not learnt.

    Args:
        positions: channels and the sides of a grid of tokens -> (x, y, z, C) embedding of positions.
        relative: (64, 64) int64 rows of the bias table for the pairs of a window's tokens.
    """

    positions: Callable[[int, tuple[int, int, int]], Tensor]
    relative: Tensor


def read_nerf_mae(content: Any, path: Path, tables: ComputedTables) -> Stored:
    """What a file of the authors' pre-training holds.

    ``{"epoch": ..., "state_dict": ..., "train_args": ...}`` or a bare state dict. Sizes are read off names and shapes,
    the resolution off the position table. That table and the relative positions are looked at and left out.

    Raises:
        InputError: no such network, or one whose computed tables are others.
    """
    state = as_state_dict(content, path)
    sizes = encoder_sizes(state, path)
    resolution = take_tables(state, path, tables)
    decoder = any(name.startswith(("decoder", "out.")) for name in state)
    return Stored(state, "nerf_mae", sizes | {"decoder": decoder, "resolution": resolution}, stated=False)


def encoder_sizes(state: Mapping[str, Tensor], path: Path, prefix: str = "") -> dict[str, Any]:
    """Fields of the config that an encoder's names and shapes tell.

    Args:
        state: names -> tensors.
        path: of the file, for messages.
        prefix: of the encoder's names, such as ``base.``.

    Raises:
        InputError: not a whole encoder.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        value = state.get(prefix + name)
        if value is None or value.ndim != dimensions or 0 in value.shape:
            found = "it has no" if value is None else f"of shape {tuple(value.shape)} is"
            raise InputError(f"{path}: not a whole NeRF-MAE encoder: {found} {prefix}{name}")
        return tuple(value.shape)

    embed_dim = shape("patch_partition.0.weight", 5)[0]
    depths, heads = [], []
    for stage in range(_STAGES):
        first = 0 if stage == 0 else 1  # a stage's first module merges patches
        table = f"stages.{stage}.{{}}.attn.relative_position_bias_table"
        heads.append(shape(table.format(first), 2)[1])
        depths.append(next(n for n in count(1) if prefix + table.format(first + n) not in state))
    hidden = shape("stages.0.0.mlp.0.weight", 2)[0]
    return {"embed_dim": embed_dim, "depths": tuple(depths), "heads": tuple(heads), "mlp_ratio": hidden / embed_dim}


def take_tables(state: dict[str, Tensor], path: Path, tables: ComputedTables, prefix: str = "") -> int:
    """Take the computed tables out of a state dict, and look whether they are the published ones.

    Args:
        state: names -> tensors.
        path: of the file, for messages.
        tables: the published ones.
        prefix: of the encoder's names, such as ``base.``.

    Returns:
        Voxels along a side of the cube that the network was trained on; 0 where the file has no table of positions.

    Raises:
        InputError: other tables.
    """
    index = tables.relative.flatten()
    for name in [n for n in state if n.startswith(prefix) and n.endswith(".relative_position_index")]:
        value = state.pop(name).flatten()
        if value.numel() != index.numel() or not torch.equal(value.long(), index):
            raise InputError(f"{path}: {name} is not of windows of 4 x 4 x 4 tokens, which this network has")
    table = state.pop(f"{prefix}pos_embed", None)
    if table is None:
        return 0
    shape = tuple(table.shape)
    if len(shape) != 5 or shape[0] != 1 or len(set(shape[1:4])) != 1 or shape[4] % 6 or 0 in shape:
        raise InputError(f"{path}: {prefix}pos_embed must be (1, n, n, n, C), C a multiple of 6, got {shape}")
    error = (table[0].float() - tables.positions(shape[4], shape[1:4])).abs().max()
    if not error <= _TABLE_TOLERANCE:
        raise InputError(f"{path}: {prefix}pos_embed is not the published table of sines: it differs by {error:.2g}")
    return shape[1] * _PATCH


__all__ = ["ComputedTables", "encoder_sizes", "read_nerf_mae", "take_tables"]
