"""Swin3D's files: released networks, training runs of the published code and of others built on it, and geo3d's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.loading import as_state_dict, own_state, read_weight_file
from geo3d.errors import InputError

#: Wrappers of the network whose names stand in front of its parameters', in any order.
_PREFIXES = ("module.", "backbone.")
_QUANT_SIZE = 4
#: Table rows per axis of colours and normals for one bin of a voxel's side.
_CONTEXT_ROWS = 8
# The first step down and the voxel size leave no trace in the weights. S3DIS has 13 classes, and networks of its own.
_S3DIS_CLASSES = 13
_S3DIS = {"first_stride": 2, "voxel_size": 0.04}
_OTHERS = {"first_stride": 3, "voxel_size": 0.02}


@dataclass
class Swin3DFile:
    """Weights of a file and the network that they are of.

    Args:
        state: published names -> tensors.
        config: fields of ``Swin3DConfig``.
        detected: whether the config was read off names and shapes, which do not tell everything.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    detected: bool


def read_swin3d_checkpoint(path: str | Path, quant_size: int | None = None) -> Swin3DFile:
    """Read a Swin3D file in any of its layouts.

    ``{"state_dict": ...}`` beside epochs, optimizers and scores, or a bare state dict; ``module.`` and ``backbone.`` in
    front of the names, in any order; or a checkpoint of geo3d's trainer. Sizes, signals, decoder and classes are read
    off names and shapes.

    Args:
        path: the file.
        quant_size: bins along a voxel's side, where the file's tables leave it open (networks of positions alone).

    Raises:
        InputError: damaged, unsafe, or not a Swin3D network.
    """
    file = read_weight_file(path)
    if file.card:
        return Swin3DFile(own_state(file, "swin3d", path), file.card["config"], detected=False)
    content = file.content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    state = _strip(as_state_dict(content, path))
    return Swin3DFile(state, config_from_state(state, path, quant_size), detected=True)


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that all names have."""
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def config_from_state(state: Mapping[str, Tensor], path: str | Path, quant_size: int | None = None) -> dict[str, Any]:
    """Fields of ``Swin3DConfig``, from published names and shapes.

    The first step down and the voxel size leave no trace in the weights: they are taken to be 2 and 4 cm for the 13
    classes of S3DIS, and 3 and 2 cm for all others, as in the released networks.

    Raises:
        InputError: the tensors that tell are missing: not a Swin3D network, or cut down to a part of it.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise InputError(f"{path}: not a whole Swin3D network: it has no {name}")
        return tuple(state[name].shape)

    tables = ".attn.query_{}_table"
    blocks = [f"layers.{stage}.blocks.0" for stage in range(max(1, _count(state, "layers.{}.blocks.0.norm1.weight")))]
    depths = [_count(state, f"layers.{stage}.blocks.{{}}.norm1.weight") for stage in range(len(blocks))]
    channels = [shape(f"{block}.norm1.weight")[0] for block in blocks]
    seen = [name for name in ("rgb", "norm") if blocks[0] + tables.format(name) in state]
    for name in seen:
        quant_size = shape(blocks[0] + tables.format(name))[1] // _CONTEXT_ROWS
    xyz = [shape(block + tables.format("xyz")) for block in blocks]
    kernel, attends = "stem_layer.conv_layers.0.kernel", f"upsamples.{len(blocks) - 1}.block.blocks.0"
    if (residual := "stem_layer.0.conv_layers.0.kernel") in state:  # without attention among the finest voxels
        kernel = residual
        depths, channels = [0, *depths], [shape(kernel)[2], *channels]
        unused = (3, xyz[0][1], 1)
        xyz = [shape(attends + tables.format("xyz")) if f"{attends}.norm1.weight" in state else unused, *xyz]
    quant_size = quant_size or _QUANT_SIZE
    classes = shape("classifier.3.weight")[0]
    return {
        "depths": tuple(depths),
        "channels": tuple(channels),
        "heads": tuple(table[2] for table in xyz),
        "windows": tuple(table[1] // (2 * quant_size) for table in xyz),
        "signals": "_".join(["XYZ", *(name.upper() for name in seen)]),
        "in_channels": shape(kernel)[1],
        "num_classes": classes,
        "decoder": "linear_attn" if any(name.startswith("upsamples.0.block.") for name in state) else "linear",
        "quant_size": quant_size,
        **(_S3DIS if classes == _S3DIS_CLASSES else _OTHERS),
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the names ``pattern`` there are, counted from 0 without a gap."""
    number = 0
    while pattern.format(number) in state:
        number += 1
    return number
