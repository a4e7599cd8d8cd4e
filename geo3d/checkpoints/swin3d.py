"""Swin3D's files: released networks, training runs of the published code and of others built on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.loading import Stored, as_state_dict, count_names
from geo3d.errors import InputError

#: Wrapper of the network whose name stands in front of its parameters'.
_PREFIXES = ("backbone.",)
_QUANT_SIZE = 4
#: Table rows per axis of colours and normals for one bin of a voxel's side.
_CONTEXT_ROWS = 8
# The first step down and the voxel size leave no trace in the weights. S3DIS has 13 classes, and networks of its own.
_S3DIS_CLASSES = 13
_S3DIS = {"first_stride": 2, "voxel_size": 0.04}
_OTHERS = {"first_stride": 3, "voxel_size": 0.02}


def read_swin3d(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors, of their training code or of others built on it holds.

    ``{"state_dict": ...}`` beside epochs, optimizers and scores, or a bare state dict; ``module.`` and ``backbone.`` in
    front of the names, in any order. Sizes, signals, decoder and classes are read off names and shapes.

    Args:
        content: of the file.
        path: its path.
        options: the user's: ``quant_size``, bins along a voxel's side, is taken where the file's tables leave it open
            (networks of positions alone).

    Raises:
        InputError: not a Swin3D network.
    """
    state = as_state_dict(content, path, _PREFIXES)
    return Stored(state, "swin3d", config_from_state(state, path, options.get("quant_size")), stated=False)


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
    blocks = [
        f"layers.{stage}.blocks.0" for stage in range(max(1, count_names(state, "layers.{}.blocks.0.norm1.weight")))
    ]
    depths = [count_names(state, f"layers.{stage}.blocks.{{}}.norm1.weight") for stage in range(len(blocks))]
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
