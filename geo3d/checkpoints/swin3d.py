"""Swin3D's files: released networks, training runs of the published code and of others built on it."""

from __future__ import annotations

import re
import warnings
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
#: Names of a way down that takes the maximum over a coarse voxel's cell (``knn_down=False`` in the published code).
_OF_CELL = re.compile(r"((?:^|\.)downsample\.(norm|linear))\.\2\.")
_OF_ANY = re.compile(r"(?:^|\.)downsample\.(?:norm|linear)\.")
# The first step down and the voxel size leave no trace in the weights. S3DIS has 13 classes, and networks of its own,
# which were released for colours without normals.
_S3DIS_CLASSES, _S3DIS_SIGNALS = 13, "XYZ_RGB"
_S3DIS = {"first_stride": 2, "voxel_size": 0.04}
_OTHERS = {"first_stride": 3, "voxel_size": 0.02}


def read_swin3d(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors, of their training code or of others built on it holds.

    ``{"state_dict": ...}`` beside epochs, optimizers and scores, or a bare state dict; ``module.`` and ``backbone.`` in
    front of the names, in any order. Sizes, signals, decoder, classes and pooling are read off names and shapes.

    Args:
        content: of the file.
        path: its path.
        options: the user's: ``quant_size``, bins along a voxel's side, is taken where the file's tables leave it open
            (networks of positions alone).

    Raises:
        InputError: not a Swin3D network; or names of one ``pooling`` where another is asked for.

    Warns:
        UserWarning: it has the 13 classes of S3DIS, and ``options`` do not tell what its weights do not.
    """
    state, of_cell = _own_names(as_state_dict(content, path, _PREFIXES), path)
    config = config_from_state(state, path, options.get("quant_size"))
    if of_cell:
        config["pooling"] = "cell"
        if options.get("pooling", "cell") != "cell":
            raise InputError(f"{path}: its names are of pooling='cell', not of {options['pooling']!r}")
    untold = [name for name in _OTHERS if options.get(name) is None]
    if config["num_classes"] == _S3DIS_CLASSES and untold:
        taken = ", ".join(f"{name}={config[name]}" for name in untold)
        kind = (
            "taken for those of S3DIS" if config["first_stride"] == _S3DIS["first_stride"] else "not taken for S3DIS's"
        )
        warnings.warn(
            f"{path}: its weights do not tell all of the network: its 13 classes are {kind}, so {taken}; give these "
            "options if it was trained otherwise (the released networks of S3DIS were trained with y up)",
            stacklevel=5,
        )
    return Stored(state, "swin3d", config, stated=False)


def _own_names(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], bool]:
    """The state under the names of our network, and whether its names were of maxima over cells."""
    named = {_OF_CELL.sub(r"\1.", name): value for name, value in state.items()}
    of_cell = [name for name in state if _OF_CELL.search(name)]
    others = [name for name in state if _OF_ANY.search(name) and not _OF_CELL.search(name)]
    if of_cell and others:
        raise InputError(f"{path}: {of_cell[0]} and {others[0]} are of two kinds of networks")
    return named, bool(of_cell)


def config_from_state(state: Mapping[str, Tensor], path: str | Path, quant_size: int | None = None) -> dict[str, Any]:
    """Fields of ``Swin3DConfig``, from published names and shapes.

    The first step down and the voxel size leave no trace in the weights: they are taken to be 2 and 4 cm for the 13
    classes of S3DIS and colours without normals, and 3 and 2 cm for all others, as in the released networks.

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
    classes, signals = shape("classifier.3.weight")[0], "_".join(["XYZ", *(name.upper() for name in seen)])
    return {
        "depths": tuple(depths),
        "channels": tuple(channels),
        "heads": tuple(table[2] for table in xyz),
        "windows": tuple(table[1] // (2 * quant_size) for table in xyz),
        "signals": signals,
        "in_channels": shape(kernel)[1],
        "num_classes": classes,
        "decoder": "linear_attn" if any(name.startswith("upsamples.0.block.") for name in state) else "linear",
        "quant_size": quant_size,
        **(_S3DIS if (classes, signals) == (_S3DIS_CLASSES, _S3DIS_SIGNALS) else _OTHERS),
    }
